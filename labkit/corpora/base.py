"""What every corpus is: three splits of documents, an id of the text, and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from labkit.base.files import MissingData

__all__ = ["SPLITS", "Corpus", "MissingData", "check_split", "only_one"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents of a corpus in three disjoint splits. Build one with `Corpus.of`, which derives both ids."""

    name: str
    """Name it is loaded by."""
    train: tuple[str, ...]
    """Training documents, in a fixed order."""
    validation: tuple[str, ...]
    """Validation documents: for choosing (learning rate, early stopping, n-gram order)."""
    test: tuple[str, ...]
    """Test documents: for the last word only."""
    protocol: str
    """Id of the text: `name@` and the first 8 digits of the revision. Scores under different ids do not compare."""
    revision: str
    """SHA-256 of the three splits; the data revision recorded with every result."""
    source: str
    """Licence and origin, for people."""

    @classmethod
    def of(cls, name: str, splits: dict[str, tuple[str, ...]], source: str) -> Corpus:
        """Make a corpus from its splits, deriving revision and protocol id from the text itself."""
        content = json.dumps([list(splits[split]) for split in SPLITS], ensure_ascii=True)
        revision = hashlib.sha256(content.encode()).hexdigest()
        return cls(name=name, **splits, protocol=f"{name}@{revision[:8]}", revision=revision, source=source)

    def split(self, name: str) -> tuple[str, ...]:
        """Return the documents of a split. Raises ValueError for a name other than train, validation, test."""
        return getattr(self, check_split(name))

    def n_bytes(self, split: str) -> int:
        """Count the UTF-8 bytes of a split's text."""
        return sum(len(document.encode()) for document in self.split(split))

    def n_words(self, split: str) -> int:
        """Count the whitespace-separated words of a split's text."""
        return sum(len(document.split()) for document in self.split(split))


def check_split(name: str) -> str:
    """Return the split's name. Raises ValueError for a name other than train, validation, test."""
    if name not in SPLITS:
        raise ValueError(f"split={name!r} is not one of {', '.join(SPLITS)}")
    return name


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`, so that parallel processes build it once and the others read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield
