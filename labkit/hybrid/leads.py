"""Predictors that skip nothing: the gradient is taken ahead of the weights, or blocks of steps are lengthened.

They are the cheap comparators of any jump: the same knowledge of the trajectory, no gate, no probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.vectors import Tensors, add, assign, copies, empty_like, write_difference

LEAD_FROM = 0.15
"""Share of the schedule from which EMA-Nesterov leads; its mean step is filled before."""


class Lead:
    """Shifts weights before a real step, or replaces them after some."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        self.parameters, self.config = list(parameters), config
        self.steps = 0

    def before_step(self, progress: float, rate_share: float) -> float:
        """Shift the weights before the forward pass; return the length of the shift.

        Args:
            progress: share of the schedule done.
            rate_share: the learning rate over its peak so far.
        """
        return 0.0

    def after_step(self) -> None:
        """See, and perhaps move, the weights after a real step."""
        self.steps += 1

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {}

    def load(self, buffers: Mapping[str, Tensors], steps: int) -> None:
        """Take up a state."""
        for name, own in self.buffers().items():
            assign(own, buffers[name])
        self.steps = steps


class EmaNesterov(Lead):
    """The gradient is taken ahead of the weights by a multiple of the mean step (arXiv 2605.25395; candidate C1)."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(parameters, config)
        self._previous = copies(parameters, config.history_device)
        self._mean = empty_like(parameters, device=config.history_device)

    def before_step(self, progress: float, rate_share: float) -> float:
        """Move ahead while the schedule is in its middle; the step is then taken from there."""
        if not LEAD_FROM <= progress < self.config.predict_until:
            return 0.0
        scale = self.config.lead * rate_share
        add([p.data for p in self.parameters], self._mean, scale)
        return scale * float(torch.stack([m.norm() for m in self._mean]).norm())

    def after_step(self) -> None:
        """Fold the step, lead included, into the mean."""
        super().after_step()
        moved = empty_like(self.parameters)
        write_difference(moved, self.parameters, self._previous)
        torch._foreach_lerp_(
            self._mean, [m.to(own.device) for m, own in zip(moved, self._mean, strict=True)], 1 - self.config.memory
        )
        assign(self._previous, self.parameters)

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {"previous": self._previous, "mean": self._mean}


class OuterNesterov(Lead):
    """Nesterov's step on the displacement of every K real ones (SNOO, arXiv 2510.15830; candidate C3).

    With momentum 0 and rate 0.5 it is Lookahead (Zhang et al., 2019).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(parameters, config)
        self._slow = copies(parameters, config.history_device)
        self._velocity = empty_like(parameters, device=config.history_device)

    def after_step(self) -> None:
        """After every K-th step move the slow weights, and the fast ones onto them."""
        super().after_step()
        if self.steps % self.config.outer_steps:
            return
        moved = empty_like(self.parameters, device=self.config.history_device)
        write_difference(moved, self.parameters, self._slow)
        torch._foreach_mul_(self._velocity, self.config.outer_momentum)
        torch._foreach_add_(self._velocity, moved)
        add(self._slow, moved, self.config.outer_rate)
        add(self._slow, self._velocity, self.config.outer_rate * self.config.outer_momentum)
        assign([p.data for p in self.parameters], self._slow)

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {"slow": self._slow, "velocity": self._velocity}
