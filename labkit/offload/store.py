"""Layers of a checkpoint laid out in buffers, and tensors read row by row.

A buffer holds one layer's tensors one after the other, each aligned, in the type the model computes in. Where that is
the stored type the disk's bytes go straight into the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from labkit.offload.headers import Entry, Run, runs
from labkit.offload.readers import ALIGNMENT, Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each tensor of a group stands in a buffer."""

    entries: Mapping[str, Entry]
    """Tensors by name."""
    offsets: Mapping[str, int]
    """First byte of each in the buffer."""
    n_bytes: int
    """Length of a buffer that holds them."""


def lay_out(entries: Mapping[str, Entry], dtype: torch.dtype) -> Layout:
    """Place tensors one after the other, aligned, in the order they lie in on disk."""
    offsets, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].file, item[1].start)):
        offsets[name] = at
        at += -(-_held_bytes(entry, dtype) // ALIGNMENT) * ALIGNMENT
    return Layout(entries=entries, offsets=offsets, n_bytes=at)


def _held_bytes(entry: Entry, dtype: torch.dtype) -> int:
    return entry.n_bytes // entry.dtype.itemsize * _held_dtype(entry, dtype).itemsize


def _held_dtype(entry: Entry, dtype: torch.dtype) -> torch.dtype:
    return dtype if entry.dtype.is_floating_point else entry.dtype


@dataclass(slots=True)
class Store:
    """Groups of tensors that are read into buffers."""

    reader: Reader
    """Reads the files."""
    layouts: Sequence[Layout]
    """One for each layer."""
    dtype: torch.dtype
    """Type the model computes in."""
    _staging: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    @property
    def buffer_bytes(self) -> int:
        """Length of a buffer for any of the layers."""
        return max((layout.n_bytes for layout in self.layouts), default=0)

    def fill(self, layer: int, memory: torch.Tensor) -> None:
        """Read a layer into a buffer.

        Raises:
            ReadError: as `Reader.read`.
        """
        layout = self.layouts[layer]
        for run in runs(layout.entries):
            if all(layout.entries[name].dtype == _held_dtype(layout.entries[name], self.dtype) for name in run.names):
                self.reader.read(run, [_bytes_of(layout, name, memory) for name in run.names])
            else:
                self._convert(layout, run, memory)

    def _convert(self, layout: Layout, run: Run, memory: torch.Tensor) -> None:
        """Read tensor by tensor and turn each into the type that is computed in."""
        for name in run.names:
            entry = layout.entries[name]
            if self._staging.numel() < entry.n_bytes:
                self._staging = torch.empty(entry.n_bytes, dtype=torch.uint8)
            raw = self._staging[: entry.n_bytes]
            self.reader.read(Run(file=run.file, start=entry.start, names=(name,), n_bytes=entry.n_bytes), [raw])
            self._view(layout, name, memory).copy_(raw.view(entry.dtype).view(entry.shape))

    def views(self, layer: int, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a layer's tensors in a buffer by name."""
        layout = self.layouts[layer]
        return {name: self._view(layout, name, memory) for name in layout.entries}

    def _view(self, layout: Layout, name: str, memory: torch.Tensor) -> torch.Tensor:
        entry, at = layout.entries[name], layout.offsets[name]
        own = memory[at : at + _held_bytes(entry, self.dtype)]
        return own.view(_held_dtype(entry, self.dtype)).view(entry.shape)


def _bytes_of(layout: Layout, name: str, memory: torch.Tensor) -> torch.Tensor:
    at = layout.offsets[name]
    return memory[at : at + layout.entries[name].n_bytes]


def read_tensor(reader: Reader, entry: Entry, dtype: torch.dtype) -> torch.Tensor:
    """Read one whole tensor into new memory."""
    store = Store(reader, [lay_out({"": entry}, dtype)], dtype)
    memory = torch.empty(store.buffer_bytes, dtype=torch.uint8)
    store.fill(0, memory)
    return store.views(0, memory)[""]


def read_rows(reader: Reader, entry: Entry, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read some rows of a matrix, [n] of int64 -> [n, columns]; neighbours are read together."""
    width = entry.n_bytes // entry.shape[0]
    raw = torch.empty(len(rows), width, dtype=torch.uint8)
    for first, last in _stretches(rows.tolist()):
        run = Run(
            file=entry.file,
            start=entry.start + int(rows[first]) * width,
            names=("rows of an embedding",),
            n_bytes=(last - first) * width,
        )
        reader.read(run, [raw[first:last].view(-1)])
    return raw.view(entry.dtype).view(len(rows), *entry.shape[1:]).to(dtype)


def _stretches(rows: list[int]) -> list[tuple[int, int]]:
    """Return [first, last) places of rows that follow each other."""
    cuts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(a, b) for a, b in pairwise(cuts) if b > a]
