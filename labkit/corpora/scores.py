"""How good a language model is on a text: total nats, expressed per byte, per token and per word.

The total is what a model pays for the whole text; everything else divides it by something. Bits per byte divides by
something no tokenizer can change and is the metric this package compares on; the perplexities are derived columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Return total_nats / (ln 2 · n_bytes), bytes being those of the original UTF-8 text."""
    return _per(total_nats, n_bytes, "n_bytes") / math.log(2)


def token_perplexity(total_nats: float, n_tokens: int) -> float:
    """Return exp(total_nats / n_tokens): comparable only under one tokenizer."""
    return math.exp(_per(total_nats, n_tokens, "n_tokens"))


def word_perplexity(total_nats: float, n_words: int) -> float:
    """Return exp(total_nats / n_words), words being the whitespace-separated ones of the original text."""
    return math.exp(_per(total_nats, n_words, "n_words"))


def _per(total_nats: float, count: int, field: str) -> float:
    if count <= 0:
        raise ValueError(f"{field}={count}: a score needs at least one")
    return total_nats / count


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a model paid for a split, with the counts to express it in any unit."""

    protocol: str
    """Id of text, tokenizer, context, stride and split; see `Tokens.protocol`."""
    total_nats: float
    """Sum of -ln p over every predicted token."""
    n_tokens: int
    """Predicted tokens."""
    n_bytes: int
    """UTF-8 bytes of the text those tokens stand for."""
    n_words: int
    """Whitespace-separated words of that text."""

    def __post_init__(self) -> None:
        for field in ("n_tokens", "n_bytes", "n_words"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field}={getattr(self, field)} of a Score must be positive")
        if not math.isfinite(self.total_nats) or self.total_nats < 0:
            raise ValueError(f"total_nats={self.total_nats} of a Score must be finite and not negative")

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the original text."""
        return bits_per_byte(self.total_nats, self.n_bytes)

    @property
    def token_perplexity(self) -> float:
        """Perplexity per token."""
        return token_perplexity(self.total_nats, self.n_tokens)

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word."""
        return word_perplexity(self.total_nats, self.n_words)

    def compare(self, other: Score) -> float:
        """Return this score minus the other in bits per byte (negative: this one is better).

        Raises:
            ValueError: the protocols differ, so that the difference would mean nothing.
        """
        if self.protocol != other.protocol:
            raise ValueError(f"scores do not compare: {self.protocol} is not {other.protocol}")
        return self.bits_per_byte - other.bits_per_byte

    def __sub__(self, other: Score) -> float:
        return self.compare(other)
