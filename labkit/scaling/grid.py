"""Run the whole grid: choose a learning rate per width, train every cell, admit or refuse each one.

The work of one mixer and width is a small conversation: it asks for cells, is sent their results, and asks for the next
ones. All conversations share one pool of workers, so no worker waits for the slowest of a stage. Finished cells are
stored at once; a rerun asks the store first.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from labkit import device, paths, recorded_metrics
from labkit.progress import Progress, of_study
from labkit.record import Store, cell_key, source_hash
from labkit.scaling.admission import Admission, Gate, admit, admit_run
from labkit.scaling.counts import training_flops
from labkit.scaling.data import GridData, load_tokens, prepare
from labkit.scaling.train import Cell, build, in_turn, n_steps, train_cell
from labkit.schema import ScalingGrid
from labkit.workers import process_pool

MAX_EXTENSIONS = 4
"""Number of rates beyond the declared ones that are tried before an optimum at the edge is accepted as not found."""

COLUMNS = [
    *("mixer", "d_model", "n_layers", "seed", "lr", "lr_is_best"),
    *("n_total", "n_non_embedding", "n_active", "n_matmul", "loss_nats", "train_loss_nats"),
    *("bits_per_byte", "token_perplexity", "word_perplexity", "tokens_seen", "seconds", "tokens_per_second"),
    *("flops", "peak_gib", "admitted", "status"),
]
"""Columns of `Grid.runs`; a failed cell has NaN in what was not measured."""

Conversation = Generator[list[Cell], dict[Cell, dict[str, Any]], None]


@dataclass
class Grid:
    """Everything a grid produced."""

    params: ScalingGrid
    """What was asked for."""
    data: GridData
    """What every cell was trained and scored on."""
    results: dict[Cell, dict[str, Any]] = field(default_factory=dict)
    """What `train_cell` returned, by cell."""
    failures: dict[Cell, str] = field(default_factory=dict)
    """Error of each cell that has no result."""
    models: dict[tuple[str, int, int], Admission] = field(default_factory=dict)
    """Gates of the untrained model, by mixer, width and depth."""
    best_rate: dict[tuple[str, int], float] = field(default_factory=dict)
    """Chosen peak rate by mixer and width."""
    interior: dict[tuple[str, int], bool] = field(default_factory=dict)
    """Whether that rate lies inside the rates tried."""
    cached: int = 0
    """Number of cells that were found finished."""

    def admission(self, cell: Cell) -> Admission:
        """Return all gates of a cell: its model's, its run's and its rate's."""
        first = next(result for other, result in self.results.items() if other.seed == cell.seed)
        declared = n_steps(len(self.data.tokens.train), cell.epochs, cell.batch_size, cell.context)
        tokens = declared * cell.batch_size * cell.context
        run = admit_run(self.results[cell], self.data.floors, first["order_sha256"], tokens)
        key = (cell.mixer, cell.d_model)
        chosen = f"peak rate {self.best_rate[key]:g} at width {cell.d_model}"
        rate = Gate("rate inside the sweep", self.interior[key], chosen)
        return Admission((*self.models[(*key, cell.n_layers)].gates, *run.gates, rate))

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
            "status": "ok" if admission.ok else admission.why_not(),
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
        results, failures and gates; a cell that raised is listed in `failures`, never dropped.

    Raises:
        MissingData: the corpus is not here and cannot be fetched.
    """
    data = prepare(params.corpus, params.vocab_size, params.context, params.kneser_ney_order)
    grid = Grid(params, data)
    store = Store(paths.runs(params.hardware, params.report_id()) / "cells")
    store_inputs = _store_inputs(data)
    talks = [_conversation(grid, mixer, width) for mixer in params.mixers for width in params.d_model]
    planned = _planned_gflops(params, data)
    with nullcontext(executor) if executor else process_pool(params.workers) as pool:
        _admit_models(grid, store, store_inputs, pool)
        with of_study(planned, "training the grid", params.hardware, params.report_id()) as progress:
            _drive(talks, grid, store, store_inputs, pool, progress)
    return grid


def _conversation(grid: Grid, mixer: str, width: int) -> Conversation:
    """Sweep the rate at the smallest depth with the first seed, then ask for the grid's cells at the best rate.

    A rate at which training diverged counts as tried, with an infinite loss: it bounds the sweep.
    """
    params, depth, seed = grid.params, min(grid.params.n_layers), grid.params.seeds[0]
    losses: dict[float, float] = {}
    failed: set[float] = set()
    wanted = sorted(params.learning_rates)
    for _ in range(MAX_EXTENSIONS + 1):
        cells = [Cell.of(params, mixer, width, depth, seed, rate) for rate in wanted]
        results = yield cells
        for cell in cells:
            if cell in results:
                losses[cell.learning_rate] = results[cell]["loss_nats"]
            elif grid.failures[cell].startswith(FloatingPointError.__name__):
                losses[cell.learning_rate] = math.inf
            else:
                failed.add(cell.learning_rate)
        if not losses:
            return
        best, wanted = next_rates(losses)
        if not wanted or failed.issuperset(wanted):
            break
    if math.isinf(losses[best]):
        return
    grid.best_rate[mixer, width], grid.interior[mixer, width] = best, not wanted
    yield [
        Cell.of(params, mixer, width, layers, s, best)
        for layers in params.n_layers
        for s in params.seeds
        if (layers, s) != (depth, seed)
    ]


def next_rates(losses: Mapping[float, float]) -> tuple[float, list[float]]:
    """Return the best rate so far and the rate to try next if the best one lies at the edge of those tried."""
    tried = sorted(losses)
    best = min(tried, key=losses.__getitem__)
    ratio = tried[1] / tried[0] if len(tried) > 1 else 2.0
    if best == tried[-1]:
        return best, [best * ratio]
    return best, [best / ratio] if best == tried[0] else []


def _drive(
    talks: Iterable[Conversation],
    grid: Grid,
    store: Store,
    shared: Mapping[str, Any],
    pool: Executor,
    progress: Progress,
) -> None:
    """Keep the pool busy with what the conversations ask for until all have ended."""
    waiting: dict[Future, Cell] = {}
    asked: dict[Conversation, list[Cell]] = {}

    def listen(talk: Conversation, answer: dict | None) -> None:
        try:
            asked[talk] = talk.send(answer)
        except StopIteration:
            asked.pop(talk, None)
            return
        for cell in sorted(asked[talk], key=_gflops_per_step, reverse=True):
            if _is_extension(grid, cell):
                progress.extend(_gflops(cell, grid.data))
            found = store.load(cell_key(shared | cell.inputs()))
            if found is None:
                waiting[pool.submit(train_cell, cell)] = cell
            else:
                grid.results[cell] = found
                grid.cached += 1
                progress.skip(_gflops(cell, grid.data))
        reply(talk)

    def reply(talk: Conversation) -> None:
        cells = asked.get(talk, [])
        if all(cell in grid.results or cell in grid.failures for cell in cells):
            listen(talk, {cell: grid.results[cell] for cell in cells if cell in grid.results})

    for talk in talks:
        listen(talk, None)
    while waiting:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            cell = waiting.pop(future)
            _keep(grid, store, shared, cell, future)
            progress.advance(_gflops(cell, grid.data), _remark(grid, cell))
            reply(next(talk for talk, cells in asked.items() if cell in cells))


def _remark(grid: Grid, cell: Cell) -> str:
    found = grid.results.get(cell)
    return f"{cell.name}, loss {found['loss_nats']:.3f}" if found else f"{cell.name} failed"


def _is_extension(grid: Grid, cell: Cell) -> bool:
    """Say whether a cell belongs to a sweep beyond the declared rates, which no plan foresaw."""
    sweeping = (cell.mixer, cell.d_model) not in grid.best_rate
    return sweeping and cell.learning_rate not in grid.params.learning_rates


def _keep(grid: Grid, store: Store, shared: Mapping[str, Any], cell: Cell, future: Future) -> None:
    """Store a finished cell, or note its error."""
    error = future.exception()
    if error is not None:
        grid.failures[cell] = f"{type(error).__name__}: {error}"
        return
    inputs = dict(shared) | cell.inputs()
    store.save(cell_key(inputs), inputs, future.result())
    grid.results[cell] = future.result()
    _tell(cell, future.result())


def _tell(cell: Cell, result: Mapping[str, Any]) -> None:
    """Tell who follows what a cell recorded."""
    end = {
        "held_out_loss": result["loss_nats"],
        "seconds": result["seconds"],
        "tokens_per_second": result["tokens_seen"] / result["seconds"],
        "peak_bytes": result["peak_bytes"],
    }
    recorded_metrics.tell(cell.name, cell.inputs(), curve=result["curve"], steps=result["steps"], end=end)


def _admit_models(grid: Grid, store: Store, shared: Mapping[str, Any], pool: Executor) -> None:
    """Run the gates of every untrained model of the grid, or load them."""
    params, waiting = grid.params, {}
    shapes = itertools.product(params.mixers, params.d_model, params.n_layers)
    for shape in shapes:
        cell = Cell.of(params, *shape, params.seeds[0], params.learning_rates[0])
        inputs = dict(shared) | cell.inputs() | {"learning_rate": None, "epochs": None}
        found = store.load(cell_key(inputs))
        if found is None:
            waiting[pool.submit(gates_of, cell)] = shape, inputs
        else:
            grid.models[shape] = _admission(found)
    with Progress(len(waiting), "gates of the untrained models") as progress:
        for future in as_completed(waiting):
            shape, inputs = waiting[future]
            if error := future.exception():
                grid.models[shape] = Admission((Gate("gates ran", False, f"{type(error).__name__}: {error}"),))
            else:
                store.save(cell_key(inputs), inputs, future.result())
                grid.models[shape] = _admission(future.result())
            progress.advance(1, "{} d{} l{}".format(*shape))


def _admission(stored: Mapping[str, Any]) -> Admission:
    return Admission(tuple(Gate(**gate) for gate in stored["gates"]))


@in_turn
def gates_of(cell: Cell) -> dict[str, Any]:
    """Admit a cell's untrained model on the first tokens of the real text; return its gates as plain JSON."""
    device.set_threads(cell.threads)
    _, tokens = load_tokens(cell.corpus, cell.vocab_size)
    torch.manual_seed(cell.seed)
    length = min(64, cell.context)
    ids = torch.as_tensor(tokens.train[: 4 * length].astype(np.int64)).view(4, length)
    admission = admit(build(cell.config()), ids, cell.vocab_size)
    return {"gates": [{"name": g.name, "passed": bool(g.passed), "detail": g.detail} for g in admission.gates]}


def _store_inputs(data: GridData) -> dict[str, Any]:
    """What every key holds beside the cell's own values: the code that computes it and the text."""
    return {
        "source": source_hash(["labkit.scaling.train", "labkit.scaling.admission"]),
        "data": data.revision,
        "torch": torch.__version__,
    }


def planned_cells(params: ScalingGrid) -> list[Cell]:
    """List the cells a grid trains if every optimum lies inside the declared rates: the sweep, then the grid."""
    depth, first, guess = min(params.n_layers), params.seeds[0], sorted(params.learning_rates)[-1]
    sweep = [(depth, first, rate) for rate in params.learning_rates]
    rest = [pair for pair in itertools.product(params.n_layers, params.seeds) if pair != (depth, first)]
    own = [(layers, seed, guess) for layers, seed in rest]
    return [
        Cell.of(params, mixer, width, layers, seed, rate)
        for mixer in params.mixers
        for width in params.d_model
        for layers, seed, rate in [*sweep, *own]
    ]


def _perplexity(nats: float) -> float:
    """Return e^nats, or infinity for a cell so far off that no float holds it."""
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf


def _planned_gflops(params: ScalingGrid, data: GridData) -> int:
    return sum(_gflops(cell, data) for cell in planned_cells(params))


def _gflops(cell: Cell, data: GridData) -> int:
    """Weight of a cell in the progress display: its training GFLOPs."""
    steps = n_steps(len(data.tokens.train), cell.epochs, cell.batch_size, cell.context)
    return max(1, round(steps * _gflops_per_step(cell)))


def _gflops_per_step(cell: Cell) -> float:
    return training_flops(cell.config(), cell.batch_size, cell.context) / 1e9
