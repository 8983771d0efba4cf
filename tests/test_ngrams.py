"""Count models against a dictionary implementation written from the paper, one probability at a time.

`ReferenceKneserNey` follows Chen & Goodman 1998, section 3, token by token with tuples and dictionaries and shares no
code with the vectorised one. Distributions are checked to sum to one over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.corpora import ngrams

VOCAB = 11
"""Ids 0..10; id 10 never occurs in TRAIN."""
_RNG = np.random.default_rng(0)
TRAIN = np.minimum(_RNG.geometric(0.25, size=400) - 1, 9)
STREAM = np.concatenate([TRAIN[50:90], _RNG.integers(0, VOCAB, size=60)])
"""Half seen in training, half noise with the unseen id in it."""


class ReferenceKneserNey:
    """Interpolated modified Kneser-Ney, one probability at a time."""

    def __init__(self, train: list[int], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts: list[Counter] = []
        for n in range(1, order + 1):
            if n == order:
                self.counts.append(Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)))
            else:
                longer = {tuple(train[i : i + n + 1]) for i in range(len(train) - n)}
                self.counts.append(Counter(gram[1:] for gram in longer))
        self.discounts = [self.estimate(counts) for counts in self.counts]
        self.after = [defaultdict(dict) for _ in self.counts]
        for followers, counts in zip(self.after, self.counts, strict=True):
            for gram, count in counts.items():
                followers[gram[:-1]][gram[-1]] = count

    @staticmethod
    def estimate(counts: Counter) -> list[float]:
        of_count = Counter(counts.values())
        if not all(of_count[i] for i in (1, 2, 3, 4)):
            return [0.5, 1.0, 1.5]
        y = of_count[1] / (of_count[1] + 2 * of_count[2])
        found = [i - (i + 1) * y * of_count[i + 1] / of_count[i] for i in (1, 2, 3)]
        return found if all(0 < found[i - 1] < i for i in (1, 2, 3)) else [0.5, 1.0, 1.5]

    def probability(self, history: tuple[int, ...], word: int, n: int | None = None) -> float:
        n = min(self.order, len(history) + 1) if n is None else n
        if n == 0:
            return 1 / self.vocab_size
        lower = self.probability(history, word, n - 1)
        followers = self.after[n - 1].get(tuple(history[len(history) - n + 1 :]))
        if not followers:
            return lower
        total = sum(followers.values())
        taken = sum(self.discounts[n - 1][min(count, 3) - 1] for count in followers.values())
        count = followers.get(word, 0)
        kept = count - self.discounts[n - 1][min(count, 3) - 1] if count else 0.0
        return (kept + taken * lower) / total

    def nats(self, stream: list[int]) -> list[float]:
        return [-math.log(self.probability(tuple(stream[:i]), stream[i])) for i in range(1, len(stream))]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_kneser_ney_equals_the_dictionary_implementation(order: int) -> None:
    expected = ReferenceKneserNey(TRAIN.tolist(), VOCAB, order).nats(STREAM.tolist())
    np.testing.assert_allclose(ngrams.kneser_ney(TRAIN, STREAM, VOCAB, order=order), expected, rtol=0, atol=1e-10)


def test_estimated_discounts_are_exercised_and_not_only_the_fallback() -> None:
    reference = ReferenceKneserNey(TRAIN.tolist(), VOCAB, 5)
    assert sum(discounts != [0.5, 1.0, 1.5] for discounts in reference.discounts) >= 2


@settings(max_examples=60, deadline=None)
@given(
    train=st.lists(st.integers(0, 4), min_size=6, max_size=60),
    stream=st.lists(st.integers(0, 4), min_size=2, max_size=20),
    order=st.integers(1, 5),
)
def test_kneser_ney_equals_the_dictionary_implementation_on_any_stream(
    train: list[int], stream: list[int], order: int
) -> None:
    expected = ReferenceKneserNey(train, 5, order).nats(stream)
    found = ngrams.kneser_ney(np.array(train), np.array(stream), 5, order=order)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


MODELS = {
    "unigram": ngrams.unigram,
    "bigram": ngrams.bigram,
    **{
        f"kneser_ney_{order}": lambda train, stream, vocab, order=order: ngrams.kneser_ney(
            train, stream, vocab, order=order
        )
        for order in (1, 3, 5)
    },
}
CONTEXTS = {
    "seen": TRAIN[100:104],
    "seen in part": np.array([10, *TRAIN[100:102]]),
    "unseen": np.array([10, 10, 10]),
    "one token": TRAIN[:1],
    "end of training": TRAIN[-5:],
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("model", MODELS)
def test_probabilities_sum_to_one_over_the_vocabulary(model: str, context: str) -> None:
    streams = [np.append(CONTEXTS[context], word) for word in range(VOCAB)]
    nats = np.array([MODELS[model](TRAIN, stream, VOCAB)[-1] for stream in streams])
    assert np.all(np.isfinite(nats))
    assert np.exp(-nats).sum() == pytest.approx(1, abs=1e-12)


def test_unigram_and_bigram_equal_hand_counts() -> None:
    train, stream = np.array([0, 1, 0, 1, 0, 2]), np.array([0, 1, 2, 0, 3])
    add_one = np.array([4, 3, 2, 1]) / 10
    np.testing.assert_allclose(np.exp(-ngrams.unigram(train, stream, 4)), add_one[[1, 2, 0, 3]])
    after_0 = [(2 + 2 * add_one[1]) / 5, (0 + 2 * add_one[3]) / 5]  # 3 times followed, by 2 distinct words
    after_1 = (0 + 1 * add_one[2]) / 3  # twice followed, by 1 distinct word
    expected = [after_0[0], after_1, add_one[0], after_0[1]]  # nothing was seen after 2: the unigram
    np.testing.assert_allclose(np.exp(-ngrams.bigram(train, stream, 4)), expected)


def test_no_floor_beats_the_entropy_of_random_tokens() -> None:
    rng = np.random.default_rng(1)
    train, stream = rng.integers(0, 50, size=100_000), rng.integers(0, 50, size=20_000)
    costs = {name: np.mean(nats) for name, nats in ngrams.floors(train, stream, 50).items()}
    assert costs["unigram"] == pytest.approx(math.log(50), rel=1e-3)
    assert all(cost > math.log(50) for cost in costs.values())


def test_floors_order_themselves_on_a_markov_chain_and_respect_its_entropy() -> None:
    rng = np.random.default_rng(2)
    transition = rng.dirichlet(np.full(20, 0.2), size=(20, 20))
    stream = [0, 0]
    for uniform in rng.random(60_000):
        cumulative = np.cumsum(transition[stream[-2], stream[-1]])
        stream.append(int(np.searchsorted(cumulative, uniform * cumulative[-1])))
    train, held_out = np.array(stream[:50_000]), np.array(stream[50_000:])
    true_nats = -np.log(transition[held_out[:-2], held_out[1:-1], held_out[2:]])
    costs = {name: np.mean(nats[1:]) for name, nats in ngrams.floors(train, held_out, 20, order=3).items()}
    assert true_nats.mean() < costs["kneser_ney"] < costs["bigram"] < costs["unigram"]
    assert costs["kneser_ney"] == pytest.approx(true_nats.mean(), rel=0.05)


def test_floors_predict_the_same_targets_as_a_model() -> None:
    floors = ngrams.floors(TRAIN, STREAM, VOCAB)
    assert list(floors) == ["unigram", "bigram", "kneser_ney"]
    assert {nats.shape for nats in floors.values()} == {(len(STREAM) - 1,)}
    np.testing.assert_array_equal(floors["kneser_ney"], ngrams.kneser_ney(TRAIN, STREAM, VOCAB, order=5))


def test_ids_of_any_integer_type_cost_the_same() -> None:
    small = ngrams.floors(TRAIN.astype(np.uint16), STREAM.astype(np.uint16), VOCAB)
    for name, nats in ngrams.floors(TRAIN, STREAM, VOCAB).items():
        np.testing.assert_array_equal(small[name], nats)


@pytest.mark.parametrize(
    ("train", "stream", "order", "named"),
    [
        (TRAIN, np.array([0, 11]), 5, "stream holds ids 0..11"),
        (np.array([-1, 2]), STREAM, 1, "train holds ids"),
        (TRAIN, np.array([1]), 5, "stream has shape"),
        (TRAIN.reshape(2, -1), STREAM, 5, "train has shape"),
        (TRAIN, STREAM, 0, "order=0"),
        (TRAIN[:5], STREAM, 5, "order=5"),
    ],
)
def test_unusable_streams_are_refused(train: np.ndarray, stream: np.ndarray, order: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ngrams.kneser_ney(train, stream, VOCAB, order=order)
