"""The exponent along the compute-optimal path: of made-up mixers with a known law, at the sizes and budgets in use.

Run with `pytest tests/scaling/test_frontier.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from labkit.reports.scaling_grid import isoflop
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.counts import parameter_counts
from labkit.scaling.frontier import difference, offsets, path_of, slope
from labkit.scaling.train import model_config
from labkit.workflow import params

TOKENS = 957_000
BYTES_OF_A_WORD = 5.4
SCATTER = 0.003
"""Standard deviation of a loss between seeds, as a share of it."""
ALPHA = 0.12


def design(mixer: str) -> pd.DataFrame:
    """Return the sizes of `cpu-24gb` as rows: seed, budget, n_total, tokens."""
    own = isoflop.at_equal_flops(params.resolve("scaling_grid", "cpu-24gb"))
    assert isinstance(own, ScalingGrid)
    found = [size for budget in own.isoflop_budgets for size in isoflop.sizes(own, budget, mixer, TOKENS)]
    rows = [
        {"seed": seed, "budget": size.budget, "n_total": n_total(own, size), "tokens_seen": size.steps * 2048}
        for seed in own.seeds
        for size in found
    ]
    table = pd.DataFrame(rows).assign(admitted=True, status="ok")
    return table.assign(flops=table["budget"], n=table["budget"] / table["tokens_seen"] / 6)


def n_total(own: ScalingGrid, size: isoflop.Size) -> int:
    return parameter_counts(model_config(isoflop.cell_of(own, size, 0, 1e-3, 1.0))).total


def with_losses(
    rows: pd.DataFrame, bits: pd.Series, rng: np.random.Generator, scatter: float = SCATTER
) -> pd.DataFrame:
    noisy = bits * (1 + scatter * rng.standard_normal(len(rows)))
    return rows.assign(bits_per_byte=noisy, nats_per_word=noisy * math.log(2) * BYTES_OF_A_WORD)


def power_law(rows: pd.DataFrame, alpha: float = ALPHA, beta: float = 0.6) -> pd.Series:
    """Loss = A/N^alpha + B/D^beta: along its optimum the loss falls as N^-alpha, exactly.

    B puts the best size of the middle budget into the middle of those tried.
    """
    n, d = rows["n"] / rows["n"].median(), rows["tokens_seen"] / rows["tokens_seen"].median()
    return 1.6 * n**-alpha + 1.6 * alpha / beta * d**-beta


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_the_interval_of_a_made_up_mixer_holds_its_exponent(mixer: str) -> None:
    rows, rng = design(mixer), np.random.default_rng(3)
    found = [path_of(with_losses(rows, power_law(rows), rng)).alpha for _ in range(100)]
    assert sum(alpha is not None and alpha.contains(ALPHA) for alpha in found) >= 92


def test_a_difference_between_two_made_up_mixers_is_found_with_its_size() -> None:
    rng = np.random.default_rng(5)
    rows = {mixer: design(mixer) for mixer in ("resnet-bk", "transformer")}
    held = told = 0
    for _ in range(50):
        one = path_of(with_losses(rows["resnet-bk"], power_law(rows["resnet-bk"], ALPHA - 0.06), rng)).alpha
        other = path_of(with_losses(rows["transformer"], power_law(rows["transformer"]), rng)).alpha
        assert one is not None
        assert other is not None
        found = difference(one, other)
        held, told = held + found.contains(-0.06), told + (found.high < 0)
    assert held >= 46
    assert told >= 46


def test_the_vertex_is_that_of_a_parabola() -> None:
    rows = design("transformer")
    best = np.log(rows.groupby("budget")["n"].transform("median")) + 0.2
    exact = with_losses(rows, 2 + 0.1 * (np.log(rows["n"]) - best) ** 2, np.random.default_rng(0), scatter=0.0)
    found = path_of(exact)
    assert found.points["inside"].all()
    assert found.points["bits_per_byte"].to_numpy() == pytest.approx(2)
    expected = np.exp(best.groupby(rows["budget"]).first())
    assert found.points.groupby("budget")["n"].first().to_numpy() == pytest.approx(expected.to_numpy())
    assert found.points["n_total"].between(rows["n_total"].min(), rows["n_total"].max()).all()


def test_the_report_s_exponent_is_the_slope_of_nats_per_word() -> None:
    x = np.log(np.array([[1e5, 1e6, 1e7, 1e8]] * 3))
    found = slope(x, 9 - 0.15 * x + np.array([[0.1], [0.0], [-0.1]]))
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((-0.15, -0.15, -0.15))
    assert slope(x[:1, :2], x[:1, :2]) is None
    assert slope(x[:, :1], x[:, :1]) is None


def test_a_best_size_at_the_edge_is_void() -> None:
    rows = design("resnet-bk")
    found = path_of(with_losses(rows, 3 - 0.1 * np.log(rows["n"]), np.random.default_rng(0), scatter=0.0))
    assert "lies at the edge of those tried in 12 of 12 parabolas" in found.void[0]
    assert found.b is None
    assert not offsets(found, found)["inside"].any()


def test_a_budget_with_its_best_size_at_the_edge_is_left_out_while_three_others_remain() -> None:
    rows, rng = design("resnet-bk"), np.random.default_rng(0)
    largest = rows["budget"].max()
    falling = np.where(rows["budget"] == largest, 1.5 - 0.1 * np.log(rows["n"]), power_law(rows))
    found, whole = path_of(with_losses(rows, falling, rng, 0.001)), with_losses(rows, power_law(rows), rng, 0.001)
    assert found.left_out == (largest,)
    assert found.void == ()
    same = path_of(whole[whole["budget"] < largest])
    assert found.alpha.estimate == pytest.approx(same.alpha.estimate, abs=0.02)
    assert not offsets(found, found)["inside"].all()
    two = np.where(rows["budget"] >= 1e13, 1.5 - 0.1 * np.log(rows["n"]), power_law(rows))
    assert path_of(with_losses(rows, two, rng, 0.001)).alpha is None, "two budgets make no path"


def test_a_model_that_is_not_admitted_makes_the_path_void() -> None:
    rows = design("resnet-bk")
    losses = with_losses(rows, power_law(rows), np.random.default_rng(0))
    losses.loc[3, ["admitted", "status"]] = False, "causality: logits move"
    assert path_of(losses).void == ("1 of 72 models are not admitted: causality: logits move",)


def test_largest_sizes_that_the_others_do_not_predict_make_the_path_void() -> None:
    rows, rng = design("resnet-bk"), np.random.default_rng(1)
    bent = power_law(rows) * np.where(rows["budget"] > 2e13, 1.05, 1.0)
    assert "largest sizes of the path are missed by -" in path_of(with_losses(rows, bent, rng, 0.001)).void[0]
    assert path_of(with_losses(rows, power_law(rows), rng, 0.001)).void == ()


def test_offsets_are_taken_seed_by_seed() -> None:
    rows, rng = design("transformer"), np.random.default_rng(2)
    one = with_losses(rows, power_law(rows), rng, 0.0)
    other = one.assign(bits_per_byte=one["bits_per_byte"] - 0.05 - 0.01 * one["seed"])
    found = offsets(path_of(one), path_of(other))
    assert found["difference"].to_numpy() == pytest.approx(0.06)
    assert (found["low"] < 0.06).all()
    assert list(found["seeds"]) == [3] * 4
    assert found["inside"].all()
