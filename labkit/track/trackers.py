"""What a tracker is, and how one is opened by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from labkit.base import paths

TRACKERS = ("aim", "tensorboard")
"""Trackers that a run can be followed by; the names are those of transformers' `report_to`."""
NO_TRACKER = "none"


class Tracker(Protocol):
    """Where lines go; its methods are called by one thread, and what they are given is cleared of sensitive values."""

    def begin(self, run: str, about: Mapping[str, Any]) -> None:
        """Open a run of this name; one of the same name that is open ends.

        Args:
            run: its name.
            about: its settings.
        """

    def step(self, line: Step) -> None:
        """Take a step of a run that was begun."""

    def figures(self, folder: Path) -> None:
        """Take the pictures and numbers of a published folder."""

    def close(self) -> None:
        """End all runs and let go of all files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step of a run measured."""

    run: str
    """Name of the run."""
    step: int
    """Number of the step."""
    time: float
    """When it was measured, in seconds since 1970."""
    numbers: Mapping[str, float]
    """What was measured."""
    words: Mapping[str, str]
    """What the numbers belong to, such as the phase."""
    adapters: Mapping[str, float]
    """Norm of the gradient of each adapter, by its name."""


Opener = Callable[[str, str], Tracker]
"""Opens a tracker from the names of a report and a hardware profile."""


def opener(tracker: str) -> Opener:
    """Return what opens a tracker.

    Raises:
        ValueError: unknown name, or its package is not installed.
    """
    if tracker not in TRACKERS:
        raise ValueError(f"unknown tracker {tracker!r}; valid: {', '.join((*TRACKERS, NO_TRACKER))}")
    if importlib.util.find_spec(tracker) is None:
        raise ValueError(
            f"the tracker {tracker} is not installed; run `pip install -e .[track]` in the clone, or go without --track"
        )
    return _open_aim if tracker == "aim" else _open_tensorboard


def _open_aim(report: str, hardware: str) -> Tracker:
    from labkit.track.aim_board import AimBoard

    return AimBoard(paths.output_root() / "runs" / "aim", report, hardware)


def _open_tensorboard(report: str, hardware: str) -> Tracker:
    from labkit.track.event_files import EventFiles

    return EventFiles(paths.output_root() / "runs" / "tensorboard", report, hardware)
