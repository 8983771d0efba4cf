"""Controls of protocol 000: what is planted is found with its size, and where nothing is planted nothing is found.

Qualities of answers are drawn; preference pairs are the shipped ones, their labels true or shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from labkit.dpo import evaluate, preferences
from labkit.reports.size_inertia.surface import word_scores
from labkit.routing.answer_table import AnswerTable
from labkit.routing.policies import Learned, Routes
from labkit.routing.replays import gain_over_best, replay

N_QUESTIONS = 1000
ERRORS = 0.2
"""Share of questions whose tier the router is told wrongly."""


def answers(rng: np.random.Generator, n: int = N_QUESTIONS, *, tagged: bool = False) -> tuple[pd.DataFrame, np.ndarray]:
    """Answers of two models that each know what the other does not; which one a question needs.

    Three in five questions are answered by the small model alone, two in five by the large one alone.
    """
    needs_large = rng.random(n) < 0.4
    words = ["".join(rng.choice(list("abcdefghij"), 9)) for _ in range(2 * n)]
    hint = np.where(needs_large, "prove", "name") if tagged else np.full(n, "ask")
    prompts = [f"{hint[i]} {words[2 * i]} {words[2 * i + 1]}" for i in range(n)]
    rows = {"query": [f"q{i:04d}" for i in range(n)], "category": "any", "prompt": prompts}
    parts = [
        pd.DataFrame(rows).assign(model=model, quality=right.astype(float), seconds=seconds)
        for model, right, seconds in (("small", ~needs_large, 1.0), ("large", needs_large, 3.0))
    ]
    return pd.concat(parts, ignore_index=True), needs_large


@dataclass(frozen=True)
class Told:
    """Sends each query to the tier that it was told."""

    large: tuple[bool, ...]
    name: str = "told"
    realisable: bool = True

    def route(self, table: AnswerTable) -> Routes:
        large = np.array(self.large, dtype=float)[None, :]
        weights = np.stack([1 - large, large], axis=2)
        return Routes(answered=weights, paid=weights, operating=0)


def told(rng: np.random.Generator, needs_large: np.ndarray, errors: float) -> Told:
    return Told(tuple(needs_large ^ (rng.random(len(needs_large)) < errors)))


def test_a_router_told_the_right_tier_with_a_fifth_of_errors_shows_its_gain() -> None:
    """It answers four in five rightly, the best single model three in five."""
    rng = np.random.default_rng(0)
    rows, needs_large = answers(rng)
    gain, sent_away = gain_over_best(rows, told(rng, needs_large, ERRORS), bootstrap=500)
    assert gain.contains(1 - ERRORS - 0.6)
    assert gain.low > 0.1
    assert sent_away == pytest.approx(0.44 * N_QUESTIONS, abs=50)


def test_a_router_told_nothing_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    rows, needs_large = answers(rng)
    gain, _ = gain_over_best(rows, told(rng, needs_large, 0.5), bootstrap=500)
    assert gain.high < 0


@pytest.mark.parametrize(("tagged", "helps"), [(True, True), (False, False)])
def test_a_tier_written_into_the_question_is_found_by_the_learned_router(tagged: bool, helps: bool) -> None:
    rows, _ = answers(np.random.default_rng(2), 300, tagged=tagged)
    rows.loc[(rows["model"] == "large"), "quality"] = 1.0
    assert replay(rows, Learned(), bootstrap=200).helps is helps


def right_by_words(train: tuple[preferences.Pair, ...], held_out: tuple[preferences.Pair, ...]) -> np.ndarray:
    return np.array(word_scores(train, held_out)) > 0


def test_a_bag_of_words_is_at_chance_on_shuffled_labels_and_above_it_on_true_ones() -> None:
    train, held_out = preferences.load("train"), preferences.load("held-out")
    shuffled = [right_by_words(preferences.shuffle_labels(train, seed=seed), held_out) for seed in range(10)]
    chance = evaluate.repeated_accuracy(np.array(shuffled))
    assert chance["low"] < 0.5 < chance["high"]
    assert chance["high"] - chance["low"] < 0.4, "an interval that could tell"
    assert evaluate.accuracy(word_scores(train, held_out))["low"] > 0.5


def test_a_label_that_leaks_through_the_shuffle_is_told_from_chance() -> None:
    """The last word of the chosen text says that it is the chosen one, whatever is swapped."""
    train, held_out = preferences.load("train"), preferences.load("held-out")
    leak = tuple(_marked(pair) for pair in held_out)
    runs = []
    for seed in range(5):
        swapped = tuple(_marked(pair) for pair in preferences.shuffle_labels(train, seed=seed))
        runs.append(right_by_words(swapped, leak))
    assert evaluate.repeated_accuracy(np.array(runs))["low"] > 0.5


def _marked(pair: preferences.Pair) -> preferences.Pair:
    return replace(pair, chosen=f"{pair.chosen} indeed", rejected=f"{pair.rejected} perhaps")
