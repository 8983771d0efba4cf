"""The memory of this process that no file backs: what a budget is about, what a kernel limit counts, and its peak.

Resident memory also holds pages of libraries and mapped files, which the kernel drops when it needs room; a streamed
model maps no file, so its own demand is anonymous memory alone.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

from labkit.device import memory


def anonymous_bytes() -> int:
    """Return the resident memory that no file backs; all resident memory where the system does not tell them apart."""
    own = memory.counted("RssAnon")
    return psutil.Process().memory_info().rss if own is None else own


class PeakAnonymous:
    """The largest anonymous memory seen within a block, looked at every few milliseconds by a thread."""

    def __init__(self, every_seconds: float = 0.005) -> None:
        self.bytes = 0
        self._every, self._stop = every_seconds, threading.Event()

    def __enter__(self) -> Self:
        self._stop.clear()
        self.look()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="labkit-peak")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Note what is in use now."""
        self.bytes = max(self.bytes, anonymous_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self.look()
