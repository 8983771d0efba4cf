"""The plan of a grid against sums over its cells written out here, against the sample text's real number of tokens, and
against models of the planned size.

Run with `pytest tests/scaling/test_cost.py`.
"""

from __future__ import annotations

import pytest
import torch

from labkit import device
from labkit.reports.scaling_grid import cost, isoflop
from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.study import planned_cells
from labkit.scaling.counts import training_flops
from labkit.scaling.data import load_tokens
from labkit.scaling.train import build
from labkit.workflow import params

TINY = {"d_model": [8, 16], "n_layers": [1, 2], "seeds": [0, 1], "epochs": 0.01, "batch_size": 4, "context": 32}
TINY |= {"isoflop_budgets": []}


def config_flops(params_: object, mixer: str, d_model: int, n_layers: int) -> int:
    cell = cell_for(params_, mixer, d_model, n_layers, 0, 1e-3)
    return training_flops(cell.config(), cell.batch_size, cell.context)


def test_plan_adds_up_the_sweep_and_the_grid() -> None:
    asked = params.resolve("scaling_grid", "ci", TINY)
    plan = cost.plan_grid(asked)
    steps = int(0.01 * cost.n_train_tokens(asked) // (4 * 32))
    flops = 0
    for mixer in ("resnet-bk", "transformer"):
        for d_model in (8, 16):
            # Three rates at depth 1 with the first seed, the second seed there, both seeds at depth 2.
            flops += 4 * config_flops(asked, mixer, d_model, 1) + 2 * config_flops(asked, mixer, d_model, 2)
    assert plan.n_cells == 2 * 2 * 6
    assert plan.tokens == 24 * steps * 4 * 32
    assert plan.flops == steps * flops
    assert plan.seconds == pytest.approx(plan.flops / plan.flops_per_second)


def test_plan_holds_what_is_spent_at_equal_flops() -> None:
    without = params.resolve("scaling_grid", "cpu-24gb", {"isoflop_budgets": []})
    budgets = params.resolve("scaling_grid", "cpu-24gb").isoflop_budgets
    own = isoflop.planned(params.resolve("scaling_grid", "cpu-24gb"), 957_000)
    spent = sum(cost.cell_flops(cell, 957_000) for cell in own)
    assert isoflop.planned(without, 957_000) == []
    # Two mixers, six sizes, three seeds; then sweeps and controls.
    assert sum(budgets) * 2 * 6 * 3 < spent < sum(budgets) * 2 * 6 * 3 * 1.4


def test_planned_cells_are_distinct_and_cover_the_grid() -> None:
    cells = planned_cells(params.resolve("scaling_grid", "ci", TINY))
    assert len(cells) == len(set(cells))
    covered = {(cell.mixer, cell.d_model, cell.n_layers, cell.seed) for cell in cells}
    assert covered == {
        (mixer, d, n, seed)
        for mixer in ("resnet-bk", "transformer")
        for d in (8, 16)
        for n in (1, 2)
        for seed in (0, 1)
    }


def test_tokens_are_estimated_within_five_percent_of_the_real_text() -> None:
    asked = params.resolve("scaling_grid", "ci")
    _, tokens = load_tokens("wiki-sample", 512)
    assert cost.n_train_tokens(asked) == pytest.approx(len(tokens.train), rel=0.05)


def test_wikitext_tokens_are_near_the_published_count_of_words_at_the_reports_vocabulary() -> None:
    # 2,088,628 words (Merity et al. 2016, table 1); a BPE of 30,000 has somewhat more tokens than words.
    full = params.resolve("scaling_grid", "h100")
    assert 2.0e6 < cost.n_train_tokens(full) < 2.7e6


@pytest.mark.parametrize("hardware", ["h100", "rtx5080", "gtx1650", "jetson-thor"])
def test_plan_for_an_absent_device_uses_the_assumed_rate_and_says_so(
    hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.available_devices() == ("cpu",)
    asked = params.resolve("scaling_grid", hardware)
    plan = cost.plan_grid(asked)
    assert plan.flops_per_second == asked.assumed_tflops * 1e12
    assert plan.basis == f"assumed {asked.assumed_tflops:g} TFLOP/s; no cuda device here"


def test_plan_for_this_machine_measures_and_says_on_what() -> None:
    asked = params.resolve("scaling_grid", "ci", TINY)
    threads = torch.get_num_threads()
    plan = cost.plan_grid(asked)
    assert plan.basis.startswith("measured on 3 steps of ")
    assert plan.basis.endswith("x 2 workers")
    assert 1e6 < plan.flops_per_second < 1e14
    assert torch.get_num_threads() == threads


def test_workers_multiply_memory_and_the_assumed_rate_is_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one, three = (cost.plan_grid(params.resolve("scaling_grid", "h100", {"workers": n})) for n in (1, 3))
    assert three.peak_bytes == 3 * one.peak_bytes
    assert three.flops_per_second == one.flops_per_second


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_memory_of_a_small_batch_is_weights_gradients_and_two_moments(mixer: str) -> None:
    full = params.resolve("scaling_grid", "h100", {"batch_size": 1, "context": 8})
    cell = cell_for(full, mixer, 512, 16, 0, 1e-3)
    with torch.device("meta"):
        n = sum(parameter.numel() for parameter in build(cell.config()).parameters())
    assert cost.cell_bytes(cell) - 0.4 * 2**30 == pytest.approx(4 * 4 * n, rel=0.02)


def test_memory_of_a_narrow_model_is_logits_with_their_gradient() -> None:
    cell = cell_for(params.resolve("scaling_grid", "h100"), "transformer", 8, 1, 0, 1e-3)
    logits_bytes = 4 * 32 * 128 * 30_000
    assert 2 * logits_bytes < cost.cell_bytes(cell) - 0.4 * 2**30 < 4 * logits_bytes
