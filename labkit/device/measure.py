"""What a block of work took in memory, and the measured ceilings of the machine: copy bandwidth and matrix products."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from labkit.base.units import MIB
from labkit.device import memory

from .here import require


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process since it started or since `reset_peak_rss`."""
    if (counted := memory.counted("VmHWM")) is not None:
        return counted
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Start the peak of resident memory anew; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@dataclass(kw_only=True, slots=True, eq=False)
class PeakMemory:
    """The largest memory reached in a block; `bytes` is final when the block ends."""

    device: str
    """Resident memory of this process ("cpu") or memory allocated by torch ("cuda")."""
    start_bytes: int
    """Memory in use when the block began."""
    isolated: bool
    """False where the peak cannot be reset: `bytes` may then come from before the block."""
    bytes: int = 0
    """The peak, what was in use before included."""

    @property
    def added_bytes(self) -> int:
        """The peak above what was in use when the block began."""
        return self.bytes - self.start_bytes


_open_peaks: list[PeakMemory] = []


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[PeakMemory]:
    """Measure the peak memory of a block: `with peak_memory("cpu") as peak: ...`, then `peak.bytes`. Blocks may nest.

    Raises:
        MissingDevice: the device is not here.
    """
    require(device)
    _note_peak(device)
    start_bytes, isolated = _start_peak(device)
    peak = PeakMemory(device=device, start_bytes=start_bytes, isolated=isolated)
    _open_peaks.append(peak)
    try:
        yield peak
    finally:
        _note_peak(device)
        _open_peaks.remove(peak)


def _start_peak(device: str) -> tuple[int, bool]:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), True
    return psutil.Process().memory_info().rss, reset_peak_rss()


def _note_peak(device: str) -> None:
    """Hand the peak so far to every open block, because an inner block is about to reset it."""
    reached = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss_bytes()
    for peak in _open_peaks:
        if peak.device == device:
            peak.bytes = max(peak.bytes, reached)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """A measured upper limit of this machine."""

    name: str
    """What was measured, with its sizes."""
    unit: str
    """Unit of the samples."""
    samples: tuple[float, ...]
    """One rate per repeat, in the order measured."""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


def copy_bandwidth(
    n_bytes: int = 128 * MIB,
    repeats: int = 5,
    *,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Ceiling:
    """Measure how fast a tensor of n_bytes is copied within a device's memory, in bytes/s.

    Bytes read and bytes written both count, as in the STREAM benchmark: one copy moves 2 n_bytes.
    """
    where = require(device)
    source = torch.ones(n_bytes, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    samples = _rates(lambda: target.copy_(source), 2 * n_bytes, repeats, where, clock)
    return Ceiling(name=f"copy of {n_bytes} bytes on {device}", unit="bytes/s", samples=samples)


def gemm_flops(
    dtype: torch.dtype = torch.float32,
    rows: int = 512,
    cols: int = 2048,
    repeats: int = 5,
    *,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Ceiling:
    """Measure the product [rows, cols] x [cols, cols] in FLOP/s, at 2 rows cols^2 FLOPs (a multiply-add is two)."""
    where = require(device)
    x, weight = (torch.ones(n, cols, dtype=dtype, device=where) for n in (rows, cols))
    samples = _rates(lambda: x @ weight, 2 * rows * cols**2, repeats, where, clock)
    return Ceiling(name=f"{dtype} GEMM {rows} x {cols} x {cols} on {device}", unit="FLOP/s", samples=samples)


def _rates(
    work: Callable[[], object], amount: int, repeats: int, device: torch.device, clock: Callable[[], float]
) -> tuple[float, ...]:
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least 1 is needed")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    seconds = []
    for _ in range(repeats):
        wait()
        start = clock()
        work()
        wait()
        seconds.append(clock() - start)
    return tuple(amount / taken for taken in seconds)
