"""What a number of the report's own scale would take on this machine, where a grid is smaller: all that decides it.

A cell of the report stands on the sweep that chose its rate and on its seeds; a law on every cell of its mixer; a
difference of laws on the cells of both. Cells run side by side on the profile's workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from labkit.base.scale import Scale
from labkit.reports.scaling_grid import cost
from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.isoflop_results import isoflop_paths, isoflop_void
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.reports.scaling_grid.study import Grid, planned_cells
from labkit.scaling.train import Cell
from labkit.workflow.cost import side_by_side
from labkit.workflow.params import scale, stated_scope

_OF_A_LAW = ("exponent", "r2", "coefficient", "ppl_ratio_10x", "ppl_ratio_100x")
_AT_EQUAL_FLOPS = ("exponent", "ppl_ratio_10x", "ppl_ratio_100x")
"""Numbers that the comparison at equal FLOPs gives where it ran."""
Price = dict[str, Any]


def out_of_reach(grid: Grid, refused: Mapping[str, str] | None = None) -> dict[str, Price]:
    """Say what each number of the report's own scale would take on this machine, at the speed measured in this grid.

    Args:
        grid: the finished grid.
        refused: why a mixer has no law, of `fit_all`; its exponent is then out of reach of this run.
    """
    params, void = grid.params, isoflop_void(isoflop_paths(grid.isoflop))
    if scale(params) is Scale.STATED:
        return void
    full = params.model_copy(update=stated_scope(params.report_id()))
    stated = f"{full.corpus}, {full.epochs:g} epochs, V = {full.vocab_size:,}"
    why = f"the report's own scale is {stated}; this profile runs less"
    seconds = _timer(grid, full)
    out = _of_cells(full, seconds, why) | _of_hours(full, seconds, why)
    for mixer, reason in (refused or {}).items():
        told = f"no law could be fitted: {reason}"
        own = [cell for cell in planned_cells(full) if cell.mixer == mixer]
        out |= dict.fromkeys((f"{name}/{mixer}" for name in _OF_A_LAW), _price(told, own, seconds, full.workers))
        out["exponent_difference"] = _price(told, planned_cells(full), seconds, full.workers)
    if grid.isoflop is not None:
        out = {key: needs for key, needs in out.items() if not key.startswith(_AT_EQUAL_FLOPS)}
    return out | void


def _timer(grid: Grid, full: ScalingGrid) -> Callable[[Cell], float]:
    """Return a function that says how long a cell of the report's own scale trains at the speed of this grid."""
    tokens, rate = cost.n_train_tokens(full), measured_flops_per_second(grid)
    return lambda cell: cost.cell_flops(cell, tokens) / rate


def _price(why: str, cells: Iterable[Cell], seconds: Callable[[Cell], float], workers: int) -> Price:
    """Price cells that train side by side; the largest ones are in memory together."""
    every = list(cells)
    largest = sorted(map(cost.cell_bytes, every))[-workers:]
    return {"why": why, "seconds": side_by_side(map(seconds, every), workers), "gib": sum(largest) / 2**30}


def _of_cells(full: ScalingGrid, seconds: Callable[[Cell], float], why: str) -> dict[str, Price]:
    """Price every cell of the report: its perplexity with its sweep and seeds, its memory by training it once."""
    planned, out = planned_cells(full), {}
    for mixer in full.mixers:
        for d_model in full.d_model:
            of_width = [cell for cell in planned if (cell.mixer, cell.d_model) == (mixer, d_model)]
            for n_layers in full.n_layers:
                name = f"d{d_model}_l{n_layers}"
                own = [cell for cell in of_width if cell.n_layers in (min(full.n_layers), n_layers)]
                asked = [cell for cell in own if cell.n_layers == n_layers or cell.seed == full.seeds[0]]
                out[f"word_perplexity/{mixer}/{name}"] = _price(why, asked, seconds, full.workers)
                if mixer == "resnet-bk":
                    out[f"peak_gib/{name}"] = _price(why, [_cell(full, d_model, n_layers)], seconds, 1)
    return out


def _of_hours(full: ScalingGrid, seconds: Callable[[Cell], float], why: str) -> dict[str, Price]:
    """Price the wall times that the report prints: they are those of its own ResNet-BK cells, one seed, one by one.

    The quick test is the four smallest shapes with three of five epochs.
    """
    times = {(d, n): seconds(_cell(full, d, n)) for d in full.d_model for n in full.n_layers}
    quick = sum(times[d, n] for d in sorted(full.d_model)[:2] for n in sorted(full.n_layers)[:2])
    grid = {"why": why, "seconds": sum(times.values()), "gib": None}
    return {"hours/grid": grid, "hours/quick": {"why": why, "seconds": quick * 3 / 5, "gib": None}}


def _cell(full: ScalingGrid, d_model: int, n_layers: int) -> Cell:
    return cell_for(full, "resnet-bk", d_model, n_layers, full.seeds[0], min(full.learning_rates))


def measured_flops_per_second(grid: Grid) -> float:
    """Return the training FLOP/s of the largest cell that ran, one worker: larger cells come closest to its rate."""
    largest = max(grid.results, key=lambda cell: grid.results[cell]["flops"] / grid.results[cell]["steps"])
    return grid.results[largest]["flops"] / grid.results[largest]["seconds"]
