"""Memory that a process holds on to after it has freed it."""

from __future__ import annotations

import ctypes
import gc


def release() -> None:
    """Hand freed memory back to the system, so that what the process holds next is what it needs next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
