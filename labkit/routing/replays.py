"""Replay routing policies on a matrix of measured answers: cost against quality, with intervals over queries.

The measure is APGR, the average performance gap recovered (RouteLLM, arXiv 2406.18665), on measured cost instead of the
share of calls: the mean quality between the cost of the cheapest and of the most expensive model, scaled so that the
cheapest alone is 0 and the most expensive alone 1. A random split traces the straight line between them, so its APGR is
one half. A policy helps if it beats that split, by an interval from resampled queries.

The curve enters the area as it is, sorted by cost, and not through a hull. The running maximum of a noisy curve lies
above it, so a router that knows nothing would seem to beat the straight line; a hull is taken only for CPT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.base.units import settled
from labkit.routing.answer_table import AnswerTable, Array, answer_table
from labkit.routing.deciding import CannotRoute, wants_large
from labkit.routing.policies import (
    ALL,
    BestSingle,
    Cascade,
    KeywordRule,
    Learned,
    LongerToLarger,
    Oracle,
    Policy,
    RandomShare,
    Routes,
)
from labkit.stats import Interval

__all__ = [
    "ALL",
    "BestSingle",
    "CannotRoute",
    "Cascade",
    "KeywordRule",
    "Learned",
    "LongerToLarger",
    "Oracle",
    "Policy",
    "RandomShare",
    "Replay",
    "Routes",
    "replay",
    "table",
    "verdict",
    "wants_large",
]

SHARES = (20, 50, 80)
"""Percent of the quality gap whose cost CPT gives."""
_LEVEL = 0.95
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """How one policy would have done on the queries of a matrix."""

    policy: str
    """Its name."""
    realisable: bool
    """Whether it could run without knowing the answers' qualities."""
    unit: str
    """Of every cost, such as `seconds` per query."""
    curve: pd.DataFrame
    """Cost and quality at each threshold, sorted by cost."""
    quality: Interval
    """Mean quality at the operating point."""
    cost: Interval
    """Mean cost per query there; the policy's own is in it where the unit is seconds."""
    own_seconds: float
    """Measured seconds per query that deciding took."""
    apgr: Interval | None
    """Average performance gap recovered; None where `why_undefined` says why."""
    minus_random: Interval | None
    """APGR of the policy minus that of a random split, from the same resamples."""
    at_equal_cost: Interval | None
    """Quality at the operating point minus that of a random split of the same mean cost."""
    cpt: dict[int, Interval | None]
    """Cost at which the policy's own points recover 20, 50, 80 % of the gap, on their non-decreasing hull; None where
    they never do. The upper end is infinite where over 2.5 % of the resamples never do."""
    why_undefined: str
    """Why there is no APGR, or empty."""
    helps: bool
    """Whether the lower end of `minus_random`, or of `at_equal_cost` where there is no APGR, lies above 0."""

    def as_row(self) -> dict[str, Any]:
        """Return a flat row; intervals become three columns, and what is undefined or infinite None."""
        row: dict[str, Any] = {"policy": self.policy, "realisable": self.realisable, "helps": self.helps}
        for name in ("quality", "cost", "apgr", "minus_random", "at_equal_cost"):
            row |= _columns(name, getattr(self, name))
        for share in SHARES:
            row |= _columns(f"cpt{share}", self.cpt[share])
        return row | {"own_seconds": self.own_seconds, "unit": self.unit, "why": self.why_undefined}


def replay(
    matrix: pd.DataFrame | AnswerTable, policy: Policy, *, cost: str = "seconds", bootstrap: int = 2000, seed: int = 0
) -> Replay:
    """Work out what a policy would have cost and answered on a matrix.

    Args:
        matrix: rows as in `answer_table`, every model with every query.
        policy: what to replay; its thresholds and a learned router's scores are those of the whole matrix and are not
            made anew for each resample.
        cost: column of the measured cost.
        bootstrap: resamples of the queries behind every interval, at least 100.
        seed: the same seed gives the same resamples, for any policy on the same queries.

    Returns:
        curve, operating point, APGR and CPT with 95 % percentile intervals, and whether the policy helps.

    Raises:
        CannotRoute: the matrix lacks what the policy decides by.
        ValueError: the matrix is incomplete, or too few resamples.
    """
    if bootstrap < 100:
        raise ValueError(f"bootstrap is {bootstrap}; an interval needs at least 100 resamples")
    answers = matrix if isinstance(matrix, AnswerTable) else answer_table(matrix, cost=cost)
    routes = policy.route(answers)
    weights = _resamples(len(answers.queries), bootstrap, seed)
    ours, chance = _points(answers, routes, weights), _points(answers, RandomShare().route(answers), weights)
    ends = _Ends.of(answers, weights)
    cost_at, quality_at = ours[0][:, routes.operating], ours[1][:, routes.operating]
    why = ends.why_no_apgr()
    apgr = minus_random = None
    if not why:
        recovered, by_chance = ends.apgr(*ours), ends.apgr(*chance)
        apgr, minus_random = _interval(recovered), _interval(recovered - by_chance)
    above = quality_at - ends.random_quality(cost_at)
    equal = None if ends.same_cost else _interval(np.where(np.abs(above) < _ROUNDING, 0.0, above))
    judged = minus_random or equal
    curve = pd.DataFrame({"cost": ours[0][0], "quality": ours[1][0]}).map(lambda x: settled(x, digits=10))
    return Replay(
        policy=policy.name,
        realisable=policy.realisable,
        unit=answers.unit,
        curve=curve.sort_values(["cost", "quality"], ignore_index=True),
        quality=_interval(quality_at),
        cost=_interval(cost_at),
        own_seconds=routes.own_seconds,
        apgr=apgr,
        minus_random=minus_random,
        at_equal_cost=equal,
        cpt={share: None if why else ends.cpt(*ours, share / 100) for share in SHARES},
        why_undefined=why,
        helps=judged is not None and judged.low > _ROUNDING,
    )


def gain_over_best(
    matrix: pd.DataFrame | AnswerTable, policy: Policy, *, cost: str = "seconds", bootstrap: int = 2000, seed: int = 0
) -> tuple[Interval, int]:
    """Return what a policy gains over always asking the best single model, and how often it asked another one.

    Args:
        matrix: rows as in `answer_table`.
        policy: what to replay, at its operating point.
        cost: column of the measured cost, by which models are ordered.
        bootstrap: resamples of the queries behind the interval, at least 100.
        seed: of the resamples.

    Returns:
        share of right answers less that of the model that is best in the same resample, with its 95 % percentile
        interval; queries whose answer came from another model than the one that is best over all.
    """
    answers = matrix if isinstance(matrix, AnswerTable) else answer_table(matrix, cost=cost)
    routes = policy.route(answers)
    answered = routes.answered[routes.operating]
    weights = _resamples(len(answers.queries), bootstrap, seed)
    singles = weights @ answers.quality
    ours = weights @ (answered * answers.quality).sum(1)
    elsewhere = 1 - answered[:, int(singles[0].argmax())]
    gains = ours - singles.max(1)
    return _interval(np.where(np.abs(gains) < _ROUNDING, 0.0, gains)), round(float(elsewhere.sum()))


def table(
    matrix: pd.DataFrame,
    policies: Sequence[Policy] = ALL,
    *,
    cost: str = "seconds",
    bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Replay several policies: a row each, with `why` where one cannot run or has no APGR.

    Raises:
        ValueError: the matrix is incomplete.
    """
    answers, rows = answer_table(matrix, cost=cost), []
    for policy in policies:
        try:
            rows.append(replay(answers, policy, bootstrap=bootstrap, seed=seed).as_row())
        except CannotRoute as error:
            rows.append({"policy": policy.name, "realisable": policy.realisable, "helps": False, "why": str(error)})
    return pd.DataFrame(rows)


def verdict(replays: Iterable[Replay]) -> str:
    """Say in a sentence whether any policy that could run beats a random split of the same cost."""
    replays = list(replays)
    baselines = {RandomShare().name, BestSingle().name}
    tried = [each for each in replays if each.realisable and each.policy not in baselines]
    helping = [each for each in tried if each.helps]
    why = next((each.why_undefined for each in replays if each.why_undefined), "")
    sentence = f"APGR is undefined: {why}. " if why else ""
    if helping:
        named = "; ".join(f"{each.policy} ({_gain(each)})" for each in helping)
        sentence += f"Routing helps here, by {len(helping)} of {len(tried)} policies: {named}."
    elif tried:
        named = "; ".join(f"{each.policy} ({_gain(each)})" for each in tried)
        sentence += f"Routing does not help here: none of {len(tried)} policies beats a random split: {named}."
    else:
        sentence += "No policy that could run was replayed."
    bound = next((each for each in replays if not each.realisable), None)
    return sentence + (f" With hindsight: {_gain(bound)}." if bound else "")


def _gain(each: Replay) -> str:
    if each.minus_random is not None:
        return f"APGR minus random {each.minus_random}"
    if each.at_equal_cost is not None:
        return f"quality minus random at equal cost {each.at_equal_cost}"
    return "not comparable at equal cost"


def _columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (interval.estimate, interval.low, interval.high) if interval else (None, None, None)
    finite = [None if value is None or not np.isfinite(value) else value for value in values]
    return dict(zip((name, f"{name}_low", f"{name}_high"), finite, strict=True))


def _resamples(n: int, bootstrap: int, seed: int) -> Array:
    """Weights of the queries [1 + bootstrap, n]: the sample itself first, then resamples of it."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap)
    return np.vstack([np.ones(n), drawn]) / n


def _points(answers: AnswerTable, routes: Routes, weights: Array) -> tuple[Array, Array]:
    """Mean cost and quality at every threshold, in every resample: [b, t] each."""
    cost = np.einsum("tnm,nm->tn", routes.paid, answers.cost)
    if answers.unit == "seconds":
        cost = cost + routes.own_seconds
    return weights @ cost.T, weights @ np.einsum("tnm,nm->tn", routes.answered, answers.quality).T


def _interval(values: Array) -> Interval:
    """Take the first value as the estimate and percentiles of the others, undefined ones left out."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="inverted_cdf")
    return Interval(estimate=settled(values[0]), low=settled(low), high=settled(high), level=_LEVEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ends:
    """Mean cost and quality [b] of the cheapest and of the most expensive model, in every resample."""

    names: tuple[str, str]
    low_cost: Array
    high_cost: Array
    weak: Array
    strong: Array

    @classmethod
    def of(cls, answers: AnswerTable, weights: Array) -> _Ends:
        cost, quality = weights @ answers.cost[:, [0, -1]], weights @ answers.quality[:, [0, -1]]
        names = (answers.models[0], answers.models[-1])
        return cls(names=names, low_cost=cost[:, 0], high_cost=cost[:, 1], weak=quality[:, 0], strong=quality[:, 1])

    @property
    def same_cost(self) -> bool:
        return _interval(self.high_cost - self.low_cost).low <= 0

    def why_no_apgr(self) -> str:
        gap, (small, large) = _interval(self.strong - self.weak), self.names
        if self.same_cost:
            return f"{large} does not cost more than {small} beyond chance"
        return f"{large} is not better than {small}: quality gap {gap}" if gap.low <= 0 else ""

    def random_quality(self, cost: Array) -> Array:
        """Quality of the random split of the given mean cost, [b]."""
        share = np.clip((cost - self.low_cost) / (self.high_cost - self.low_cost), 0, 1)
        return self.weak + share * (self.strong - self.weak)

    def apgr(self, cost: Array, quality: Array) -> Array:
        """[b, t] points -> [b]; NaN in the few resamples without a gap."""
        gap = self.strong - self.weak
        area = np.array([self._mean_quality(i, cost[i], quality[i]) for i in range(len(cost))])
        return np.where(gap > 0, (area - self.weak) / np.where(gap > 0, gap, 1), np.nan)

    def _mean_quality(self, i: int, cost: Array, quality: Array) -> float:
        """Mean over costs between both ends of the piecewise linear curve through a policy's points.

        Below its cheapest point one falls back to the cheapest model; beyond its dearest, one stays or moves on to the
        most expensive model, whichever is better. Points beyond the ends count only for the line towards them.
        """
        order = np.lexsort((quality, cost))
        x, y = cost[order], quality[order]
        start, end = self.low_cost[i], self.high_cost[i]
        if x[0] > start:
            x, y = np.append(start, x), np.append(self.weak[i], y)
        if x[-1] < end:
            x, y = np.append(x, end), np.append(y, max(y[-1], self.strong[i]))
        inside = (x > start) & (x < end)
        at_ends = np.interp([start, end], x, y)
        x, y = np.concatenate([[start], x[inside], [end]]), np.concatenate([at_ends[:1], y[inside], at_ends[1:]])
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / (end - start))

    def cpt(self, cost: Array, quality: Array, share: float) -> Interval | None:
        """Cost needed for a share of the gap; infinite in resamples that never reach it."""
        target = self.weak + share * (self.strong - self.weak)
        needed = np.array([_first_cost(cost[i], quality[i], target[i]) for i in range(len(cost))])
        return _interval(needed) if np.isfinite(needed[0]) else None


def _first_cost(cost: Array, quality: Array, target: float) -> float:
    """Where the non-decreasing hull of the points, linear between them, first reaches a quality."""
    order = np.lexsort((quality, cost))
    x, hull = cost[order], np.maximum.accumulate(quality[order])
    reached = np.flatnonzero(hull >= target - _ROUNDING)
    if not len(reached):
        return np.inf
    k = reached[0]
    if k == 0 or hull[k] <= target:
        return float(x[k])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (target - hull[k - 1]) / (hull[k] - hull[k - 1]))
