"""Hand lines to a tracker as they are written, until there will be no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.track import private
from labkit.track.lines import Lines
from labkit.track.trackers import Step, Tracker

NORMS_SECONDS = 5.0
"""Least time between two steps of a run whose adapters' norms go to a tracker. Each is a curve of its own, and AIM
takes 14 ms for the few hundred of a large model; the file has those of every step."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How forwarding went."""

    sent: int
    """Lines that the tracker has taken."""
    damaged: int
    """Lines that could not be read: a full disk cuts them short."""
    failure: str | None
    """What the tracker raised."""


class Forwarder(threading.Thread):
    """Forwards in a thread of its own: if the tracker raises, the thread ends; if it hangs, it is left behind."""

    def __init__(self, path: Path, opens: Callable[[], Tracker]) -> None:
        """Take the lines' file and what opens the tracker."""
        super().__init__(name="labkit forwarder", daemon=True)
        self._opens, self._lines = opens, Lines(path)
        self._over, self._given_up = threading.Event(), threading.Event()
        self._begun: set[str] = set()
        self._clear: dict[str, str] = {}
        self._norms_from: dict[str, float] = {}
        self._folders: list[Path] = []
        self._sent, self._failure = 0, None

    def run(self) -> None:
        """Open the tracker and forward."""
        try:
            tracker = self._opens()
            try:
                self._forward(tracker)
            finally:
                tracker.close()
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}".partition("\n")[0]

    def figures(self, folder: Path) -> None:
        """Hand a published folder over when all lines are sent."""
        self._folders.append(folder)

    def finish(self) -> None:
        """Announce that there will be no more lines."""
        self._over.set()

    def drain(self, seconds: float) -> Outcome | None:
        """Wait until all is sent; None if that took longer than this, and then no further line is sent."""
        self.finish()
        self.join(seconds)
        self._given_up.set()
        return None if self.is_alive() else self.outcome()

    def outcome(self) -> Outcome:
        """Return how it went so far."""
        return Outcome(sent=self._sent, damaged=self._lines.damaged, failure=self._failure)

    def _forward(self, tracker: Tracker) -> None:
        while not self._given_up.is_set():
            # Read before the lines: what was written before the end is sent, too.
            last = self._over.is_set()
            for line in self._lines.new():
                if self._given_up.is_set():
                    return
                self._hand_over(tracker, line)
                self._sent += 1
            if last:
                break
            self._over.wait(_LOOK_SECONDS)
        for folder in self._folders:
            tracker.figures(folder)

    def _hand_over(self, tracker: Tracker, line: dict[str, Any]) -> None:
        run = self._cleared(line["run"])
        if "about" in line or run not in self._begun:
            self._begun.add(run)
            tracker.begin(run, private.settings(line.get("about", {})))
        if "step" in line:
            tracker.step(self._step(run, line))

    def _step(self, run: str, line: dict[str, Any]) -> Step:
        values = line["values"]
        return Step(
            run=run,
            step=line["step"],
            time=line["time"],
            numbers={self._cleared(name): float(value) for name, value in values.items() if not isinstance(value, str)},
            words=private.words(values),
            adapters=self._norms(run, line),
        )

    def _norms(self, run: str, line: dict[str, Any]) -> dict[str, float]:
        """Return the norms of a line's adapters, nothing if a line with some went over shortly before."""
        if "adapters" not in line or line["time"] < self._norms_from.get(run, 0.0):
            return {}
        self._norms_from[run] = line["time"] + NORMS_SECONDS
        return {self._adapter(name): norm for name, norm in line["adapters"].items()}

    def _adapter(self, name: str) -> str:
        """Return an adapter's name without what PEFT puts around every one."""
        return self._cleared(name).removeprefix("base_model.model.").removesuffix(".default.weight")

    def _cleared(self, name: str) -> str:
        """Return a name cleared of sensitive parts; the same few hundred come with every line."""
        if name not in self._clear:
            self._clear[name] = private.text(name)
        return self._clear[name]
