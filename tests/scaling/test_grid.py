"""The grid: its sweep against losses in closed form, its executors against each other to the bit, and its records
against a process that is killed while it works.

Run with `pytest tests/scaling/test_grid.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from labkit.base.modes import RENDER
from labkit.cell import CellFunction
from labkit.reports.scaling_grid import findings
from labkit.reports.scaling_grid import study as grids
from labkit.reports.scaling_grid.gates import Untrained, gates_of
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.reports.scaling_grid.study import MAX_EXTENSIONS, Grid, planned_cells, run_grid
from labkit.scaling.admission import Admission, Gate
from labkit.scaling.data import load_tokens
from labkit.scaling.train import Cell, train_cell
from labkit.training.sweep import best_rate, next_rates
from labkit.workflow import params
from labkit.workflow.cells import MissingCells
from labkit.workflow.store import Record

TINY = {
    "d_model": [8],
    "n_layers": [1, 2],
    "epochs": 0.001,
    "batch_size": 4,
    "context": 32,
    "dropout": 0.1,
    "kneser_ney_order": 2,
    "bootstrap": 100,
    "isoflop_budgets": [],
    "learning_rates": [1e-4, 1e-2, 1.0],  # far enough apart for the middle one to be the best
}
N_CELLS = 8  # two mixers, three rates at depth 1 and the best of them at depth 2
N_MODELS = 4  # two mixers, two depths
N_SHARED = 2  # the n-gram baselines and the leak of both mixers
N_RECORDS = N_CELLS + N_MODELS + N_SHARED
Spec = Cell | Untrained


def tiny(**changes: Any) -> ScalingGrid:
    return params.resolve("scaling_grid", "ci", TINY | changes)


class Serial(Executor):
    """Does the work in the caller's thread, and keeps a list of it."""

    def __init__(
        self,
        fail: Callable[[CellFunction, Spec], bool] = lambda work, spec: False,
        error: Exception | None = None,
    ) -> None:
        self.done: list[tuple[CellFunction, Spec]] = []
        self.fail = fail
        self.error = error or MemoryError("no room for this one")

    def submit(self, run: Callable, work: CellFunction, spec: Spec) -> Future:
        future: Future = Future()
        self.done.append((work, spec))
        try:
            if self.fail(work, spec):
                raise self.error
            future.set_result(run(work, spec))
        except Exception as error:
            future.set_exception(error)
        return future

    def specs(self, work: CellFunction) -> list[Spec]:
        return [spec for done, spec in self.done if done is work]


@contextlib.contextmanager
def output(folder: Path) -> Iterator[Path]:
    """Have runs written below a folder; yield where their cells go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUTPUT", str(folder))
        yield folder / "runs" / "ci" / "scaling_grid" / "cells"


def untimed(found: Grid) -> dict[Cell, dict[str, Any]]:
    return {cell: without_times(result) for cell, result in found.results.items()}


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in train_cell.timing}


def records(folder: Path) -> dict[str, Record]:
    """Return what is stored in a folder of cells, by file."""
    return {path.name: Record.of(json.loads(path.read_text())) for path in folder.glob("*.json")}


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Results of the trained cells in a folder, without times."""
    trained = {name: one.result for name, one in records(folder).items() if one.identity["cell"] == train_cell.name}
    return {name: without_times(result) for name, result in trained.items() if result}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Serial, Path]:
    """A grid run in one thread: what it found, what it did, where it is stored."""
    executor = Serial()
    with output(tmp_path_factory.mktemp("serial")) as cells:
        return run_grid(tiny(), executor), executor, cells


def copy_of(folder: Path, to: Path, keep: Callable[[Record], bool]) -> None:
    """Copy the records that are to be kept."""
    with output(to) as cells:
        cells.mkdir(parents=True)
        for name, record in records(folder).items():
            if keep(record):
                (cells / name).write_bytes((folder / name).read_bytes())


def is_trained(record: Record) -> bool:
    return record.identity["cell"] == train_cell.name


# --- the sweep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "best", "wanted"),
    [
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}, 2e-3, []),
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.5}, 4e-3, [8e-3]),
        ({1e-3: 1.0, 2e-3: 2.0, 4e-3: 2.5}, 1e-3, [5e-4]),
        ({1e-3: 1.0, 1e-2: 2.0}, 1e-3, [1e-4]),
        ({1e-3: 3.0}, 1e-3, []),
        ({4e-3: 1.5, 1e-3: 3.0, 2e-3: 2.0}, 4e-3, [8e-3]),
        ({1e-3: 2.0, 2e-3: math.inf}, 1e-3, [5e-4]),
        ({1e-3: 2.0, 2e-3: 1.0, 4e-3: math.inf}, 2e-3, []),
        ({1e-3: math.inf, 2e-3: math.inf}, None, [5e-4]),
        ({}, None, []),
    ],
)
def test_next_rate_lies_beyond_the_edge_that_is_best(
    losses: dict[float, float], best: float | None, wanted: list
) -> None:
    assert best_rate(losses) == best
    assert next_rates(losses) == pytest.approx(wanted)


def sweep(rates: list[float], loss: Callable[[float], float | str]) -> tuple[Grid, list[float], list[Cell]]:
    """Answer a width's questions with losses in closed form (a text is an error); return the grid, rates and cells."""
    grid = Grid(tiny(learning_rates=rates, n_layers=[1, 2], seeds=[0, 1]), data=None)
    tried, own = [], []
    for asked in grids._conversation(grid, "transformer", 8):
        for cell in asked:
            found = loss(cell.learning_rate)
            if isinstance(found, str):
                grid.failures[cell] = found
            else:
                grid.results[cell] = {"loss_nats": found}
        tried += [cell.learning_rate for cell in asked if (cell.n_layers, cell.seed) == (1, 0)]
        own += [cell for cell in asked if (cell.n_layers, cell.seed) != (1, 0)]
    return grid, tried, own


def valley(optimum: float) -> Callable[[float], float]:
    return lambda rate: 3 + math.log(rate / optimum) ** 2


@pytest.mark.parametrize("optimum", [3e-4, 1e-3, 4e-3, 1.6e-2, 3.2e-2])
def test_sweep_goes_on_until_the_best_rate_lies_inside(optimum: float) -> None:
    grid, tried, own = sweep([2e-3, 4e-3], valley(optimum))
    best = grid.best_rate["transformer", 8]
    assert grid.interior["transformer", 8]
    assert best == min(tried, key=valley(optimum))
    assert abs(math.log2(best / optimum)) <= 0.5 + 1e-9
    assert min(tried) < best < max(tried)
    assert {(cell.n_layers, cell.seed) for cell in own} == {(1, 1), (2, 0), (2, 1)}
    assert {cell.learning_rate for cell in own} == {best}


def test_a_single_rate_is_no_sweep_and_is_not_said_to_lie_inside_one() -> None:
    grid, tried, own = sweep([2e-3], valley(2e-3))
    assert tried == [2e-3]
    assert grid.best_rate["transformer", 8] == 2e-3
    assert not grid.interior["transformer", 8]
    assert len(own) == 3


def test_interior_optimum_costs_no_extension() -> None:
    assert sweep([1e-3, 2e-3, 4e-3], valley(2e-3))[1] == [1e-3, 2e-3, 4e-3]


def test_optimum_out_of_reach_is_said_to_be_at_the_edge() -> None:
    grid, tried, own = sweep([1e-3, 2e-3], valley(10.0))
    assert not grid.interior["transformer", 8]
    assert len(tried) == 2 + MAX_EXTENSIONS
    assert grid.best_rate["transformer", 8] == max(tried)
    assert {cell.learning_rate for cell in own} == {max(tried)}


def test_rate_that_diverges_bounds_the_sweep() -> None:
    grid, tried, _ = sweep(
        [1e-3, 2e-3, 4e-3], lambda rate: valley(4e-3)(rate) if rate < 3e-3 else "FloatingPointError: …"
    )
    assert tried == [1e-3, 2e-3, 4e-3]
    assert grid.best_rate["transformer", 8] == 2e-3
    assert grid.interior["transformer", 8]


def test_sweep_goes_down_where_every_declared_rate_diverges() -> None:
    grid, tried, _ = sweep([1e-2, 2e-2], lambda rate: valley(2e-3)(rate) if rate < 4e-3 else "FloatingPointError: …")
    assert sorted(tried) == pytest.approx([1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2])
    assert grid.best_rate["transformer", 8] == pytest.approx(2.5e-3)
    assert grid.interior["transformer", 8]


def test_rate_that_failed_for_another_reason_is_not_tried_again_and_bounds_nothing() -> None:
    grid, tried, _ = sweep([1e-3, 2e-3, 4e-3], lambda rate: valley(4e-3)(rate) if rate < 3e-3 else "MemoryError: …")
    assert tried == [1e-3, 2e-3, 4e-3]
    assert grid.best_rate["transformer", 8] == 2e-3
    assert not grid.interior["transformer", 8]


@pytest.mark.parametrize("error", ["FloatingPointError: …", "MemoryError: …"])
def test_width_without_any_result_asks_for_no_grid_cells(error: str) -> None:
    grid, tried, _ = sweep([1e-3, 2e-3], lambda _: error)
    assert len(tried) <= 2 + MAX_EXTENSIONS
    assert grid.best_rate == {}


# --- executors ---------------------------------------------------------------------------------------------------


def test_grid_trains_exactly_what_was_planned_and_keeps_all_of_it(serial: tuple[Grid, Serial, Path]) -> None:
    grid, executor, folder = serial
    assert set(grid.interior.values()) == {True}
    assert set(grid.best_rate.values()) == {1e-2}
    trained = executor.specs(train_cell)
    assert len(trained) == len(set(trained)) == N_CELLS
    assert set(trained) == set(grid.results)
    # The plan guesses the largest rate for what follows the sweep.
    names = [(cell.mixer, cell.n_layers, cell.learning_rate if cell.n_layers == 1 else None) for cell in trained]
    planned = planned_cells(tiny())
    assert sorted(names, key=str) == sorted(
        ((cell.mixer, cell.n_layers, cell.learning_rate if cell.n_layers == 1 else None) for cell in planned), key=str
    )
    assert len(stored(folder)) == N_CELLS
    assert (grid.cells.cached, grid.failures, grid.cells.failures) == (0, {}, {})


def test_every_model_is_admitted_once(serial: tuple[Grid, Serial, Path]) -> None:
    grid, executor, _ = serial
    shapes = [(model.mixer, model.d_model, model.n_layers) for model in executor.specs(gates_of)]
    assert sorted(shapes) == sorted(grid.models)
    assert sorted(shapes) == [(mixer, 8, n) for mixer in ("resnet-bk", "transformer") for n in (1, 2)]
    assert all(admission.ok for admission in grid.models.values())


def test_threads_give_the_same_losses(serial: tuple[Grid, Serial, Path], tmp_path: Path) -> None:
    with output(tmp_path), ThreadPoolExecutor(3) as pool:
        assert untimed(run_grid(tiny(), pool)) == untimed(serial[0])


# --- resuming ----------------------------------------------------------------------------------------------------


def test_finished_grid_trains_nothing_again(serial: tuple[Grid, Serial, Path]) -> None:
    grid, _, folder = serial
    again = Serial()
    with output(folder.parents[3]):
        found = run_grid(tiny(), again)
    assert again.done == []
    assert found.cells.cached == len(found.cells.used) == N_RECORDS
    assert found.results == grid.results
    assert found.models == grid.models
    assert found.runs().equals(grid.runs())


def test_changed_parameters_share_nothing_with_finished_cells(serial: tuple[Grid, Serial, Path]) -> None:
    for changes in ({"weight_decay": 0.2}, {"epochs": 0.0011}, {"threads": 2}, {"vocab_size": 511}):
        cells = [train_cell.identity(cell) for cell in planned_cells(tiny(**changes))]
        assert not any(train_cell.identity(cell) in cells for cell in planned_cells(tiny()))


@pytest.mark.parametrize("damage", [b"", b'{"key"', b"flipped"])
def test_damaged_cell_is_set_aside_and_trained_again_to_the_same_value(
    serial: tuple[Grid, Serial, Path], damage: bytes
) -> None:
    grid, _, folder = serial
    before, name = stored(folder), sorted(stored(folder))[3]
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(
        content.replace(b'"loss_nats": ', b'"loss_nats": 1') if damage == b"flipped" else damage
    )
    again = Serial()
    with output(folder.parents[3]), pytest.warns(UserWarning, match="damaged"):
        found = run_grid(tiny(), again)
    assert len(again.done) == 1
    assert found.cells.cached == N_RECORDS - 1
    assert (folder / name).with_suffix(".corrupt").exists()
    assert untimed(found) == untimed(grid)
    assert stored(folder) == before


CHILD = """
import json, sys
from labkit.workflow import params
from labkit.reports.scaling_grid.study import run_grid
run_grid(params.resolve("scaling_grid", "ci", json.loads(sys.argv[1])))
"""


def start_child(folder: Path, **changes: Any) -> subprocess.Popen:
    """Run the grid in a process of its own with the default pool, as a notebook does."""
    arguments = [sys.executable, "-c", CHILD, json.dumps(TINY | changes)]
    environment = os.environ | {"LABKIT_OUTPUT": str(folder)}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_killed_grid_keeps_what_was_finished_and_then_ends_as_if_nothing_had_happened(
    serial: tuple[Grid, Serial, Path], tmp_path: Path
) -> None:
    with output(tmp_path) as cells:
        child = start_child(tmp_path, workers=2)
        wait_for(lambda: len(stored(cells)) >= 2, "two cells finished")
        workers = psutil.Process(child.pid).children(recursive=True)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert len(workers) >= 2
        wait_for(lambda: not any(map(lives, workers)), "the workers ended with their parent", 30)

        kept = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in cells.glob("*.json")}
        finished = len(stored(cells))
        assert 2 <= finished < N_CELLS
        grid = run_grid(tiny(workers=1))
        assert (grid.cells.cached, grid.failures) == (finished + N_MODELS + N_SHARED, {})
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept} == kept
    assert untimed(grid) == untimed(serial[0])
    assert grid.models == serial[0].models
    assert stored(cells) == stored(serial[2])


# --- failures ----------------------------------------------------------------------------------------------------


def test_killed_cell_is_listed_stops_no_other_and_is_tried_again(
    serial: tuple[Grid, Serial, Path], tmp_path: Path
) -> None:
    def fails(work: CellFunction, spec: Spec) -> bool:
        return work is train_cell and (spec.mixer, spec.learning_rate, spec.n_layers) == ("transformer", 1.0, 1)

    copy_of(serial[2], tmp_path, lambda record: not is_trained(record))
    with output(tmp_path) as cells:
        executor = Serial(fails)
        grid = run_grid(tiny(), executor)
        (failure,) = grid.failures.items()
        assert (failure[0].mixer, failure[0].learning_rate) == ("transformer", 1.0)
        assert failure[1] == "MemoryError: no room for this one"
        assert grid.cells.failures == {failure[0].name: failure[1]}
        assert len(executor.done) == N_CELLS
        assert untimed(grid) == {cell: found for cell, found in untimed(serial[0]).items() if cell != failure[0]}
        assert len(stored(cells)) == N_CELLS - 1

        row = grid.runs().query("mixer == 'transformer' and lr == 1").iloc[0]
        assert row["status"] == "failed: MemoryError: no room for this one"
        assert not row["admitted"]
        assert math.isnan(row["loss_nats"])

        mended = Serial()
        assert untimed(run_grid(tiny(), mended)) == untimed(serial[0])
        assert mended.done == [(train_cell, failure[0])]


def test_bad_input_stops_the_grid_and_is_no_failure_on_record(
    serial: tuple[Grid, Serial, Path], tmp_path: Path
) -> None:
    copy_of(serial[2], tmp_path, lambda record: not is_trained(record))
    with output(tmp_path) as cells:
        with pytest.raises(ValueError, match="cuda is not here"):
            run_grid(tiny(), Serial(lambda work, spec: spec.learning_rate == 1.0, ValueError("cuda is not here")))
        assert [record.failure for record in records(cells).values() if record.failure] == []
        assert untimed(run_grid(tiny(), Serial())) == untimed(serial[0])


def test_rate_that_really_diverges_is_listed_and_the_width_still_chooses(
    serial: tuple[Grid, Serial, Path], tmp_path: Path
) -> None:
    copy_of(serial[2], tmp_path, lambda record: True)
    with output(tmp_path):
        executor = Serial()
        grid = run_grid(tiny(mixers=["transformer"], n_layers=[1], learning_rates=[1e-4, 1e-2, 1e4]), executor)
    assert len(executor.done) == 1
    (failure,) = grid.failures.items()
    assert failure[0].learning_rate == 1e4
    assert failure[1].startswith("FloatingPointError: the training loss is nan at step")
    assert grid.best_rate["transformer", 8] == 1e-2
    assert grid.interior["transformer", 8]


def test_gates_that_were_killed_refuse_the_model_and_stop_no_other(
    serial: tuple[Grid, Serial, Path], tmp_path: Path
) -> None:
    def is_it(record: Record) -> bool:
        spec = record.identity["spec"]
        return record.identity["cell"] == gates_of.name and (spec["mixer"], spec["n_layers"]) == ("transformer", 2)

    copy_of(serial[2], tmp_path, lambda record: not is_it(record))
    with output(tmp_path):
        grid = run_grid(tiny(), Serial(lambda work, spec: work is gates_of))
        assert untimed(grid) == untimed(serial[0])
        gates = (Gate("gates ran", False, "MemoryError: no room for this one"),)
        assert grid.models == serial[0].models | {("transformer", 8, 2): Admission(gates)}
        assert run_grid(tiny(), Serial()).models == serial[0].models


def test_grid_of_failures_still_has_a_table(serial: tuple[Grid, Serial, Path], tmp_path: Path) -> None:
    copy_of(serial[2], tmp_path, lambda record: not is_trained(record))
    with output(tmp_path):
        grid = run_grid(tiny(), Serial(lambda work, spec: True))
    runs = grid.runs()
    assert len(runs) == len(grid.failures) == 6
    assert runs["status"].str.startswith("failed: MemoryError").all()
    assert runs["loss_nats"].isna().all()
    assert not runs["lr_is_best"].any()


# --- rendering ---------------------------------------------------------------------------------------------------

SHOW = """
import json, sys
from labkit.workflow import params
from labkit.reports.scaling_grid import findings, prices
from labkit.reports.scaling_grid.study import run_grid
from labkit.reports.scaling_grid.results import grid_seconds, results
cfg = params.resolve("scaling_grid", "ci", json.loads(sys.argv[1]))
grid = run_grid(cfg)
tables = [grid.runs(), findings.floors_table(grid), findings.gates_table(grid), findings.leak_table(cfg)]
fits, refused = findings.fit_all(grid)
said = findings.conclusions(grid, fits, refused)
numbers = [results(grid, fits, grid_seconds(grid)), prices.out_of_reach(grid, refused)]
print(json.dumps([*(table.to_csv() for table in tables), said, numbers, list(grid.data.floors), grid.failures == {}]))
"""


def shown(folder: Path, **variables: str) -> str:
    """Return what a process of its own makes of the cells below a folder."""
    arguments = [sys.executable, "-c", SHOW, json.dumps(TINY)]
    environment = os.environ | {"LABKIT_OUTPUT": str(folder)} | variables
    return subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_rendering_needs_no_text_and_shows_the_same(serial: tuple[Grid, Serial, Path], tmp_path: Path) -> None:
    folder = serial[2].parents[3]
    (tmp_path / "cache").mkdir()
    rendered = shown(folder, LABKIT_CACHE=str(tmp_path / "cache"), **{RENDER: "1"})
    assert list((tmp_path / "cache").iterdir()) == [], "nothing was fetched or tokenised"
    assert rendered == shown(folder)
    tables = json.loads(rendered)
    assert len(tables[0].splitlines()) == N_CELLS + 1
    assert tables[-2:] == [["unigram", "bigram", "kneser_ney"], True]


def test_rendered_rows_are_those_of_the_run_that_trained_them(
    serial: tuple[Grid, Serial, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RENDER, "1")
    with output(serial[2].parents[3]):
        grid = run_grid(tiny())
        leak = findings.leak_table(tiny())
    timed = ["seconds", "tokens_per_second", "peak_gib"]  # a cell that was damaged above has been trained again
    assert grid.runs().drop(columns=timed).equals(serial[0].runs().drop(columns=timed))
    assert findings.floors_table(grid).equals(findings.floors_table(serial[0]))
    assert list(leak["mixer"].unique()) == ["published", "causal"]


def test_rendering_lists_every_cell_that_is_not_on_record(
    serial: tuple[Grid, Serial, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [cell for cell in serial[0].results if cell.n_layers == 2]
    specs = [train_cell.spec(cell) for cell in lost]
    copy_of(serial[2], tmp_path, lambda record: record.identity["spec"] not in specs)
    monkeypatch.setenv(RENDER, "1")
    with output(tmp_path), pytest.raises(MissingCells, match="2 cells are not on record") as refused:
        run_grid(tiny())
    for cell in lost:
        assert f"  scaling.train: {cell.name}" in str(refused.value).splitlines()
    with output(tmp_path / "nothing"), pytest.raises(MissingCells) as refused:
        run_grid(tiny())
    missing = [name for name, _, _ in refused.value.cells.missing]
    assert missing == ["scaling.baselines", "scaling.leak", *["scaling.gates"] * N_MODELS, *["scaling.train"] * 6]


def test_rendering_shows_what_failed(
    serial: tuple[Grid, Serial, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(serial[2], tmp_path, lambda record: True)
    changes = {"mixers": ["transformer"], "n_layers": [1], "learning_rates": [1e-4, 1e-2, 1e4]}
    with output(tmp_path):
        grid = run_grid(tiny(**changes), Serial())
        monkeypatch.setenv(RENDER, "1")
        rendered = run_grid(tiny(**changes))
    assert rendered.failures == grid.failures != {}
    assert rendered.runs().equals(grid.runs())


# --- admission of a trained cell -----------------------------------------------------------------------------------


def admitted(grid: Grid, **changes: Any) -> set[str]:
    """Gates that one cell fails when its result lies 10 % below every floor, with some values changed."""
    cell = next(cell for cell in grid.results if cell.n_layers == 2)
    blocks = 0.9 * np.minimum(grid.data.floors["unigram"], grid.data.floors["bigram"])
    good = {"block_nats": blocks.tolist(), "position_nats": [4.0, 3.0, 3.0, 3.0]} | changes
    results = grid.results | {cell: grid.results[cell] | good}
    made = Grid(grid.params, grid.data, results, {}, grid.models, grid.best_rate, grid.interior)
    return {gate.name for gate in made.admission(cell).gates if not gate.passed}


def test_cell_is_judged_by_its_model_its_run_and_its_rate(serial: tuple[Grid, Serial, Path]) -> None:
    grid = serial[0]
    assert admitted(grid) == set()
    assert admitted(grid, tokens_seen=1) == {"data order"}
    refused = dict.fromkeys(grid.models, Admission((Gate("causality", False, "leaks"),)))
    made = Grid(grid.params, grid.data, grid.results, {}, refused, grid.best_rate, grid.interior)
    assert admitted(made) == {"causality"}
    edge = Grid(
        grid.params, grid.data, grid.results, {}, grid.models, grid.best_rate, dict.fromkeys(grid.interior, False)
    )
    assert admitted(edge) == {"rate inside the sweep"}


def test_cell_with_another_data_order_than_its_seed_is_refused(serial: tuple[Grid, Serial, Path]) -> None:
    assert admitted(serial[0], order_sha256="0" * 64) == {"data order"}


def test_table_has_a_row_for_every_cell_with_its_own_units(serial: tuple[Grid, Serial, Path]) -> None:
    runs = serial[0].runs()
    assert len(runs) == N_CELLS
    assert runs["lr_is_best"].dtype == bool
    assert runs["lr_is_best"].sum() == 4
    _, text = load_tokens("wiki-sample", 512)
    nats = runs["loss_nats"] * (len(text.validation) - 1)
    np.testing.assert_allclose(runs["token_perplexity"], np.exp(runs["loss_nats"]))
    np.testing.assert_allclose(runs["word_perplexity"], np.exp(nats / text.n_words["validation"]))
    np.testing.assert_allclose(runs["bits_per_byte"], nats / math.log(2) / text.n_bytes["validation"])
    assert runs.loc[runs["lr_is_best"], "admitted"].all(), "what a model has learned selects nothing"
    assert runs["status"].str.contains("not shown: beats bigram").all()


def test_loss_beyond_what_a_float_can_exponentiate_is_shown_as_infinite(serial: tuple[Grid, Serial, Path]) -> None:
    grid = serial[0]
    cell = next(iter(grid.results))
    far_off = grid.results[cell] | {"block_nats": [1e6] * 100, "loss_nats": 1e8 / 79_005}
    made = Grid(grid.params, grid.data, grid.results | {cell: far_off}, {}, grid.models, grid.best_rate, grid.interior)
    assert np.isinf(made.runs()["word_perplexity"]).sum() == 1
