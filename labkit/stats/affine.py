"""An affine law of time against size, t = t0 + n_layers t_layer + bytes / bandwidth, with intervals that admit how few
sizes there are.

Sizes span decades, so every size counts by its relative error. The error is the logarithm of measured over predicted:
a neighbour on the machine multiplies a time, and a factor of two above weighs as much as a factor of two below. Least
squares weighted by 1/t instead gives slow measurements the small weights and lies low by the square of the relative
noise. Each size enters by the median of its repeats, so that one slow repeat moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats
from scipy.optimize import nnls

from labkit.base.units import settled

Values = NDArray[np.float64]

_MOST_STEPS = 200
_SETTLED = 1e-13


@dataclass(frozen=True, kw_only=True, slots=True)
class AffineFit:
    """A fitted law y = intercept + slope x, or with a term per layer y = intercept + per_layer n + slope x."""

    intercept: float
    """Time that no size explains, in the units of y."""
    slope: float
    """Change of y per unit of x; for seconds against bytes its inverse is a bandwidth."""
    per_layer: float | None
    """Time per layer in the units of y; None in the form without it."""
    ci: dict[str, tuple[float, float]]
    """Interval of each coefficient; empty where the sizes leave no freedom to estimate one."""
    ci_repeats: dict[str, tuple[float, float]]
    """What resampling the repeats alone gives, the part that more repeats would narrow; empty without repeats."""
    level: float
    """Nominal coverage of the intervals."""
    exact: bool
    """Whether the law goes through every size, there being as many coefficients as sizes: it cannot then be wrong."""
    note: str
    """Why there is no interval or no held-out error; empty where there are both."""
    n_sizes: int
    """Different sizes behind the fit."""
    leave_one_size_out: dict[Any, float]
    """By size, predicted over measured - 1 when the law is fitted to the other sizes."""
    median_error: float | None
    """Median of the absolute held-out errors; None without any."""

    def predict(self, x: ArrayLike, per_layer: ArrayLike | None = None) -> Any:
        """Return y at x, [n] or a number; `per_layer` is the number of layers, for the form that has the term.

        Raises:
            ValueError: the form with a term per layer is asked without layers, or the other one with them.
        """
        if (per_layer is None) != (self.per_layer is None):
            raise ValueError("per_layer must be given to a law that has a term per layer, and to no other")
        y = self.intercept + self.slope * np.asarray(x, dtype=float)
        y = y if per_layer is None else y + self.per_layer * np.asarray(per_layer, dtype=float)
        return float(y) if np.ndim(y) == 0 else y

    def elasticity(self, x: ArrayLike, per_layer: ArrayLike | None = None) -> Any:
        """Return d ln y / d ln x at x: 0 where overhead rules, 1 where y is proportional to x."""
        share = self.slope * np.asarray(x, dtype=float) / self.predict(x, per_layer)
        return float(share) if np.ndim(share) == 0 else share

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; sizes become strings."""
        plain = asdict(self)
        for name in ("ci", "ci_repeats"):
            plain[name] = {key: list(ends) for key, ends in plain[name].items()}
        plain["leave_one_size_out"] = {str(size): error for size, error in self.leave_one_size_out.items()}
        return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """Samples grouped by size."""

    design: Values
    """[sizes, coefficients] columns that the coefficients multiply."""
    logs: list[Values]
    """For each size, the logarithms of its repeats."""
    labels: list[Hashable]
    """Names of the sizes."""
    names: tuple[str, ...]
    """Names of the coefficients."""

    def centre(self) -> Values:
        """Return the median logarithm of each size."""
        return np.array([np.median(log) for log in self.logs])


def fit_affine(
    x: ArrayLike,
    y: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    per_layer: ArrayLike | None = None,
    nonnegative: bool = True,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> AffineFit:
    """Fit y = intercept + slope x (+ per_layer n) in relative error, with intervals and leave-one-size-out errors.

    An interval is the wider, end by end, of two. One resamples the repeats within each size: noise of the measurement.
    The other takes how far the sizes lie off the law, with Student's quantile at sizes - coefficients degrees of
    freedom: with few sizes that is what an interval must admit, and no number of repeats narrows it.

    Args:
        x: [n] size of each sample, such as bytes of weights; positive.
        y: [n] measured time of each sample; positive.
        clusters: [n] label of the size of each sample; by default samples of equal x (and layers) are repeats.
        per_layer: [n] number of layers of each sample, for the form with a term per layer.
        nonnegative: keep every coefficient at 0 or above, as times and bandwidths are.
        level: nominal coverage, in (0, 1).
        n_resamples: bootstrap resamples of the repeats, at least 100.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: values that are not positive or not alike in number, fewer sizes than coefficients, sizes that do
            not tell the coefficients apart (one depth for all), or an argument out of its range.
    """
    if not 0 < level < 1 or n_resamples < 100:
        raise ValueError(f"level is {level} (between 0 and 1), n_resamples is {n_resamples} (at least 100)")
    data = _grouped(x, y, clusters, per_layer)
    centre, n_sizes = data.centre(), len(data.labels)
    freedom = n_sizes - len(data.names)
    theta = _solve(data.design, centre, nonnegative)
    misses = np.log(data.design @ theta) - centre
    repeats = _repeat_ends(data, nonnegative, level, n_resamples, seed)
    held_out = _held_out(data, centre, nonnegative) if freedom else {}
    return AffineFit(
        intercept=settled(theta[0]),
        slope=settled(theta[1]),
        per_layer=settled(theta[2]) if len(theta) == 3 else None,
        ci=_hull(data, theta, misses, repeats, nonnegative, level) if freedom else {},
        ci_repeats=repeats,
        level=level,
        exact=not freedom and bool(np.abs(misses).max() < 1e-9),
        note=_note(freedom, n_sizes, held_out),
        n_sizes=n_sizes,
        leave_one_size_out=held_out,
        median_error=float(np.median(np.abs(list(held_out.values())))) if held_out else None,
    )


def _grouped(x: ArrayLike, y: ArrayLike, clusters: Sequence[Hashable] | None, per_layer: ArrayLike | None) -> _Data:
    """Check the samples and gather the repeats of each size, in the order of appearance."""
    columns = {"x": x, "y": y} | ({} if per_layer is None else {"per_layer": per_layer})
    values = {name: _positive(name, column) for name, column in columns.items()}
    if len({len(column) for column in values.values()} | ({len(clusters)} if clusters is not None else set())) != 1:
        raise ValueError("x, y, clusters and per_layer must have one entry per sample each")
    rows = list(zip(*(values[name].tolist() for name in columns if name != "y"), strict=True))
    labels = list(clusters) if clusters is not None else [row[0] if len(row) == 1 else row for row in rows]
    logs: dict[Hashable, list[float]] = {}
    sizes: dict[Hashable, tuple[float, ...]] = {}
    for label, row, log in zip(labels, rows, np.log(values["y"]).tolist(), strict=True):
        if sizes.setdefault(label, row) != row:
            raise ValueError(f"size {label!r} has samples at {sizes[label]} and at {row}; a size is one x and depth")
        logs.setdefault(label, []).append(log)
    names = ("intercept", "slope", "per_layer")[: len(columns)]
    design = np.column_stack([np.ones(len(sizes)), np.array(list(sizes.values()))])
    _require_identified(design, names)
    return _Data(design=design, logs=[np.array(v) for v in logs.values()], labels=list(logs), names=names)


def _positive(name: str, column: ArrayLike) -> Values:
    values = np.asarray(column, dtype=float)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be a flat list of positive finite numbers; got shape {values.shape}")
    return values


def _require_identified(design: Values, names: tuple[str, ...]) -> None:
    n_sizes, n_coefficients = design.shape
    if n_sizes < n_coefficients:
        raise ValueError(f"{n_sizes} sizes cannot give {n_coefficients} coefficients ({', '.join(names)})")
    if not _identified(design):
        raise ValueError(f"these sizes do not tell {', '.join(names)} apart; vary size and depth independently")


def _identified(design: Values) -> bool:
    scaled = design / np.linalg.norm(design, axis=0)
    return bool(np.linalg.matrix_rank(scaled, tol=1e-9) == design.shape[1])


def _solve(design: Values, log_y: Values, nonnegative: bool) -> Values:
    """Minimise sum (log y - log(design @ theta))^2 by Gauss-Newton, each step a (non-negative) least-squares problem.

    It starts from least squares weighted by 1/y, which is the answer itself where the law holds without noise.
    """
    scale = np.linalg.norm(design / np.exp(log_y)[:, None], axis=0)
    columns = design / scale

    def step(fitted: Values) -> Values:
        target = 1 + log_y - np.log(fitted)
        return _least_squares(columns / fitted[:, None], target, nonnegative)

    theta = step(np.exp(log_y))
    for _ in range(_MOST_STEPS):
        fitted = columns @ theta
        if not (fitted > 0).all():
            raise ValueError("the law without a sign constraint predicts times below 0; fit it with nonnegative=True")
        new = step(fitted)
        if np.abs(new - theta).max() <= _SETTLED * np.abs(new).max():
            break
        theta = new
    return theta / scale


def _least_squares(matrix: Values, target: Values, nonnegative: bool) -> Values:
    return nnls(matrix, target)[0] if nonnegative else np.linalg.lstsq(matrix, target)[0]


def _repeat_ends(
    data: _Data, nonnegative: bool, level: float, n_resamples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile interval of each coefficient over resamples of the repeats; empty where no size has a repeat."""
    if max(len(log) for log in data.logs) < 2:
        return {}
    rng = np.random.default_rng(seed)
    drawn = np.column_stack(
        [np.median(rng.choice(log, size=(n_resamples, len(log)), replace=True), axis=1) for log in data.logs]
    )
    thetas = np.array([_solve(data.design, centre, nonnegative) for centre in drawn])
    ends = np.quantile(thetas, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (settled(low), settled(high)) for name, low, high in zip(data.names, *ends, strict=True)}


def _hull(
    data: _Data,
    theta: Values,
    misses: Values,
    repeats: dict[str, tuple[float, float]],
    nonnegative: bool,
    level: float,
) -> dict[str, tuple[float, float]]:
    """Widen each interval of the repeats to Student's interval from how far the sizes lie off the law."""
    freedom = len(misses) - len(theta)
    relative = data.design / (data.design @ theta)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    variance = np.diag(np.linalg.inv((relative / scale).T @ (relative / scale))) / scale**2
    spread = math.sqrt(float(misses @ misses) / freedom) * np.sqrt(variance)
    reach = scipy_stats.t.ppf((1 + level) / 2, freedom) * spread
    ends = {}
    for i, name in enumerate(data.names):
        of_repeats = repeats.get(name, (theta[i], theta[i]))
        low, high = min(theta[i] - reach[i], of_repeats[0]), max(theta[i] + reach[i], of_repeats[1])
        ends[name] = (settled(max(low, 0.0) if nonnegative else low), settled(high))
    return ends


def _held_out(data: _Data, centre: Values, nonnegative: bool) -> dict[Hashable, float]:
    """Predict each size from the others; a size without which the coefficients cannot be told apart has no entry."""
    errors = {}
    for i, label in enumerate(data.labels):
        rest = np.delete(data.design, i, axis=0)
        if _identified(rest):
            theta = _solve(rest, np.delete(centre, i), nonnegative)
            predicted = float(data.design[i] @ theta)
            # Decimals, not digits: where the law holds exactly only rounding is left.
            errors[label] = round(predicted / math.exp(centre[i]) - 1, 9)
    return errors


def _note(freedom: int, n_sizes: int, held_out: dict[Hashable, float]) -> str:
    if not freedom:
        return f"{n_sizes} sizes and as many coefficients: the law goes through them all, so nothing tests it"
    if len(held_out) < n_sizes:
        return f"{n_sizes - len(held_out)} of {n_sizes} sizes cannot be left out: the others do not fix the law"
    return ""
