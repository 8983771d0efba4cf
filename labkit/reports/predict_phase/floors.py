"""What counting alone reaches on the windows that models are scored on: the floors under a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit import corpora
from labkit.cell import cell, data
from labkit.corpora import ngrams


@dataclass(frozen=True, kw_only=True, slots=True)
class FloorSpec:
    """The text, and the part of it that is scored."""

    corpus: str
    """Text, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens of a window."""
    held_out_windows: int
    """Windows scored."""


@cell("hybrid.floors", version=1, data=lambda spec: data.corpus(spec.corpus), packages=("tokenizers",))
def measure_floors(spec: FloorSpec) -> dict[str, Any]:
    """Return mean nats per token of the held-out windows by unigram and bigram counts of the training text."""
    tokens = corpora.tokenize(corpora.load(spec.corpus), spec.vocab_size)
    # Windows follow each other without overlap, so their targets are one stretch of the text after its first token.
    scored = tokens.validation[: spec.held_out_windows * spec.context + 1].astype(np.int64)
    train = tokens.train.astype(np.int64)
    models = {"unigram": ngrams.unigram, "bigram": ngrams.bigram}
    return {name: float(nats(train, scored, spec.vocab_size).mean()) for name, nats in models.items()}
