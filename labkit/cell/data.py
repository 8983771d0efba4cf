"""Revisions of the data that cells read: text and weights by name, and files that ship with the package.

A revision is told without reading the data where it is pinned, so that evidence can be judged and shown where the data
is not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_PAIRS = ("factual", "behavioural", "self", "held_out_factual", "held_out_stance")
_MOVED = {
    **{f"inertia/data/{name}.jsonl": f"dpo/data/{name}.jsonl" for name in _PAIRS},
    "inertia/data/questions.jsonl": "routing/data/questions.jsonl",
    "inertia/data/certain_and_open.jsonl": "reports/size_inertia/data/certain_and_open.jsonl",
    "inertia/data/question_facts.jsonl": "reports/size_inertia/data/question_facts.jsonl",
}
"""Files that have moved since cells named them: a name stays, as a cell's identity does."""


def corpus(name: str) -> dict[str, str]:
    """Return the revision of a text by its label, such as "corpus wiki-sample"."""
    return {f"corpus {name}": current(f"corpus {name}")}


def weights(name: str) -> dict[str, str]:
    """Return the revision of a pretrained model, its tokenizer included."""
    return {f"weights {name}": current(f"weights {name}")}


def shipped(*names: str) -> dict[str, str]:
    """Return the sha256 of files of the package, named relative to it.

    Raises:
        FileNotFoundError: a file is not there.
    """
    return {f"file {name}": current(f"file {name}") for name in names}


def current(label: str) -> str:
    """Return the present revision of what a label names.

    Raises:
        MissingData: it can be told only from data that is neither here nor to be fetched.
        ValueError: no such label.
    """
    kind, _, name = label.partition(" ")
    if kind == "file":
        return hashlib.sha256((_PACKAGE / _MOVED.get(name, name)).read_bytes()).hexdigest()
    if kind == "corpus":
        from labkit.corpora.revisions import revision
    elif kind == "weights":
        from labkit.models.revisions import revision
    else:
        raise ValueError(f"no data is labelled {label!r}")
    return revision(name)
