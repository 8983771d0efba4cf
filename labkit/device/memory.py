"""Memory of this process: what the kernel counts of it, and what it holds on to after it has freed it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")


def counted(name: str) -> int | None:
    """Return a count of /proc/self/status in bytes, such as "RssAnon"; None where the system has none of the name."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def release() -> None:
    """Hand freed memory back to the system, so that what the process holds next is what it needs next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
