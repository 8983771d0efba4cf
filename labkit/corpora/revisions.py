"""Which text a name stands for, told without reading it where the revision is pinned."""

from __future__ import annotations

import functools

from .base import Corpus, MissingData

PINNED = {"wiki-sample": "ff9ce30b54bb12bd2d4aab7f378a046a39b42acee98dffd9fca35c59a1090cf1"}
"""`Corpus.revision` of each text that is the same wherever it is loaded."""


def revision(name: str) -> str:
    """Return the revision of a corpus.

    Raises:
        ValueError: unknown name.
        MissingData: it is not pinned, and the text is neither here nor to be fetched.
    """
    return PINNED.get(name) or _loaded(name)


def verified(corpus: Corpus) -> Corpus:
    """Return a corpus whose text is the pinned one, or one of which nothing is pinned.

    Raises:
        MissingData: another text came out.
    """
    pinned = PINNED.get(corpus.name, corpus.revision)
    if corpus.revision != pinned:
        raise MissingData(
            f"the text of {corpus.name} has revision {corpus.revision}, and PINNED in labkit/corpora/revisions.py says "
            f"{pinned}: the markup rules or mwparserfromhell read it otherwise. `pip install -c constraints.txt "
            "mwparserfromhell` brings the pinned parser back; if the new text is meant, write its revision into "
            "PINNED: every cell that reads the text is then stale"
        )
    return corpus


@functools.cache
def _loaded(name: str) -> str:
    from labkit.corpora import load

    return load(name).revision
