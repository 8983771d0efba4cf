"""Whether to believe a jump: losses before and after it on fresh training batches, forward only.

A probe may leave no trace: it runs without gradients, with dropout off, and puts back the generators' states and the
modules' modes. Both sides of a comparison see the same batches, so the spread that counts is that of their differences.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

Losses = Callable[[], Sequence[float]]
"""Returns losses at the present weights, of batches or of single samples: the same ones until others are drawn."""

PROBE_PART = 4
"""A probe's batch is so many times smaller than a step's: what counts are differences on the same samples."""
FORECAST_WINDOW = 32
"""Steps whose losses the trend is fitted to."""
SPIKE = 6.0
"""Median absolute deviations above the median at which the norm of a gradient is a spike."""
_NORMS = 64
_LEAST_NORMS = 8
_MAD_TO_SIGMA = 1.4826


def probe_size(batch_size: int) -> int:
    """Return the samples of a probe batch."""
    return max(1, batch_size // PROBE_PART)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode without gradients, and leave generators and modes as they were."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a probe said about a jump."""

    accepted: bool
    """Whether the jump stays."""
    before: float
    """Mean loss before it."""
    after: float
    """Mean loss after it."""
    error: float
    """Standard error of the difference, from its spread over the losses; 0 with one loss."""


def compare(before: Sequence[float], after: Sequence[float], wanted: float) -> Verdict:
    """Accept a jump whose paired gain is at least `wanted` nats even a standard error below its mean."""
    difference = np.asarray(after, float) - np.asarray(before, float)
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    accepted = math.isfinite(mean) and mean + error < -wanted
    return Verdict(accepted=accepted, before=float(np.mean(before)), after=float(np.mean(after)), error=error)


@dataclass
class LossTrend:
    """The losses of the last real steps: their slope, their spread, and what the next ones should be."""

    threshold: float
    """Standard deviations above the forecast that count as divergence."""
    losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=FORECAST_WINDOW))
    """Nominal step and loss."""
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=_NORMS))
    """Gradient norms."""

    def observe(self, step: int, loss: float) -> None:
        """Take in the loss of a real step."""
        self.losses.append((step, loss))

    def slope(self) -> float:
        """Return nats per nominal step by least squares, negative while the loss falls; 0 from fewer than 3 steps."""
        return float(self._line()[0])

    def _line(self) -> tuple[float, float, float]:
        if len(self.losses) < 3:
            return 0.0, self.losses[-1][1] if self.losses else math.inf, math.inf
        steps, losses = np.array(self.losses).T
        slope, level = np.polyfit(steps - steps[-1], losses, 1)
        spread = float(np.std(losses - np.polyval((slope, level), steps - steps[-1]), ddof=2))
        return float(slope), float(level), spread

    def bound(self, n_losses: int) -> float:
        """Return the mean of the next `n_losses` losses above which a jump made now will have gone wrong.

        The forecast is the present level and not its slope: a jump that merely stands still has cost nothing yet.
        """
        _, level, spread = self._line()
        return level + self.threshold * spread / math.sqrt(n_losses)

    def forget_after(self, step: int) -> None:
        """Drop the losses of steps that were undone."""
        kept = [pair for pair in self.losses if pair[0] <= step]
        self.losses.clear()
        self.losses.extend(kept)

    def is_spike(self, norm: float) -> bool:
        """Say whether the norm of a gradient is out of all proportion, and take it in if it is not."""
        if not math.isfinite(norm):
            return True
        spike = False
        if len(self.norms) >= _LEAST_NORMS:
            median = statistics.median(self.norms)
            spread = _MAD_TO_SIGMA * statistics.median(abs(known - median) for known in self.norms)
            spike = norm > median + SPIKE * max(spread, 0.05 * median)
        if not spike:
            self.norms.append(norm)
        return spike

    def state(self) -> dict[str, Any]:
        """Return its state as plain JSON."""
        return {"losses": [list(pair) for pair in self.losses], "norms": list(self.norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.losses.clear()
        self.losses.extend((int(step), loss) for step, loss in state["losses"])
        self.norms.clear()
        self.norms.extend(state["norms"])


def overshoot(before: float, after: float) -> float:
    """Return how far along a jump its slope vanishes, by the secant through both ends; 1 where it still descends.

    Args:
        before: inner product of the mean gradient before the jump with the jump.
        after: the same with the gradient at its end.
    """
    if after <= 0 or before >= 0:
        return 0.0 if after > 0 else 1.0
    return before / (before - after)
