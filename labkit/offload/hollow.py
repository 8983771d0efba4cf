"""A checkpoint with all its headers, whose weights are a hole in the file: enough to plan, and no bytes on disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch

from labkit import models

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_hollow_checkpoint(folder: Path, shape: str, *, dtype: torch.dtype = torch.bfloat16) -> int:
    """Write config.json and one safetensors file as long as the real one, of which only the header takes room.

    Args:
        folder: where to.
        shape: a key of `models.SHAPES`.
        dtype: type of the weights.

    Returns:
        bytes that the weights would have.

    Raises:
        ValueError: an unknown shape or a type that checkpoints do not have.
    """
    if dtype not in _NAMES:
        raise ValueError(f"{dtype} is no type of a checkpoint; choose one of {', '.join(map(str, _NAMES))}")
    model, header, end = models.build(shape, dtype=dtype, device="meta"), {}, 0
    for name, parameter in model.named_parameters():
        start, end = end, end + parameter.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return end
