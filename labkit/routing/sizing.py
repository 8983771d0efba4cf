"""Two of report 000's open questions: can a query tell which size it needs, and which size fits a latency budget?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labkit.routing.answer_table import AnswerTable, Array, answer_table, text_encoder
from labkit.stats import Interval, bootstrap_ci

NONE = "none"
"""Class of the queries that no model answers rightly."""
RIDGE = 1.0
"""Penalty of the classifier, that of scikit-learn's by default; not tuned."""
_LEVEL = 0.95
_FOLDS = 5
_P95 = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictability:
    """How well the size a query needs can be read off the query, beside always naming the most frequent size."""

    n_queries: int
    """Queries in the test."""
    counts: dict[str, int]
    """Queries by class: the cheapest model that answers rightly, or `none`."""
    accuracy: float | None
    """Share of the queries whose class was predicted, each by a classifier that did not see it."""
    baseline_accuracy: float
    """Share of the most frequent class."""
    balanced_accuracy: float | None
    """Mean over classes of the share predicted rightly; always naming one class has 1 over the number of classes."""
    baseline_balanced_accuracy: float
    """One over the number of classes."""
    gain: Interval | None
    """Balanced accuracy minus the baseline's on the same resampled queries."""
    accuracy_gain: Interval | None
    """Accuracy minus the baseline's on the same resampled queries."""
    p_value: float | None
    """Share of label permutations, refitted, whose balanced accuracy is at least as high."""
    permutations: int
    """How many permutations."""
    predictable: bool
    """Whether the lower end of `gain` is above 0 and p is below 0.05."""
    sentence: str
    """What that means, in words."""


def needed_size(table: AnswerTable, right: float = 0.5) -> NDArray[np.str_]:
    """Name for each query the cheapest model whose answer has at least the quality `right`, or `none`: [n]."""
    answers = table.quality >= right
    names = np.array([*table.models, NONE])
    return names[np.where(answers.any(1), answers.argmax(1), len(table.models))]


def predict_size(
    matrix: pd.DataFrame, *, right: float = 0.5, permutations: int = 200, bootstrap: int = 2000, seed: int = 0
) -> Predictability:
    """Test by cross-validation whether a prompt's counts and words predict the size it needs.

    Ridge classification with equal weight per class, five stratified folds; the permutation test refits it to permuted
    labels on the same folds (Ojala & Garriga 2010, test 1). The intervals resample queries and keep the fits.

    Args:
        matrix: rows as in `answer_table`; models are ordered by their mean seconds.
        right: quality from which on an answer counts as right.
        permutations: relabelled fits behind the p-value, at least 19.
        bootstrap: resamples of the queries behind both intervals.
        seed: of folds, permutations and resamples.

    Raises:
        ValueError: the matrix is incomplete, or too few permutations.
    """
    if permutations < 19:
        raise ValueError(f"permutations is {permutations}; p below 0.05 needs at least 19")
    table = answer_table(matrix)
    labels = needed_size(table, right)
    names, numbers = np.unique(labels, return_counts=True)
    counts = {str(name): int(n) for name, n in zip(names, numbers, strict=True)}
    common = {
        "n_queries": len(labels),
        "counts": counts,
        "baseline_accuracy": float(numbers.max() / len(labels)),
        "baseline_balanced_accuracy": 1 / len(names),
    }
    if len(names) < 2 or np.sort(numbers)[-2] < 2:
        return _untested(common)
    folds = _Folds(np.array(table.prompts, dtype=object), labels, seed)
    predicted = folds.predict(labels)
    rng = np.random.default_rng(seed)
    score = _balanced(labels, predicted)
    chance = [
        _balanced(other, folds.predict(other)) for other in (rng.permutation(labels) for _ in range(permutations))
    ]
    p = (1 + sum(each >= score - 1e-12 for each in chance)) / (1 + permutations)
    gain, accuracy_gain = _gains(labels, predicted, bootstrap, seed)
    predictable = gain.low > 0 and p < 0.05
    return Predictability(
        **common,
        accuracy=float(np.mean(predicted == labels)),
        balanced_accuracy=score,
        gain=gain,
        accuracy_gain=accuracy_gain,
        p_value=p,
        permutations=permutations,
        predictable=predictable,
        sentence=_sentence(predictable, score, gain, p, counts),
    )


def best_under_budget(
    matrix: pd.DataFrame, budgets_seconds: Sequence[float], *, bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Name for each latency budget the best model whose 95th percentile of seconds fits it.

    Args:
        matrix: rows as in `answer_table`.
        budgets_seconds: most seconds that 95 % of the answers may take.
        bootstrap: resamples of the queries behind the intervals.
        seed: of the resamples.

    Returns:
        a row per budget: budget_seconds, model (the cheaper of exact equals; missing where none fits), quality with low
        and high, p95_seconds, n_fitting, tied_with (fitting models whose quality cannot be told from the best one's:
        the paired interval of the difference holds 0) and why.

    Raises:
        ValueError: the matrix is incomplete, or a budget is not a positive number.
    """
    for budget in budgets_seconds:
        if not (np.isfinite(budget) and budget > 0):
            raise ValueError(f"a latency budget is {budget}; it must be a positive number of seconds")
    table = answer_table(matrix)
    p95 = np.percentile(table.cost, _P95, axis=0)
    return pd.DataFrame([_budget_row(table, p95, float(budget), bootstrap, seed) for budget in budgets_seconds])


def _budget_row(table: AnswerTable, p95: Array, budget: float, bootstrap: int, seed: int) -> dict[str, Any]:
    fitting = [int(i) for i in np.flatnonzero(p95 <= budget)]
    row: dict[str, Any] = {"budget_seconds": budget, "n_fitting": len(fitting)}
    if not fitting:
        fastest = int(p95.argmin())
        why = f"the fastest, {table.models[fastest]}, needs {p95[fastest]:.3g} s for 95 % of its answers"
        empty = dict.fromkeys(("model", "quality", "quality_low", "quality_high", "p95_seconds"))
        return row | empty | {"tied_with": "", "why": why}
    best = max(fitting, key=lambda i: (round(float(table.quality[:, i].mean()), 12), -i))
    quality = _mean_interval(table.quality[:, best], bootstrap, seed)
    tied = [
        table.models[i]
        for i in fitting
        if i != best and _mean_interval(table.quality[:, best] - table.quality[:, i], bootstrap, seed).low <= 0
    ]
    return row | {
        "model": table.models[best],
        "quality": quality.estimate,
        "quality_low": quality.low,
        "quality_high": quality.high,
        "p95_seconds": float(p95[best]),
        "tied_with": ", ".join(tied),
        "why": "",
    }


def _mean_interval(values: Array, bootstrap: int, seed: int) -> Interval:
    return bootstrap_ci(values, n_resamples=bootstrap, seed=seed)


class _Folds:
    """Five folds with a ridge classifier each, whose solution for one set of labels serves for all.

    A ridge regression to class indicators is linear in them: predictions are ybar + M (Y - ybar), and M depends on the
    texts alone, so that a permutation of the labels costs one product. Scores are divided by the classes' shares.
    """

    def __init__(self, prompts: np.ndarray, labels: np.ndarray, seed: int) -> None:
        from sklearn.model_selection import StratifiedKFold

        n_folds = min(_FOLDS, int(np.unique(labels, return_counts=True)[1].max()))
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class with fewer queries than folds is missing from some; it counts all the same.
            warnings.filterwarnings("ignore", message="The least populated class")
            splits = list(folds.split(prompts, labels))
        self._parts = [(train, unseen, _ridge_map(prompts[train], prompts[unseen])) for train, unseen in splits]

    def predict(self, labels: np.ndarray) -> np.ndarray:
        """Predict each query's label by a fit to the labels of the other folds."""
        names, of = np.unique(labels, return_inverse=True)
        indicators, predicted = np.eye(len(names))[of], labels.copy()
        for train, unseen, mapping in self._parts:
            share = indicators[train].mean(0)
            scores = share + mapping @ (indicators[train] - share)
            # A class that this fit did not see is never predicted.
            scores = np.where(share > 0, scores / np.where(share > 0, share, 1), -np.inf)
            predicted[unseen] = names[scores.argmax(1)]
        return predicted


def _ridge_map(known: np.ndarray, new: np.ndarray) -> Array:
    """Return M, [n_new, n_known], of the ridge regression on encoded prompts with an intercept."""
    encoder = text_encoder()
    fitted, unseen = encoder.fit_transform(known).toarray(), encoder.transform(new).toarray()
    mean = fitted.mean(0)
    fitted, unseen = fitted - mean, unseen - mean
    return np.linalg.solve(fitted @ fitted.T + RIDGE * np.eye(len(known)), fitted @ unseen.T).T


def _balanced(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean([np.mean(predicted[labels == name] == name) for name in np.unique(labels)]))


def _gains(labels: np.ndarray, predicted: np.ndarray, bootstrap: int, seed: int) -> tuple[Interval, Interval]:
    """Resample queries: balanced accuracy and accuracy, each minus that of naming the most frequent class."""
    names, of = np.unique(labels, return_inverse=True)
    right = (predicted == labels).astype(float)
    member = (of[:, None] == np.arange(len(names))).astype(float)
    majority = member[:, member.sum(0).argmax()]
    n = len(labels)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap)
    weights = np.vstack([np.ones(n), drawn])
    sizes = weights @ member
    recall = np.where(sizes > 0, weights @ (member * right[:, None]) / np.maximum(sizes, 1), np.nan)
    # In a resample without one of the classes, naming one class is right for one in those that are there.
    balanced = np.nanmean(recall, axis=1) - 1 / (sizes > 0).sum(1)
    return _percentiles(balanced), _percentiles(weights @ (right - majority) / n)


def _percentiles(values: Array) -> Interval:
    low, high = np.quantile(values[1:], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(estimate=float(values[0]), low=float(low), high=float(high), level=_LEVEL)


def _untested(common: dict[str, Any]) -> Predictability:
    shown = ", ".join(f"{n} {name}" for name, n in common["counts"].items())
    return Predictability(
        **common,
        accuracy=None,
        balanced_accuracy=None,
        gain=None,
        accuracy_gain=None,
        p_value=None,
        permutations=0,
        predictable=False,
        sentence=f"Whether a query tells the size it needs cannot be tested here: of the queries, {shown}.",
    )


def _sentence(predictable: bool, score: float, gain: Interval, p: float, counts: dict[str, int]) -> str:
    classes = ", ".join(f"{n} {name}" for name, n in counts.items())
    verb = "tells something about" if predictable else "does not tell"
    return (
        f"A query {verb} the size it needs: balanced accuracy {score:.2f} over the classes {classes}, "
        f"{gain} above always naming one class, permutation p = {p:.3g}."
    )
