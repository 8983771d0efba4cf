"""Layers of a checkpoint laid out in buffers, and tensors read row by row.

A buffer holds one layer's parameters one after the other, each aligned, in the type the model computes in. Where that
is the stored type the disk's bytes go straight into the buffer. A parameter that lies in several tensors is joined by
reading each of them to its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from labkit.offload.headers import Entry, Run, runs
from labkit.offload.readers import ALIGNMENT, Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """A parameter that a checkpoint holds in several tensors: most hold each expert of a layer in its own."""

    parts: tuple[Entry, ...]
    """The tensors, in the order in which their numbers follow each other in the parameter."""
    shape: tuple[int, ...]
    """Shape of the parameter."""

    @property
    def n_values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return sum(part.n_bytes for part in self.parts)


Source = Entry | Joined
"""Where a parameter lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One parameter in a buffer."""

    offset: int
    """Its first byte there."""
    dtype: torch.dtype
    """Type it is held in."""
    shape: tuple[int, ...]
    """Its shape."""

    @property
    def n_bytes(self) -> int:
        """Bytes in the buffer."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """Return it in a buffer."""
        return memory[self.offset : self.offset + self.n_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each parameter of a group stands in a buffer, and where each tensor that is read for one."""

    entries: Mapping[str, Entry]
    """Tensors on disk by name; those of one parameter have numbered names."""
    places: Mapping[str, Held]
    """Where each of them stands."""
    parameters: Mapping[str, Held]
    """Where each parameter stands."""
    n_bytes: int
    """Length of a buffer that holds them."""


def lay_out(sources: Mapping[str, Source], dtype: torch.dtype) -> Layout:
    """Place parameters one after the other, aligned, in the order they lie in on disk."""
    entries, places, parameters, at = {}, {}, {}, 0
    for name, source in sorted(sources.items(), key=lambda item: (item[1].parts[0].file, item[1].parts[0].start)):
        inner = at
        for i, part in enumerate(source.parts):
            own = f"{name}[{i}]" if len(source.parts) > 1 else name
            entries[own] = part
            places[own] = Held(offset=inner, dtype=held_dtype(part, dtype), shape=part.shape)
            inner += places[own].n_bytes
        parameters[name] = Held(offset=at, dtype=held_dtype(source.parts[0], dtype), shape=source.shape)
        at += -(-(inner - at) // ALIGNMENT) * ALIGNMENT
    return Layout(entries=entries, places=places, parameters=parameters, n_bytes=at)


def held_dtype(entry: Entry, dtype: torch.dtype) -> torch.dtype:
    """Return the type a tensor is held in, in a model that computes in a type."""
    return entry.held or (dtype if entry.dtype.is_floating_point else entry.dtype)


@dataclass(slots=True)
class Store:
    """Groups of tensors that are read into buffers."""

    reader: Reader
    """Reads the files."""
    layouts: Sequence[Layout]
    """One for each layer."""
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
            if all(layout.entries[name].dtype == layout.places[name].dtype for name in run.names):
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
            layout.places[name].view(memory).copy_(raw.view(entry.dtype).view(entry.shape))

    def views(self, layer: int, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a layer's parameters in a buffer by name."""
        return {name: held.view(memory) for name, held in self.layouts[layer].parameters.items()}


def _bytes_of(layout: Layout, name: str, memory: torch.Tensor) -> torch.Tensor:
    held = layout.places[name]
    return memory[held.offset : held.offset + held.n_bytes]


def read_tensor(reader: Reader, source: Source, dtype: torch.dtype) -> torch.Tensor:
    """Read one whole parameter into new memory."""
    store = Store(reader, [lay_out({"": source}, dtype)])
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
    return raw.view(entry.dtype).view(len(rows), *entry.shape[1:]).to(entry.held or dtype)


def _stretches(rows: list[int]) -> list[tuple[int, int]]:
    """Return [first, last) places of rows that follow each other."""
    cuts = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return [(a, b) for a, b in pairwise(cuts) if b > a]
