"""Time the loading of a model from disk, cold and warm.

Warm means that the files lie in the page cache, as they do after any earlier load: such a time says nothing about the
disk. Cold means that they were dropped from it first, which the kernel may decline; whether it complied is read back
page by page, and where it did not there is no cold time.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from labkit import device as machine
from labkit.cell import cell, data, environment
from labkit.decoding.decode import VERSIONS
from labkit.device.pagecache import drop_pages
from labkit.models import prepare, quiet_transformers


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSpec:
    """One model to load, with everything the times depend on."""

    model: str
    """Model name, or a folder with config.json and safetensors."""
    dtype: str = "bfloat16"
    """Type the weights are held in."""
    device: str = "cpu"
    """Where they go."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 2
    """Cold loads, each followed by a warm one."""


@cell(
    "inertia.load",
    version=1,
    data=lambda spec: data.weights(spec.model),
    packages=("transformers", "safetensors"),
    timing=("cold_seconds", "cold_unavailable", "warm_seconds", *VERSIONS),
    timed=True,
    onednn=environment.WITHOUT_AMX,
)
def measure_load(spec: LoadSpec) -> dict[str, Any]:
    """Load a model's files cold and warm, in turn, until every weight has been read once.

    Files are fetched and converted before; the tokenizer is not part of it. Times include the conversion from the
    stored type to `spec.dtype`.

    Returns:
        plain JSON: `cold_seconds` (None with `cold_unavailable`, the reason, where the kernel kept the pages),
        `warm_seconds`, `file_bytes`, `conditions`.

    Raises:
        MissingWeights: the weights are not here and cannot be fetched.
        ValueError: unknown model or type, or repeats below 1.
    """
    if spec.repeats < 1 or not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
        raise ValueError(f"repeats is {spec.repeats} (least 1), dtype {spec.dtype!r} (such as 'float32')")
    machine.set_threads(spec.threads)
    folder, weights = prepare(spec.model)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    _load_once(folder, spec)
    cold, warm, reason = [], [], ""
    for _ in range(spec.repeats):
        reason = reason or drop_pages(files)
        if not reason:
            cold.append(_load_once(folder, spec))
        warm.append(_load_once(folder, spec))
    return {
        "cold_seconds": None if reason else cold,
        "cold_unavailable": reason,
        "warm_seconds": warm,
        "file_bytes": sum(path.stat().st_size for path in files),
        "weights": weights.as_dict(),
        "conditions": asdict(spec) | {"torch": str(torch.__version__)},
    }


def _load_once(folder: Path, spec: LoadSpec) -> float:
    """Return the seconds until the model is there and every weight was read; files mapped lazily are read by that."""
    gc.collect()
    start = time.perf_counter()
    with quiet_transformers(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, spec.dtype), use_safetensors=True, local_files_only=True
        ).to(spec.device)
        sums = [parameter.sum() for parameter in model.parameters()]
    assert torch.isfinite(torch.stack([value.float() for value in sums])).all(), "loaded weights are finite"
    return time.perf_counter() - start
