"""Forward in a process of its own, which runs only when nothing else wants the processors.

A thread would share the interpreter with what is followed: of the lowest priority it keeps the interpreter's lock while
it waits for a processor, and everything else waits with it.

Run as `python -m labkit.track.child TRACKER REPORT PROFILE FILE`; it reads the names of published folders from its
input, where an empty line or the end is the end of the run, and prints how it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil

from labkit.track.forwarder import Forwarder, Outcome
from labkit.track.trackers import opener

_LOWEST_PRIORITY = 19
_END = "\n"


class Child:
    """The parent's side."""

    def __init__(self, path: Path, tracker: str, report: str, hardware: str) -> None:
        """Take the lines' file and what is followed by which tracker."""
        self._command = [sys.executable, "-m", __name__, tracker, report, hardware, str(path)]

    def start(self) -> None:
        """Start the process; what interrupts the run does not interrupt it."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def figures(self, folder: Path) -> None:
        """Hand a published folder over when all lines are sent."""
        self._write(f"{folder}\n")

    def drain(self, seconds: float) -> Outcome | None:
        """Wait until all is sent; None if that took longer than this, and then the process is killed."""
        # Said in so many words: a process that was forked meanwhile holds the pipe open, too.
        self._write(_END)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdin = None
        with contextlib.suppress(OSError, AttributeError, psutil.Error):
            # The run is over and somebody waits: now it may have a processor.
            for thread in psutil.Process(self._process.pid).threads():
                os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))
        try:
            told, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        if self._process.returncode:
            return Outcome(sent=0, damaged=0, failure=f"its process ended with code {self._process.returncode}")
        return Outcome(**json.loads(told.splitlines()[-1]))

    def _write(self, line: str) -> None:
        """Tell the process something, if it is still there."""
        with contextlib.suppress(OSError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


def main() -> None:
    """Be the child."""
    lower_priority()
    tracker, report, hardware, path = sys.argv[1:]
    forwarder = Forwarder(Path(path), lambda: opener(tracker)(report, hardware))
    forwarder.start()
    for line in iter(sys.stdin.readline, ""):
        if line == _END:
            break
        forwarder.figures(Path(line.rstrip("\n")))
    forwarder.finish()
    forwarder.join()
    print(json.dumps(asdict(forwarder.outcome())))


def lower_priority() -> None:
    """Let everything else go first; the threads of this process inherit it.

    On Linux whoever wakes up preempts an idle process at once; one of merely low priority would keep its slice.
    """
    with contextlib.suppress(OSError):
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, 0, _LOWEST_PRIORITY)


if __name__ == "__main__":
    main()
