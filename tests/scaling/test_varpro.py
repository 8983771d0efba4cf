"""The fitting core against independent solvers: scipy's non-negative least squares for the projection, finite
differences for the Jacobian, scipy's Huber, and the one-by-one fit for the batched refinement of resamples."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, nnls
from scipy.special import huber as scipy_huber

from labkit.scaling import varpro

RNG = np.random.default_rng(5)
N = 10 ** RNG.uniform(6, 9, size=30)
D = 10 ** RNG.uniform(8, 11, size=30)
LOSS = (1.69 + 406.4 / N**0.34 + 410.7 / D**0.28) * np.exp(RNG.normal(0, 0.01, size=30))
BOTH = varpro.Terms.of(LOSS, [N, D], floor=True)
SIZE_ONLY = varpro.Terms.of(LOSS, [N], floor=True)


def test_profile_equals_nonnegative_least_squares():
    weights = RNG.multinomial(30, np.full(30, 1 / 30), size=5).astype(float)
    exponents = varpro.grid(2, 8)
    cost, sizes = varpro.profile(BOTH, weights, exponents)
    n_at_zero = 0
    for resample, point in [(r, g) for r in range(5) for g in range(0, 64, 7)]:
        spread = np.r_[0.0, exponents[point]][:, None]
        columns = np.exp(-spread * BOTH.log_x) / LOSS
        root = np.sqrt(weights[resample])
        expected, residual = nnls((columns * root).T, root)
        n_at_zero += (expected == 0).any()
        assert sizes[resample, point] == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert cost[resample, point] == pytest.approx(residual**2, rel=1e-3)
    assert n_at_zero > 5, "the constraint has to matter somewhere"


def test_jacobian_equals_finite_differences():
    theta = np.array([0.4, -1.0, -0.5, 0.3, 0.5])
    _, jacobian = varpro.residuals(theta[None], BOTH)
    numeric = approx_fprime(theta, lambda t: varpro.residuals(t[None], BOTH)[0][0], 1e-7)
    assert np.abs(jacobian[0].T - numeric).max() < 1e-6


def test_huber_is_scipys():
    residual = np.linspace(-0.01, 0.01, 41)
    assert varpro.huber(residual, 0.002) == pytest.approx(scipy_huber(0.002, residual))


@pytest.mark.parametrize("terms", [SIZE_ONLY, BOTH], ids=["N", "N and D"])
def test_fit_is_a_minimum(terms):
    theta = varpro.fit(terms, delta=1e-2)
    residual, jacobian = varpro.residuals(theta[None], terms)
    steepness = jacobian[0] @ np.clip(residual[0], -1e-2, 1e-2)
    assert np.abs(steepness).max() < 1e-6 * np.abs(residual).sum()


def test_batched_refinement_agrees_with_the_fit_of_each_resample():
    noisy = varpro.Terms.of((1.69 + 406.4 / N**0.34) * np.exp(RNG.normal(0, 0.01, size=30)), [N], floor=True)
    weights = RNG.multinomial(30, np.full(30, 1 / 30), size=40).astype(float)
    batched = varpro.fit_resamples(noisy, weights, delta=1e-3)
    excess, shift = [], []
    for theta, weight in zip(batched, weights, strict=True):
        rows = np.repeat(np.arange(30), weight.astype(int))
        alone = varpro.Terms.of(np.exp(noisy.log_loss[rows]), [N[rows]], floor=True)
        single = varpro.fit(alone, delta=1e-3)
        centred = single.copy()
        centred[1] -= single[2] * (noisy.centre[0] - alone.centre[0])
        cost, least = (_cost(t, noisy, weight) for t in (theta, centred))
        excess.append(cost / least - 1)
        shift.append(theta[2] - single[2])
    assert max(excess) < 5e-3
    assert np.median(np.abs(excess)) < 1e-6
    assert np.quantile(np.abs(shift), 0.9) < 0.02 * np.ptp(np.quantile(batched[:, 2], [0.025, 0.975]))


def _cost(theta, terms, weight):
    return weight @ varpro.huber(varpro.residuals(theta[None], terms)[0][0], 1e-3)
