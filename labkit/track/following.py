"""Follow a run: what it measures goes to a tracker while it goes on.

If the tracker raises, forwarding ends; if it hangs, the run ends without it. In both cases the run goes on, the lines
are kept, and one sentence says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit import metrics
from labkit.base import paths
from labkit.track.child import Child
from labkit.track.forwarder import Forwarder, Outcome
from labkit.track.trackers import NO_TRACKER, Opener, opener

DRAIN_SECONDS = 20.0
"""Longest wait for a tracker at the end of a run."""


class Following:
    """A run that is followed, or one that is not."""

    def __init__(self, forwarder: Child | Forwarder | None = None) -> None:
        self._forwarder = forwarder

    def figures(self, folder: Path) -> None:
        """Hand the pictures and numbers of a published folder over when all lines are sent."""
        if self._forwarder is not None:
            self._forwarder.figures(folder)


def choose(asked: str | None, otherwise: str | None = None) -> str | None:
    """Return the tracker that was asked for, else the profile's; None to follow the run by none.

    Raises:
        ValueError: unknown name, or its package is not installed.
    """
    chosen = otherwise if asked is None else asked
    if chosen is None or chosen == NO_TRACKER:
        return None
    opener(chosen)
    return chosen


@contextlib.contextmanager
def follow(
    tracker: str | Opener | None,
    report: str,
    hardware: str,
    say: Callable[[str], None] = print,
    *,
    drain_seconds: float = DRAIN_SECONDS,
) -> Iterator[Following]:
    """Send what is measured inside the block, by this process and those it starts, to a tracker.

    Args:
        tracker: "aim" or "tensorboard", which run in an idle process of their own; a function that opens a tracker of
            yours, which runs in a thread; None for none.
        report: name of what is run, under which the board groups runs.
        hardware: name of the profile or machine.
        say: receives the sentence at the end.
        drain_seconds: longest wait for the tracker at the end.

    Yields:
        what takes published figures.

    Raises:
        ValueError: unknown tracker, or its package is not installed.
    """
    if tracker is None or tracker == NO_TRACKER:
        yield Following()
        return
    path = (paths.runs(hardware, report) / "metrics.jsonl").resolve()
    forwarder = _forwarder(tracker, path, report, hardware)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    forwarder.start()
    before = os.environ.get(metrics.VARIABLE)
    os.environ[metrics.VARIABLE] = str(path)
    try:
        yield Following(forwarder)
    finally:
        _restore(before)
        outcome = forwarder.drain(drain_seconds)
        say(_sentence(tracker if isinstance(tracker, str) else "the tracker", outcome, drain_seconds, path))


def _forwarder(tracker: str | Opener, path: Path, report: str, hardware: str) -> Child | Forwarder:
    if not isinstance(tracker, str):
        return Forwarder(path, lambda: tracker(report, hardware))
    opener(tracker)
    return Child(path, tracker, report, hardware)


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(metrics.VARIABLE, None)
    else:
        os.environ[metrics.VARIABLE] = before


def _sentence(tracker: str, outcome: Outcome | None, seconds: float, path: Path) -> str:
    """Say what was sent, or why not."""
    kept = f"what was measured is in {path}"
    if outcome is None:
        return f"NOT TRACKED  {tracker} was not done after {seconds:g} s of waiting at the end; {kept}"
    if outcome.failure:
        return f"NOT TRACKED  {tracker} failed after {outcome.sent} lines: {outcome.failure}; {kept}"
    cut = f", {outcome.damaged} more were damaged" if outcome.damaged else ""
    return f"{tracker} took {outcome.sent} lines{cut}; they are kept in {path}"
