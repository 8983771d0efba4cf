"""Run the whole grid: choose a learning rate per width, train every cell, admit or refuse each one.

The work of one mixer and width is a small conversation: it asks for cells, and asks for the next ones when these have
results. All conversations share one pool of workers, so no worker waits for the slowest of a stage.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from labkit.base.workers import process_pool, require_importable
from labkit.cell import CellFunction, plain
from labkit.metrics import recorded as recorded_metrics
from labkit.progress import of_study
from labkit.reports.scaling_grid.baselines import Baselines, measure_baselines
from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.gates import Untrained, gates_of
from labkit.reports.scaling_grid.isoflop_study import IsoFlop, run_isoflop
from labkit.reports.scaling_grid.leak import Leak, measure_leak
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.admission import Admission, Gate, admit_run
from labkit.scaling.counts import training_flops
from labkit.scaling.data import GridData
from labkit.scaling.schedule import n_steps
from labkit.scaling.train import Cell, train_cell
from labkit.training.sweep import best_rate, next_rates
from labkit.workflow.cells import Cells

MAX_EXTENSIONS = 4
"""Number of rates beyond the declared ones that are tried before an optimum at the edge is accepted as not found."""
LEAK = "leak of both mixers"
"""Label of the cell that shows how far later tokens reach back."""

COLUMNS = [
    *("mixer", "d_model", "n_layers", "seed", "lr", "lr_is_best"),
    *("n_total", "n_non_embedding", "n_active", "n_matmul", "loss_nats", "train_loss_nats"),
    *("bits_per_byte", "token_perplexity", "word_perplexity", "tokens_seen", "seconds", "tokens_per_second"),
    *("flops", "peak_gib", "admitted", "status"),
]
"""Columns of `Grid.runs`; a failed cell has NaN in what was not measured."""

Conversation = Iterator[list[Cell]]


@dataclass
class Grid:
    """Everything a grid produced."""

    params: ScalingGrid
    """What was asked for."""
    data: GridData | None
    """What every cell was trained and scored on; None while cells are only looked for and this one is missing."""
    results: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    """What `train_cell` returned, by cell."""
    failures: dict[Cell, str] = field(default_factory=dict)
    """Error of each of them that has no result."""
    models: dict[tuple[str, int, int], Admission] = field(default_factory=dict)
    """Gates of the untrained model, by mixer, width and depth."""
    best_rate: dict[tuple[str, int], float] = field(default_factory=dict)
    """Chosen peak rate by mixer and width."""
    interior: dict[tuple[str, int], bool] = field(default_factory=dict)
    """Whether that rate lies inside the rates tried."""
    cells: Cells | None = None
    """Everything that the grid stands on, found or run."""
    isoflop: IsoFlop | None = None
    """The comparison at equal FLOPs; None where the profile leaves it out."""

    def take(self, cell: Cell, result: dict[str, Any] | None) -> None:
        """Note what came of a cell."""
        if result is not None:
            self.results[cell] = result
        elif cell.name in self.cells.failures:
            self.failures[cell] = self.cells.failures[cell.name]

    def loss(self, cell: Cell) -> float | None:
        """Return a cell's loss, infinity where training diverged, None where another reason left it without one."""
        if cell in self.results:
            return self.results[cell]["loss_nats"]
        return math.inf if self.failures.get(cell, "").startswith(FloatingPointError.__name__) else None

    def admission(self, cell: Cell) -> Admission:
        """Return all gates of a cell: its model's, its run's and its rate's."""
        first = next(result for other, result in self.results.items() if other.seed == cell.seed)
        declared = n_steps(self.data.train_tokens, cell.epochs, cell.batch_size, cell.context)
        tokens = declared * cell.batch_size * cell.context
        run = admit_run(self.results[cell], self.data.floors, first["order_sha256"], tokens)
        key = (cell.mixer, cell.d_model)
        chosen = f"peak rate {self.best_rate[key]:g} at width {cell.d_model}"
        rate = Gate("rate inside the sweep", self.interior[key], chosen)
        return Admission((*self.models[(*key, cell.n_layers)].gates, *run.gates, rate), run.skill)

    def runs(self) -> pd.DataFrame:
        """Return one row per cell, finished or failed, sweep and grid alike; `lr_is_best` marks the grid's own."""
        rows = [self._row(cell) for cell in self.results] + [self._failed_row(cell) for cell in self.failures]
        order = ["mixer", "d_model", "n_layers", "seed", "lr"]
        return pd.DataFrame(rows, columns=COLUMNS).sort_values(order, ignore_index=True)

    def _row(self, cell: Cell) -> dict[str, Any]:
        result = self.results[cell]
        admission = self.admission(cell)
        score = self.data.score(np.asarray(result["block_nats"]))
        return self._identity(cell) | {
            **{name: result[name] for name in ("n_total", "n_non_embedding", "n_active", "n_matmul")},
            "loss_nats": result["loss_nats"],
            "train_loss_nats": result["train_loss_nats"],
            "bits_per_byte": score.bits_per_byte,
            "token_perplexity": _perplexity(score.total_nats / score.n_tokens),
            "word_perplexity": _perplexity(score.total_nats / score.n_words),
            "tokens_seen": result["tokens_seen"],
            "seconds": result["seconds"],
            "tokens_per_second": result["tokens_seen"] / result["seconds"],
            "flops": result["flops"],
            "peak_gib": result["peak_bytes"] / 2**30,
            "admitted": admission.ok,
            "status": admission.why_not() or admission.not_shown() or "ok",
        }

    def _failed_row(self, cell: Cell) -> dict[str, Any]:
        return self._identity(cell) | {"admitted": False, "status": f"failed: {self.failures[cell]}"}

    def _identity(self, cell: Cell) -> dict[str, Any]:
        best = self.best_rate.get((cell.mixer, cell.d_model))
        return {
            "mixer": cell.mixer,
            "d_model": cell.d_model,
            "n_layers": cell.n_layers,
            "seed": cell.seed,
            "lr": cell.learning_rate,
            "lr_is_best": cell.learning_rate == best,
        }


def run_grid(params: ScalingGrid, executor: Executor | None = None) -> Grid:
    """Run or load every cell of the grid.

    Args:
        params: the resolved parameters.
        executor: any `concurrent.futures` executor; by default `params.workers` processes on this machine. Its workers
            must be able to import labkit and read the corpus cache.

    Returns:
        results, failures and gates; a cell that the machine or its own mathematics killed is listed in `failures`.

    Raises:
        MissingData: the corpus is not here and cannot be fetched.
        MissingCells: nothing may run, and cells are not on record.
        ValueError: the default workers could not import the calling script; the message says what it lacks.
    """
    cells = Cells.of(params.hardware, params.report_id())
    if executor is None and not cells.only_recorded:
        # Before the baselines are measured, which takes minutes.
        require_importable()
    measured = needed(cells, measure_baselines, Baselines.of(params), "n-gram baselines")
    needed(cells, measure_leak, Leak.of(params), LEAK)
    grid = Grid(params, GridData.of(measured) if measured else None, cells=cells)
    own = params.hardware, params.report_id()
    n_models = len(params.mixers) * len(params.d_model) * len(params.n_layers)
    with nullcontext(executor) if executor or cells.only_recorded else process_pool(params.workers) as pool:
        with of_study(n_models, "gates of the untrained models", *own) as cells.progress:
            _admit_models(grid, pool)
        grid.isoflop = run_isoflop(params, cells, pool)
        planned = sum(_gflops(grid, cell) for cell in planned_cells(params))
        with of_study(planned, "training the grid", *own) as cells.progress:
            _drive(grid, pool)
    cells.require()
    return grid


def needed(cells: Cells, work: CellFunction, spec: Any, label: str) -> dict[str, Any] | None:
    """Load or run a cell that everything else hangs on; None only where it is missing and nothing may run.

    Raises:
        RuntimeError: it failed.
    """
    found = cells.one(work, spec, label)
    if label in cells.failures:
        raise RuntimeError(f"{label}: {cells.failures[label]}")
    return found


def _admit_models(grid: Grid, pool: Executor | None) -> None:
    """Run the gates of every untrained model of the grid, or load them."""
    params, cells = grid.params, grid.cells
    shapes = itertools.product(params.mixers, params.d_model, params.n_layers)
    models = {model: model.name for model in (Untrained.of(params, *shape) for shape in shapes)}
    for model, found, _ in cells.each(gates_of, models, pool):
        failed = [{"name": "gates ran", "passed": False, "detail": cells.failures.get(model.name, "not on record")}]
        gates = found["gates"] if found else failed
        grid.models[model.mixer, model.d_model, model.n_layers] = Admission(tuple(Gate(**gate) for gate in gates))


def _conversation(grid: Grid, mixer: str, width: int) -> Conversation:
    """Sweep the rate at the smallest depth with the first seed, then ask for the grid's cells at the best rate.

    A rate at which training diverged counts as tried, with an infinite loss: it bounds the sweep. One whose cell was
    killed for another reason bounds nothing, and is not asked for again.
    """
    params, first = grid.params, (min(grid.params.n_layers), grid.params.seeds[0])
    losses: dict[float, float] = {}
    tried: set[float] = set()
    rates = sorted(params.learning_rates)
    for _ in range(MAX_EXTENSIONS + 1):
        tried.update(rates)
        asked = [cell_for(params, mixer, width, *first, rate) for rate in rates]
        yield asked
        losses |= {cell.learning_rate: loss for cell in asked if (loss := grid.loss(cell)) is not None}
        rates = next_rates(losses)
        if tried.issuperset(rates):
            break
    best = best_rate(losses)
    if best is None:
        return
    grid.best_rate[mixer, width], grid.interior[mixer, width] = best, len(losses) > 1 and not rates
    rest = (pair for pair in itertools.product(params.n_layers, params.seeds) if pair != first)
    yield [cell_for(params, mixer, width, *pair, best) for pair in rest]


def _drive(grid: Grid, pool: Executor | None) -> None:
    """Keep the pool busy with what the conversations ask for until all have ended."""
    cells, progress = grid.cells, grid.cells.progress
    waiting: dict[Future, tuple[Cell, Conversation]] = {}
    open_cells: Counter[Conversation] = Counter()

    def go_on(talk: Conversation) -> None:
        """Have a conversation ask until it has to wait for a cell, or ends."""
        for asked in talk:
            for cell in sorted(asked, key=_gflops_per_step, reverse=True):
                if _is_extension(grid, cell):
                    progress.extend(_gflops(grid, cell))
                found = cells.load(train_cell, cell, cell.name)
                if found is None and not cells.only_recorded:
                    waiting[cells.submit(pool, train_cell, cell)] = cell, talk
                    open_cells[talk] += 1
                    continue
                grid.take(cell, found)
                progress.skip(_gflops(grid, cell), cell.name)
            if open_cells[talk]:
                return

    for mixer, width in itertools.product(grid.params.mixers, grid.params.d_model):
        go_on(_conversation(grid, mixer, width))
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            cell, talk = waiting.pop(future)
            found = cells.collect(train_cell, cell, cell.name, future, _gflops(grid, cell))
            grid.take(cell, found)
            if found is not None:
                _tell(cell, found)
            open_cells[talk] -= 1
            if not open_cells[talk]:
                go_on(talk)


def _is_extension(grid: Grid, cell: Cell) -> bool:
    """Say whether a cell belongs to a sweep beyond the declared rates, which no plan foresaw."""
    sweeping = (cell.mixer, cell.d_model) not in grid.best_rate
    return sweeping and cell.learning_rate not in grid.params.learning_rates


def _tell(cell: Cell, result: Mapping[str, Any]) -> None:
    """Tell who follows what a cell recorded."""
    end = {
        "held_out_loss": result["loss_nats"],
        "seconds": result["seconds"],
        "tokens_per_second": result["tokens_seen"] / result["seconds"],
        "peak_bytes": result["peak_bytes"],
    }
    recorded_metrics.tell(cell.name, plain(cell), curve=result["curve"], steps=result["steps"], end=end)


def planned_cells(params: ScalingGrid) -> list[Cell]:
    """List the cells a grid trains if every optimum lies inside the declared rates: the sweep, then the grid."""
    depth, first, guess = min(params.n_layers), params.seeds[0], sorted(params.learning_rates)[-1]
    sweep = [(depth, first, rate) for rate in params.learning_rates]
    rest = [pair for pair in itertools.product(params.n_layers, params.seeds) if pair != (depth, first)]
    own = [(layers, seed, guess) for layers, seed in rest]
    return [
        cell_for(params, mixer, width, layers, seed, rate)
        for mixer in params.mixers
        for width in params.d_model
        for layers, seed, rate in [*sweep, *own]
    ]


def _perplexity(nats: float) -> float:
    """Return e^nats, or infinity for a cell so far off that no float holds it."""
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf


def _gflops(grid: Grid, cell: Cell) -> int:
    """Weight of a cell in the progress display: its training GFLOPs."""
    steps = n_steps(grid.data.train_tokens if grid.data else 0, cell.epochs, cell.batch_size, cell.context)
    return max(1, round(steps * _gflops_per_step(cell)))


def _gflops_per_step(cell: Cell) -> float:
    return training_flops(cell.config(), cell.batch_size, cell.context) / 1e9
