"""What studies tell of cells that train silently: a real cell of the grid and real hybrid runs, against their records.

A cell that is only loaded was told by the run that trained it, and is not told again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labkit import metrics
from labkit.cell import plain
from labkit.metrics.recorded import middles
from labkit.reports.predict_phase import study, train
from labkit.reports.predict_phase.tasks import Run
from labkit.reports.scaling_grid.study import run_grid
from labkit.workflow import params

TINY = {"mixers": ["transformer"], "d_model": [8], "n_layers": [1], "epochs": 0.02, "batch_size": 4, "context": 32}
TINY |= {"dropout": 0.0, "kneser_ney_order": 2, "bootstrap": 100, "learning_rates": [1e-4, 1e-2, 1.0], "seeds": [0]}
TINY |= {"isoflop_budgets": []}


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of somebody who follows."""
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path / "metrics.jsonl"))
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """One worker, a thread of this process."""
    with ThreadPoolExecutor(1) as own:
        yield own


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 7, 80, 81, 200, 333])
def test_the_points_of_a_curve_stand_at_the_middle_of_their_steps(steps: int) -> None:
    thinned = train._thin([float(step) for step in range(1, steps + 1)])
    assert middles(steps, len(thinned)) == [int(step) for step in thinned]


def test_cells_of_a_grid_are_told_when_they_were_trained_and_not_when_loaded(
    lines: Path, pool: ThreadPoolExecutor
) -> None:
    grid = run_grid(params.resolve("scaling_grid", "ci", TINY), pool)
    told = read(lines)
    assert {line["run"] for line in told} == {cell.name for cell in grid.results}
    for cell, result in grid.results.items():
        about, *curve, end = [line for line in told if line["run"] == cell.name]
        assert about["about"] == plain(cell)
        assert [line["values"]["loss"] for line in curve] == result["curve"]
        assert [line["step"] for line in curve] == middles(result["steps"], len(result["curve"]))
        assert end["step"] == result["steps"]
        speed = result["tokens_seen"] / result["seconds"]
        measured = {"held_out_loss": result["loss_nats"], "seconds": result["seconds"], "tokens_per_second": speed}
        assert end["values"] == measured | {"peak_bytes": result["peak_bytes"]}
    again = run_grid(params.resolve("scaling_grid", "ci", TINY), pool)
    assert again.cells.cached == len(again.cells.used)
    assert read(lines) == told


def test_hybrid_runs_are_told_with_their_jumps(lines: Path, pool: ThreadPoolExecutor) -> None:
    ci = params.resolve("predict_phase", "ci")
    run = Run(
        task="text-0.1m", arm="last-update", learning_rate=4e-3, steps=90, seed=0, corpus="wiki-sample", vocab_size=288,
        context=32, batch_size=4, held_out_windows=8, weight_decay=0.1, beta2=0.95, warmup_fraction=0.05, grad_clip=1.0,
        device="cpu", dtype="float32", threads=1,
    )  # fmt: skip
    for _ in range(2):
        own = study.make_study(ci)
        study._Runner(own, pool).train([run])
    result = own.scratch.results[run]
    about, *told = read(lines)
    assert own.cells.cached == 1
    assert about == {"run": f"text-0.1m: {run.name}", "about": plain(run)}
    curve = [(line["step"], line["values"]["loss"]) for line in told if "loss" in line["values"]]
    assert curve == list(zip(middles(result["real_steps"], len(result["curve"])), result["curve"], strict=True))
    jumps = [line for line in told if "accepted" in line["values"]]
    assert [line["step"] for line in jumps] == [jump["step"] for jump in result["jumps"]]
    assert len(jumps) > 3
    for line, jump in zip(jumps, result["jumps"], strict=True):
        assert line["values"]["phase"] == "predict"
        for name in ("accepted", "horizon", "probe_before", "probe_after"):
            assert line["values"].get(name) == jump.get(name)
    phases = {line["values"]["phase"]: line["values"] for line in told if "phase_steps" in line["values"]}
    assert {phase: values["phase_steps"] for phase, values in phases.items()} == result["phases"]
    end = next(line for line in told if "held_out_loss" in line["values"])
    assert end["values"]["held_out_loss"] == result["loss_nats"]
    assert end["values"]["tokens_per_second"] == pytest.approx(result["tokens"] / result["seconds"])
