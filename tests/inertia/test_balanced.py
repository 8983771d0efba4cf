"""Word-balanced pairs: words and lengths say nothing, a planted leak is found, preferences are read three ways.

References: multisets counted here, a classifier fitted here by cross-validation, and log-probabilities made up here.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from labkit.dpo import arm as dpo
from labkit.dpo.preferences import Pair
from labkit.models.tiny import TINY
from labkit.reports.size_inertia import balanced, judged, preferred


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def share_by_another_fit(pairs: tuple[Pair, ...]) -> float:
    """Every text is a row, labelled by whether it is the chosen one; folds keep topics together."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    labels = np.tile([1, 0], len(pairs))
    groups = np.repeat([balanced.topic_of(pair.id) for pair in pairs], 2)
    counts = CountVectorizer().fit_transform(texts)
    model = LogisticRegression(max_iter=500)
    scores = cross_val_predict(model, counts, labels, groups=groups, cv=GroupKFold(5), method="decision_function")
    return balanced.share((scores[::2] - scores[1::2]).round(9))


def test_at_least_two_hundred_pairs_hold_the_same_words_on_both_sides() -> None:
    pairs = balanced.load()
    assert len(pairs) >= 200
    assert len({(pair.prompt, pair.chosen) for pair in pairs}) == len(pairs)
    assert all(pair.chosen != pair.rejected for pair in pairs)
    assert all(words(pair.chosen) == words(pair.rejected) for pair in pairs)
    assert all(len(pair.chosen.split()) == len(pair.rejected.split()) for pair in pairs)


def test_a_bag_of_words_is_at_one_half_and_a_planted_word_is_found() -> None:
    pairs = balanced.load()
    assert share_by_another_fit(pairs) == 0.5
    assert balanced.share(balanced.cross_validated(pairs, 1)) == 0.5
    leaked = tuple(dataclasses.replace(pair, chosen=f"{pair.chosen} Truly.") for pair in pairs)
    assert share_by_another_fit(leaked) == 1
    assert balanced.share(balanced.cross_validated(leaked, 1)) == 1


def test_half_of_the_frames_assert_first() -> None:
    first = [text.index("{sure}") < text.index("{open}") for _, text in balanced.FRAMES]
    assert sum(first) * 2 == len(first)


def test_more_pairs_than_there_are_are_refused_and_so_are_too_few_topics() -> None:
    with pytest.raises(ValueError, match="balanced_pairs is 1000; there are 216"):
        balanced.take(1000)
    with pytest.raises(ValueError, match="3 topics are too few"):
        balanced.cross_validated(balanced.take(3), 1)


REFERENCE = {"a": [-10.0, -8.0, 5, 2], "b": [-10.0, -12.0, 5, 6], "c": [-4.0, -8.0, 2, 8]}


def rows(chosen: float) -> list[dict]:
    return [{"id": name, "margin": 0.1 * chosen, "logp_chosen": chosen, "logp_rejected": 0.0} for name in REFERENCE]


def test_a_model_that_moved_need_not_prefer() -> None:
    found = preferred.differences(rows(1.0), REFERENCE)
    assert (found["margin"] > 0).all()
    assert found["sum"].tolist() == [-1.0, 3.0, 5.0]
    assert found["per token"].tolist() == pytest.approx([-9 / 5 + 4, -9 / 5 + 2, -3 / 2 + 1])
    counted = {way: preferred.counted([found], way)["correct"] for way in preferred.WAYS}
    assert counted == {"margin": 3, "sum": 2, "per token": 2}


def test_the_loss_of_preference_is_ln_2_where_both_texts_are_equally_likely_and_0_where_it_is_sure() -> None:
    even = preferred.differences(rows(0.0), {name: [-5.0, -5.0, 3, 3] for name in REFERENCE})
    assert preferred.loss(even) == pytest.approx(np.log(2))
    sure = preferred.differences(rows(60.0), REFERENCE)
    assert preferred.loss(sure) < 0.0005


def test_pairs_of_one_topic_are_one_trial() -> None:
    names = [pair.id for pair in balanced.load()]
    right = {name: [0.0 if balanced.topic_of(name) < "m" else -9.0, -5.0, 3, 3] for name in names}
    alike = preferred.counted([preferred.untrained(right)], "sum")
    n_topics = len(balanced.topics())
    width = alike["high"] - alike["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(alike["accuracy"] * (1 - alike["accuracy"]) / n_topics), rel=0.1)
    assert alike["pairs"] == len(names)


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_interval_of_a_share_over_topics_covers(n_runs: int, spread: float) -> None:
    """Topics differ in how hard they are, from almost all or nothing (0.5) to much alike (4); the mean is 0.6."""
    rng, hits, draws = np.random.default_rng(3), 0, 150
    names = [pair.id for pair in balanced.load()]
    topics = sorted({balanced.topic_of(name) for name in names})
    for _ in range(draws):
        hard = dict(zip(topics, rng.beta(0.6 * spread, 0.4 * spread, len(topics)), strict=True))
        odds = np.array([hard[balanced.topic_of(name)] for name in names])
        signs = np.where(rng.random((n_runs, len(names))) < odds, 1.0, -1.0)
        found = preferred.counted([pd.DataFrame({"sum": one}, index=names) for one in signs], "sum")
        hits += found["low"] <= 0.6 <= found["high"]
    assert hits / draws >= 0.92


def test_the_reference_cell_agrees_with_what_an_arm_says_of_its_untrained_model() -> None:
    arm = dpo.DpoArm(
        name="tiny", model="tiny-qwen2", n_pairs=4, steps=1, warmup_steps=1, learning_rate=0.01, max_length=640
    )
    spec = judged.ReferenceSpec(model="tiny-qwen2", max_length=640, balanced_pairs=2)
    done = judged.train_balanced(judged.BalancedArm.of(arm, 2))
    scored = judged.measure_reference(spec)
    before = preferred.untrained(scored["held_out"])
    assert "tiny-qwen2" in TINY
    assert (before["per token"] > 0).sum() == done["reference"]["correct"]
    assert (before["sum"] > 0).sum() == done["reference"]["by_sum"]["correct"]
    assert [row["id"] for row in done["balanced"]] == [*scored["balanced"]]
    # The first step has rate 0, so nothing was gained yet.
    after = preferred.differences(done["balanced"], scored["balanced"])
    assert after["sum"].tolist() == pytest.approx(preferred.untrained(scored["balanced"])["sum"].tolist(), abs=1e-3)
