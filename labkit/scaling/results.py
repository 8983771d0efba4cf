"""What the ledger asks of a finished grid: numbers with interval, or what one would cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from labkit.params import scale, stated_scope
from labkit.scaling import cost
from labkit.scaling.findings import PUBLISHED_GRID, Fit, grid_runs, leak_table, published_parameters
from labkit.scaling.grid import Grid
from labkit.scaling.isoflop_results import isoflop_numbers, isoflop_paths, isoflop_void
from labkit.scaling.train import Cell
from labkit.schema import Scale
from labkit.schema_scaling_grid import ScalingGrid
from labkit.workflow.measured import number

_LAW_KEYS = ("exponent", "ppl_ratio_10x", "ppl_ratio_100x")
"""Numbers that the comparison at equal FLOPs gives where it ran."""


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


def out_of_reach(grid: Grid, refused: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Say what each number of the report's own scale would take on this machine, at the speed measured in this grid.

    Args:
        grid: the finished grid.
        refused: why a mixer has no law, of `fit_all`; its exponent is then out of reach of this run.
    """
    params, void = grid.params, isoflop_void(isoflop_paths(grid.isoflop))
    if scale(params) is Scale.STATED:
        return void
    full = params.model_copy(update=stated_scope(params.report_id()))
    tokens = cost.n_train_tokens(full)
    rate = measured_flops_per_second(grid)
    stated = f"{full.corpus}, {full.epochs:g} epochs, V = {full.vocab_size:,}"
    why = f"the report's own scale is {stated}; this profile runs less"
    out: dict[str, dict[str, Any]] = {}
    for mixer in full.mixers:
        for d_model, n_layers in PUBLISHED_GRID:
            cell = Cell.of(full, mixer, d_model, n_layers, 0, 1e-3)
            needs = {"why": why, "seconds": cost.cell_flops(cell, tokens) / rate, "gib": cost.cell_bytes(cell) / 2**30}
            out[f"word_perplexity/{mixer}/d{d_model}_l{n_layers}"] = needs
            if mixer == "resnet-bk":
                out[f"peak_gib/d{d_model}_l{n_layers}"] = needs
    own = [need["seconds"] for key, need in out.items() if key.startswith("word_perplexity/resnet-bk/")]
    quick = [out[f"word_perplexity/resnet-bk/d{d}_l{n}"]["seconds"] for d in (64, 128) for n in (4, 8)]
    out["hours/grid"] = {"why": why, "seconds": sum(own), "gib": None}
    out["hours/quick"] = {"why": why, "seconds": sum(quick) * 3 / 5, "gib": None}
    for mixer, reason in (refused or {}).items():
        for name in ("exponent", "r2", "coefficient", "ppl_ratio_10x", "ppl_ratio_100x"):
            out[f"{name}/{mixer}"] = {"why": f"no law could be fitted: {reason}", "seconds": sum(own), "gib": None}
        out["exponent_difference"] = out[f"exponent/{mixer}"]
    if grid.isoflop is not None:
        out = {key: needs for key, needs in out.items() if not key.startswith(_LAW_KEYS)}
    return out | void


def measured_flops_per_second(grid: Grid) -> float:
    """Return the training FLOP/s of the largest cell that ran, one worker: larger cells come closest to its rate."""
    largest = max(grid.results, key=lambda cell: grid.results[cell]["flops"] / grid.results[cell]["steps"])
    return grid.results[largest]["flops"] / grid.results[largest]["seconds"]


def grid_seconds(grid: Grid) -> float:
    """Return the training time of all cells divided over the workers, whether they were computed now or loaded."""
    return sum(result["seconds"] for result in grid.results.values()) / grid.params.workers
