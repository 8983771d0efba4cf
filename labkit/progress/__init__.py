"""Progress of long work, shown where somebody is looking.

In JupyterLab it is a widget, in a terminal a bar, anywhere else (a log, papermill, CI) a plain line every few seconds
(`labkit.progress.faces`). A heartbeat file tells other processes the same: `labkit run` and `labkit status` read it.

    LABKIT_HEARTBEAT   file that every Progress of this process writes, unless it is given one
    LABKIT_HEADLESS=1  plain lines, also in a terminal or a notebook
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

import psutil

from labkit.base import paths
from labkit.base.files import write_atomically
from labkit.base.modes import rendering
from labkit.base.units import format_bytes, format_seconds
from labkit.progress import faces

HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """One moment of a piece of work."""

    label: str
    """What is being done."""
    done: int
    """Items finished, those taken from a cache included."""
    total: int
    """Items in all."""
    eta_seconds: float | None
    """Estimated time left; None before the first item was worked on."""
    message: str
    """The latest remark, such as the name of the item just finished."""
    time: float
    """When this was written, in seconds since 1970."""
    pid: int
    """The process at work, so that a reader can tell a slow one from a dead one."""
    memory_bytes: int
    """Resident memory of that process and its children."""


class Stopped(KeyboardInterrupt):
    """Work that was interrupted and goes on where it was when it is run again: a notebook shows this one line."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython what to show; where the work was when somebody pressed stop says nothing."""
        return [str(self)]


class Progress:
    """Follow `total` items of work: a context manager with `advance` for work done and `skip` for items already there.

    The estimate of the time left comes from the items worked on: cached ones cost nothing and count for nothing. When
    the block raises, the last line and the heartbeat name the exception. A block of resumable work that is interrupted
    ends in `Stopped`.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        heartbeat: Path | None = None,
        resumable: bool = False,
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to follow `total` items; nothing is shown before the block is entered.

        Args:
            total: number of items.
            label: what is being done.
            heartbeat: file to keep up to date, by default the one that LABKIT_HEARTBEAT names.
            resumable: whether finished items are kept, so that who interrupts the work is told how to go on.
            every_seconds: least time between two plain lines.
            stream: where to show it, by default stderr.
            clock: seconds from any fixed start.

        Raises:
            ValueError: a negative total or period.
        """
        if total < 0 or every_seconds < 0:
            raise ValueError(f"{label}: total is {total} and every_seconds {every_seconds}; both are at least 0")
        named = os.environ.get("LABKIT_HEARTBEAT")
        self._heartbeat = heartbeat or (Path(named) if named else None)
        self._face = faces.choose(stream or sys.stderr, every_seconds, clock)
        self._label, self._total, self._clock, self._resumable = label, total, clock, resumable
        self._done = self._worked = 0
        self._message = ""
        self._begun = self._work_started = self._written = self._weighed = clock()
        self._memory_bytes = resident_bytes()
        self._writing = threading.Lock()
        self._waiting: Heartbeat | None = None

    def __enter__(self) -> Self:
        self._begun = self._work_started = self._clock()
        beat = self._write(self._beat())
        self._face.start(beat.done, beat.total, describe(beat))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        beat = self._beat()
        if kind is not None:
            beat = replace(beat, eta_seconds=None, message=_why_stopped(kind, error, self._resumable))
        beat = self._write(beat)
        self._face.stop(beat.done, beat.total, f"{describe(beat)}, after {format_seconds(self._clock() - self._begun)}")
        if self._resumable and isinstance(error, KeyboardInterrupt):
            raise Stopped(f"stopped: {beat.done} of {beat.total} are kept, run it again to go on") from None

    def advance(self, n: int = 1, message: str = "") -> None:
        """Count n items as worked on, with a remark to show beside them."""
        self._worked += n
        self._count(n, message)

    def skip(self, n: int = 1, message: str = "") -> None:
        """Count n items as already there."""
        if not self._worked:
            # Looking through a cache comes before the work, and its time would pass for slow work.
            self._work_started = self._clock()
        self._count(n, message)

    def note(self, message: str) -> None:
        """Show a remark on the item under way, such as its loss, and count nothing."""
        self._count(0, message)

    def extend(self, n: int) -> None:
        """Add n items that the work turned out to need."""
        self._total += n

    def eta_seconds(self) -> float | None:
        """Estimate the time left in seconds from the items worked on; None before the first one."""
        if not self._worked:
            return None
        seconds_per_item = (self._clock() - self._work_started) / self._worked
        return max(self._total - self._done, 0) * seconds_per_item

    def _count(self, n: int, message: str) -> None:
        self._done += n
        self._total = max(self._total, self._done)  # what is chosen on the way may ask for more than was planned
        self._message = message or self._message
        beat = self._beat()
        if self._clock() - self._written >= HEARTBEAT_SECONDS:
            self._write(beat)
        else:
            self._write_later(beat)
        self._face.update(beat.done, beat.total, describe(beat))

    def _beat(self) -> Heartbeat:
        if self._clock() - self._weighed >= HEARTBEAT_SECONDS:
            self._weighed, self._memory_bytes = self._clock(), resident_bytes()
        return Heartbeat(
            label=self._label,
            done=self._done,
            total=self._total,
            eta_seconds=self.eta_seconds(),
            message=self._message,
            time=time.time(),
            pid=os.getpid(),
            memory_bytes=self._memory_bytes,
        )

    def _write(self, beat: Heartbeat) -> Heartbeat:
        """Write a heartbeat now, and no older one later."""
        with self._writing:
            self._written, self._waiting = self._clock(), None
            if self._heartbeat is not None:
                write_atomically(self._heartbeat, json.dumps(asdict(beat)).encode())
        return beat

    def _write_later(self, beat: Heartbeat) -> None:
        """Keep a heartbeat that came too soon after the last one: a long item may follow it."""
        if self._waiting is None and self._heartbeat is not None:
            timer = threading.Timer(HEARTBEAT_SECONDS, self._write_waiting)
            timer.daemon = True
            timer.start()
        self._waiting = beat

    def _write_waiting(self) -> None:
        with self._writing:
            beat, self._waiting = self._waiting, None
            if beat is not None:
                write_atomically(self._heartbeat, json.dumps(asdict(beat)).encode())


def read_heartbeat(path: Path) -> Heartbeat | None:
    """Return the latest heartbeat in a file, None while there is none.

    Raises:
        ValueError: the file is not a heartbeat.
    """
    try:
        return Heartbeat(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a heartbeat file: {error}") from error


def describe(beat: Heartbeat) -> str:
    """Write a heartbeat as one line: "grid: 3/16 (19%), about 4 min 05 s left, 1.2 GiB, d64_l4"."""
    share = f"{beat.label}: {beat.done}/{beat.total}" + (f" ({beat.done / beat.total:.0%})" if beat.total else "")
    return ", ".join(part for part in (share, _time_left(beat), format_bytes(beat.memory_bytes), beat.message) if part)


def of_study(total: int, label: str, hardware: str, report: str) -> Progress:
    """Return the progress of a report's cells, which are kept as they finish; `labkit status` reads its heartbeat.

    Where nothing may run there is nothing to tell, and a run under way elsewhere keeps its own heartbeat.
    """
    if rendering():
        return Progress(total, label, stream=io.StringIO())
    heartbeat = paths.runs(hardware, report) / "heartbeat.json"
    return Progress(total, label, heartbeat=heartbeat, resumable=True)


def is_alive(beat: Heartbeat) -> bool:
    """Say whether the process that wrote a heartbeat is still there; a later one with its number does not count."""
    try:
        return psutil.Process(beat.pid).create_time() <= beat.time
    except psutil.Error:
        return False


def resident_bytes() -> int:
    """Return the resident memory of this process and its children; what they share is counted in each."""
    own = psutil.Process()
    return sum(_resident(process) for process in (own, *own.children(recursive=True)))


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0  # it has ended meanwhile


def _why_stopped(kind: type[BaseException], error: BaseException | None, resumable: bool) -> str:
    if issubclass(kind, KeyboardInterrupt):
        return "interrupted" + ("; what is finished is kept, run it again to go on" if resumable else "")
    first_line = str(error).partition("\n")[0]
    return f"stopped by {kind.__name__}: {first_line}"


def _time_left(beat: Heartbeat) -> str:
    if beat.eta_seconds is None or beat.done >= beat.total:
        return ""
    return f"about {format_seconds(beat.eta_seconds)} left"
