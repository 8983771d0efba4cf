"""Read a GGUF file's own table of contents and hold it against the file's length, before anything relies on it.

gguf's reader would do, but it makes an object of every word of the vocabulary, which takes up to half a minute; here
words are skipped. Format: GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def check_gguf(path: Path) -> int:
    """Refuse a file that is no GGUF or ends before its last tensor; return the number of its weights.

    Raises:
        ValueError: the message names the file, what is missing and the remedy.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file; fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                n_values, needed = _contents(_Cursor(data, 4))
            except (struct.error, OverflowError):
                raise ValueError(f"{path} is cut short inside its header, at byte {size:,}; fetch it again") from None
            except ValueError as error:
                raise ValueError(f"{path} is a GGUF file that cannot be read: {error}; fetch it again") from None
    if needed > size:
        raise ValueError(
            f"{path} is cut short: its tensors end at byte {needed:,} and the file at {size:,}; fetch it again"
        )
    return n_values


class _Cursor:
    """A place in a file that moves on as it is read; past the end `struct.error` is raised."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self._data, self.place = data, place

    def number(self, code: str) -> int | float:
        layout = f"<{code}"
        value = struct.unpack_from(layout, self._data, self.place)[0]
        self.place += struct.calcsize(layout)
        return value

    def text(self) -> bytes:
        length = self.number("Q")
        start, self.place = self.place, self.place + length
        return self._data[start : self.place]

    def value(self, kind: int) -> int | float | bytes | None:
        """Read one metadata value; a list is passed over."""
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.number(_SCALARS[GGUFValueType(kind)])
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.place += length * struct.calcsize(f"<{_SCALARS[GGUFValueType(kind)]}")
            return None
        for _ in range(length):
            self.value(kind)
        return None


def _contents(cursor: _Cursor) -> tuple[int, int]:
    """Return the number of weights and the byte at which the last tensor ends."""
    if (version := cursor.number("I")) not in _VERSIONS:
        raise ValueError(f"its version is {version}, not one of {_VERSIONS}")
    n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
    fields = [(cursor.text(), cursor.value(cursor.number("I"))) for _ in range(n_fields)]
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    if not tensors:
        raise ValueError("it holds no tensors")
    alignment = dict(fields).get(b"general.alignment", GGUF_DEFAULT_ALIGNMENT)
    start = math.ceil(cursor.place / alignment) * alignment
    return sum(n for n, _ in tensors), start + max(end for _, end in tensors)


def _tensor(cursor: _Cursor) -> tuple[int, int]:
    """Return a tensor's number of weights and the byte at which it ends, from the start of the data."""
    cursor.text()
    n_values = math.prod(cursor.number("Q") for _ in range(cursor.number("I")))
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.number("I"))]
    return n_values, cursor.number("Q") + n_values // per_block * block_bytes
