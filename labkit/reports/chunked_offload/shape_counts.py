"""What a plan needs to know of the reports' and the users' models, counted once and kept beside the code.

    python -m labkit.reports.chunked_offload.shape_counts      # count again; takes a minute

Counting follows every layer of a model through a recomputation without weights; a slider cannot wait for that.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from labkit.offload import assemble
from labkit.offload.footprint import Footprint, Line
from labkit.offload.headers import open_checkpoint
from labkit.offload.hollow import write_hollow_checkpoint
from labkit.offload.planner import Shape

RECORD = Path(__file__).with_name("shape_counts.json")
MODELS = ("phi-4", "phi-2", "qwen2.5-7b", "smollm2-135m")
"""Models that are planned for, by the names of `models.SHAPES`."""
SEQ_LENS = (16, 64, 256, 1024)
"""Tokens of a sample that memory was counted for."""
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
"""Adapters that are trained."""


def count(model: str) -> dict[str, Any]:
    """Count a model's shape and the memory of its samples, as plain JSON; no weight is read or written."""
    with tempfile.TemporaryDirectory() as folder:
        write_hollow_checkpoint(Path(folder), model)
        parts = assemble.take_apart(open_checkpoint(folder), LORA, torch.bfloat16, torch.device("cpu"), seed=0)
        lengths = {str(n): asdict(assemble.footprint_of(parts, n)) for n in SEQ_LENS}
        return {"shape": asdict(assemble.shape_of(parts, "direct")), "footprints": lengths}


def recorded(model: str, seq_len: int) -> tuple[Shape, Footprint]:
    """Return what was counted for a model and a length of samples."""
    own = json.loads(RECORD.read_text())[model]
    shape = Shape(**own["shape"] | {"unit_bytes": tuple(own["shape"]["unit_bytes"])})
    found = own["footprints"][str(seq_len)]
    lines = {name: Line(**found[name]) for name in ("layer", "head")}
    return shape, Footprint(**found | lines)


if __name__ == "__main__":
    RECORD.write_text(json.dumps({model: count(model) for model in MODELS}, indent=1) + "\n")
