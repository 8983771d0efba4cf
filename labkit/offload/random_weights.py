"""Checkpoints of a shape with random weights, written a shard at a time: the model never exists in memory.

Speed and memory do not depend on the values of weights, so such a checkpoint measures both for a model whose weights
are not here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from labkit import device as machine
from labkit import models
from labkit.base.files import DiskFull, disk_errors, read_json
from labkit.base.units import GB, format_bytes
from labkit.offload.headers import INDEX

_SHARD_BYTES = GB // 2
_SIGMA = 0.02
_ROOM = 1.05
"""Free disk asked for, over the bytes of the weights."""


def write_random_checkpoint(
    folder: Path, shape: str, *, dtype: torch.dtype, seed: int = 0, **overrides: Any
) -> dict[str, Any]:
    """Write config.json, shards and an index as save_pretrained does, unless they are there already.

    Matrices are N(0, 0.02^2), norms 1 and biases 0, as in `models.build`, but drawn another way.

    Args:
        folder: where to; it appears whole or not at all.
        shape: a key of `models.SHAPES`.
        dtype: type on the disk.
        seed: of the weights.
        overrides: configuration values to replace.

    Returns:
        what was written: shape, parameters, bytes, overrides.

    Raises:
        DiskFull: no room.
    """
    model = models.build(shape, dtype=dtype, device="meta", **overrides)
    parameters = dict(model.named_parameters())
    n_values = sum(p.numel() for p in parameters.values())
    described = {"shape": shape, "parameters": n_values, "bytes": n_values * dtype.itemsize, "seed": seed}
    described |= {"dtype": str(dtype).removeprefix("torch."), "overrides": overrides}
    if _made(folder) == described:
        return described
    _require_room(folder, described["bytes"])
    aside = folder.with_name(f".{folder.name}.part")
    for left_over in (aside, folder):
        shutil.rmtree(left_over, ignore_errors=True)
    aside.mkdir(parents=True)
    with disk_errors(folder):
        _write_shards(aside, parameters, seed)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(aside)
        (aside / "made.json").write_text(json.dumps(described))
        aside.rename(folder)
    return described


def _made(folder: Path) -> dict[str, Any] | None:
    """Return what a folder holds; None for one that is not whole: it is made again."""
    try:
        return read_json(folder / "made.json")
    except (FileNotFoundError, ValueError):
        return None


def _require_room(folder: Path, n_bytes: int) -> None:
    free = machine.free_disk_bytes(folder)
    if free < _ROOM * n_bytes:
        raise DiskFull(
            f"{folder}: random weights take {format_bytes(n_bytes)} and {format_bytes(free)} are free; free some space "
            "or set LABKIT_OUTPUT to another disk"
        )


def _write_shards(folder: Path, parameters: dict[str, nn.Parameter], seed: int) -> None:
    shards = list(_shards(parameters))
    where: dict[str, str] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for i, names in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            drawn = pool.map(_draw, names, [parameters[n] for n in names], itertools.repeat(seed))
            save_file(dict(zip(names, drawn, strict=True)), folder / file, {"format": "pt"})
            where |= dict.fromkeys(names, file)
    total = sum(p.numel() * p.element_size() for p in parameters.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))


def _shards(parameters: dict[str, nn.Parameter]) -> Iterator[list[str]]:
    """Group tensors, in the model's order, into shards of about the same size."""
    group: list[str] = []
    n_bytes = 0
    for name, parameter in parameters.items():
        group.append(name)
        n_bytes += parameter.numel() * parameter.element_size()
        if n_bytes >= _SHARD_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _draw(name: str, like: nn.Parameter, seed: int) -> torch.Tensor:
    if like.dim() == 1:
        return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=like.dtype)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    return torch.empty(like.shape, dtype=like.dtype).normal_(0.0, _SIGMA, generator=generator)
