"""A control that jumps as far as the block trend, through the same noise, and without its drift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.predictors import TINY, BlockTrend, Proposal, RandomDirection
from labkit.hybrid.vectors import Tensors, norm, write_difference


class NoiseMatched(RandomDirection):
    """The difference of a block's halves, with a random sign: what both drifted alike cancels, their noise stays.

    Each tensor is as long as in the jump that the trend proposes: the jump's norm, along its noise.
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self._difference = self._buffer(torch.float32)

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Go along or against the difference of the last whole block's halves, by the toss of a coin of its own."""
        whole = self._buffer(torch.float32)
        write_difference(whole, self.parameters, self._start)
        if self.block_steps > self._half():
            # The second half less the first, each as a mean step: halves of unequal length would leave drift behind.
            first, second = self._half(), self.block_steps - self._half()
            for kept, moved, half in zip(self._difference, whole, self._first, strict=True):
                kept.copy_((moved - half.float()) / second - half.float() / first)
        like = BlockTrend.propose(self, steps, rate, optimizer)
        if like is None:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self._drawn)
        self._drawn += 1
        sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
        return Proposal(self._as_long_as(like.jump, sign), steps, like.confidence)

    def _as_long_as(self, jump: Tensors, sign: float) -> Tensors:
        pairs = zip(self._difference, jump, strict=True)
        return [(d * (sign * norm([j]) / max(norm([d]), TINY))).to(j.device, j.dtype) for d, j in pairs]

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return super().buffers() | {"difference": self._difference}
