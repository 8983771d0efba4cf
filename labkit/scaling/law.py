"""Scaling laws: loss = E + A/N^alpha (+ B/D^beta), with intervals, and what they may be asked.

A law is fitted to losses in nats, never to perplexities: exp() would let the largest ones decide. It answers inside
the range it was fitted on and refuses outside it unless told that an extrapolation is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.scaling import varpro
from labkit.scaling.resample import TooFewRuns, cluster_codes, draw_determined, supports_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

_TAILS = (0.025, 0.975)
_VANISHED_TERM = 1e-4
_VANISHED_FLOOR = 1e-3

NO_TOKEN_TERM = "No token term is fitted, so E contains what the number of tokens adds (B/D^beta)."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Law:
    """A fitted law, loss = E + A/N^alpha + B/D^beta in nats; B and beta are None where it has no token term."""

    E: float
    """Irreducible loss in nats; 0 where the law was fitted without a floor."""
    A: float
    """Coefficient of the size term: nats at N = 1."""
    alpha: float
    """Exponent of the size term; 0 where the loss does not fall with N."""
    B: float | None
    """Coefficient of the token term: nats at D = 1."""
    beta: float | None
    """Exponent of the token term; 0 where the loss does not fall with D."""
    ci: dict[str, tuple[float, float]]
    """The ends of each constant's 95 % interval, by name: NaN for too few runs (see notes), empty for bootstrap=0."""
    n_range: tuple[float, float]
    """Smallest and largest N fitted."""
    token_range: tuple[float, float] | None
    """Smallest and largest D fitted; None without a token term."""
    n_runs: int
    """Number of runs fitted."""
    rms_log_residual: float
    """Root mean square of log(fitted loss / observed loss)."""
    notes: tuple[str, ...]
    """What a reader of the constants has to know, one sentence each."""
    draws: dict[str, Array]
    """The bootstrap's values of each constant, by name."""

    @property
    def resolved(self) -> bool:
        """Say whether the 95 % interval of alpha excludes 0; False where there is no interval."""
        return "alpha" in self.ci and self.ci["alpha"][0] > 0

    def predict(self, n: ArrayLike, tokens: ArrayLike | None = None, *, extrapolate: bool = False) -> Any:
        """Return the loss in nats at n parameters (and tokens): a float for numbers, an array for arrays.

        Raises:
            ValueError: outside the fitted range without extrapolate=True, or tokens missing or not part of the law.
        """
        self._check_range(n, tokens, extrapolate)
        loss = _evaluate({"E": self.E, "A": self.A, "alpha": self.alpha, "B": self.B, "beta": self.beta}, n, tokens)
        return float(loss) if loss.ndim == 0 else loss

    def interval(
        self, n: ArrayLike, tokens: ArrayLike | None = None, *, extrapolate: bool = False
    ) -> tuple[Array, Array]:
        """Return the ends of the 95 % interval of the law itself (not of a new run) at n parameters, in nats.

        Raises:
            ValueError: as predict, or the law has no intervals.
        """
        self._check_range(n, tokens, extrapolate)
        if not self.draws:
            raise ValueError(
                "this law has no intervals: it was fitted with bootstrap=0, or to too few runs (see notes)"
            )
        columns = {name: values[:, None] for name, values in self.draws.items()}
        losses = _evaluate(columns, np.atleast_1d(n), None if tokens is None else np.atleast_1d(tokens))
        low, high = np.quantile(losses, _TAILS, axis=0)
        return low, high

    def plot(self, tokens: float | None = None, ax: Axes | None = None) -> Axes:
        """Draw the law over the sizes it was fitted on, with its 95 % interval where it has one.

        Args:
            tokens: D of the curve, where the law has a token term; the largest one fitted where not given.
            ax: axes to draw into; new ones where not given.

        Returns:
            the axes.

        Raises:
            ValueError: as predict.
        """
        from labkit.scaling.law_plot import draw

        return draw(self, tokens, ax)

    def __str__(self) -> str:
        floor = f"{self.E:.4g} + " if self.E else ""
        token_term = "" if self.B is None else f" + {self.B:.4g}/D^{self.beta:.3g}"
        return f"loss = {floor}{self.A:.4g}/N^{self.alpha:.3g}{token_term}"

    def _check_range(self, n: ArrayLike, tokens: ArrayLike | None, extrapolate: bool) -> None:
        if self.B is not None and tokens is None:
            raise ValueError("this law has a token term; give tokens as well")
        if self.B is None and tokens is not None:
            raise ValueError("this law has no token term, so it knows nothing about tokens; leave them out")
        if not extrapolate:
            check_inside("n", n, self.n_range)
            if tokens is not None and self.token_range is not None:
                check_inside("tokens", tokens, self.token_range)


def fit_law(
    n: ArrayLike,
    loss: ArrayLike,
    tokens: ArrayLike | None = None,
    *,
    floor: bool = True,
    bootstrap: int = 2000,
    seed: int = 0,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    delta: float = 1e-3,
) -> Law:
    """Fit loss = E + A/N^alpha, plus B/D^beta where tokens vary (Hoffmann et al. 2022, approach 3).

    Minimises the sum over runs of Huber(delta) of log residuals; `varpro` says how. The intervals are percentiles of a
    bootstrap over runs; there are none for fewer than 5 runs (or clusters), or fewer than 2 more than constants, where
    they would be far too narrow. A resample with too few distinct N or D to determine the law is drawn again. In fit
    and resample alike, a term that takes less than 0.01 % off the loss over the fitted range counts as exponent 0, and
    a floor below 0.1 % of the loss as 0.

    Args:
        n: [P] parameters of each run.
        loss: [P] loss of each run in nats.
        tokens: [P] training tokens of each run.
        floor: False leaves E out.
        bootstrap: number of resamples; 0 for none.
        seed: of the bootstrap; the same seed gives the same intervals.
        clusters: [P] configuration of each run. Configurations are drawn with replacement, then runs inside each drawn
            one. A shape's own deviation from the law is common to all its seeds; drawing single runs ignores that and
            gives intervals that are too narrow.
        delta: where Huber's loss turns linear, in units of log loss.

    Raises:
        TooFewRuns: too few distinct N (4 with a floor, 3 without) or D (3), too few runs, or D a power of N.
        ValueError: a value that is not finite and positive, named by its row; an argument out of its range.
    """
    if not (delta > 0 and bootstrap >= 0):
        raise ValueError(f"delta is {delta} and bootstrap is {bootstrap}; they must be above 0 and at least 0")
    size, observed, *amount = check_columns(n=n, loss=loss, **({} if tokens is None else {"tokens": tokens}))
    variables = [size, *(column for column in amount if np.ptp(column) > 0)]
    _check_determined(variables, floor)
    terms = varpro.Terms.of(observed, variables, floor=floor)
    theta = varpro.fit(terms, delta=delta)[None]
    codes = cluster_codes(clusters, len(size))
    draws: dict[str, Array] = {}
    if bootstrap and supports_intervals(codes, theta.size):
        weights = draw_determined(variables, codes, bootstrap, floor, seed)
        draws = _constants(terms, varpro.fit_resamples(terms, weights, delta=delta))
    fitted = {name: float(values[0]) for name, values in _constants(terms, theta).items()}
    ci = {name: _ends(draws.get(name)) for name in fitted} if bootstrap else {}
    notes = _notes(fitted, ci)
    if bootstrap and not draws:
        notes.append(
            f"{codes.max() + 1} independent runs or clusters are too few for intervals of {theta.size} constants."
        )
    ranges = [(float(v.min()), float(v.max())) for v in variables]
    return Law(
        **{"E": 0.0, "B": None, "beta": None, **fitted},
        ci=ci,
        n_range=ranges[0],
        token_range=ranges[1] if len(ranges) > 1 else None,
        n_runs=len(size),
        rms_log_residual=float(np.sqrt(np.mean(varpro.residuals(theta, terms)[0] ** 2))),
        notes=tuple(notes),
        draws=draws,
    )


def check_columns(**columns: ArrayLike) -> list[Array]:
    """Return the columns as float arrays of one length.

    Raises:
        ValueError: a column is not flat, lengths differ, or a value is not finite and positive (named by its row).
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"the columns have shapes {shapes}; give flat lists of one length")
    for name, array in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise ValueError(f"row {bad[0]}: {name} is {array[bad[0]]}; every value must be finite and positive")
    return list(arrays.values())


def check_inside(name: str, values: ArrayLike, fitted: tuple[float, float]) -> None:
    """Refuse values outside the range a law was fitted on.

    Raises:
        ValueError: names the value and the range.
    """
    low, high = fitted
    outside = [float(v) for v in np.atleast_1d(values) if not low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
    if outside:
        raise ValueError(
            f"{name} = {outside[0]:g} lies outside the fitted range [{low:g}, {high:g}]; "
            "pass extrapolate=True if an extrapolation is what you want"
        )


def _check_determined(variables: list[Array], floor: bool) -> None:
    n_constants = 2 * len(variables) + floor
    needed = {"N": 4 if floor else 3, "D": 3}
    for (name, least), values in zip(needed.items(), variables, strict=False):
        found = len(np.unique(values))
        if found < least:
            raise TooFewRuns(f"{found} distinct {name}; a law {'with' if floor else 'without'} a floor needs {least}")
    if len(variables[0]) <= n_constants:
        raise TooFewRuns(f"{len(variables[0])} runs; a law of {n_constants} constants needs {n_constants + 1}")
    logs = np.log(variables)
    if np.linalg.matrix_rank(logs - logs.mean(axis=1, keepdims=True), tol=1e-6) < len(variables):
        raise TooFewRuns("tokens are a power of N in all runs, so their terms cannot be told apart; vary D at some N")


def _constants(terms: varpro.Terms, theta: Array) -> dict[str, Array]:
    """Turn theta [R, K+M] into the law's constants by name, [R] each."""
    n_terms = len(terms.log_x)
    sizes, exponents, typical = np.exp(theta[:, :n_terms]), theta[:, n_terms:], np.exp(np.median(terms.log_loss))
    floor = sizes[:, 0].copy() if n_terms > len(terms.power) else None
    constants: dict[str, Array] = {}
    for j, (coefficient, exponent) in enumerate((("A", "alpha"), ("B", "beta"))[: len(terms.power)]):
        size, slope, x = sizes[:, terms.power[j]], exponents[:, j], terms.log_x[terms.power[j]]
        drop = size * (np.exp(-slope * x.min()) - np.exp(-slope * x.max()))
        gone = drop < _VANISHED_TERM * typical
        if floor is not None:
            floor += np.where(gone, size, 0)
            size = np.where(gone, 0, size)
        slope = np.where(gone, 0, slope)
        constants |= {coefficient: size * np.exp(slope * terms.centre[j]), exponent: slope}
    return constants if floor is None else {"E": np.where(floor < _VANISHED_FLOOR * typical, 0, floor), **constants}


def _ends(values: Array | None) -> tuple[float, float]:
    low, high = (np.nan, np.nan) if values is None else np.quantile(values, _TAILS)
    return float(low), float(high)


def _evaluate(constants: dict[str, Any], n: ArrayLike, tokens: ArrayLike | None) -> Array:
    loss = constants.get("E", 0.0) + constants["A"] * np.asarray(n, dtype=float) ** -constants["alpha"]
    return loss if tokens is None else loss + constants["B"] * np.asarray(tokens, dtype=float) ** -constants["beta"]


def _notes(fitted: dict[str, float], ci: dict[str, tuple[float, float]]) -> list[str]:
    notes = []
    if "E" in fitted and "B" not in fitted:
        notes.append(NO_TOKEN_TERM)
    for name in ("alpha", "beta"):
        if fitted.get(name) == 0 or ci.get(name, (1,))[0] == 0:
            notes.append(f"{name} is not resolved from 0: some resamples do not fall, or the runs do not.")
        if ci.get(name, (0, 0))[1] >= varpro.EXPONENT_MAX or fitted.get(name) == varpro.EXPONENT_MAX:
            notes.append(f"{name} reaches the edge of the searched range, {varpro.EXPONENT_MAX:g}.")
    if fitted.get("E") == 0 or ci.get("E", (1,))[0] == 0:
        notes.append("E is not resolved from 0: the runs are as well described without a floor.")
    return notes
