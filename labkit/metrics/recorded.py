"""What a finished cell has on record, told afterwards to whoever follows (`labkit.metrics`).

Loops of small models speak to nobody while they train: they keep a thinned curve, and a study tells it when they are
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labkit import metrics


def tell(run: str, about: Mapping[str, Any], *, curve: Sequence[float], steps: int, end: Mapping[str, float]) -> None:
    """Tell a run that has just been trained.

    Args:
        run: its name, by which people find it.
        about: its settings, as plain JSON.
        curve: training losses, each the mean over an equal share of the steps.
        steps: number of steps that the curve covers.
        end: what was measured once, at the end.
    """
    if not metrics.wanted():
        return
    metrics.begin(run, about)
    for step, loss in zip(middles(steps, len(curve)), curve, strict=False):
        metrics.emit(run, step, {"loss": loss})
    metrics.emit(run, steps, end)


def middles(steps: int, points: int) -> list[int]:
    """Return the middle step, counted from 1, of each of `points` parts that numpy splits the steps into."""
    return [int(part.mean()) for part in np.array_split(np.arange(1, steps + 1), points) if len(part)]
