"""The gates of an untrained model of the grid, on the first tokens of the real text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labkit import device
from labkit.cell import cell, data
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.admission import admit
from labkit.scaling.data import load_tokens
from labkit.scaling.train import build, in_turn, model_config

_ROWS = 4
_LONGEST = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrained:
    """A freshly initialised model of the grid."""

    mixer: str
    """`resnet-bk`, `transformer`, or `published`: the report's own mixer."""
    d_model: int
    """Width."""
    n_layers: int
    """Depth."""
    seed: int
    """Seed of the initialisation."""
    corpus: str
    """Text whose first tokens the gates are tried on, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens per sequence."""
    n_experts: int
    """Experts per ResNet-BK layer."""
    dropout: float
    """Dropout inside the blocks."""
    threads: int
    """CPU threads."""
    potential_start: float = 1.0
    """Factor on the weights of ResNet-BK's potential at the start."""

    @classmethod
    def of(
        cls, params: ScalingGrid, mixer: str, d_model: int, n_layers: int, potential_start: float = 1.0
    ) -> Untrained:
        """Take the shared values from a grid's parameters."""
        own = {"mixer": mixer, "d_model": d_model, "n_layers": n_layers, "seed": params.seeds[0]}
        own["potential_start"] = potential_start
        shared = {name: getattr(params, name) for name in cls.__dataclass_fields__ if name not in own}
        return cls(**own, **shared)

    @property
    def name(self) -> str:
        """Short name for people."""
        return f"gates of {self.mixer} d{self.d_model} l{self.n_layers}"


@cell(
    "scaling.gates",
    version=1,
    data=lambda spec: data.corpus(spec.corpus),
    packages=("tokenizers",),
    later=("potential_start",),
)
@in_turn
def gates_of(spec: Untrained) -> dict[str, Any]:
    """Admit an untrained model; return its gates as plain JSON."""
    device.set_threads(spec.threads)
    _, tokens = load_tokens(spec.corpus, spec.vocab_size)
    torch.manual_seed(spec.seed)
    length = min(_LONGEST, spec.context)
    ids = torch.as_tensor(tokens.train[: _ROWS * length].astype(np.int64)).view(_ROWS, length)
    admission = admit(build(model_config(spec)), ids, spec.vocab_size)
    return {"gates": [{"name": g.name, "passed": bool(g.passed), "detail": g.detail} for g in admission.gates]}
