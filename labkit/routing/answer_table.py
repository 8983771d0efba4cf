"""The routing matrix as arrays, queries x models, and what can be read off a query before any model has seen it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.pipeline import FeatureUnion

Array = NDArray[np.float64]

QUESTION_WORDS = ("what", "which", "who", "when", "where", "why", "how", "is", "are", "do", "does", "can", "should")
FEATURES = ("words", "characters", "digits", "numbers", "signs", "question mark", *QUESTION_WORDS)
"""Columns of `features`; from the seventh on, whether the prompt holds that word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerTable:
    """What every model answered to every query, and what that cost."""

    queries: tuple[str, ...]
    """[n] query ids, in an order that does not depend on the rows' order."""
    prompts: tuple[str, ...]
    """[n] texts."""
    categories: tuple[str, ...]
    """[n] kinds of query."""
    models: tuple[str, ...]
    """[m] models, the cheapest on average first."""
    quality: Array
    """[n, m] in [0, 1]."""
    cost: Array
    """[n, m] measured cost of the answer."""
    confidence: Array | None
    """[n, m] mean token log-probability of the answer, where the rows carry it; NaN where they do not."""
    unit: str
    """Column that the cost was taken from, such as `seconds`."""


def answer_table(matrix: pd.DataFrame, *, cost: str = "seconds") -> AnswerTable:
    """Lay the rows of a routing matrix out as arrays.

    Args:
        matrix: one row per model and query with the columns model, query, category, prompt, quality and the cost.
        cost: column of the measured cost: `seconds`, `joules`, or bytes; models are ordered by its mean.

    Raises:
        ValueError: a column is missing, a model lacks a query or has it twice, there are fewer than two models or
            queries, a quality lies outside [0, 1], or a cost is missing or not positive; the message names it.
    """
    missing = [name for name in ("model", "query", "category", "prompt", "quality", cost) if name not in matrix]
    if missing:
        raise ValueError(f"the routing matrix has no column {missing[0]!r}; it has {', '.join(map(str, matrix))}")
    rows = matrix.assign(query=matrix["query"].astype(str))
    _check_complete(rows)
    quality, costs = _wide(rows, "quality"), _wide(rows, cost)
    if not ((quality >= 0) & (quality <= 1)).all(axis=None):
        raise ValueError("quality must lie in [0, 1] in every row of the routing matrix")
    bad = ~(np.isfinite(costs) & (costs > 0))
    if bad.any(axis=None):
        raise ValueError(
            f"{cost} is missing or not positive in {int(bad.sum(axis=None))} of {bad.size} rows of the routing matrix; "
            "replay it on a cost that was measured for every row, such as seconds"
        )
    models = tuple(sorted(costs, key=lambda model: (costs[model].mean(), model)))
    first = rows.drop_duplicates("query").set_index("query").loc[quality.index]
    confidence = _wide(rows, "confidence")[list(models)].to_numpy() if "confidence" in rows else None
    return AnswerTable(
        queries=tuple(quality.index),
        prompts=tuple(map(str, first["prompt"])),
        categories=tuple(map(str, first["category"])),
        models=models,
        quality=quality[list(models)].to_numpy(),
        cost=costs[list(models)].to_numpy(),
        confidence=confidence,
        unit=cost,
    )


def _check_complete(rows: pd.DataFrame) -> None:
    counts = rows.groupby(["query", "model"], sort=True).size().unstack(fill_value=0)
    if min(counts.shape) < 2:
        raise ValueError(
            f"the routing matrix has {counts.shape[1]} models and {counts.shape[0]} queries; routing needs two of each"
        )
    long = counts.stack()
    for (query, model), n_rows in long[long != 1].iloc[:1].items():
        raise ValueError(f"the routing matrix has {n_rows} rows of {model} for query {query}, not 1")


def _wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Spread a column over models: [n, m] floats; pivot sorts the queries by id."""
    return rows.pivot(index="query", columns="model", values=column).astype(float)


def features(prompts: Sequence[str]) -> Array:
    """Count what a glance at each prompt shows: [n] texts -> [n, len(FEATURES)]."""
    return np.array([_features(prompt) for prompt in prompts], dtype=float)


def _features(prompt: str) -> list[float]:
    words = re.findall(r"[a-z']+", prompt.lower())
    counts = [
        len(prompt.split()),
        len(prompt),
        sum(character.isdigit() for character in prompt),
        len(re.findall(r"\d+(?:[.,]\d+)?", prompt)),
        sum(prompt.count(sign) for sign in "+-*/=%^×÷"),
        "?" in prompt,
    ]
    return [float(x) for x in (*counts, *(word in words for word in QUESTION_WORDS))]


def text_encoder() -> FeatureUnion:
    """Return an unfitted encoder of prompts: TF-IDF of words and word pairs, beside standardised `features`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return make_union(words, make_pipeline(FunctionTransformer(features), StandardScaler()))
