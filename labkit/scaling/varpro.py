"""Fit a sum of power laws to log losses: variable projection, then the Huber objective.

The law is loss = E + A/N^alpha + B/D^beta with any of its terms left out. For given exponents the best non-negative
E, A and B are a tiny linear least-squares problem, solved in closed form on a grid of exponents (variable projection,
as in Czech et al. 2026, arXiv 2603.22339). The best grid points start the fit proper: the SUM over runs of
Huber(delta) of log residuals, in the log-sum-exp parametrisation (Hoffmann et al. 2022, approach 3). Log N and log D
are centred on their means, which removes most of the correlation between A and alpha and makes L-BFGS converge.

Shapes: R resamples, P points (runs), K terms, M exponents, G grid points. A row of `theta` is [log terms at the centre
(K), exponents (M)].
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

EXPONENT_MAX = 2.0
_EXPONENT_MIN = 0.02
_LOG_REACH = 16.0
_START_SHARE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The terms of a law at the runs it is fitted to."""

    log_loss: Array
    """[P] log of the loss in nats."""
    log_x: Array
    """[K, P] per term the centred log of its variable; the floor's row is zero."""
    power: list[int]
    """[M] which rows have an exponent."""
    centre: Array
    """[M] the mean that was subtracted from each variable's log."""

    @classmethod
    def of(cls, loss: Array, variables: list[Array], *, floor: bool) -> Terms:
        """Lay out a law with one power term per variable, and a floor in front if asked for."""
        logs = np.log(np.array(variables))
        centre = logs.mean(axis=1)
        rows = logs - centre[:, None]
        log_x = np.vstack([np.zeros((1, len(loss))), rows]) if floor else rows
        power = list(range(int(floor), len(log_x)))
        return cls(log_loss=np.log(loss), log_x=log_x, power=power, centre=centre)

    def bounds(self) -> tuple[Array, Array]:
        """Return the box of theta: a term may not vanish numerically, nor exceed the largest loss e-fold."""
        n_terms, n_exponents = len(self.log_x), len(self.power)
        low = np.r_[np.full(n_terms, self.log_loss.min() - _LOG_REACH), np.zeros(n_exponents)]
        high = np.r_[np.full(n_terms, self.log_loss.max() + 1), np.full(n_exponents, EXPONENT_MAX)]
        return low, high

    def exponents(self, theta: Array) -> Array:
        """Spread the exponents of theta [..., K+M] over all terms [..., K]; the floor's is zero."""
        n_terms = len(self.log_x)
        spread = np.zeros((*theta.shape[:-1], n_terms))
        spread[..., self.power] = theta[..., n_terms:]
        return spread


def residuals(theta: Array, terms: Terms) -> tuple[Array, Array]:
    """Return log residuals [R, P] of each theta [R, K+M] and their Jacobian [R, K+M, P]."""
    n_terms = len(terms.log_x)
    logs = theta[:, :n_terms, None] - terms.exponents(theta)[:, :, None] * terms.log_x
    top = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(axis=1, keepdims=True)
    shares /= total
    slopes = -shares[:, terms.power] * terms.log_x[terms.power]
    return (top + np.log(total))[:, 0] - terms.log_loss, np.concatenate([shares, slopes], axis=1)


def huber(residual: Array, delta: float) -> Array:
    """Return Huber's loss: r^2/2 within delta of zero, delta (|r| - delta/2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def grid(n_exponents: int, n_points: int) -> Array:
    """Return a log-spaced grid of exponents, [n_points^M, M]."""
    axis = np.geomspace(_EXPONENT_MIN, EXPONENT_MAX, n_points)
    return np.array(list(itertools.product(axis, repeat=n_exponents)))


def profile(terms: Terms, weights: Array, exponents: Array) -> tuple[Array, Array]:
    """Solve for the non-negative term sizes at every grid point, for every resample at once.

    Minimises the weighted squares of (fitted / observed loss - 1). With three terms at most, the constrained optimum is
    the best feasible solution over all subsets of terms, so no iteration is needed.

    Args:
        weights: [R, P] how often each resample holds each run.
        exponents: [G, M].

    Returns:
        The cost [R, G] and the term sizes at the centre [R, G, K], in nats.
    """
    n_terms, n_points = terms.log_x.shape
    theta = np.concatenate([np.zeros((len(exponents), n_terms)), exponents], axis=1)
    columns = np.exp(-terms.exponents(theta)[:, :, None] * terms.log_x - terms.log_loss)
    products = (columns[:, :, None] * columns[:, None]).reshape(-1, n_points)
    gram = (weights @ products.T).reshape(len(weights), len(exponents), n_terms, n_terms)
    right = (weights @ columns.reshape(-1, n_points).T).reshape(len(weights), len(exponents), n_terms)
    cost, sizes = np.full(right.shape[:2], np.inf), np.zeros(right.shape)
    for subset in _subsets(n_terms):
        solved = _solve_subset(gram, right, subset)
        explained = np.einsum("rgk,rgk->rg", solved, right[..., subset])
        candidate = weights.sum(axis=1)[:, None] - explained
        better = (solved >= 0).all(axis=-1) & (candidate < cost)
        cost[better] = candidate[better]
        sizes[better] = _spread(solved, subset, n_terms)[better]
    return cost, sizes


def _subsets(n_terms: int) -> list[list[int]]:
    return [list(s) for size in range(1, n_terms + 1) for s in itertools.combinations(range(n_terms), size)]


def _spread(solved: Array, subset: list[int], n_terms: int) -> Array:
    sizes = np.zeros((*solved.shape[:-1], n_terms))
    sizes[..., subset] = solved
    return sizes


def _solve_subset(gram: Array, right: Array, subset: list[int]) -> Array:
    """Solve the normal equations of a subset of terms; a ridge far below any residual keeps equal columns solvable."""
    block = gram[..., subset, :][..., subset]
    ridge = 1e-13 * np.trace(block, axis1=-2, axis2=-1)[..., None, None] * np.eye(len(subset))
    return np.linalg.solve(block + ridge, right[..., subset, None])[..., 0]


def starts(terms: Terms, cost: Array, sizes: Array, exponents: Array) -> Array:
    """Return theta [R, K+M] at the cheapest grid point of each resample, inside the bounds.

    A term the projection sets to zero starts at 1 % of the loss instead: in logs a vanished term has no gradient left
    with which to come back.
    """
    cheapest = cost.argmin(axis=1)
    chosen = np.take_along_axis(sizes, cheapest[:, None, None], axis=1)[:, 0]
    smallest = _START_SHARE * np.exp(np.median(terms.log_loss))
    theta = np.concatenate([np.log(np.maximum(chosen, smallest)), exponents[cheapest]], axis=1)
    return np.clip(theta, *terms.bounds())


def fit(terms: Terms, *, delta: float, n_grid: int = 40, n_starts: int = 4) -> Array:
    """Minimise the summed Huber loss by L-BFGS from the best grid point of each of several ranges of exponents.

    Returns:
        theta [K+M].
    """
    exponents = grid(len(terms.power), n_grid)
    cost, sizes = profile(terms, np.ones((1, len(terms.log_loss))), exponents)
    parts = np.array_split(np.arange(len(exponents)), n_starts)
    with _blas().limit(limits=1):
        found = [_descend(terms, starts(terms, cost[:, p], sizes[:, p], exponents[p])[0], delta) for p in parts]
    return min(found, key=lambda result: result[0])[1]


@functools.cache
def _blas() -> ThreadpoolController:
    """Return the BLAS of NumPy and SciPy: vectors of four numbers take ten times as long where threads share them."""
    return ThreadpoolController().select(user_api="blas")


def _descend(terms: Terms, start: Array, delta: float) -> tuple[float, Array]:
    # L-BFGS compares a decrease with max(|objective|, 1). The mean of Huber losses is ~1e-6, so it stops at once
    # (Besiroglu et al. 2024); the sum, in units of delta^2, is of order one for residuals of order delta.
    def objective(theta: Array) -> tuple[float, Array]:
        residual, jacobian = residuals(theta[None], terms)
        gradient = jacobian[0] @ np.clip(residual[0], -delta, delta)
        return huber(residual[0], delta).sum() / delta**2, gradient / delta**2

    options = {"maxiter": 5_000, "maxfun": 20_000, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-9}
    bounds = np.transpose(terms.bounds())
    result = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return float(result.fun), result.x


def fit_resamples(terms: Terms, weights: Array, *, delta: float) -> Array:
    """Fit every resample, given how often it holds each run [R, P]; return theta [R, K+M]."""
    exponents = grid(len(terms.power), 24 if len(terms.power) == 1 else 12)
    cost, sizes = profile(terms, weights, exponents)
    return refine(terms, weights, starts(terms, cost, sizes, exponents), delta=delta)


def refine(terms: Terms, weights: Array, theta: Array, *, delta: float, n_steps: int = 100) -> Array:
    """Minimise every resample's weighted Huber sum at once, from the given starts.

    Levenberg-Marquardt on the quadratic that touches Huber's loss from above (iteratively reweighted least squares),
    each resample with its own damping. It minimises what `fit` minimises; it stops when a step gains less than 1e-9 of
    the cost or after n_steps, so a few resamples end slightly above their minimum.

    Args:
        weights: [R, P] how often each resample holds each run.
        theta: [R, K+M] starts.

    Returns:
        theta [R, K+M].
    """
    theta, damping, live = theta.copy(), np.full(len(theta), 1e-3), np.arange(len(theta))
    cost = _costs(terms, weights, theta, delta)
    for _ in range(n_steps):
        trial = _step(terms, weights[live], theta[live], damping[live], delta)
        trial_cost = _costs(terms, weights[live], trial, delta)
        gain = cost[live] - trial_cost
        better = gain >= 0
        settled = (better & (gain <= 1e-9 * cost[live])) | (damping[live] > 1e9)
        theta[live[better]], cost[live[better]] = trial[better], trial_cost[better]
        damping[live] *= np.where(better, 0.2, 10.0)
        live = live[~settled]
        if not len(live):
            break
    return theta


def _costs(terms: Terms, weights: Array, theta: Array, delta: float) -> Array:
    return (weights * huber(residuals(theta, terms)[0], delta)).sum(axis=1)


def _step(terms: Terms, weights: Array, theta: Array, damping: Array, delta: float) -> Array:
    """Return one damped Gauss-Newton step; coordinates held by a bound they push against stay where they are."""
    low, high = terms.bounds()
    residual, jacobian = residuals(theta, terms)
    scale = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    gradient = np.einsum("rkp,rp->rk", jacobian, scale * residual)
    held = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    jacobian, gradient = np.where(held[..., None], 0.0, jacobian), np.where(held, 0.0, gradient)
    hessian = np.matmul(jacobian * scale[:, None], jacobian.transpose(0, 2, 1))
    diagonal = damping[:, None] * np.einsum("rkk->rk", hessian) + 1e-12 * scale.sum(axis=1, keepdims=True)
    system = hessian + diagonal[..., None] * np.eye(theta.shape[1])
    return np.clip(theta - np.linalg.solve(system, gradient[..., None])[..., 0], low, high)
