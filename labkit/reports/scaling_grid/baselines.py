"""What a grid needs to know of its text: counts, and the n-gram predictors that every model is shown beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit.cell import cell, data
from labkit.corpora import ngrams
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.data import block_sums, load_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """The text and the predictors that are scored on it."""

    corpus: str
    """Text, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens per window of a model; windows do not overlap."""
    order: int
    """Order of the Kneser-Ney predictor."""

    @classmethod
    def of(cls, params: ScalingGrid) -> Baselines:
        """Take the values from a grid's parameters."""
        shared = {"corpus": params.corpus, "vocab_size": params.vocab_size, "context": params.context}
        return cls(**shared, order=params.kneser_ney_order)


@cell("scaling.baselines", version=1, data=lambda spec: data.corpus(spec.corpus), packages=("tokenizers",))
def measure_baselines(spec: Baselines) -> dict[str, Any]:
    """Count a corpus and score the n-gram predictors on its validation split.

    Returns:
        plain JSON: the fields of `GridData`, floors as lists of nats by block.
    """
    text, tokens = load_tokens(spec.corpus, spec.vocab_size)
    nats = ngrams.floors(tokens.train, tokens.validation, spec.vocab_size, order=spec.order)
    return {
        "train_tokens": len(tokens.train),
        "validation_tokens": len(tokens.validation),
        "validation_bytes": tokens.n_bytes["validation"],
        "validation_words": tokens.n_words["validation"],
        "revision": text.revision,
        "protocol": tokens.protocol(spec.context, spec.context, "validation"),
        "floors": {name: block_sums(values).tolist() for name, values in nats.items()},
    }
