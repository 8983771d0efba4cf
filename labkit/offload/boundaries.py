"""What goes into each layer, kept from the forward pass for the way back: in memory, or in a file.

The file is written layer by layer on the way up and read in reverse on the way down, and its pages are dropped behind:
it never counts against a limit on memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from labkit.base.files import disk_errors
from labkit.offload.readers import ALIGNMENT


class Block:
    """One piece of memory for many tensors, kept for the next time they are asked for.

    What lives long lies here, apart from what a layer makes and frees: among those, it would keep an allocator from
    joining the gaps, and memory would grow far beyond what is alive.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def tensors(self, like: Sequence[torch.Tensor], device: torch.device | None = None) -> list[torch.Tensor]:
        """Return a tensor of the size and type of each given one, with any content."""
        sizes = [-(-own.numel() * own.element_size() // ALIGNMENT) * ALIGNMENT for own in like]
        where = device or (like[0].device if like else self._memory.device)
        if self._memory.numel() != sum(sizes) or self._memory.device != where:
            self.close()
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8, device=where)
        parts = self._memory.split(sizes)
        return [
            part[: own.numel() * own.element_size()].view(own.dtype).view(own.shape)
            for part, own in zip(parts, like, strict=True)
        ]

    def close(self) -> None:
        """Give the memory back."""
        self._memory = torch.empty(0, dtype=torch.uint8)


class InMemory:
    """Keeps tensors in the computer's memory, whatever device they come from."""

    def __init__(self) -> None:
        self._block = Block()
        self._places: dict[Hashable, torch.Tensor] = {}
        self._from: dict[Hashable, torch.device] = {}

    def reserve(self, like: Mapping[Hashable, torch.Tensor]) -> None:
        """Have room for tensors of the size and type of the given ones."""
        self._places = dict(zip(like, self._block.tensors([*like.values()], torch.device("cpu")), strict=True))

    def put(self, key: Hashable, hidden: torch.Tensor) -> None:
        """Keep a copy of a tensor that there is room for."""
        self._places[key].copy_(hidden)
        self._from[key] = hidden.device

    def take(self, key: Hashable) -> torch.Tensor:
        """Give it back once, where it came from."""
        return self._places[key].to(self._from.pop(key))

    def close(self) -> None:
        """Forget everything and give the memory back."""
        self._places.clear()
        self._from.clear()
        self._block.close()


@dataclass(frozen=True, slots=True)
class _Place:
    start: int
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


@dataclass(slots=True)
class Spilled:
    """Keeps tensors in a file without a name, which is gone with the process however it ends."""

    folder: Path
    """Where the file lies; not a memory file system."""
    _places: dict[Hashable, _Place] = field(default_factory=dict)
    _file: int | None = None
    _end: int = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def reserve(self, like: Mapping[Hashable, torch.Tensor]) -> None:
        """A file needs no room in memory; what an interrupted pass left in it is forgotten."""
        self.close()

    def put(self, key: Hashable, hidden: torch.Tensor) -> None:
        """Write a tensor.

        Raises:
            DiskFull: no room; the message names the folder.
        """
        raw = memoryview(hidden.detach().cpu().contiguous().view(torch.uint8).view(-1).numpy())
        self._places[key] = _Place(self._end, hidden.dtype, hidden.shape, hidden.device)
        with disk_errors(self.folder, "TMPDIR"):
            at = self._end
            while raw:
                written = os.pwrite(self._descriptor(), raw, at)
                at, raw = at + written, raw[written:]
            # Dirty pages cannot be dropped, so they are sent to the disk now.
            os.fdatasync(self._descriptor())
        os.posix_fadvise(self._descriptor(), self._end, at - self._end, os.POSIX_FADV_DONTNEED)
        self._end = at

    def look(self, key: Hashable) -> torch.Tensor:
        """Read a tensor back."""
        place = self._places[key]
        hidden = torch.empty(place.shape, dtype=place.dtype)
        raw, at = memoryview(hidden.view(torch.uint8).view(-1).numpy()), place.start
        n_bytes = len(raw)
        while raw:
            got = os.preadv(self._descriptor(), [raw], at)
            at, raw = at + got, raw[got:]
        os.posix_fadvise(self._descriptor(), place.start, n_bytes, os.POSIX_FADV_DONTNEED)
        return hidden.to(place.device)

    def take(self, key: Hashable) -> torch.Tensor:
        """Read it back for the last time."""
        hidden = self.look(key)
        del self._places[key]
        return hidden

    def _descriptor(self) -> int:
        if self._file is None:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                self._file = os.dup(file.fileno())
            # It is read backwards: what the kernel would read ahead has been used and dropped, and doubled every read.
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        return self._file

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            os.close(self._file)
        self._file, self._end = None, 0
        self._places.clear()
