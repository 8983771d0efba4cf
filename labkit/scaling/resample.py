"""Resamples of runs for the bootstrap of a scaling law: by cluster, and each one still determines the law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MIN_UNITS = 5
_MAX_REDRAWS = 200


class TooFewRuns(ValueError):
    """The runs are too few, or too alike, to determine the law."""


def cluster_codes(clusters: Sequence[Any] | NDArray[Any] | None, n_runs: int) -> NDArray[np.intp]:
    """Number the clusters from 0; without labels every run is its own.

    Raises:
        ValueError: not one label per run.
    """
    if clusters is None:
        return np.arange(n_runs)
    if len(clusters) != n_runs:
        raise ValueError(f"clusters has {len(clusters)} labels for {n_runs} runs; give one label per run")
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters])


def supports_intervals(codes: NDArray[np.intp], n_constants: int) -> bool:
    """Say whether there are enough independent runs or clusters for a bootstrap."""
    # With one spare run a resample passes through nearly all its points, and the spread of the resamples says little
    # about the noise: measured coverage of the 95 % intervals is 0.71 to 0.89 at 4 runs, and 0.91 or more from 5.
    return bool(codes.max() + 1 >= max(_MIN_UNITS, n_constants + 2))


def draw_determined(variables: list[Array], codes: NDArray[np.intp], n_resamples: int, floor: bool, seed: int) -> Array:
    """Draw clusters with replacement, then runs with replacement inside each, until every resample determines the law.

    Returns:
        How often each resample holds each run, [R, P].

    Raises:
        TooFewRuns: some resamples never do.
    """
    rng = np.random.default_rng(seed)
    members = [v[:, None] == np.unique(v) for v in variables]
    weights, todo = np.zeros((n_resamples, len(codes))), np.arange(n_resamples)
    for _ in range(_MAX_REDRAWS):
        weights[todo] = _draw(codes, len(todo), rng)
        distinct = np.min([(weights[todo] @ m > 0).sum(axis=1) for m in members], axis=0)
        todo = todo[distinct < (3 if floor else 2)]
        if not len(todo):
            return weights
    raise TooFewRuns(f"{codes.max() + 1} clusters hold too few distinct N or D for a bootstrap over clusters")


def _draw(codes: NDArray[np.intp], n_resamples: int, rng: np.random.Generator) -> Array:
    n_clusters = codes.max() + 1
    drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_resamples)
    weights = np.zeros((n_resamples, len(codes)))
    for cluster in range(n_clusters):
        runs = np.flatnonzero(codes == cluster)
        weights[:, runs] = rng.multinomial(drawn[:, cluster] * len(runs), np.full(len(runs), 1 / len(runs)))
    return weights
