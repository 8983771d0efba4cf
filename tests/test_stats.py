"""Intervals against what is known without a bootstrap: Student's interval of a mean, coverage of a known truth, scipy's
standard error, and numpy's global random state, which has to stay as it was. Affine laws against the law that made the
times, scipy's general least-squares solver, and the line through two points."""

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import least_squares

from labkit.stats import Interval, bootstrap_ci, fit_affine, standard_error

SAMPLE = np.random.default_rng(7).normal(10.0, 2.0, size=60)


def test_interval_of_a_mean_is_near_students():
    interval = bootstrap_ci(SAMPLE, n_resamples=5000)
    low, high = scipy_stats.t.interval(0.95, len(SAMPLE) - 1, SAMPLE.mean(), scipy_stats.sem(SAMPLE))
    assert interval.estimate == pytest.approx(SAMPLE.mean())
    assert [interval.low, interval.high] == pytest.approx([low, high], abs=0.05 * (high - low))


def test_level_sets_the_width():
    narrow, wide = (bootstrap_ci(SAMPLE, level=level) for level in (0.5, 0.95))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(1.96 / 0.6745, rel=0.1)


def test_intervals_of_a_skewed_mean_cover_it_in_nine_of_ten_samples():
    samples = np.random.default_rng(1).exponential(size=(300, 40))
    covered = [bootstrap_ci(sample, n_resamples=400).contains(1.0) for sample in samples]
    assert np.mean(covered) >= 0.9


def test_same_seed_same_interval_and_another_seed_another():
    assert bootstrap_ci(SAMPLE, seed=3) == bootstrap_ci(SAMPLE, seed=3)
    assert bootstrap_ci(SAMPLE, seed=3) != bootstrap_ci(SAMPLE, seed=4)


@pytest.mark.parametrize("clusters", [None, np.arange(60) // 3])
def test_global_random_state_is_neither_read_nor_changed(clusters):
    results = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        results.append(bootstrap_ci(SAMPLE, clusters=clusters))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert results[0] == results[1]


def test_repeats_in_one_cluster_do_not_narrow_the_interval():
    once = bootstrap_ci(SAMPLE)
    repeated, prompts = np.repeat(SAMPLE, 9), [("prompt", i) for i in range(60) for _ in range(9)]
    together = bootstrap_ci(repeated, clusters=prompts)
    apart = bootstrap_ci(repeated)
    assert together.high - together.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low == pytest.approx((once.high - once.low) / 3, rel=0.1)


def test_any_function_of_the_sample_can_be_the_statistic():
    interval = bootstrap_ci(SAMPLE, lambda values: np.log(values).std())
    assert interval.contains(np.log(SAMPLE).std())


def test_equal_values_give_an_interval_without_width():
    assert bootstrap_ci([2.5] * 8) == Interval(estimate=2.5, low=2.5, high=2.5, level=0.95)


def test_large_samples_get_the_normal_interval_too():
    sample = np.random.default_rng(0).normal(size=5000)
    interval = bootstrap_ci(sample, n_resamples=1000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error(sample), rel=0.1)


def test_standard_error_is_scipys():
    assert standard_error(SAMPLE) == pytest.approx(scipy_stats.sem(SAMPLE))


def test_interval_contains_its_ends_and_prints_short():
    interval = Interval(estimate=0.34012, low=0.31, high=0.3699, level=0.95)
    assert interval.contains(0.31)
    assert not interval.contains(0.3700)
    assert str(interval) == "0.34 [0.31, 0.37]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [1.0]}, "at least 2 values"),
        ({"values": [[1.0, 2.0]]}, "flat list"),
        ({"values": [1.0, np.nan, 2.0]}, r"values\[1\] is nan"),
        ({"values": [1.0, 2.0], "level": 95}, "level is 95"),
        ({"values": [1.0, 2.0], "n_resamples": 10}, "n_resamples is 10"),
        ({"values": [1.0, 2.0], "clusters": ["a"]}, "1 labels for 2 values"),
        ({"values": [1.0, 2.0], "clusters": ["a", "a"]}, "single label 'a'"),
    ],
)
def test_unusable_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ci(**arguments)


SIZES = np.array([31e6, 96e6, 219e6, 501e6, 988e6])
"""Bytes of a ladder of models."""
DEPTHS = np.array([12, 6, 24, 12, 24])
T0, T_LAYER, PER_BYTE = 1.2e-3, 2.1e-4, 1 / 25e9


def noisy_ladder(rng: np.random.Generator, *, off_law: float, repeats: float, n_repeats: int = 4, t0: float = T0):
    """Return bytes and times whose sizes lie off the law by one factor each, and whose repeats scatter besides."""
    x = np.repeat(SIZES, n_repeats)
    factor = np.exp(np.repeat(rng.normal(0, off_law, len(SIZES)), n_repeats) + rng.normal(0, repeats, len(x)))
    return x, (t0 + x * PER_BYTE) * factor


def test_affine_law_is_recovered_from_noise_free_times_to_nine_digits():
    plain = fit_affine(SIZES, T0 + SIZES * PER_BYTE)
    assert [plain.intercept, plain.slope] == pytest.approx([T0, PER_BYTE], rel=1e-9)
    layered = fit_affine(SIZES, T0 + DEPTHS * T_LAYER + SIZES * PER_BYTE, per_layer=DEPTHS)
    assert [layered.intercept, layered.per_layer, layered.slope] == pytest.approx([T0, T_LAYER, PER_BYTE], rel=1e-9)
    assert max(map(abs, [*plain.leave_one_size_out.values(), *layered.leave_one_size_out.values()])) < 1e-9
    assert not plain.exact, "five sizes test two coefficients"


def test_affine_fit_minimises_the_squared_log_errors_of_the_medians():
    x, y = noisy_ladder(np.random.default_rng(5), off_law=0.2, repeats=0.1, n_repeats=3)
    medians = np.median(y.reshape(len(SIZES), -1), axis=1)

    def misses(theta, rows=slice(None)):
        return np.log((theta[0] * 1e-3 + theta[1] * 1e-9 * SIZES[rows]) / medians[rows])

    fit = fit_affine(x, y)
    best = least_squares(misses, [1.0, 0.04], bounds=(0, np.inf), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    assert [fit.intercept, fit.slope] == pytest.approx([best[0] * 1e-3, best[1] * 1e-9], rel=1e-5)
    rest = least_squares(lambda theta: misses(theta, slice(0, 4)), best, bounds=(0, np.inf), xtol=1e-14, gtol=1e-14).x
    predicted = rest[0] * 1e-3 + rest[1] * 1e-9 * SIZES[4]
    assert fit.leave_one_size_out[SIZES[4]] == pytest.approx(predicted / medians[4] - 1, abs=1e-5)
    assert fit.median_error == np.median(np.abs(list(fit.leave_one_size_out.values())))


@pytest.mark.parametrize("t0", [T0, 0.0])
def test_affine_intervals_cover_the_law_although_there_are_five_sizes(t0):
    rng, covered, of_repeats = np.random.default_rng(0), [], []
    for _ in range(150):
        x, y = noisy_ladder(rng, off_law=0.1, repeats=0.03, t0=t0)
        fit = fit_affine(x, y, n_resamples=100)
        for name, truth in (("intercept", t0), ("slope", PER_BYTE)):
            covered.append(fit.ci[name][0] <= truth <= fit.ci[name][1])
        of_repeats.append(fit.ci_repeats["slope"][0] <= PER_BYTE <= fit.ci_repeats["slope"][1])
    assert np.mean(covered) >= 0.9
    assert np.mean(of_repeats) < 0.6, "repeats alone cannot know that the sizes lie off the law"


def test_affine_intervals_cover_the_law_when_only_the_repeats_scatter():
    rng, covered = np.random.default_rng(1), []
    for _ in range(100):
        x, y = noisy_ladder(rng, off_law=0.0, repeats=0.2)
        fit = fit_affine(x, y, n_resamples=100)
        covered += [low <= truth <= high for (low, high), truth in zip(fit.ci.values(), (T0, PER_BYTE), strict=True)]
    assert np.mean(covered) >= 0.9


def test_log_errors_leave_no_bias_where_weighting_by_the_measurement_does():
    rng, ours, weighted = np.random.default_rng(2), [], []
    for _ in range(300):
        x, y = noisy_ladder(rng, off_law=0.0, repeats=0.4, n_repeats=1)
        ours.append(fit_affine(x, y, n_resamples=100).predict(5e8))
        line = np.linalg.lstsq(np.column_stack([1 / y, x / y]), np.ones_like(y))[0]
        weighted.append(line[0] + 5e8 * line[1])
    truth = T0 + 5e8 * PER_BYTE
    assert np.median(ours) == pytest.approx(truth, rel=0.05)
    assert np.median(weighted) < 0.9 * truth


def test_one_slow_repeat_moves_nothing():
    x = np.repeat(SIZES, 3)
    y = T0 + x * PER_BYTE
    y[4] *= 5
    fit = fit_affine(x, y, n_resamples=100)
    assert [fit.intercept, fit.slope] == pytest.approx([T0, PER_BYTE], rel=1e-9)


def test_two_points_give_their_line_and_no_interval_and_say_so():
    fit = fit_affine([1.0, 3.0], [5.0, 6.0])
    assert [fit.intercept, fit.slope] == pytest.approx([4.5, 0.5], rel=1e-12)
    assert fit.exact
    assert fit.ci == {}
    assert fit.leave_one_size_out == {}
    assert fit.median_error is None
    assert "nothing tests it" in fit.note
    assert fit.predict([2.0, 4.0]) == pytest.approx([5.5, 6.5])


def test_a_line_with_a_negative_intercept_is_met_only_without_the_sign_constraint():
    free = fit_affine([1.0, 2.0], [1.0, 3.0], nonnegative=False)
    assert [free.intercept, free.slope] == pytest.approx([-1.0, 2.0])
    assert free.exact
    held = fit_affine([1.0, 2.0], [1.0, 3.0])
    assert held.intercept == 0
    assert not held.exact


def test_elasticity_runs_from_overhead_to_bandwidth():
    fit = fit_affine(SIZES, T0 + SIZES * PER_BYTE)
    step = 1 + 1e-6
    for x in (1e3, 3e7, 1e12):
        by_difference = np.log(fit.predict(x * step) / fit.predict(x)) / np.log(step)
        assert fit.elasticity(x) == pytest.approx(by_difference, abs=1e-6)
    assert fit.elasticity(1.0) < 1e-6
    assert fit.elasticity(1e15) > 1 - 1e-6


def test_sizes_without_which_the_law_is_not_fixed_are_not_left_out():
    depths = [12, 12, 12, 12, 24]
    fit = fit_affine(
        SIZES, T0 + np.array(depths) * T_LAYER + SIZES * PER_BYTE, per_layer=depths, clusters=list("abcde")
    )
    assert sorted(fit.leave_one_size_out) == list("abcd")
    assert "1 of 5 sizes" in fit.note


def test_affine_fit_is_plain_json_and_follows_its_seed():
    x, y = noisy_ladder(np.random.default_rng(9), off_law=0.1, repeats=0.1)
    fits = [fit_affine(x, y, n_resamples=200, seed=seed) for seed in (0, 0, 1)]
    assert fits[0] == fits[1]
    assert fits[0].ci_repeats != fits[2].ci_repeats
    assert json.loads(json.dumps(fits[0].as_dict(), allow_nan=False))["n_sizes"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [1.0, 2.0], "y": [1.0, -2.0]}, "y must be a flat list of positive"),
        ({"x": [0.0, 2.0], "y": [1.0, 2.0]}, "x must be a flat list of positive"),
        ({"x": [1.0, np.nan], "y": [1.0, 2.0]}, "x must be"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0]}, "one entry per sample"),
        ({"x": [1.0, 2.0], "y": [1.0, 2.0], "clusters": ["a"]}, "one entry per sample"),
        ({"x": [1.0, 2.0], "y": [1.0, 2.0], "clusters": ["a", "a"]}, "size 'a' has samples at"),
        ({"x": [1.0, 1.0], "y": [1.0, 2.0]}, "1 sizes cannot give 2 coefficients"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], "per_layer": [4, 4, 4]}, "do not tell .* apart"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], "level": 95}, "level is 95"),
        ({"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], "n_resamples": 5}, "n_resamples is 5"),
    ],
)
def test_unusable_arguments_of_an_affine_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_affine(**arguments)


def test_a_law_with_layers_is_not_asked_without_them():
    fit = fit_affine(SIZES, T0 + DEPTHS * T_LAYER + SIZES * PER_BYTE, per_layer=DEPTHS)
    assert fit.predict(SIZES, DEPTHS) == pytest.approx(T0 + DEPTHS * T_LAYER + SIZES * PER_BYTE)
    with pytest.raises(ValueError, match="per_layer must be given"):
        fit.predict(1e9)
