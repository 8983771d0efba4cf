"""Train models of several sizes at equal FLOPs: the start of ResNet-BK's potential, the rates, the sizes, the controls.

The order is that of a study which may be stopped at any time and goes on later: budgets ascending, controls after the
first seed, further seeds last. Every cell is kept as it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from labkit.progress import of_study
from labkit.reports.scaling_grid.baselines import Baselines, measure_baselines
from labkit.reports.scaling_grid.gates import Untrained, gates_of
from labkit.reports.scaling_grid.isoflop import (
    CONTROLS,
    Size,
    at_equal_flops,
    cell_of,
    middle,
    planned,
    sizes,
    sweep_sizes,
)
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.admission import Admission, Gate, admit_run
from labkit.scaling.counts import training_flops
from labkit.scaling.data import GridData
from labkit.scaling.schedule import order_hash
from labkit.scaling.train import Cell, train_cell
from labkit.training.sweep import best_rate, next_rates, vertex_rate
from labkit.workflow.cells import Cells

MAX_EXTENSIONS = 4
"""Number of rates beyond the declared ones that are tried before an optimum at the edge is accepted as not found."""
COLUMNS = [
    *("role", "budget", "mixer", "d_model", "n_layers", "seed", "lr", "potential_start", "steps"),
    *("n_total", "n_non_embedding", "n_active", "n_matmul", "flops", "tokens_seen", "seconds"),
    *("loss_nats", "bits_per_byte", "nats_per_word", "admitted", "status"),
]
"""Columns of `IsoFlop.runs`."""


@dataclass
class IsoFlop:
    """Everything the comparison at equal FLOPs produced."""

    params: ScalingGrid
    """What was asked for, with this design's vocabulary and seeds."""
    cells: Cells
    """Where results are found or run."""
    data: GridData | None = None
    """What every cell was trained and scored on."""
    results: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    """What `train_cell` returned, by cell."""
    roles: dict[Cell, tuple[str, float]] = field(default_factory=dict)
    """What each cell that was asked for is there for, and its budget: size, rate, start or control."""
    models: dict[tuple[str, int, int], Admission] = field(default_factory=dict)
    """Gates of the untrained models of the budgets, by mixer, width and depth."""
    start: float = 1.0
    """Factor on the start of ResNet-BK's potential that is used."""
    start_losses: dict[float, float] = field(default_factory=dict)
    """Lowest loss by factor tried, in nats, each at its own best rate."""
    rates: dict[tuple[str, int], float] = field(default_factory=dict)
    """Chosen peak rate by mixer and width."""
    interior: dict[tuple[str, int], bool] = field(default_factory=dict)
    """Whether that rate lies inside the rates tried."""

    @property
    def start_is_interior(self) -> bool:
        """Whether factors on both sides of the one used were tried and came out worse."""
        return bool(self.start_losses) and min(self.start_losses) < self.start < max(self.start_losses)

    def loss(self, cell: Cell) -> float | None:
        """Return a cell's loss, infinity where training diverged, None where it has none for another reason."""
        if cell in self.results:
            return self.results[cell]["loss_nats"]
        return math.inf if self.failure(cell).startswith(FloatingPointError.__name__) else None

    def failure(self, cell: Cell) -> str:
        """Return why a cell has no result; empty if that is not known."""
        return self.cells.failures.get(_label(cell), "")

    def admission(self, cell: Cell) -> Admission:
        """Return all gates of a cell: its model's, its run's and its rate's."""
        result, own = self.results[cell], self.params
        order = order_hash(self.data.train_tokens, cell.steps, cell.batch_size, cell.context, cell.seed)
        run = admit_run(result, self.data.floors, order, cell.steps * cell.batch_size * cell.context)
        key = (cell.mixer, cell.d_model)
        rate = Gate("rate inside the sweep", self.interior.get(key, False), f"peak rate {cell.learning_rate:g}")
        model = self.models.get((*key, cell.n_layers), Admission((Gate("untrained model", False, "not checked"),)))
        spent = training_flops(cell.config(), own.batch_size, own.context) * cell.steps
        budget = Gate("budget completed", result["flops"] == spent, f"{result['flops']:.3g} of {spent:.3g} FLOPs")
        return Admission((*model.gates, *run.gates, rate, budget), run.skill)

    def runs(self) -> pd.DataFrame:
        """Return one row per cell that was asked for; a failed one has NaN in what was not measured."""
        rows = [self._row(cell, *about) for cell, about in self.roles.items()]
        order = ["budget", "mixer", "role", "n_total", "seed", "potential_start", "lr"]
        return pd.DataFrame(rows, columns=COLUMNS).sort_values(order, ignore_index=True)

    def _row(self, cell: Cell, role: str, budget: float) -> dict[str, Any]:
        names = ("mixer", "d_model", "n_layers", "seed", "steps", "potential_start")
        row = {name: getattr(cell, name) for name in names} | {"role": role, "budget": budget}
        row["lr"] = cell.learning_rate
        if cell not in self.results:
            return row | {"admitted": False, "status": f"failed: {self.failure(cell) or 'not on record'}"}
        result, score = self.results[cell], self.data.score(np.asarray(self.results[cell]["block_nats"]))
        counted = ("n_total", "n_non_embedding", "n_active", "n_matmul", "flops", "tokens_seen", "seconds", "loss_nats")
        row |= {name: result[name] for name in counted}
        row |= {"bits_per_byte": score.bits_per_byte, "nats_per_word": score.total_nats / score.n_words}
        if role != "size":
            return row | {"admitted": False, "status": f"{role}: enters no law"}
        found = self.admission(cell)
        return row | {"admitted": found.ok, "status": found.why_not() or found.not_shown() or "ok"}


def run_isoflop(params: ScalingGrid, cells: Cells, pool: Executor | None) -> IsoFlop | None:
    """Run or load every cell of the design; None where a profile leaves it out.

    Args:
        params: a grid's own.
        cells: what keeps the cells.
        pool: where they run; None where nothing may run.

    Raises:
        RuntimeError: the n-gram baselines of its vocabulary failed.
    """
    if not params.isoflop_budgets:
        return None
    study = IsoFlop(at_equal_flops(params), cells)
    label = f"n-gram baselines at V = {study.params.vocab_size}"
    measured = cells.one(measure_baselines, Baselines.of(study.params), label)
    if measured is None:
        if label in cells.failures:
            raise RuntimeError(f"{label}: {cells.failures[label]}")
        return study
    study.data = GridData.of(measured)
    work = sum(map(_gflops, planned(params, study.data.train_tokens)))
    with of_study(work, "models at equal FLOPs", params.hardware, params.report_id()) as cells.progress:
        _choose_start(study, pool)
        for budget in sorted(params.isoflop_budgets):
            _choose_rates(study, budget, pool)
            _train_sizes(study, budget, study.params.seeds[0], pool)
        _train_controls(study, pool)
        for seed in study.params.seeds[1:]:
            for budget in sorted(params.isoflop_budgets):
                _train_sizes(study, budget, seed, pool)
    _check_models(study, pool)
    return study


def _choose_start(study: IsoFlop, pool: Executor | None) -> None:
    """Sweep the rate at every start of the potential, at the middle size of the smallest budget; take the best."""
    own = study.params
    if "resnet-bk" not in own.mixers:
        return
    budget = min(own.isoflop_budgets)
    size = middle(sizes(own, budget, "resnet-bk", study.data.train_tokens))
    asked = {start: (size, start) for start in study.params.potential_starts}
    swept = _sweep(study, asked, "start", pool)
    study.start_losses = {start: min(losses.values()) for start, losses in swept.items() if best_rate(losses)}
    if study.start_losses:
        study.start = min(study.start_losses, key=study.start_losses.__getitem__)


def _choose_rates(study: IsoFlop, budget: float, pool: Executor | None) -> None:
    """Choose the rate of every mixer and width whose smallest budget this is."""
    chosen = sweep_sizes(study.params, study.data.train_tokens)
    open_ = {key: (size, study.start) for key, size in chosen.items() if size.budget == budget}
    for key, losses in _sweep(study, open_, "rate", pool).items():
        best = vertex_rate(losses)
        study.interior[key] = best is not None
        best = best_rate(losses) if best is None else best
        if best is not None:
            study.rates[key] = float(f"{best:.3g}")


def _sweep(
    study: IsoFlop, asked: Mapping[Any, tuple[Size, float]], role: str, pool: Executor | None
) -> dict[Any, dict[float, float]]:
    """Try rates for several models side by side, each until its best one lies inside; return losses by rate."""
    own, first = study.params, study.params.seeds[0]
    losses: dict[Any, dict[float, float]] = {key: {} for key in asked}
    wanted = {key: sorted(own.isoflop_learning_rates) for key in asked}
    tried: dict[Any, set[float]] = {key: set() for key in asked}
    for _ in range(MAX_EXTENSIONS + 1):
        wanted = {key: [rate for rate in rates if rate not in tried[key]] for key, rates in wanted.items()}
        cells = {
            cell_of(own, asked[key][0], first, rate, asked[key][1]): (key, rate)
            for key, rates in wanted.items()
            for rate in rates
        }
        if not cells:
            break
        _train(study, cells, role, {cell: asked[key][0].budget for cell, (key, _) in cells.items()}, pool)
        for cell, (key, rate) in cells.items():
            tried[key].add(rate)
            loss = study.loss(cell)
            losses[key] |= {} if loss is None else {rate: loss}
        wanted = {key: next_rates(own_losses) for key, own_losses in losses.items()}
    return losses


def _train_sizes(study: IsoFlop, budget: float, seed: int, pool: Executor | None) -> None:
    own, n_tokens = study.params, study.data.train_tokens
    cells = [
        cell_of(own, size, seed, study.rates[mixer, size.d_model], study.start)
        for mixer in own.mixers
        for size in sizes(own, budget, mixer, n_tokens)
        if (mixer, size.d_model) in study.rates
    ]
    _train(study, cells, "size", dict.fromkeys(cells, budget), pool)


def _train_controls(study: IsoFlop, pool: Executor | None) -> None:
    """Train ResNet-BK without its mixer, and with the published one, at the smallest budget."""
    own = study.params
    if "resnet-bk" not in own.mixers:
        return
    budget = min(own.isoflop_budgets)
    size = middle(sizes(own, budget, "resnet-bk", study.data.train_tokens))
    rate = study.rates.get(("resnet-bk", size.d_model))
    if rate is not None:
        cells = [cell_of(own, size, seed, rate, study.start, control) for seed in own.seeds for control in CONTROLS]
        _train(study, cells, "control", dict.fromkeys(cells, budget), pool)


def _train(
    study: IsoFlop, cells: Iterable[Cell], role: str, budgets: Mapping[Cell, float], pool: Executor | None
) -> None:
    """Train cells, the largest first, and note what came of them; one that is also a size stays one."""
    largest_first = sorted(cells, key=lambda cell: _gflops(cell) / cell.steps, reverse=True)
    for cell in largest_first:
        if role == "size" or cell not in study.roles:
            study.roles[cell] = role, budgets[cell]
    labels = {cell: _label(cell) for cell in largest_first}
    for cell, found, _ in study.cells.each(train_cell, labels, pool, _gflops):
        if found is not None:
            study.results[cell] = found


def _check_models(study: IsoFlop, pool: Executor | None) -> None:
    """Run the gates of every untrained model of the budgets, or load them."""
    own, cells = study.params, study.cells
    shapes = {
        (c.mixer, c.d_model, c.n_layers, c.potential_start) for c, (role, _) in study.roles.items() if role == "size"
    }
    models = [Untrained.of(own, *shape) for shape in sorted(shapes)]
    labels = {model: f"{model.name}, V = {model.vocab_size}" for model in models}
    with of_study(len(models), "gates of models at equal FLOPs", own.hardware, own.report_id()) as cells.progress:
        for model, found, _ in cells.each(gates_of, labels, pool):
            failed = [
                {"name": "gates ran", "passed": False, "detail": cells.failures.get(labels[model], "not on record")}
            ]
            gates = tuple(Gate(**gate) for gate in (found["gates"] if found else failed))
            study.models[model.mixer, model.d_model, model.n_layers] = Admission(gates)


def _label(cell: Cell) -> str:
    start = "" if cell.potential_start == 1.0 else f" start x{cell.potential_start:g}"
    return f"{cell.name}{start} V{cell.vocab_size} {cell.steps} steps"


def _gflops(cell: Cell) -> int:
    return max(1, round(cell.steps * training_flops(cell.config(), cell.batch_size, cell.context) / 1e9))
