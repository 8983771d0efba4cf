"""Count models as a floor under every neural one: unigram, Witten-Bell bigram, modified Kneser-Ney.

A neural language model that does not beat these on the same tokens has learned nothing that counting would not give,
and one far below the best of them on little data deserves suspicion. All are proper distributions over the whole
vocabulary and cost seconds. They see the tokens before a target wherever it lies, also across a model's windows.

An n-gram is a dense integer, its "type"; the type of a k-gram is found from the type of its first k-1 tokens and its
last token, so that every order is one sort and no step loops over tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer]
Nats = NDArray[np.float64]

KN_ORDER = 5
"""Order of the Kneser-Ney floor, fixed in advance: never chosen on the split it is reported for."""
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For count statistics too thin to estimate discounts from; the values KenLM uses for `--discount_fallback`."""


def floors(train: Ids, stream: Ids, vocab_size: int, *, order: int = KN_ORDER) -> dict[str, Nats]:
    """Return the nats of every floor for stream[1:], by name: `unigram`, `bigram`, `kneser_ney`.

    Raises:
        ValueError: see `kneser_ney`.
    """
    return {
        "unigram": unigram(train, stream, vocab_size),
        "bigram": bigram(train, stream, vocab_size),
        "kneser_ney": kneser_ney(train, stream, vocab_size, order=order),
    }


def unigram(train: Ids, stream: Ids, vocab_size: int) -> Nats:
    """Return [T-1] nats of stream[1:] under add-one unigram counts: p(w) = (c(w) + 1) / (N + V).

    Raises:
        ValueError: a stream is not one-dimensional, is too short, or holds ids outside the vocabulary.
    """
    _check(train, stream, vocab_size)
    return -np.log(_add_one(train, vocab_size)[stream[1:]])


def bigram(train: Ids, stream: Ids, vocab_size: int) -> Nats:
    """Return [T-1] nats of stream[1:] under Witten-Bell bigrams over the add-one unigram (Witten & Bell 1991).

    p(w|h) = (c(hw) + T(h) p(w)) / (c(h) + T(h)), T(h) being the number of distinct words seen after h.

    Raises:
        ValueError: as for `unigram`.
    """
    _check(train, stream, vocab_size)
    keys, counts = np.unique(_pair(train[:-1], train[1:], vocab_size), return_counts=True)
    followers = np.bincount(keys // vocab_size, minlength=vocab_size)
    totals = np.bincount(train[:-1], minlength=vocab_size)
    context, word = stream[:-1], stream[1:]
    found = _find(keys, _pair(context, word, vocab_size))
    seen = np.where(found >= 0, counts[found], 0)
    prior = _add_one(train, vocab_size)[word]
    mass = totals[context] + followers[context]
    return -np.log(np.where(mass > 0, (seen + followers[context] * prior) / np.maximum(mass, 1), prior))


def kneser_ney(train: Ids, stream: Ids, vocab_size: int, *, order: int = KN_ORDER) -> Nats:
    """Return [T-1] nats of stream[1:] under interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3).

    The highest order uses counts, the lower ones the number of distinct words seen before the n-gram; each order has
    three discounts estimated from its counts of counts; the lowest is interpolated with the uniform distribution. A
    context never seen in training falls through to the shorter one.

    Raises:
        ValueError: order below 1, training stream shorter than the order, or a stream that `unigram` refuses.
    """
    _check(train, stream, vocab_size)
    if not 1 <= order < len(train):
        raise ValueError(f"order={order} must lie between 1 and {len(train) - 1}, the length of train less one")
    probability = np.full(len(stream) - 1, 1.0 / vocab_size)
    context = np.zeros(len(stream), dtype=np.int64)
    for level in _levels(np.asarray(train, dtype=np.int64), vocab_size, order):
        gram = level.types(context, stream)
        probability = level.interpolate(context[1:], gram[1:], probability)
        context = np.concatenate([[-1], gram[:-1]])
    return -np.log(probability)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Level:
    """The n-grams of one order: what is seen after each context, and how much of it is given to the lower order."""

    keys: NDArray[np.int64]
    """[types] context type · V + last token, ascending; the position in it is the n-gram's type."""
    vocab_size: int
    """V."""
    discounted: NDArray[np.float64]
    """[types] count minus its discount."""
    totals: NDArray[np.float64]
    """[contexts] sum of the counts after a context."""
    held_back: NDArray[np.float64]
    """[contexts] sum of the discounts taken after a context."""

    def types(self, context: NDArray[np.int64], stream: Ids) -> NDArray[np.int64]:
        """Return [T] types of the n-grams that end at each position; -1 where training has none."""
        return np.where(context >= 0, _find(self.keys, _pair(context, stream, self.vocab_size)), -1)

    def interpolate(self, context: NDArray[np.int64], gram: NDArray[np.int64], lower: Nats) -> Nats:
        """Return (discounted count + held-back mass · lower probability) / total, or `lower` without a context."""
        total = np.where(context >= 0, self.totals[context], 0.0)
        count = np.where(gram >= 0, self.discounted[gram], 0.0)
        return np.where(total > 0, (count + self.held_back[context] * lower) / np.maximum(total, 1.0), lower)


def _levels(train: NDArray[np.int64], vocab_size: int, order: int) -> Iterator[_Level]:
    """Yield the levels 1..order; the types of level k are the contexts of level k + 1."""
    tables, context = [], np.zeros(len(train), dtype=np.int64)
    for start in range(order):
        tables.append(_count(context, train[start:], vocab_size))
        context = tables[-1].grams[:-1]
    num_contexts = 1
    for table, longer in zip(tables, [*tables[1:], None], strict=True):
        counts = table.counts if longer is None else _continuations(table, longer)
        yield _level(table.keys, counts, num_contexts, vocab_size)
        num_contexts = len(table.keys)


class _Table(NamedTuple):
    """The k-grams of the training stream."""

    keys: NDArray[np.int64]
    """[types] as in `_Level`."""
    grams: NDArray[np.int64]
    """[T - k + 1] type of the k-gram that ends at each position from the k-th on."""
    counts: NDArray[np.int64]
    """[types] occurrences."""


def _count(context: NDArray[np.int64], word: NDArray[np.int64], vocab_size: int) -> _Table:
    return _Table(*np.unique(_pair(context, word, vocab_size), return_inverse=True, return_counts=True))


def _continuations(table: _Table, longer: _Table) -> NDArray[np.int64]:
    """Count, for each k-gram type, the distinct tokens seen before it: the (k+1)-gram types that end in it."""
    suffix = np.zeros(len(longer.keys), dtype=np.int64)
    suffix[longer.grams] = table.grams[1:]
    return np.bincount(suffix, minlength=len(table.keys))


def _level(keys: NDArray[np.int64], counts: NDArray[np.int64], num_contexts: int, vocab_size: int) -> _Level:
    discount = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    context = keys // vocab_size
    return _Level(
        keys=keys,
        vocab_size=vocab_size,
        discounted=counts - discount,
        totals=np.bincount(context, weights=counts, minlength=num_contexts),
        held_back=np.bincount(context, weights=discount, minlength=num_contexts),
    )


def _discounts(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return D1, D2, D3+ of Chen & Goodman 1998, or the fallback where one is undefined or not in (0, i)."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == i)) for i in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return estimated if all(0 < d < i for i, d in enumerate(estimated, start=1)) else _FALLBACK_DISCOUNTS


def _pair(context: Ids, word: Ids, vocab_size: int) -> NDArray[np.int64]:
    return np.asarray(context, dtype=np.int64) * vocab_size + np.asarray(word, dtype=np.int64)


def _find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of `wanted` in the ascending `keys`, -1 where absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _add_one(train: Ids, vocab_size: int) -> NDArray[np.float64]:
    return (np.bincount(train, minlength=vocab_size) + 1.0) / (len(train) + vocab_size)


def _check(train: Ids, stream: Ids, vocab_size: int) -> None:
    for name, ids in (("train", train), ("stream", stream)):
        if ids.ndim != 1 or len(ids) < 2:
            raise ValueError(f"{name} has shape {ids.shape}; it must be one-dimensional with at least 2 tokens")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"{name} holds ids {ids.min()}..{ids.max()}, outside 0..{vocab_size - 1}")
