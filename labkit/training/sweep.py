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


def vertex_rate(losses: Mapping[float, float]) -> float | None:
    """Return the learning rate at the vertex of the parabola in its logarithm through the best rate and its neighbours.

    None where the best one has no neighbour with a finite loss on both sides: nothing says then where the optimum is.

    Args:
        losses: the loss to choose by for each rate tried.
    """
    tried, best = sorted(losses), best_rate(losses)
    if best is None or best in (tried[0], tried[-1]):
        return None
    place = tried.index(best)
    near = tried[place - 1 : place + 2]
    if not all(math.isfinite(losses[rate]) for rate in near):
        return best  # it diverged on one side, which bounds the optimum and gives no curvature
    below, above = math.log(near[0] / best), math.log(near[2] / best)
    left, right = losses[near[0]] - losses[best], losses[near[2]] - losses[best]
    curvature = left / below - right / above
    if curvature == 0:
        return best  # all three alike
    return best * math.exp((left * above / below - right * below / above) / (2 * curvature))
