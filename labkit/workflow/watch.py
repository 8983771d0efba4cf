"""Show the run of a notebook where `labkit run` was typed: its cells, and the long work inside one.

The kernel writes a heartbeat and papermill the notebook as far as it has come; both are files, and looking at them
costs the run nothing. In a terminal they become a bar, in a log a line every ten seconds while something happens.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.base import paths
from labkit.base.units import format_seconds
from labkit.progress import Heartbeat, describe, is_alive, read_heartbeat
from labkit.progress.faces import Bar

_LINE_SECONDS, _BAR_SECONDS = 10.0, 1.0


def in_terminal() -> bool:
    """Say whether somebody sees bars move."""
    return sys.stderr.isatty()


@contextmanager
def watch(report: str, executed: Path, heartbeat: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Show progress during the block.

    Args:
        report: which report.
        executed: the notebook under way, which papermill writes after each cell.
        heartbeat: what the kernel writes.
        say: receives the lines where there is no terminal.
    """
    over = threading.Event()
    show, seconds = (_bars, _BAR_SECONDS) if in_terminal() else (_lines, _LINE_SECONDS)

    def beats() -> Iterator[Heartbeat | None]:
        while not over.wait(seconds):
            yield read_heartbeat(heartbeat)

    thread = threading.Thread(target=show, args=(beats(), report, executed, say), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lines(beats: Iterator[Heartbeat | None], report: str, executed: Path, say: Callable[[str], None]) -> None:
    last = None
    for beat in beats:
        if beat is not None and (beat.done, beat.message) != last:
            last = beat.done, beat.message
            say(f"  {describe(beat)}")


def _bars(beats: Iterator[Heartbeat | None], report: str, executed: Path, say: Callable[[str], None]) -> None:
    bar = Bar(sys.stderr)
    bar.start(0, 0, report)
    started = total = 0
    for beat in beats:
        started, total = cells(executed)
        stage = "" if beat is None else f" | {describe(beat)}"
        bar.update(max(started - 1, 0), total, f"{report}, cell {started}/{total}{stage}")
    bar.stop(started, total, f"{report}, cell {started}/{total}")


def cells(executed: Path) -> tuple[int, int]:
    """Return how many code cells of a notebook under way have begun, and how many it has."""
    try:
        written = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (FileNotFoundError, ValueError):
        return 0, 0  # not written yet, or being written
    found = [cell for cell in written if cell["cell_type"] == "code"]
    return sum(bool(cell["metadata"].get("papermill", {}).get("start_time")) for cell in found), len(found)


def at_work(hardware: str, report: str) -> str:
    """Say how far a report is that is being run, or where it stopped; nothing if it has come to its end.

    Raises:
        ValueError: the heartbeat file is something else.
    """
    beat = read_heartbeat(paths.runs(hardware, report) / "heartbeat.json")
    if beat is None:
        return ""
    alive, ago = is_alive(beat), format_seconds(max(time.time() - beat.time, 0.0))
    if alive and beat.done < beat.total:
        return f"running, {ago} ago: {describe(beat)}"
    if beat.done < beat.total:
        return f"stopped {ago} ago at {describe(beat)}; `labkit run {report} --hw {hardware}` goes on from there"
    return ""
