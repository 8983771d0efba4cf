"""Where each tensor of a safetensors checkpoint lies, read from headers that are trusted with nothing.

A safetensors file is 8 bytes of length, a JSON header of that length and the tensors' bytes, each tensor contiguous in
row-major order (format of safetensors 0.4 and later). A sharded checkpoint adds `model.safetensors.index.json`, which
says which files there are. Of a folder the files are read that transformers reads. No weight is read here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from labkit.models.folders import INDEX, distributed_shards, weights_file

_PAGE = 4096
LARGEST_HEADER = 100_000_000
"""Bytes of a header beyond which safetensors itself refuses a file."""
COMPUTED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights are computed with, by their names in a header."""
DTYPES = COMPUTED | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F6_E2M3": torch.uint8,
    "F6_E3M2": torch.uint8,
    "F4": torch.uint8,
}
"""Every type that safetensors knows, by its name in a header; bytes where torch has no numbers of that width."""
_BITS = {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
"""Width of the types that do not fill bytes."""


class DamagedCheckpoint(ValueError):
    """A checkpoint contradicts itself; the message names the file, what is wrong and the remedy."""


class CannotStream(ValueError):
    """A model that this engine cannot take apart; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor on disk."""

    file: Path
    """File that holds it."""
    dtype: torch.dtype
    """Type it is stored in."""
    shape: tuple[int, ...]
    """Its shape."""
    start: int
    """First byte, counted from the start of the file."""
    stored: str = ""
    """Name of its type in the header."""
    held: torch.dtype | None = None
    """Type it is computed with; None for the model's own, or the stored one where that is no floating type."""

    @property
    def n_values(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self.n_values * _BITS.get(self.stored, 8 * self.dtype.itemsize) // 8

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.n_bytes

    @property
    def parts(self) -> tuple[Entry, ...]:
        """It alone."""
        return (self,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Every tensor of a model folder."""

    folder: Path
    """Folder with config.json and the safetensors files."""
    entries: Mapping[str, Entry]
    """Tensors by name."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Files by the names of tensors that the index places there and no file holds."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.n_bytes for entry in self.entries.values())

    def fingerprint(self) -> str:
        """Return a sha256 over configuration, headers, sizes and two pages of each tensor, as 64 hex digits.

        Reading every byte of a checkpoint takes as long as a training step, so only the first and the last page of each
        tensor's bytes are read: they tell another model, a further-trained one and a cut file, not every flipped bit.
        """
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for name, entry in sorted(self.entries.items()):
            digest.update(f"{name} {entry.file.name} {entry.dtype} {entry.shape} {entry.start}\n".encode())
            with entry.file.open("rb") as file:
                for start in (entry.start, max(entry.start, entry.end - _PAGE)):
                    file.seek(start)
                    digest.update(file.read(min(_PAGE, entry.n_bytes)))
        return digest.hexdigest()


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the headers of a folder as save_pretrained writes it: one safetensors file, or shards with an index.

    Raises:
        FileNotFoundError: no folder, no config.json, or nothing in it that transformers would read as safetensors.
        DamagedCheckpoint: a header, the index or config.json is wrong.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name a folder as save_pretrained writes it")
    if found := distributed_shards(folder):
        raise FileNotFoundError(
            f"{folder} holds a distributed checkpoint ({found[0].name}), which transformers reads before anything else "
            "there; load it and save the model elsewhere with save_pretrained"
        )
    try:
        file = weights_file(folder)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    if file is None:
        raise FileNotFoundError(
            f"{folder} holds {_names(folder)} and no model.safetensors or {INDEX}, which is what transformers reads; "
            "save the model there with save_pretrained"
        )
    if file.suffix == ".json":
        return _indexed(folder, file)
    return Checkpoint(folder=folder, entries=read_header(file))


def _names(folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"{len(files)} safetensors files ({', '.join(files[:3])})" if files else "no safetensors file"


def _indexed(folder: Path, index: Path) -> Checkpoint:
    """Read the files that an index names; of tensors in several, that of the last file counts, as in transformers."""
    listed = _json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise _damaged(index, "weight_map does not map names of tensors to names of files")
    entries: dict[str, Entry] = {}
    for name in sorted(set(listed.values())):
        entries |= read_header(_shard(folder, name, index))
    absent = {name: file for name, file in listed.items() if name not in entries}
    return Checkpoint(folder=folder, entries=entries, absent=absent)


def _shard(folder: Path, name: str, index: Path) -> Path:
    """Return the file of a shard, which must lie in the folder or in one below it."""
    place = Path(name)
    if place.is_absolute() or ".." in place.parts or not place.name:
        raise _damaged(index, f"it names {name!r}, which is no file in its folder")
    if not (folder / place).is_file():
        raise _damaged(index, f"it names {name}, which is not there")
    return folder / place


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of one safetensors file.

    Raises:
        DamagedCheckpoint: the header is cut, too large or no JSON, or a tensor has an unknown type, an absurd shape, a
            length that its shape does not have, or bytes outside the file or inside another tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(LARGEST_HEADER, size - 8):
            raise _damaged(path, f"its header claims {length} bytes of a file of {size}")
        fields = _json_object(file.read(length), path)
    fields.pop("__metadata__", None)
    entries = {name: _entry(path, name, said, 8 + length) for name, said in fields.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, said: Any, data: int) -> Entry:
    try:
        stored, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
        dtype = DTYPES.get(stored)
    except (TypeError, KeyError) as error:
        raise _damaged(path, f"tensor {name} lacks a dtype, shape or data_offsets") from error
    if dtype is None:
        raise _damaged(path, f"tensor {name} has the type {stored!r}; known are {', '.join(DTYPES)}")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name} has the shape {shape!r} and the offsets {offsets!r}")
    n_bits, n_bytes = math.prod(shape) * _BITS.get(stored, 8 * dtype.itemsize), offsets[1] - offsets[0]
    if 8 * n_bytes != n_bits:
        raise _damaged(path, f"tensor {name} of shape {shape} has {n_bytes} bytes, not {n_bits // 8}")
    return Entry(file=path, dtype=dtype, shape=tuple(shape), start=data + offsets[0], stored=stored)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_layout(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Refuse gaps, overlaps and bytes outside the file: the tensors fill it exactly, as safetensors demands."""
    at, before = data, "its header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise _damaged(path, f"tensor {name} starts at byte {entry.start}, but {before} ends at {at}")
        at, before = entry.end, f"tensor {name}"
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at} of {size}")


def _json_object(text: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it holds no JSON ({error})") from error
    if not isinstance(found, dict):
        raise _damaged(path, f"it holds {type(found).__name__}, not an object")
    return found


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in items).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} stands twice")
    return dict(items)


def _damaged(path: Path, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path} is damaged: {why}; fetch or save it again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Tensors that lie one after the other in one file, so that one request reads them."""

    file: Path
    """The file."""
    start: int
    """First byte."""
    names: tuple[str, ...]
    """Tensors in the order they lie in."""
    n_bytes: int
    """Bytes of all of them."""


def runs(entries: Mapping[str, Entry]) -> list[Run]:
    """Join tensors into as few contiguous runs as they lie in: a layer of a raw checkpoint in one, or two at a seam."""
    return list(_runs(entries))


def _runs(entries: Mapping[str, Entry]) -> Iterator[Run]:
    group: list[tuple[str, Entry]] = []
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].file, item[1].start)):
        if group and (group[-1][1].file, group[-1][1].end) != (entry.file, entry.start):
            yield _run(group)
            group = []
        group.append((name, entry))
    if group:
        yield _run(group)


def _run(group: list[tuple[str, Entry]]) -> Run:
    first, last = group[0][1], group[-1][1]
    names = tuple(name for name, _ in group)
    return Run(file=first.file, start=first.start, names=names, n_bytes=last.end - first.start)
