"""What the texts of the preference pairs give away without any language model: by their words, and by their lengths.

A model has to beat their words to have learned more than vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.cell import cell, data, environment
from labkit.dpo import evaluate, preferences
from labkit.dpo.preferences import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class SurfaceSpec:
    """Which of the shipped pairs are looked at."""

    n_pairs: int = 115
    """Training pairs, taken by category."""
    seed: int = 0
    """Seed of that choice."""


@cell(
    "inertia.surface",
    version=1,
    data=lambda spec: data.shipped(*preferences.shipped("train", "held-out")),
    packages=("scikit-learn", "scipy"),
    onednn=environment.WITHOUT_AMX,
)
def measure_surface(spec: SurfaceSpec) -> dict[str, Any]:
    """Judge the held-out pairs by their words, and the training pairs by their lengths.

    Returns:
        plain JSON: `words`, how many held-out pairs a bag of words prefers rightly with its 95 % interval, and `scores`
        (positive where it does), one for each; `lengths`, what `preferences.length_only_accuracies` returns.
    """
    train = preferences.take(preferences.load("train"), spec.n_pairs, spec.seed)
    scores = word_scores(train, preferences.load("held-out"))
    words = evaluate.accuracy(scores) | {"scores": scores, "n_pairs": spec.n_pairs}
    return {"words": words, "lengths": preferences.length_only_accuracies(train)}


def word_scores(train: Sequence[Pair], held_out: Sequence[Pair]) -> list[float]:
    """Score held-out pairs by a logistic regression without intercept on their words.

    It sees the difference of the TF-IDF vectors of words and word pairs, and is fitted to the training pairs, each in
    both directions.

    Returns:
        the log-odds that the chosen text is the preferred one, for each held-out pair.
    """
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    words.fit([text for pair in train for text in (pair.chosen, pair.rejected)])

    def difference(pairs: Sequence[Pair]) -> Any:
        return words.transform([p.chosen for p in pairs]) - words.transform([p.rejected for p in pairs])

    known = difference(train)
    both = vstack([known, -known])
    model = LogisticRegression(fit_intercept=False, max_iter=2000).fit(both, [1] * len(train) + [0] * len(train))
    return model.decision_function(difference(held_out)).tolist()
