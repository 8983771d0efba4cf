"""Word-balanced preference pairs: both texts hold the same words, and only what is asserted and what is hedged differs.

A fact that is settled and a matter that is open are put into one frame. The chosen text asserts the first and leaves
the second open; its rival swaps the two. So a bag of words says nothing about which is chosen, nor do lengths. The
facts ship with the package; the pairs are made from them by rule.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.cell import cell, data, environment
from labkit.dpo.preferences import Pair

PATH = Path(__file__).parent / "data" / "certain_and_open.jsonl"
"""Topics, each with a settled fact and an open matter."""
SHIPPED = f"inertia/data/{PATH.name}"
"""Their file, relative to the package."""
FRAMES = (
    ("What is known about {topic}, and what is not?", "It is well established that {sure}. Whether {open} is unknown."),
    ("What can you tell me about {topic}?", "Nobody can say yet whether {open}. What is certain is that {sure}."),
    ("Help me with {topic}: what is settled?", "The evidence shows that {sure}, but it remains open whether {open}."),
    (
        "I am reading about {topic}. What holds?",
        "It is anyone's guess whether {open}, yet there is no doubt that {sure}.",
    ),
)
"""Prompts and texts. Two of them assert first and two hedge first, so that the order says nothing either."""
_FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """Something of which one thing is settled and another is not."""

    topic: str
    """What a prompt asks about."""
    known: str
    """A settled fact, as a clause."""
    unknown: str
    """An open matter, as a clause."""


def topics(path: Path = PATH) -> tuple[Topic, ...]:
    """Read the topics.

    Raises:
        TypeError: a line has another field, or lacks one.
        ValueError: a line is no JSON, or a topic stands twice.
    """
    found = tuple(Topic(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    if len({one.topic for one in found}) < len(found):
        raise ValueError(f"{path.name} names a topic twice")
    return found


def load() -> tuple[Pair, ...]:
    """Make every pair: each topic in each frame, all topics of one frame first."""
    return tuple(_pair(one, number, frame) for number, frame in enumerate(FRAMES, 1) for one in topics())


def take(n: int) -> tuple[Pair, ...]:
    """Return the first n pairs, in which topics stand as evenly as n allows.

    Raises:
        ValueError: n is below 0 or above their number.
    """
    everything = load()
    if not 0 <= n <= len(everything):
        raise ValueError(f"balanced_pairs is {n}; there are {len(everything)} word-balanced pairs")
    return everything[:n]


def topic_of(pair: str) -> str:
    """Return the topic of a pair by its id; pairs of one topic share their facts and are no independent trials."""
    return pair.rpartition(" frame ")[0]


def _pair(one: Topic, number: int, frame: tuple[str, str]) -> Pair:
    prompt, text = frame
    return Pair(
        id=f"{one.topic} frame {number}",
        prompt=prompt.format(topic=one.topic),
        chosen=text.format(sure=one.known, open=one.unknown),
        rejected=text.format(sure=one.unknown, open=one.known),
        category="factual",
        reasoning="It asserts what is settled and leaves open what is not; the other text does the reverse.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceSpec:
    """How many of the word-balanced pairs are looked at."""

    n_pairs: int
    """The first so many."""


@cell(
    "inertia.balance",
    version=1,
    data=lambda spec: data.shipped(SHIPPED),
    packages=("scikit-learn", "scipy"),
    onednn=environment.WITHOUT_AMX,
)
def measure_balance(spec: BalanceSpec) -> dict[str, Any]:
    """Let classifiers of words judge the pairs, cross-validated over topics.

    Returns:
        plain JSON: by `words` and by `words and word pairs` the scores of each pair, positive where the chosen text is
        preferred. Those of words alone are zero, because the texts hold the same ones; word pairs see which clause
        follows "that", and are shown as what a classifier of more than words might do.
    """
    pairs = take(spec.n_pairs)
    return {name: cross_validated(pairs, longest) for name, longest in (("words", 1), ("words and word pairs", 2))}


def cross_validated(pairs: Sequence[Pair], longest: int) -> list[float]:
    """Score each pair by a logistic regression on the words of the pairs of other topics.

    Args:
        pairs: of at least five topics.
        longest: words that a feature may span.

    Returns:
        the log-odds that the chosen text is the preferred one, zero where nothing tells the texts apart.

    Raises:
        ValueError: fewer topics than folds.
    """
    names = np.array([topic_of(pair.id) for pair in pairs])
    folds = np.array_split(np.random.default_rng(0).permutation(np.unique(names)), _FOLDS)
    if any(not len(fold) for fold in folds):
        raise ValueError(f"{len(np.unique(names))} topics are too few for {_FOLDS} folds")
    scores = np.zeros(len(pairs))
    for fold in folds:
        unseen = np.isin(names, fold)
        known = [pair for pair, left in zip(pairs, unseen, strict=True) if not left]
        scores[unseen] = _fitted(known, [pair for pair, out in zip(pairs, unseen, strict=True) if out], longest)
    return [round(float(score), 9) for score in scores]


def _fitted(known: Sequence[Pair], unseen: Sequence[Pair], longest: int) -> np.ndarray:
    """Fit differences of counts, each pair in both directions, and score the others."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(ngram_range=(1, longest)).fit([text for p in known for text in (p.chosen, p.rejected)])

    def difference(pairs: Sequence[Pair]) -> Any:
        return words.transform([p.chosen for p in pairs]) - words.transform([p.rejected for p in pairs])

    own = difference(known)
    labels = [1] * len(known) + [0] * len(known)
    model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(vstack([own, -own]), labels)
    return model.decision_function(difference(unseen))


def share(scores: Sequence[float]) -> float:
    """Return the share of pairs that scores prefer rightly, a tie counting half, as a guess would."""
    values = np.asarray(scores)
    return float(((values > 0) + 0.5 * (values == 0)).mean())
