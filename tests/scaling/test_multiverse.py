"""What surrounds a law, against figures worked out by hand for report 004 (its own table, its 16 shapes, an exact law
with a floor) and against grids whose exponent is known by construction."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from labkit.scaling.law import TooFewRuns, fit_law
from labkit.scaling.multiverse import ALL_SEEDS, BEST_RATE, fit_perplexity_power, leave_largest_out, multiverse

SHAPES = [(d, n_layers) for d in (64, 128, 256, 512) for n_layers in (4, 8, 12, 16)]

# Report 004, section Model Configurations: millions of parameters, lowest and highest expected perplexity, by row.
TABLE_MILLIONS = np.array([1, 2, 3, 4, 4, 8, 12, 16, 16, 32, 48, 64, 64, 128, 192, 256])
TABLE_LOW = np.array([100, 80, 70, 60, 50, 40, 35, 30, 25, 20, 18, 15, 15, 12, 10, 8])
TABLE_HIGH = np.array([150, 120, 100, 90, 80, 60, 50, 45, 40, 30, 25, 22, 25, 18, 15, 12])


def total_parameters(d, n_layers, vocabulary=30_000, context=128):
    return 2 * vocabulary * d + vocabulary + context * d + 2 * d + n_layers * (16 * d**2 + 22 * d + 6)


TOTALS = np.array([total_parameters(d, n_layers) for d, n_layers in SHAPES], dtype=float)
FLOORED = 3.9 + 600 / TOTALS**0.34


def test_the_reports_table_contradicts_its_stated_exponent():
    fit = fit_perplexity_power(TABLE_MILLIONS * 1e6, (TABLE_LOW + TABLE_HIGH) / 2)
    assert fit.b == pytest.approx(-0.459, abs=5e-4)
    assert fit.a == pytest.approx(73_000, rel=0.02)
    assert not fit.b_ci[0] <= -0.2 <= fit.b_ci[1]


def test_a_high_r2_hides_the_floor():
    fit = fit_perplexity_power(TOTALS, np.exp(FLOORED))
    assert fit.r2_log == pytest.approx(0.979, abs=1e-3)
    assert fit.predict(100 * TOTALS.max(), extrapolate=True) == pytest.approx(4.9, abs=0.05)
    law = fit_law(TOTALS, FLOORED, bootstrap=0)
    assert np.exp(law.E) == pytest.approx(49.4, abs=0.01)
    with pytest.raises(ValueError, match="outside the fitted range"):
        fit.predict(100 * TOTALS.max())


def test_power_fit_is_a_line_on_log_axes_with_its_interval():
    ppl = 900 * TOTALS**-0.2 * np.exp(np.random.default_rng(0).normal(0, 0.05, size=16))
    fit, line = fit_perplexity_power(TOTALS, ppl), linregress(np.log(TOTALS), np.log(ppl))
    assert (fit.a, fit.b) == pytest.approx((np.exp(line.intercept), line.slope))
    assert fit.b_ci == pytest.approx((line.slope - 2.1448 * line.stderr, line.slope + 2.1448 * line.stderr), rel=1e-4)
    of_perplexities = 1 - ((ppl - fit.a * TOTALS**fit.b) ** 2).sum() / ((ppl - ppl.mean()) ** 2).sum()
    assert (fit.r2, fit.r2_log) == pytest.approx((of_perplexities, line.rvalue**2))


def test_copies_of_a_run_do_not_narrow_the_power_fit():
    ppl = 900 * TOTALS**-0.2 * np.exp(np.random.default_rng(0).normal(0, 0.05, size=16))
    once, thrice = fit_perplexity_power(TOTALS, ppl), fit_perplexity_power(np.tile(TOTALS, 3), np.tile(ppl, 3))
    assert thrice.b_ci == pytest.approx(once.b_ci)


def test_power_fit_refuses_two_sizes_and_impossible_perplexities():
    with pytest.raises(TooFewRuns, match="2 distinct N"):
        fit_perplexity_power([1e6, 1e6, 2e6], [9, 8, 7])
    with pytest.raises(ValueError, match="row 1: perplexity is 0"):
        fit_perplexity_power([1e6, 2e6, 4e6], [9, 0, 7])


def test_held_out_sizes_expose_a_missing_floor():
    with_floor, without = (leave_largest_out(TOTALS, FLOORED, floor=floor, n_sizes=4) for floor in (True, False))
    assert abs(with_floor.relative_error) < 1e-6
    assert without.relative_error < -0.02
    assert with_floor.observed == pytest.approx(np.sort(FLOORED)[3::-1])
    assert without.n_held_out == 4


def test_all_runs_of_the_largest_size_are_held_out():
    n, loss = np.repeat(TOTALS, 3), np.repeat(FLOORED, 3) * np.tile([0.99, 1.0, 1.01], 16)
    left = leave_largest_out(n, loss)
    assert left.n_held_out == 3
    assert left.law.n_runs == 45
    assert left.predicted == pytest.approx([FLOORED[-1]] * 3, rel=0.01)


def test_held_out_prediction_uses_each_runs_tokens():
    tokens = np.tile([1e8, 4e8, 9e8, 3e9], 4)
    left = leave_largest_out(TOTALS, FLOORED + 410.7 / tokens**0.28, tokens)
    assert left.predicted == pytest.approx([FLOORED[-1] + 410.7 / 3e9**0.28], rel=1e-6)


def test_hold_out_refuses_what_leaves_too_little():
    with pytest.raises(TooFewRuns, match="3 distinct N"):
        leave_largest_out(TOTALS[:4], FLOORED[:4])
    with pytest.raises(ValueError, match="n_sizes is 0"):
        leave_largest_out(TOTALS, FLOORED, n_sizes=0)


def grid(seeds=(0, 1), rates=(1e-3, 4e-3)):
    """An exact law in the total count, at a best rate of 4e-3 for the narrow widths and 1e-3 for the wide ones.

    The other rate costs 0.2 nats and was run at the smallest depth only, with the first seed, as a sweep does.
    """
    rows = []
    for (d, n_layers), total in zip(SHAPES, TOTALS, strict=True):
        non_embedding = n_layers * (16 * d**2 + 22 * d + 6) + 2 * d
        for seed in seeds:
            for rate in rates:
                best = (rate == 4e-3) == (d < 256)
                if best or (seed == 0 and n_layers == 4):
                    loss = 3.9 + 600 / total**0.34 + 0.2 * (not best) + 0.01 * seed
                    cell = {"mixer": "transformer", "d_model": d, "n_layers": n_layers, "seed": seed, "lr": rate}
                    counts = {"n_total": total, "n_non_embedding": non_embedding, "n_active": non_embedding - 3 * d**2}
                    rows.append(cell | {"lr_is_best": best, "loss_nats": loss} | counts)
    return pd.DataFrame(rows)


def chosen(table, **values):
    """The rows of a table in which each named column has the given value."""
    return table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]


def test_multiverse_has_a_row_for_every_combination():
    table = multiverse(grid(), bootstrap=0)
    assert len(table) == 3 * 2 * 3 * 3
    assert not table.duplicated(["mixer", "convention", "floor", "rate", "seeds"]).any()
    assert set(table["rate"]) == {BEST_RATE, "0.001", "0.004"}
    assert set(table["seeds"]) == {ALL_SEEDS, "0", "1"}


def test_multiverse_recovers_the_exponent_where_its_choices_are_the_truth_and_another_elsewhere():
    table = multiverse(grid(), bootstrap=0)
    truth = chosen(table, convention="n_total", floor=True, rate=BEST_RATE, seeds="0")
    assert truth["exponent"].item() == pytest.approx(0.34, rel=1e-6)
    assert truth["n_points"].item() == 16
    assert truth["reason"].item() == ""
    others = chosen(table, rate=BEST_RATE, seeds="0").drop(truth.index)
    assert (others["exponent"] < 0.3).all()


def test_multiverse_rate_and_seed_choose_the_runs():
    runs = grid()
    table = multiverse(runs, conventions=["n_total"], floors=[False], bootstrap=0)
    fixed = runs[(runs["lr"] == 1e-3) & (runs["seed"] == 0)]
    expected = fit_law(fixed["n_total"], fixed["loss_nats"], floor=False, bootstrap=0)
    row = chosen(table, rate="0.001", seeds="0")
    assert row["exponent"].item() == pytest.approx(expected.alpha)
    assert row["n_points"].item() == len(fixed) == 10
    assert row["reason"].item() == "covers 10 of 16 configurations"


def test_multiverse_clusters_seeds_by_configuration():
    runs = grid()
    runs["loss_nats"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, size=len(runs)))
    best = runs[runs["lr_is_best"]]
    clusters = best[["d_model", "n_layers"]].apply(tuple, axis=1).tolist()
    expected = fit_law(best["n_total"], best["loss_nats"], clusters=clusters, bootstrap=200, seed=5).ci["alpha"]
    table = multiverse(runs, conventions=["n_total"], floors=[True], bootstrap=200, seed=5)
    row = chosen(table, rate=BEST_RATE, seeds=ALL_SEEDS)
    assert (row["low"].item(), row["high"].item()) == pytest.approx(expected)


def test_multiverse_keeps_what_cannot_be_fitted_with_its_reason():
    runs = grid()
    runs.loc[(runs["d_model"] == 512) & (runs["seed"] == 0) & runs["lr_is_best"], ["loss_nats", "n_total"]] = np.nan
    table = multiverse(runs, conventions=["n_total"], floors=[True], bootstrap=0)
    best = chosen(table, rate=BEST_RATE, seeds="0")
    assert best["n_points"].item() == 12
    assert "4 of 16 runs have no finite loss or N and are left out; covers 12 of 16" in best["reason"].item()
    narrow = multiverse(grid(seeds=(0,)).query("n_layers == 4 and d_model < 512"), bootstrap=0)
    assert narrow[narrow["floor"]]["exponent"].isna().all()
    assert narrow[narrow["floor"]]["reason"].str.contains("3 distinct N; a law with a floor needs 4").all()


def test_multiverse_fits_each_mixer_on_its_own():
    narrow = grid().query("d_model < 512").assign(mixer="resnet-bk", loss_nats=5.0)
    table = multiverse(pd.concat([grid(), narrow]), conventions=["n_total"], floors=[True], bootstrap=0)
    rows = chosen(table, rate=BEST_RATE, seeds="0").set_index("mixer")
    assert rows.loc["transformer", "exponent"] == pytest.approx(0.34, rel=1e-6)
    assert rows.loc["resnet-bk", "exponent"] == 0
    assert not rows["reason"].str.contains("covers").any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.drop(columns="lr_is_best"), r"lacks the columns \['lr_is_best'\]"),
        (lambda runs: runs.drop(columns="n_active"), r"lacks the columns \['n_active'\]"),
        (lambda runs: runs.assign(lr_is_best="yes"), "must be bool"),
        (lambda runs: runs.assign(lr_is_best=False), "mark the runs"),
        (lambda runs: runs.assign(lr_is_best=True), "is there twice"),
    ],
)
def test_unusable_runs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        multiverse(change(grid()), bootstrap=0)
