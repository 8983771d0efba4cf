"""The page cache: files dropped from it, and how much of them it holds, read back page by page."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

MOST_RESIDENT = 0.02
"""Share of a file's pages that may be left in the cache for a read to count as cold."""


def drop_pages(files: Sequence[Path]) -> str:
    """Ask the kernel to drop files from the page cache; return why it did not, empty where it did."""
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = resident_share(files)
    if left is None:
        return "this system cannot say whether pages lie in the cache (no mincore)"
    return "" if left <= MOST_RESIDENT else f"the kernel kept {left:.0%} of the files' pages in the cache"


def resident_share(files: Sequence[Path]) -> float | None:
    """Return the share of the files' pages in the page cache, by mincore(2); None where there is no such call."""
    mincore = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    if mincore is None:
        return None
    here = total = 0
    for path in files:
        if not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
            n_pages = -(-len(mapped) // mmap.PAGESIZE)
            found = (ctypes.c_ubyte * n_pages)()
            address = (ctypes.c_char * len(mapped)).from_buffer(mapped)
            failed = mincore(ctypes.byref(address), ctypes.c_size_t(len(mapped)), found)
            del address
            if failed:
                return None
            here, total = here + sum(page & 1 for page in found), total + n_pages
    return here / total if total else None
