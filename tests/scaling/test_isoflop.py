"""Which models are compared at equal FLOPs, and that a study of them trains each, once, with what was chosen before.

Run with `pytest tests/scaling/test_isoflop.py`.
"""

from __future__ import annotations

import math
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit.reports.scaling_grid import isoflop
from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.isoflop_plots import equal_flops_panel
from labkit.reports.scaling_grid.isoflop_results import (
    isoflop_conclusions,
    isoflop_numbers,
    isoflop_paths,
    isoflop_void,
)
from labkit.reports.scaling_grid.isoflop_study import IsoFlop, run_isoflop
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.counts import training_flops
from labkit.scaling.schedule import order_hash
from labkit.scaling.train import train_cell
from labkit.training.sweep import vertex_rate
from labkit.workflow import params
from labkit.workflow.cells import Cells
from labkit.workflow.store import Store

TINY = {"isoflop_budgets": [5e8], "isoflop_widths": [32], "isoflop_vocab_size": 512, "isoflop_epochs": 0.005}
TINY |= {"context": 64, "kneser_ney_order": 2, "potential_starts": [1.0, 10.0], "isoflop_sizes": 1}


class Here(Executor):
    """Does what it is given at once."""

    def submit(self, work: Any, *args: Any) -> Future:
        done: Future = Future()
        done.set_result(work(*args))
        return done


def stated(hardware: str = "cpu-24gb", **changes: Any) -> ScalingGrid:
    own = params.resolve("scaling_grid", hardware, changes)
    assert isinstance(own, ScalingGrid)
    return own


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> IsoFlop:
    folder: Path = tmp_path_factory.mktemp("isoflop")
    found = run_isoflop(stated("ci", **TINY), Cells(Store(folder), only_recorded=False), Here())
    assert found is not None
    return found


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
@pytest.mark.parametrize("budget", [3e12, 1e13, 3e13])
def test_sizes_spend_the_budget_and_span_eight_times_around_twenty_tokens_a_parameter(
    mixer: str, budget: float
) -> None:
    own = isoflop.at_equal_flops(stated())
    found = isoflop.sizes(own, budget, mixer, 957_000)
    assert len(found) == 6
    costs = [isoflop.flops_per_token(own, mixer, size.d_model, size.n_layers) for size in found]
    assert costs == sorted(costs)
    assert costs[-1] / costs[0] == pytest.approx(isoflop.SPAN, rel=0.15)
    assert budget / costs[0] / 957_000 <= 8 * 1.11, "no more than eight passes, as near as a shape comes"
    middling, best = math.sqrt(costs[0] * costs[-1]), 6 * math.sqrt(budget / 120)
    assert middling >= 0.9 * best
    if budget == 3e12:
        assert middling == pytest.approx(best, rel=0.3), "20 tokens a parameter"
    for size in found:
        cell = isoflop.cell_of(own, size, 0, 1e-3, 1.0)
        spent = size.steps * training_flops(cell.config(), cell.batch_size, cell.context)
        assert spent == pytest.approx(budget, rel=0.005)


def test_a_profile_without_budgets_leaves_the_comparison_out(tmp_path: Path) -> None:
    own = stated("cpu")
    assert isoflop.planned(own, 1_000_000) == []
    assert run_isoflop(own, Cells(Store(tmp_path), only_recorded=False), None) is None
    assert isoflop_paths(None) == isoflop_numbers(None, {}) == isoflop_void({}) == {}


def test_fields_added_later_leave_the_identity_of_earlier_cells_alone() -> None:
    cell = cell_for(stated("cpu"), "resnet-bk", 32, 1, 0, 1e-3)
    later = {"steps", "scorings", "potential_start"}
    assert later.isdisjoint(train_cell.spec(cell))
    assert later & set(train_cell.spec(replace(cell, steps=5, potential_start=10.0))) == {"steps", "potential_start"}


def test_every_planned_size_is_trained_with_the_rate_and_start_that_were_chosen(study: IsoFlop) -> None:
    runs = study.runs()
    sizes = runs[runs["role"] == "size"]
    wanted = {
        (budget, size.mixer, size.d_model, size.n_layers)
        for budget in study.params.isoflop_budgets
        for mixer in study.params.mixers
        for size in isoflop.sizes(study.params, budget, mixer, study.data.train_tokens)
    }
    assert set(sizes[["budget", "mixer", "d_model", "n_layers"]].itertuples(index=False, name=None)) == wanted
    for row in sizes.itertuples():
        assert row.lr == study.rates[row.mixer, row.d_model]
        assert row.potential_start == (study.start if row.mixer == "resnet-bk" else 1.0)
    assert set(runs[runs["role"] == "control"]["mixer"]) == set(isoflop.CONTROLS)
    assert study.cells.failures == {}


def test_the_start_that_is_used_has_the_lowest_loss(study: IsoFlop) -> None:
    assert set(study.start_losses) == {1.0, 10.0}
    assert study.start_losses[study.start] == min(study.start_losses.values())
    assert not study.start_is_interior


def test_models_are_held_to_the_data_order_of_their_seed(study: IsoFlop) -> None:
    cell = next(cell for cell, (role, _) in study.roles.items() if role == "size")
    order = [gate for gate in study.admission(cell).gates if gate.name == "data order"]
    assert order[0].passed
    about = (study.data.train_tokens, cell.steps, cell.batch_size, cell.context)
    assert order_hash(*about, cell.seed) != order_hash(*about, cell.seed + 1)


def test_what_is_void_reaches_the_ledger_as_a_reason(study: IsoFlop) -> None:
    paths = isoflop_paths(study)
    assert all(path.void for path in paths.values())
    assert "exponent/resnet-bk" not in isoflop_numbers(study, paths)
    assert "void at equal FLOPs" in isoflop_void(paths)["exponent_difference"]["why"]
    assert all("void" in line for line in isoflop_conclusions(study, paths)[:2])
    figure, data = equal_flops_panel(study.runs(), paths)
    assert {"model"} <= set(data["kind"])
    assert figure.legends[0].get_title().get_text()


def test_the_best_rate_is_the_vertex_of_a_parabola_in_its_logarithm() -> None:
    losses = {rate: 2 + 0.3 * math.log(rate / 2.6e-3) ** 2 for rate in (1e-3, 2e-3, 5e-3)}
    assert vertex_rate(losses) == pytest.approx(2.6e-3)
    assert vertex_rate({1e-3: 2.0, 2e-3: 1.9}) is None
    assert vertex_rate({1e-3: 2.0, 2e-3: 1.9, 4e-3: math.inf}) == 2e-3
