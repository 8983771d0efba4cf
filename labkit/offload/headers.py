"""Where each tensor of a safetensors checkpoint lies, read from headers that are trusted with nothing.

A safetensors file is 8 bytes of length, a JSON header of that length and the tensors' bytes, each tensor contiguous in
row-major order (format of safetensors 0.4 and later). A sharded checkpoint adds `model.safetensors.index.json`, which
says which file holds which tensor. No weight is read here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

INDEX = "model.safetensors.index.json"
_PAGE = 4096
LARGEST_HEADER = 100_000_000
"""Bytes of a header beyond which safetensors itself refuses a file."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by their names in a header."""


class DamagedCheckpoint(ValueError):
    """A checkpoint contradicts itself; the message names the file, what is wrong and the remedy."""


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

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.start + self.n_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Every tensor of a model folder."""

    folder: Path
    """Folder with config.json and the safetensors files."""
    entries: Mapping[str, Entry]
    """Tensors by name."""

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
        FileNotFoundError: no folder, no config.json or no safetensors in it.
        DamagedCheckpoint: a header or the index is wrong.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; name a folder as save_pretrained writes it")
    if (folder / INDEX).is_file():
        return Checkpoint(folder=folder, entries=_indexed(folder))
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        found = f"{len(files)} safetensors files and no {INDEX}" if files else "no safetensors file"
        raise FileNotFoundError(f"{folder} holds {found}; save the model there with save_pretrained")
    return Checkpoint(folder=folder, entries=read_header(files[0]))


def _indexed(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    listed = _json_object(index.read_bytes(), index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise _damaged(index, "weight_map does not map names of tensors to names of files")
    shards = {name: read_header(_shard(folder, name, index)) for name in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in shards[file]:
            raise _damaged(index, f"it says that {file} holds {name}, which that file does not")
    return {name: shards[file][name] for name, file in listed.items()}


def _shard(folder: Path, name: str, index: Path) -> Path:
    """Return the file of a shard, which must lie in the folder itself."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise _damaged(index, f"it names {name!r}, which is not a plain file name")
    if not (folder / name).is_file():
        raise _damaged(index, f"it names {name}, which is not there")
    return folder / name


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
    entries = {name: _entry(path, name, field, 8 + length) for name, field in fields.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, field: Any, data: int) -> Entry:
    try:
        dtype, shape, offsets = DTYPES.get(field["dtype"]), field["shape"], field["data_offsets"]
    except (TypeError, KeyError) as error:
        raise _damaged(path, f"tensor {name} lacks a dtype, shape or data_offsets") from error
    if dtype is None:
        raise _damaged(path, f"tensor {name} has the type {field['dtype']!r}; known are {', '.join(DTYPES)}")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name} has the shape {shape!r} and the offsets {offsets!r}")
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise _damaged(path, f"tensor {name} of shape {shape} has {offsets[1] - offsets[0]} bytes, not {expected}")
    return Entry(file=path, dtype=dtype, shape=tuple(shape), start=data + offsets[0])


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
