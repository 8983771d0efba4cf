"""Intervals against what is known without a bootstrap: Student's interval of a mean, coverage of a known truth, scipy's
standard error, and numpy's global random state, which has to stay as it was."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from labkit.stats import Interval, bootstrap_ci, standard_error

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
