"""Checks the size predictor on texts whose class is planted or shuffled, and the budget table on hand-made latencies.

The classifier's linear map is compared with scikit-learn's own ridge regression, balanced accuracy with scikit-learn's
metric; percentiles and winners of the budget table are worked out by hand.

Run: pytest tests/inertia/test_sizing.py
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score

from labkit.routing.answer_table import answer_table, features, text_encoder
from labkit.routing.sizing import RIDGE, _balanced, _ridge_map, best_under_budget, needed_size, predict_size

WORDS = np.array(["river", "king", "stone", "cloud", "bread", "glass", "wheel", "candle", "letter", "garden", "horse"])


def matrix(quality: dict[str, list[float]], prompts: list[str], seconds: dict[str, list[float]]) -> pd.DataFrame:
    rows = []
    for model, values in quality.items():
        for i, value in enumerate(values):
            row = {"model": model, "query": i, "category": "any", "prompt": prompts[i], "quality": value}
            rows.append(row | {"seconds": seconds[model][i % len(seconds[model])]})
    return pd.DataFrame(rows)


def planted(n: int, seed: int, *, tell: bool) -> pd.DataFrame:
    """Queries that need the small model, the larger one or neither; the first word of the prompt tells or does not."""
    rng = np.random.default_rng(seed)
    need = rng.integers(0, 3, n)
    shown = need if tell else rng.permutation(need)
    prompts = [f"{['Name', 'Prove', 'Dream'][k]} the {' '.join(rng.choice(WORDS, 3))}" for k in shown]
    quality = {"small": (need == 0).astype(float).tolist(), "large": (need == 1).astype(float).tolist()}
    return matrix(quality, prompts, {"small": [1.0], "large": [3.0]})


def quick(rows: pd.DataFrame, **options: int):
    return predict_size(rows, **({"permutations": 39, "bootstrap": 300} | options))


def test_needed_size_is_the_cheapest_model_that_answers_rightly() -> None:
    quality = {"large": [1, 1, 0, 0.4], "small": [1, 0, 0, 0.6]}
    rows = matrix(quality, ["a", "b", "c", "d"], {"large": [3.0], "small": [1.0]})
    assert needed_size(answer_table(rows)).tolist() == ["small", "large", "none", "small"]
    assert needed_size(answer_table(rows), right=1.0).tolist() == ["small", "large", "none", "none"]
    dearer = matrix(quality, ["a", "b", "c", "d"], {"large": [3.0], "small": [9.0]})
    assert needed_size(answer_table(dearer)).tolist() == ["large", "large", "none", "small"]


def test_features_count_what_is_in_the_prompt() -> None:
    counted = features(["What is 12 + 3.5?", "Name it"])
    assert counted[0, :7].tolist() == [5, 17, 4, 2, 1, 1, 1]
    assert counted[1, :7].tolist() == [2, 7, 0, 0, 0, 0, 0]


def test_the_linear_map_is_that_of_ridge_regression_with_an_intercept() -> None:
    rng = np.random.default_rng(0)
    prompts = np.array([" ".join(rng.choice(WORDS, 4)) for _ in range(30)], dtype=object)
    y = rng.normal(size=20)
    encoder = text_encoder()
    ridge = Ridge(alpha=RIDGE).fit(encoder.fit_transform(prompts[:20]).toarray(), y)
    expected = ridge.predict(encoder.transform(prompts[20:]).toarray())
    assert y.mean() + _ridge_map(prompts[:20], prompts[20:]) @ (y - y.mean()) == pytest.approx(expected, abs=1e-9)


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    labels, predicted = rng.choice(["a", "b", "b", "c"], (2, 80))
    assert _balanced(labels, predicted) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_a_planted_word_is_found() -> None:
    found = quick(planted(90, 0, tell=True))
    assert found.predictable
    assert found.balanced_accuracy > 0.9
    assert found.p_value == pytest.approx(1 / 40)
    assert found.gain.low > 0.5
    assert sum(found.counts.values()) == found.n_queries == 90
    assert found.accuracy - found.baseline_accuracy == pytest.approx(found.accuracy_gain.estimate)
    assert found.sentence.startswith("A query tells something about the size it needs: balanced accuracy")


def test_words_that_tell_nothing_are_seldom_called_predictive() -> None:
    found = [quick(planted(60, seed, tell=False), seed=seed) for seed in range(25)]
    assert sum(each.predictable for each in found) <= 3
    assert np.mean([each.balanced_accuracy for each in found]) == pytest.approx(1 / 3, abs=0.05)
    assert "does not tell" in next(each for each in found if not each.predictable).sentence


def test_always_naming_one_class_is_the_baseline() -> None:
    n = 60
    quality = {"small": [1.0] * 48 + [0.0] * 12, "large": [1.0] * n}
    rows = matrix(quality, ["Same words every time"] * n, {"small": [1.0], "large": [3.0]})
    found = quick(rows)
    assert (found.baseline_accuracy, found.baseline_balanced_accuracy) == (0.8, 0.5)
    assert found.balanced_accuracy == pytest.approx(0.5)
    assert (found.gain.estimate, found.predictable) == (pytest.approx(0.0), False)


def test_a_rare_class_is_predicted_as_readily_as_a_frequent_one() -> None:
    # "Prove" needs the larger model in four of ten cases, "Name" in none: balanced, "Prove" is evidence for it.
    prompts = [f"{'Prove' if i % 2 else 'Name'} the {WORDS[i % 11]}" for i in range(100)]
    small = [0.0 if i % 10 in (1, 3) else 1.0 for i in range(100)]
    rows = matrix({"small": small, "large": [1.0] * 100}, prompts, {"small": [1.0], "large": [3.0]})
    found = quick(rows)
    assert found.counts == {"large": 20, "small": 80}
    assert found.balanced_accuracy > 0.7
    assert found.predictable


def test_results_depend_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    rows = planted(45, 4, tell=False)
    assert quick(rows, seed=2) == quick(rows.sample(frac=1, random_state=0), seed=2)
    assert quick(rows, seed=2) != quick(rows, seed=3)


def test_a_class_of_one_query_counts_and_warns_of_nothing() -> None:
    rows = planted(40, 5, tell=True)
    rows["quality"] = ((rows["model"] == "small") & (rows["query"] != 7) | (rows["query"] == 8)).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quick(rows)
    assert found.counts == {"none": 1, "small": 39}
    assert found.p_value is None
    rows.loc[rows["query"].isin([10, 11]), "quality"] = [0.0, 0.0, 1.0, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quick(rows)
    assert found.counts == {"large": 2, "none": 1, "small": 37}
    assert math.isfinite(found.gain.low)


def test_a_single_class_cannot_be_tested_and_the_sentence_says_so() -> None:
    rows = planted(30, 0, tell=True).assign(quality=0.0)
    found = quick(rows)
    assert (found.gain, found.p_value, found.predictable) == (None, None, False)
    assert found.sentence.endswith("cannot be tested here: of the queries, 30 none.")


def test_too_few_permutations_are_refused() -> None:
    with pytest.raises(ValueError, match="permutations is 10"):
        quick(planted(30, 0, tell=True), permutations=10)


N = 40
SECONDS = {"small": [1.0], "middle": [2.0] * 9 + [6.0], "large": [4.0]}
"""The middle model is fast on average, but one answer in ten takes 6 s."""


def budgets(middle: list[float], *budgets_seconds: float) -> pd.DataFrame:
    quality = {"small": [1.0, 0.0] * 20, "middle": middle, "large": [1.0, 1.0, 1.0, 0.0] * 10}
    return best_under_budget(matrix(quality, ["Any"] * N, SECONDS), budgets_seconds, bootstrap=300).set_index(
        "budget_seconds"
    )


def test_a_budget_is_held_by_95_percent_of_the_answers_and_not_by_their_mean() -> None:
    table = budgets([1.0] * N, 1.0, 3.0, 4.0, 6.0)
    assert table["model"].tolist() == ["small", "small", "large", "middle"]
    assert table["quality"].tolist() == [0.5, 0.5, 0.75, 1.0]
    assert table["p95_seconds"].tolist() == [1.0, 1.0, 4.0, 6.0]
    assert table["n_fitting"].tolist() == [1, 1, 2, 3]
    assert table.loc[4.0, "quality_low"] < 0.75 < table.loc[4.0, "quality_high"]


def test_a_budget_below_the_fastest_model_has_none_and_says_what_it_needs() -> None:
    row = budgets([1.0] * N, 0.5).iloc[0]
    assert pd.isna(row["model"])
    assert row["why"] == "the fastest, small, needs 1 s for 95 % of its answers"


def test_models_that_cannot_be_told_apart_are_named_as_ties() -> None:
    almost = [1.0, 1.0, 1.0, 0.0] * 9 + [1.0, 1.0, 0.0, 0.0]
    row = budgets(almost, 6.0).iloc[0]
    assert (row["model"], row["tied_with"]) == ("large", "middle")
    assert budgets([1.0] * N, 6.0).iloc[0]["tied_with"] == ""


def test_of_exact_equals_the_cheaper_one_is_named() -> None:
    row = budgets([1.0, 1.0, 1.0, 0.0] * 10, 6.0).iloc[0]
    assert (row["model"], row["tied_with"]) == ("middle", "large")


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_is_no_time_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="a latency budget is"):
        budgets([1.0] * N, budget)
