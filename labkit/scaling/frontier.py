"""The compute-optimal path through models trained at equal FLOPs, the exponent along it, and what makes it void.

At each budget a parabola of loss in log N has its vertex at the best size N* (Hoffmann et al. 2022, approach 2). The
vertices of all budgets are the path. Size is what a token costs there, N = training FLOPs per token / 6, so that a
budget is exactly 6 N D. Two exponents are read off the path:

    b      of word perplexity = a N^b, the report's unit: the slope of nats per word in the log of all parameters
    alpha  of bits per byte = A / N^alpha: minus the slope of log bits per byte in log N*

All parameters at the vertex are interpolated between the shapes tried. A parabola in them would be off by what the
costs of embedding, head and idle experts differ from shape to shape.

Two things make a slope uncertain: seeds, and that the budgets do not lie on one line. Each has an interval of its own,
Student's over the slopes of single seeds and Student's of a line through the seeds' means; the wider one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from labkit.stats import Interval, mean_ci

Array = NDArray[np.float64]
_LEVEL = 0.95
_LEAST_SIZES = 3
"""Sizes that a parabola needs."""
_LEAST_BUDGETS = 3
"""Budgets with their best size inside that a path needs where others are left out."""
_OWN_MISS = 0.01
"""Share of the loss by which vertices miss a law that holds exactly: a parabola is not its shape."""
HELD_OUT = 2
"""Largest sizes of the path that the others have to predict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """What one mixer's models at equal FLOPs say."""

    points: pd.DataFrame
    """A row per seed and budget: seed, budget; at the best size n, n_total, bits_per_byte, nats_per_word; inside."""
    b: Interval | None
    """Exponent of word perplexity; None where neither seeds nor budgets give an interval."""
    alpha: Interval | None
    """Exponent of bits per byte."""
    void: tuple[str, ...]
    """Why nothing may be concluded; empty if something may."""
    left_out: tuple[float, ...] = ()
    """Budgets whose best size lies at the edge of those tried with any seed; the exponents are read off the others."""


def path_of(runs: pd.DataFrame) -> Path:
    """Follow the best size of each budget through the models of one mixer.

    Args:
        runs: a row per model: seed, budget, n_total, flops, tokens_seen, bits_per_byte, nats_per_word, admitted,
            status.
    """
    refused = runs[~runs["admitted"].astype(bool)]
    void = (
        [f"{len(refused)} of {len(runs)} models are not admitted: {refused.iloc[0]['status']}"] if len(refused) else []
    )
    good = runs[np.isfinite(runs["bits_per_byte"].astype(float))]
    points = pd.DataFrame([_vertex(*key, part) for key, part in good.groupby(["seed", "budget"])])
    if points.empty:
        return Path(points=points, b=None, alpha=None, void=(*void, "no model has a loss"))
    edge = points[~points["inside"]]
    left_out = tuple(sorted(set(edge["budget"])))
    on_path = points[~points["budget"].isin(left_out)]
    if len(edge) and on_path["budget"].nunique() < _LEAST_BUDGETS:
        first = edge.iloc[0]
        where = f"first at {first['budget']:.3g} FLOPs, seed {first['seed']}"
        void.append(f"the best size lies at the edge of those tried in {len(edge)} of {len(points)} parabolas, {where}")
        return Path(points=points, b=None, alpha=None, void=tuple(void), left_out=left_out)
    cost, total, bits = (np.log(_grid(on_path, name)) for name in ("n", "n_total", "bits_per_byte"))
    void += _missed(cost, bits)
    b, alpha = slope(total, _grid(on_path, "nats_per_word")), _negated(slope(cost, bits))
    return Path(points=points, b=b, alpha=alpha, void=tuple(void), left_out=left_out)


def _vertex(seed: int, budget: float, models: pd.DataFrame) -> dict[str, float | bool]:
    """Return the vertex of a budget's parabola; `inside` is False where it lies beyond the sizes or opens downward."""
    models = models.assign(n=models["flops"] / models["tokens_seen"] / 6).sort_values("n")
    x, y = np.log(models["n"].to_numpy(float)), models["bits_per_byte"].to_numpy(float)
    row = {"seed": seed, "budget": budget}
    if len(x) < _LEAST_SIZES:
        return row | dict.fromkeys(("n", "n_total", "bits_per_byte", "nats_per_word"), np.nan) | {"inside": False}
    middle = x.mean()
    curvature, tilt, level = np.polyfit(x - middle, y, 2)
    best = -tilt / (2 * curvature) if curvature > 0 else np.inf
    inside = bool(x[0] < middle + best < x[-1])
    at, bits = (middle + best, level + tilt * best / 2) if inside else (x[y.argmin()], y.min())
    total = np.interp(at, x, np.log(models["n_total"].to_numpy(float)))
    unit = float((models["nats_per_word"] / models["bits_per_byte"]).mean())  # words and bytes of the same text
    vertex = {"n": np.exp(at), "n_total": np.exp(total), "bits_per_byte": bits, "nats_per_word": bits * unit}
    return row | {name: float(value) for name, value in vertex.items()} | {"inside": inside}


def slope(x: Array, y: Array) -> Interval | None:
    """Estimate the slope of y in x from seeds at budgets, both [seeds, budgets]; None where nothing gives an interval.

    The estimate is that of the means over seeds. See the module's docstring for the interval.
    """
    if x.shape[1] < 2:
        return None
    estimate = _line(x.mean(0), y.mean(0))
    reaches = []
    if len(x) > 1:
        seeds = mean_ci([_line(one, other) for one, other in zip(x, y, strict=True)])
        reaches.append((seeds.high - seeds.low) / 2)
    if x.shape[1] > 2:
        error = scipy_stats.linregress(x.mean(0), y.mean(0)).stderr
        reaches.append(float(scipy_stats.t.ppf((1 + _LEVEL) / 2, x.shape[1] - 2)) * error)
    if not reaches:
        return None
    return Interval(estimate=estimate, low=estimate - max(reaches), high=estimate + max(reaches), level=_LEVEL)


def difference(one: Interval, other: Interval) -> Interval:
    """Return the interval of a difference from two separate intervals (Zou and Donner 2008)."""
    low = np.hypot(one.estimate - one.low, other.high - other.estimate)
    high = np.hypot(one.high - one.estimate, other.estimate - other.low)
    middle = one.estimate - other.estimate
    return Interval(estimate=middle, low=float(middle - low), high=float(middle + high), level=one.level)


def offsets(one: Path, other: Path) -> pd.DataFrame:
    """Compare the best losses of two mixers at equal FLOPs, seed by seed.

    Where a best size is not inside those tried, the lowest loss that was seen stands for it.

    Returns:
        a row per budget: budget, difference (bits per byte, first minus second), low, high (NaN for one seed), seeds,
        inside (whether all best sizes are).
    """
    columns = ["budget", "difference", "low", "high", "seeds", "inside"]
    if one.points.empty or other.points.empty:
        return pd.DataFrame(columns=columns)
    both = one.points.merge(other.points, on=["seed", "budget"], suffixes=("", "_other"))
    both = both.assign(difference=both["bits_per_byte"] - both["bits_per_byte_other"]).dropna(subset="difference")
    rows = []
    for budget, part in both.groupby("budget"):
        found = mean_ci(part["difference"]) if len(part) > 1 else None
        ends = {"low": found.low, "high": found.high} if found else {"low": np.nan, "high": np.nan}
        about = {"seeds": len(part), "inside": bool((part["inside"] & part["inside_other"]).all())}
        rows.append({"budget": budget, "difference": part["difference"].mean(), **ends, **about})
    return pd.DataFrame(rows, columns=columns)


def _missed(log_n: Array, log_bits: Array) -> list[str]:
    """Say whether the largest sizes are missed by the line through the others, beyond what seeds explain."""
    kept = log_n.shape[1] - HELD_OUT
    if kept < 2 or len(log_n) < 2:
        return []
    misses = []
    for x, y in zip(log_n, log_bits, strict=True):
        gradient = _line(x[:kept], y[:kept])
        predicted = y[:kept].mean() + gradient * (x[kept:] - x[:kept].mean())
        misses.append(float((predicted - y[kept:]).mean()))
    found = mean_ci(misses)
    if found.low <= _OWN_MISS and found.high >= -_OWN_MISS:
        return []
    return [
        f"the {HELD_OUT} largest sizes of the path are missed by {found.estimate:+.1%} of their loss, "
        f"95 % interval [{found.low:.1%}, {found.high:.1%}]"
    ]


def _grid(points: pd.DataFrame, column: str) -> Array:
    """Lay a column out as [seeds, budgets]; a seed that does not have every budget yet is left out."""
    table = points.pivot(index="seed", columns="budget", values=column)
    whole = table.dropna()
    return (whole if len(whole) else table.iloc[:1].dropna(axis=1)).to_numpy(float)


def _line(x: Array, y: Array) -> float:
    return float(np.polyfit(x, y, 1)[0])


def _negated(found: Interval | None) -> Interval | None:
    if found is None:
        return None
    return Interval(estimate=-found.estimate, low=-found.high, high=-found.low, level=found.level)
