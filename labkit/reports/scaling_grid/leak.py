"""How far a later token reaches back into earlier logits: in the published mixer, and in ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit import device
from labkit.cell import cell
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.admission import leakage
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig

_VOCABULARY = 512
_WIDTH = 32
_ROWS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Leak:
    """Two untrained models of one layer, alike but for the mixer."""

    context: int
    """Tokens per sequence; those from the middle on are replaced."""
    n_experts: int
    """Experts of the layer."""
    threads: int
    """CPU threads."""

    @classmethod
    def of(cls, params: ScalingGrid) -> Leak:
        """Take the values from a grid's parameters."""
        return cls(context=params.context, n_experts=params.n_experts, threads=params.threads)


@cell("scaling.leak", version=1)
def measure_leak(spec: Leak) -> dict[str, list[float]]:
    """Replace the second half of random sequences and see which earlier logits move.

    Returns:
        for the `published` mixer and the `causal` one the largest change of a logit at each position before the
        replaced ones, in order, shape [context // 2].
    """
    threads = torch.get_num_threads()
    device.set_threads(spec.threads)
    moved = {name: _moved(spec, causal) for name, causal in (("published", False), ("causal", True))}
    device.set_threads(threads)
    return moved


def _moved(spec: Leak, causal: bool) -> list[float]:
    torch.manual_seed(0)
    shape = {"vocab_size": _VOCABULARY, "d_model": _WIDTH, "n_layers": 1, "context": spec.context}
    model = ResNetBK(ResNetBKConfig(**shape, n_experts=spec.n_experts, causal=causal)).double().eval()
    ids = torch.randint(_VOCABULARY, (_ROWS, spec.context))
    prefix = spec.context // 2
    return leakage(model, ids, _VOCABULARY, prefix)[:prefix].tolist()
