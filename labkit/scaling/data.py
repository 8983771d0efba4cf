"""What every cell of a grid shares: the tokenised text, the n-gram floors on it, and how a model is scored on it.

Scores are kept as sums over blocks of consecutive validation tokens. Differences of two predictors are then compared
block by block, which takes out the difficulty of the text and, unlike a per-token standard error, respects that
neighbouring tokens are alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from labkit import corpora

N_BLOCKS = 100
"""Number of consecutive blocks a validation split is cut into for paired comparisons."""
FLOORS = ("unigram", "bigram", "kneser_ney")
"""Names of the n-gram predictors, the weakest first."""


@dataclass(frozen=True, kw_only=True)
class GridData:
    """Counts of one tokenised corpus and the floors measured on its validation split, without the text."""

    train_tokens: int
    """Tokens of the training stream."""
    validation_tokens: int
    """Tokens of the validation stream; all but the first are predicted."""
    validation_bytes: int
    """UTF-8 bytes of the validation text."""
    validation_words: int
    """Whitespace-separated words of the validation text."""
    revision: str
    """Content hash of the corpus."""
    protocol: str
    """Protocol id of every score below."""
    floors: dict[str, np.ndarray]
    """Per floor, in the order of FLOORS, the nats of each block of the validation split, shape [N_BLOCKS]."""

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> GridData:
        """Take over what `measure_baselines` of the report returned."""
        floors = {name: np.array(measured["floors"][name]) for name in FLOORS}
        return cls(**dict(measured) | {"floors": floors})

    def score(self, block_nats: np.ndarray) -> corpora.Score:
        """Turn block sums into a score with its units."""
        return corpora.Score(
            protocol=self.protocol,
            total_nats=float(np.sum(block_nats)),
            n_tokens=self.validation_tokens - 1,
            n_bytes=self.validation_bytes,
            n_words=self.validation_words,
        )


def load_tokens(corpus: str, vocab_size: int) -> tuple[corpora.Corpus, corpora.Tokens]:
    """Load and tokenise a corpus; both steps are cached on disk."""
    text = corpora.load(corpus)
    return text, corpora.tokenize(text, vocab_size)


def block_sums(nats: np.ndarray) -> np.ndarray:
    """Sum per-token nats over `N_BLOCKS` consecutive blocks: [n] -> [N_BLOCKS]."""
    return np.array([block.sum() for block in np.array_split(np.asarray(nats, np.float64), N_BLOCKS)])


def paired_gain(worse: np.ndarray, better: np.ndarray) -> tuple[float, float]:
    """Compare two predictors block by block.

    Returns:
        how many nats the second saves over the whole split, and the standard error of that.
    """
    saved = np.asarray(worse) - np.asarray(better)
    return float(saved.sum()), float(saved.std(ddof=1) * np.sqrt(len(saved)))


def second_halves(nats: np.ndarray, context: int) -> np.ndarray:
    """Pick the nats of the second half of each whole window: [n] -> [n // context * (context - context // 2)]."""
    whole = len(nats) // context * context
    return nats[:whole].reshape(-1, context)[:, context // 2 :].reshape(-1)


@torch.inference_mode()
def token_nats(
    model: torch.nn.Module,
    stream: np.ndarray,
    context: int,
    *,
    batch: int = 32,
    device: str = "cpu",
    second_half: bool = False,
) -> np.ndarray:
    """Score every token of a stream but the first, in windows of `context` tokens that do not overlap.

    Args:
        model: ids [B, T] -> logits [B, T, V].
        stream: token ids, shape [n].
        second_half: cut the first half of each whole window away and score what is left of it: the tokens that
            `second_halves` picks, with less before them.

    Returns:
        nats of stream[1:], shape [n - 1], or of those tokens.
    """
    was_training = model.training
    model.eval()
    ids = torch.as_tensor(stream.astype(np.int64), device=device)
    n_whole, cut = (len(ids) - 1) // context * context, context // 2 if second_half else 0
    starts = torch.arange(cut, n_whole, context, device=device)
    parts = [_window_nats(model, ids, group, context - cut) for group in starts.split(batch)]
    if n_whole < len(ids) - 1 and not second_half:
        parts.append(_window_nats(model, ids, ids.new_tensor([n_whole]), len(ids) - 1 - n_whole))
    model.train(was_training)
    return torch.cat(parts).double().cpu().numpy()


def _window_nats(model: torch.nn.Module, ids: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    windows = ids[starts[:, None] + torch.arange(length + 1, device=ids.device)]
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none")
