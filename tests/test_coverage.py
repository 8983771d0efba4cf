"""How often each kind of interval that is printed covers the truth, at the numbers of values it is used with.

Nominally 95 %, and at least 92 % is asked for: of 2,000 draws a true 95 % falls below 93.5 % once in a thousand times.
Other kinds are held to the same elsewhere: speeds at equal loss in tests/hybrid/test_protocol.py, shares of pairs over
runs in tests/inertia/test_evaluate.py, routing in tests/inertia/test_routing.py, laws in tests/test_stats.py and
tests/scaling/test_law.py.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from labkit.reports.size_inertia.results import size_exponent
from labkit.scaling.multiverse import fit_perplexity_power
from labkit.stats import Interval, bootstrap_ci, mean_ci, ratio_ci

LEAST = 0.92
DRAWS = 2000


def coverage(draw, truth, draws=DRAWS):
    """Return the share of intervals that hold the truth."""
    rng = np.random.default_rng(7)
    return np.mean([draw(rng).contains(truth) for _ in range(draws)])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_a_mean_over_seeds(n):
    assert coverage(lambda rng: mean_ci(1 + rng.standard_normal(n)), 1.0) >= LEAST


@pytest.mark.parametrize("n", [3, 5, 8])
def test_a_ratio_over_rounds_that_share_their_weather(n):
    def draw(rng):
        weather = rng.lognormal(0, 0.5, n)
        return ratio_ci(3 * weather * rng.lognormal(0, 0.1, n), weather * rng.lognormal(0, 0.1, n))

    assert coverage(draw, 3.0) >= LEAST


@pytest.mark.parametrize(("n", "spread"), [(3, 0.02), (3, 0.1), (5, 0.02), (5, 0.3)])
def test_a_ratio_of_two_samples_that_scatter_differently(n, spread):
    def draw(rng):
        return ratio_ci(3 * rng.lognormal(0, spread, n), rng.lognormal(0, 0.1, n), paired=False)

    assert coverage(draw, 3.0) >= LEAST


@pytest.mark.parametrize("n", [4, 6, 8])
def test_an_exponent_of_time_in_size_from_sizes_that_lie_off_the_law(n):
    size = np.geomspace(1e7, 1e10, n)

    def draw(rng):
        own = size**0.7 * rng.lognormal(0, 0.2, n)
        rows = [
            {"name": i, "bytes": size[i], "seconds": own[i] * noise}
            for i in range(n)
            for noise in rng.lognormal(0, 0.02, 3)
        ]
        found = size_exponent(pd.DataFrame(rows))
        return Interval(estimate=found["value"], low=found["ci"][0], high=found["ci"][1], level=0.95)

    assert coverage(draw, 0.7, draws=500) >= LEAST


@pytest.mark.parametrize("n", [3, 4, 6])
def test_an_exponent_of_perplexity_in_parameters(n):
    size = np.geomspace(1e5, 1e7, n)

    def draw(rng):
        found = fit_perplexity_power(size, size**-0.2 * rng.lognormal(0, 0.05, n))
        return Interval(estimate=found.b, low=found.b_ci[0], high=found.b_ci[1], level=0.95)

    assert coverage(draw, -0.2, draws=1000) >= LEAST


def test_a_change_over_the_held_out_windows_of_the_smallest_profile_that_counts():
    """Changes of single windows are skewed; 24 of them is the least that a profile above the smoke run has."""
    shape = scipy_stats.skewnorm(4)

    def draw(rng):
        return bootstrap_ci(shape.rvs(24, random_state=rng), n_resamples=1000)

    assert coverage(draw, shape.mean(), draws=600) >= LEAST


def test_a_bootstrap_of_so_few_seeds_covers_too_little():
    """What the intervals of speeds were made with before, and why they no longer are."""
    assert coverage(lambda rng: bootstrap_ci(rng.standard_normal(3), n_resamples=200), 0.0, draws=400) < 0.85
