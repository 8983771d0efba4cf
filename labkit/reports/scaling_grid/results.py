"""What the ledger asks of a finished grid: numbers with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.reports.scaling_grid.findings import Fit, grid_runs, leak_table, published_parameters
from labkit.reports.scaling_grid.isoflop_results import isoflop_numbers, isoflop_paths, isoflop_void
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.reports.scaling_grid.study import Grid
from labkit.workflow.measured import number


def results(grid: Grid, fits: dict[str, Fit], seconds: float) -> dict[str, dict[str, Any]]:
    """Collect every number the ledger may ask for, with unit, interval and number of seeds.

    Args:
        grid: the finished grid.
        fits: of `fit_all`.
        seconds: wall time of the grid's cells, all workers together divided by their number.
    """
    out = {f"parameters/{row.cell}": number(row.counted, "parameters") for row in published_parameters().itertuples()}
    runs = grid_runs(grid.runs())
    out["n_configurations"] = number(len(runs.groupby(["d_model", "n_layers"])), "", exact=True)
    out["later_token_reach/published"] = number(_later_token_reach(grid.params), "")
    out["hours/grid"] = number(seconds / 3600, "hours")
    for (mixer, d, layers), part in runs[runs["admitted"]].groupby(["mixer", "d_model", "n_layers"]):
        ppl = part["word_perplexity"]
        out[f"word_perplexity/{mixer}/d{d}_l{layers}"] = number(ppl.mean(), "perplexity", n_seeds=len(part))
        if mixer == "resnet-bk":
            out[f"peak_gib/d{d}_l{layers}"] = number(part["peak_gib"].max(), "GiB", n_seeds=len(part))
    for mixer, fit in fits.items():
        out |= _fit_results(mixer, fit, len(grid.params.seeds))
    if len(fits) == 2:
        out["exponent_difference"] = _difference(fits, len(grid.params.seeds))
    paths = isoflop_paths(grid.isoflop)
    # Where sizes were compared at equal FLOPs their exponents stand, or nothing does: the grid has other tokens per
    # parameter at each size.
    kept = {key: value for key, value in out.items() if key not in isoflop_void(paths)}
    return kept | isoflop_numbers(grid.isoflop, paths)


def _later_token_reach(params: ScalingGrid) -> float:
    """Return the largest change of a logit in the published mixer when only later tokens are replaced."""
    moved = leak_table(params, n_positions=params.context)
    return float(moved.loc[moved["mixer"] == "published", "change"].max())


def _fit_results(mixer: str, fit: Fit, n_seeds: int) -> dict[str, dict[str, Any]]:
    power, (low, high) = fit.power, fit.power.b_ci
    return {
        f"exponent/{mixer}": number(power.b, "", [low, high], n_seeds=n_seeds),
        f"coefficient/{mixer}": number(power.a, "perplexity", n_seeds=n_seeds),
        f"r2/{mixer}": number(power.r2, "", n_seeds=n_seeds),
        f"ppl_ratio_10x/{mixer}": number(10**-power.b, "", [10**-high, 10**-low], n_seeds=n_seeds),
        f"ppl_ratio_100x/{mixer}": number(100**-power.b, "", [100**-high, 100**-low], n_seeds=n_seeds),
    }


def _difference(fits: dict[str, Fit], n_seeds: int) -> dict[str, Any]:
    """Difference of the two exponents with the interval of Zou and Donner (2008), from the two separate intervals."""
    bk, tf = fits["resnet-bk"].power, fits["transformer"].power
    low = bk.b - tf.b - np.hypot(bk.b - bk.b_ci[0], tf.b_ci[1] - tf.b)
    high = bk.b - tf.b + np.hypot(bk.b_ci[1] - bk.b, tf.b - tf.b_ci[0])
    return number(bk.b - tf.b, "", [float(low), float(high)], n_seeds=n_seeds)


def grid_seconds(grid: Grid) -> float:
    """Return the training time of all cells divided over the workers, whether they were computed now or loaded."""
    return sum(result["seconds"] for result in grid.results.values()) / grid.params.workers
