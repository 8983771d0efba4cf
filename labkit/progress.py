"""Progress of long work, shown where somebody is looking.

In a terminal it is a bar; anywhere else (a log, papermill, CI) it is a plain line every few seconds, because a bar that
redraws itself floods a log. A heartbeat file tells a parent process the same.

    LABKIT_HEARTBEAT   file that every Progress of this process writes, unless it is given one
    LABKIT_HEADLESS=1  plain lines, also in a terminal
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from labkit.files import write_atomically
from labkit.units import format_seconds

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


class _Display(Protocol):
    def start(self, beat: Heartbeat) -> None: ...
    def update(self, beat: Heartbeat) -> None: ...
    def stop(self, beat: Heartbeat) -> None: ...


class Progress:
    """Follow `total` items of work: a context manager with `advance` for work done and `skip` for items already there.

    The estimate of the time left comes from the items worked on: cached ones cost nothing and count for nothing. When
    the block raises, the last line and the heartbeat name the exception.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        heartbeat: Path | None = None,
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to follow `total` items; nothing is shown before the block is entered.

        Args:
            total: number of items.
            label: what is being done.
            heartbeat: file to keep up to date, by default the one that LABKIT_HEARTBEAT names.
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
        self._display = _choose_display(stream or sys.stderr, every_seconds, clock)
        self._label, self._total, self._clock = label, total, clock
        self._done = self._worked = 0
        self._message = ""
        self._work_started = self._written = clock()

    def __enter__(self) -> Self:
        self._work_started = self._clock()
        self._display.start(self._write(self._beat()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        beat = self._beat()
        if kind is not None:
            first_line = str(error).partition("\n")[0]
            beat = replace(beat, eta_seconds=None, message=f"stopped by {kind.__name__}: {first_line}")
        self._display.stop(self._write(beat))

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
        self._message = message or self._message
        beat = self._beat()
        if self._clock() - self._written >= HEARTBEAT_SECONDS:
            self._write(beat)
        self._display.update(beat)

    def _beat(self) -> Heartbeat:
        return Heartbeat(
            label=self._label,
            done=self._done,
            total=self._total,
            eta_seconds=self.eta_seconds(),
            message=self._message,
            time=time.time(),
            pid=os.getpid(),
        )

    def _write(self, beat: Heartbeat) -> Heartbeat:
        self._written = self._clock()
        if self._heartbeat is not None:
            write_atomically(self._heartbeat, json.dumps(asdict(beat)).encode())
        return beat


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
    """Write a heartbeat as one line: "grid: 3/16 (19 %), about 4 min 05 s left, d64_l4"."""
    share = f"{beat.label}: {beat.done}/{beat.total}" + (f" ({beat.done / beat.total:.0%})" if beat.total else "")
    return ", ".join(part for part in (share, _time_left(beat), beat.message) if part)


def _time_left(beat: Heartbeat) -> str:
    if beat.eta_seconds is None or beat.done >= beat.total:
        return ""
    return f"about {format_seconds(beat.eta_seconds)} left"


def _choose_display(stream: TextIO, every_seconds: float, clock: Callable[[], float]) -> _Display:
    if stream.isatty() and os.environ.get("LABKIT_HEADLESS") != "1":
        return _Bar(stream)
    return _Lines(stream, every_seconds, clock)


class _Lines:
    """Plain lines: the first, the last, and between them at most one per period."""

    def __init__(self, stream: TextIO, every_seconds: float, clock: Callable[[], float]) -> None:
        self._stream, self._every_seconds, self._clock = stream, every_seconds, clock
        self._started = self._printed = clock()

    def start(self, beat: Heartbeat) -> None:
        self._started = self._clock()
        self._print(describe(beat))

    def update(self, beat: Heartbeat) -> None:
        if self._clock() - self._printed >= self._every_seconds:
            self._print(describe(beat))

    def stop(self, beat: Heartbeat) -> None:
        self._print(f"{describe(beat)}, after {format_seconds(self._clock() - self._started)}")

    def _print(self, line: str) -> None:
        self._printed = self._clock()
        print(line, file=self._stream, flush=True)


class _Bar:
    """A bar that redraws itself in a terminal."""

    def __init__(self, stream: TextIO) -> None:
        text = TextColumn("{task.description}", markup=False)
        self._bar = RichProgress(BarColumn(), text, console=Console(file=stream))

    def start(self, beat: Heartbeat) -> None:
        self._bar.start()
        self._row = self._bar.add_task(describe(beat), total=beat.total, completed=beat.done)

    def update(self, beat: Heartbeat) -> None:
        self._bar.update(self._row, completed=beat.done, total=beat.total, description=describe(beat))

    def stop(self, beat: Heartbeat) -> None:
        self.update(beat)
        self._bar.stop()
