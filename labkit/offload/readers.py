"""Read byte runs of a checkpoint into memory that is already there, in one of three ways, chosen by measuring.

`drop` reads through the page cache and drops the pages behind it, so that neither the cache nor a memory limit grows
with the model. `direct` asks the disk itself (O_DIRECT). `cached` leaves pages in the cache, which is right where the
whole checkpoint fits. Which of the first two is faster depends on disk and kernel, so a short calibration decides.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from labkit.offload.headers import Run

Way = Literal["drop", "direct", "cached"]
WAYS: tuple[Way, ...] = ("drop", "direct", "cached")
REQUEST = 8 << 20
"""Bytes of one request to the kernel."""
PAGE = 4096
ALIGNMENT = 64
"""Bytes that views of weights are aligned to: a kernel may round differently at another alignment."""
CLEARLY_FASTER = 1.1
"""Ratio from which a direct read is preferred: it copies out of a staging buffer, and a trial has noise."""
_CALIBRATION_BYTES = 256 << 20
_IO = Path("/proc/self/io")
_MOST_VECTORS = 512


class ReadError(OSError):
    """A file of weights could not be read to its end; the message names file, place and remedy."""


@dataclass(slots=True)
class Reader:
    """Reads runs into tensors and counts what it read."""

    way: Way = "drop"
    """How files are read."""
    n_bytes: int = 0
    """Bytes delivered so far."""
    seconds: float = 0.0
    """Time spent in requests."""
    _files: dict[Path, int] = field(default_factory=dict)
    _staging: torch.Tensor | None = None

    def read(self, run: Run, targets: Sequence[torch.Tensor]) -> None:
        """Fill uint8 tensors, one for each tensor of a run, with its bytes.

        Raises:
            ReadError: the file is gone, cut, or the disk reports an error.
        """
        began = time.perf_counter()
        try:
            if self.way == "direct":
                self._read_direct(run, targets)
            else:
                self._read_scattered(run, targets)
        except OSError as error:
            if isinstance(error, ReadError):
                raise
            raise ReadError(_unreadable(run, error.strerror or str(error))) from error
        self.n_bytes += run.n_bytes
        self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Close the files and give back the staging buffer."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._staging = None

    def descriptor(self, path: Path) -> int:
        """Open a file the way it is read."""
        if path not in self._files:
            flags = os.O_RDONLY | (os.O_DIRECT if self.way == "direct" else 0)
            self._files[path] = os.open(path, flags)
            if self.way == "drop":
                # Read-ahead of the kernel beyond what is asked for would only be dropped again.
                os.posix_fadvise(self._files[path], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self._files[path]

    def _read_scattered(self, run: Run, targets: Sequence[torch.Tensor]) -> None:
        descriptor, at = self.descriptor(run.file), run.start
        for vectors in _requests(targets):
            wanted = sum(len(vector) for vector in vectors)
            _fill(descriptor, vectors, at, run)
            if self.way == "drop":
                os.posix_fadvise(descriptor, at, wanted, os.POSIX_FADV_DONTNEED)
            at += wanted
        if self.way == "drop":
            # The cache holds pages in groups, and a group across the seam of two requests outlives both of them.
            os.posix_fadvise(descriptor, run.start, run.n_bytes, os.POSIX_FADV_DONTNEED)

    def _read_direct(self, run: Run, targets: Sequence[torch.Tensor]) -> None:
        """Read whole pages into a staging buffer and copy the tensors out of it."""
        if self._staging is None:
            self._staging = page_aligned(REQUEST + PAGE)
        descriptor, staging = self.descriptor(run.file), self._staging.numpy()
        window, pieces = memoryview(staging), _Pieces(targets)
        first, end = run.start - run.start % PAGE, run.start + run.n_bytes
        for at in range(first, end, REQUEST):
            wanted = min(REQUEST, -(-(end - at) // PAGE) * PAGE)
            got = os.preadv(descriptor, [window[:wanted]], at)
            if at + got < min(end, at + wanted):
                raise ReadError(_unreadable(run, f"it ends at byte {at + got}"))
            pieces.take(staging[max(run.start - at, 0) : min(end - at, wanted)])


def page_aligned(n_bytes: int) -> torch.Tensor:
    """Return uninitialised memory that starts on a page, uint8 [n_bytes]."""
    memory = torch.empty(n_bytes + PAGE, dtype=torch.uint8)
    skip = -memory.data_ptr() % PAGE
    return memory[skip : skip + n_bytes]


class _Pieces:
    """Hands consecutive bytes on to consecutive tensors."""

    def __init__(self, targets: Sequence[torch.Tensor]) -> None:
        self._left = [target.numpy() for target in targets if target.numel()]

    def take(self, source: np.ndarray) -> None:
        # By numpy: a copy of torch's would start threads that compete with those that compute.
        while source.size:
            n = min(source.size, self._left[0].size)
            np.copyto(self._left[0][:n], source[:n])
            source, rest = source[n:], self._left[0][n:]
            self._left[:1] = [rest] if rest.size else []


def _requests(targets: Sequence[torch.Tensor]) -> list[list[memoryview]]:
    """Cut the memory of consecutive tensors into requests of at most `REQUEST` bytes."""
    requests: list[list[memoryview]] = [[]]
    room = REQUEST
    for target in targets:
        view = memoryview(target.numpy())
        while len(view):
            if not room or len(requests[-1]) == _MOST_VECTORS:
                requests.append([])
                room = REQUEST
            requests[-1].append(view[:room])
            taken, view = min(room, len(view)), view[room:]
            room -= taken
    return [request for request in requests if request]


def _fill(descriptor: int, vectors: list[memoryview], at: int, run: Run) -> None:
    """Read until every vector is full: the kernel may deliver less than was asked for."""
    while vectors:
        got = os.preadv(descriptor, vectors, at)
        if not got:
            raise ReadError(_unreadable(run, f"it ends at byte {at}"))
        at += got
        while vectors and got >= len(vectors[0]):
            got -= len(vectors.pop(0))
        if got:
            vectors[0] = vectors[0][got:]


def _unreadable(run: Run, why: str) -> str:
    place = f"bytes {run.start} to {run.start + run.n_bytes}"
    return f"{run.file}: {place} ({run.names[0]} and what follows) could not be read: {why}; fetch the file again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Which way of reading is faster here, by trial."""

    way: Way
    """The chosen one."""
    bytes_per_second: Mapping[str, float]
    """Measured rate of each way that works, with a cold cache."""
    refused: Mapping[str, str]
    """Why a way does not work here."""


def calibrate(files: Sequence[Path], seconds: float = 1.0) -> Calibration:
    """Read the start of the largest file in both cold ways for about half a second each.

    Args:
        files: the checkpoint's files.
        seconds: time to spend.
    """
    largest = max(files, key=lambda path: path.stat().st_size)
    n_bytes = min(_CALIBRATION_BYTES, largest.stat().st_size)
    rates, refused = {}, {}
    buffer = page_aligned(min(REQUEST, n_bytes))
    for way in ("drop", "direct"):
        try:
            rates[way] = _rate(largest, n_bytes, way, buffer, seconds / 2)
        except ReadError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EINVAL:
                raise
            refused[way] = f"the file system of {largest} does not take {way} reads"
    direct = rates.get("direct", 0.0) > CLEARLY_FASTER * rates["drop"]
    return Calibration(way="direct" if direct else "drop", bytes_per_second=rates, refused=refused)


def _rate(path: Path, n_bytes: int, way: Way, buffer: torch.Tensor, seconds: float) -> float:
    reader, at = Reader(way), 0
    # Not by labkit.device.pagecache, which maps the file to look at the result: a limit on private memory forbids that.
    os.posix_fadvise(reader.descriptor(path), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    while at < n_bytes and time.perf_counter() - began < seconds:
        length = min(buffer.numel(), n_bytes - at)
        reader.read(Run(file=path, start=at, names=("calibration",), n_bytes=length), [buffer[:length]])
        at += length
    rate = at / (time.perf_counter() - began)
    reader.close()
    return rate


def disk_bytes_read() -> int:
    """Return what the process has read from disks so far, by the kernel's own count; 0 where there is none."""
    lines = _IO.read_text().splitlines() if _IO.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)
