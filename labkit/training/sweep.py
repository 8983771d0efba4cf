"""A learning-rate sweep that goes on until its best rate lies inside the rates tried."""

from __future__ import annotations

import math
from collections.abc import Mapping


def next_rates(losses: Mapping[float, float]) -> list[float]:
    """Return the learning rate to try next if the best one lies at the edge of those tried; nothing if it lies inside.

    A rate at which training diverged has an infinite loss: it was tried, and bounds the sweep; where it diverged at
    every rate, the next one is below them. A single rate is no sweep and has no next one.

    Args:
        losses: the loss to choose by for each rate tried.
    """
    tried = sorted(losses)
    if len(tried) < 2:
        return []
    best, ratio = best_rate(losses), tried[1] / tried[0]
    if best == tried[-1]:
        return [best * ratio]
    return [tried[0] / ratio] if best in (None, tried[0]) else []


def best_rate(losses: Mapping[float, float]) -> float | None:
    """Return the learning rate with the lowest loss; None if training ended at none of them."""
    ended = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return min(ended, key=ended.__getitem__, default=None)
