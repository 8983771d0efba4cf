"""Routing policies: which model answers each query, at each setting of the policy's threshold.

A policy looks at an answer table and returns, for every threshold, which answer is taken and which models are paid for.
Policies that choose between two models use the cheapest and the most expensive one of the table. Those that read the
prompt take time to decide (`labkit.routing.deciding`): it is measured where they run, unless they are
given what was measured before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from labkit.routing import deciding
from labkit.routing.answer_table import AnswerTable, Array
from labkit.routing.deciding import CannotRoute, Decided, gains_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """What a policy does with each query at each threshold."""

    answered: Array
    """[t, n, m] probability that the model's answer is the one returned; sums to 1 over models."""
    paid: Array
    """[t, n, m] probability that the model is run."""
    operating: int
    """Threshold at which the policy is judged, fixed without looking at any quality."""
    own_seconds: float = 0.0
    """Measured seconds per query that deciding takes."""


class Policy(Protocol):
    """Decides by a query alone, by a cheaper answer to it, or (the oracle) by hindsight."""

    name: str
    """Name in tables and figures."""
    realisable: bool
    """Whether it could run without knowing the qualities."""

    def route(self, table: AnswerTable) -> Routes:
        """Return what it does; raises CannotRoute where the table lacks what it needs."""
        ...


@dataclass(frozen=True, slots=True)
class KeywordRule:
    """The report's rule: words of a short factual question to the small model, of a philosophical one to the large.

    The report had two models: what it sent to BitNet goes to the cheapest one here, what it sent to Qwen 0.5B to the
    most expensive one.
    """

    name: str = deciding.KEYWORDS
    realisable: bool = True
    decided: Decided | None = None
    """What it decided before, for the prompts of the table."""

    def route(self, table: AnswerTable) -> Routes:
        """Route by the rule; it has no threshold."""
        decided = self.decided or deciding.by_keywords(table.prompts)
        return Routes(**_between(table, [decided.scores]), operating=0, own_seconds=decided.seconds)


@dataclass(frozen=True, slots=True)
class RandomShare:
    """Send a random share of the queries to the most expensive model: its expectation, not a draw of it."""

    name: str = "random"
    realisable: bool = True

    def route(self, table: AnswerTable) -> Routes:
        """Route at shares 0, 0.1, ... 1; the operating point is one half."""
        shares = np.linspace(0, 1, 11)
        return Routes(**_between(table, np.repeat(shares[:, None], len(table.queries), axis=1)), operating=5)


@dataclass(frozen=True, slots=True)
class LongerToLarger:
    """Send the queries with the most characters to the most expensive model; half of them at the operating point."""

    name: str = deciding.LENGTH
    realisable: bool = True
    decided: Decided | None = None
    """What it decided before, for the prompts of the table."""

    def route(self, table: AnswerTable) -> Routes:
        """Route at every length that occurs."""
        decided = self.decided or deciding.by_length(table.prompts)
        return _by_score(table, decided.scores, np.median(decided.scores), own_seconds=decided.seconds)


@dataclass(frozen=True, slots=True)
class BestSingle:
    """Send everything to the model of the highest mean quality, the cheapest of equals; chosen on the same queries."""

    name: str = "best single"
    realisable: bool = True

    def route(self, table: AnswerTable) -> Routes:
        """Route all queries to one model."""
        weights = np.zeros((1, len(table.queries), len(table.models)))
        weights[:, :, int(np.argmax(table.quality.mean(0).round(12)))] = 1
        return Routes(answered=weights, paid=weights, operating=0)


@dataclass(frozen=True, slots=True)
class Cascade:
    """Ask the cheapest model first and the most expensive one too where the first was least confident.

    Where both are asked, both are paid for. Confidence is the mean token log-probability of the first answer.
    """

    name: str = "cascade by confidence"
    realisable: bool = True

    def route(self, table: AnswerTable) -> Routes:
        """Route at every confidence that occurs; half are escalated at the operating point."""
        if table.confidence is None:
            raise CannotRoute("the routing matrix has no column 'confidence', which a cascade decides by")
        confidence = table.confidence[:, 0]
        if n_missing := int((~np.isfinite(confidence)).sum()):
            raise CannotRoute(f"{n_missing} answers of {table.models[0]} have no confidence; a cascade needs all")
        routes = _by_score(table, -confidence, np.median(-confidence), own_seconds=0.0)
        paid = routes.paid.copy()
        paid[:, :, 0] = 1
        return Routes(answered=routes.answered, paid=paid, operating=routes.operating)


@dataclass(frozen=True, slots=True)
class Learned:
    """Learn from the prompts which queries the most expensive model answers better than the cheapest.

    Each query's score comes from a logistic regression that was fitted to other queries, in five folds.
    """

    seed: int = 0
    """Seed of the folds."""
    name: str = deciding.LEARNED
    realisable: bool = True
    decided: Decided | None = None
    """What it decided before, for the prompts and gains of the table."""

    def route(self, table: AnswerTable) -> Routes:
        """Route at every probability that occurs; one half is the operating point."""
        decided = self.decided or deciding.by_learning(table.prompts, gains_of(table), self.seed)
        return _by_score(table, decided.scores, 0.5, own_seconds=decided.seconds)


@dataclass(frozen=True, slots=True)
class Oracle:
    """Send each query to the cheapest of the models that answer it best: a bound, since it knows the answers."""

    name: str = "oracle"
    realisable: bool = False

    def route(self, table: AnswerTable) -> Routes:
        """Route with hindsight over all models."""
        best = table.quality >= table.quality.max(1, keepdims=True) - 1e-12
        choice = np.where(best, table.cost, np.inf).argmin(1)
        weights = np.eye(len(table.models))[choice][None]
        return Routes(answered=weights, paid=weights, operating=0)


ALL: tuple[Policy, ...] = (
    RandomShare(),
    BestSingle(),
    KeywordRule(),
    LongerToLarger(),
    Cascade(),
    Learned(),
    Oracle(),
)
"""Every policy, baselines first."""


def _between(table: AnswerTable, large: ArrayLike) -> dict[str, Array]:
    """Turn probabilities [t, n] of the most expensive model into weights over models, the rest to the cheapest."""
    share = np.asarray(large, dtype=float)
    weights = np.zeros((*share.shape, len(table.models)))
    weights[:, :, 0], weights[:, :, -1] = 1 - share, share
    return {"answered": weights, "paid": weights}


def _by_score(table: AnswerTable, scores: Sequence[float] | Array, operating: float, *, own_seconds: float) -> Routes:
    """Send queries whose score lies above a threshold to the most expensive model, at every threshold that differs."""
    scores = np.asarray(scores)
    thresholds = np.unique([-np.inf, *scores, operating])[::-1]
    at = int(np.flatnonzero(thresholds == operating)[0])
    return Routes(**_between(table, scores > thresholds[:, None]), operating=at, own_seconds=own_seconds)
