"""Finished cells on disk: one JSON file each while a run is under way, one compressed file beside published figures.

    runs/<profile>/<report>/cells/<identity>-<environment>.json    git-ignored, written as each cell ends
    figures/<profile>/<report>/cells.json.xz                       committed; deterministic bytes

A record says what it is bound to (identity and environment), what came out or how the cell failed, and where it comes
from (commit, machine, seconds), which is shown and never hashed into a key. A run killed at any moment loses at most
the cells under way.
"""

from __future__ import annotations

import json
import lzma
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.base.files import write_atomically
from labkit.cell import digest

ARCHIVE = "cells.json.xz"
"""Name of the committed file."""
_FORMAT = 1
_BOUND = ("cell", "version", "spec", "data", "environment")
_KEYS = {*_BOUND, "result", "failure", "provenance"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One cell on record."""

    identity: dict[str, Any]
    """Name, version, spec and data revisions."""
    environment: dict[str, Any]
    """Packages, instruction set, and the kind of machine where time was measured."""
    result: dict[str, Any] | None
    """What came out; None for a cell that the machine or its own mathematics killed."""
    failure: str | None
    """Why it has no result."""
    provenance: dict[str, Any]
    """Commit, machine, versions, seconds, and the hash of the code that computed it."""

    @property
    def key(self) -> str:
        """The sha256 that the cell is stored under."""
        return digest(self.identity | {"environment": self.environment})

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON, with a checksum over everything in it."""
        own = self.identity | {"environment": self.environment, "provenance": self.provenance}
        own |= {"result": self.result, "failure": self.failure}
        return own | {"sha256": digest(own)}

    @classmethod
    def of(cls, document: Any) -> Record:
        """Read a record back.

        Raises:
            ValueError: it is no record, or something in it was changed.
        """
        if not isinstance(document, dict) or document.keys() != _KEYS | {"sha256"}:
            raise ValueError("it is not the record of a cell")
        own = {name: value for name, value in document.items() if name != "sha256"}
        if document["sha256"] != digest(own):
            raise ValueError("the contents do not match their checksum")
        identity = {name: own[name] for name in _BOUND if name != "environment"}
        return cls(identity=identity, **{name: own[name] for name in _KEYS - identity.keys()})


@dataclass
class Store:
    """A folder of finished cells, and the archives that are looked into as well."""

    folder: Path
    """Where new cells go."""
    archives: tuple[Path, ...] = ()
    """Committed files, read only."""
    _archived: dict[str, list[Record]] | None = field(default=None, repr=False)
    _by_spec: dict[str, Record] | None = field(default=None, repr=False)

    def find(self, identity: Mapping[str, Any]) -> list[Record]:
        """Return what is on record for an identity, whatever environment it was computed in, the folder's first."""
        name = digest(identity)
        own = [record for path in sorted(self.folder.glob(f"{name[:16]}-*.json")) if (record := self._read(path))]
        return [record for record in own if record.identity == dict(identity)] + self._index().get(name, [])

    def save(self, record: Record) -> Path:
        """Write a finished cell.

        Raises:
            DiskFull: no room.
            ValueError: a number is not finite.
        """
        path = self.folder / f"{digest(record.identity)[:16]}-{digest(record.environment)[:8]}.json"
        text = json.dumps(record.as_dict(), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(path, (text + "\n").encode())
        return path

    def records(self) -> Iterator[Record]:
        """Yield everything on record, the folder's before the archives'; a key comes once."""
        seen = set()
        own = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        for record in (*filter(None, own), *self.archived()):
            if record.key not in seen:
                seen.add(record.key)
                yield record

    def of_spec(self, cell: str, spec: Mapping[str, Any]) -> Record | None:
        """Return what is on record for a spec under any version and data, None if there is nothing."""
        if self._by_spec is None:
            self._by_spec = {_spec_digest(one.identity["cell"], one.identity["spec"]): one for one in self.records()}
        return self._by_spec.get(_spec_digest(cell, spec))

    def archived(self) -> list[Record]:
        """Return the committed records."""
        return [record for records in self._index().values() for record in records]

    def _index(self) -> dict[str, list[Record]]:
        if self._archived is None:
            self._archived = {}
            for path in self.archives:
                for record in read_archive(path):
                    self._archived.setdefault(digest(record.identity), []).append(record)
        return self._archived

    def _read(self, path: Path) -> Record | None:
        """Read a cell's file; a damaged one is set aside with a warning."""
        try:
            return Record.of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = path.with_suffix(".corrupt")
            os.replace(path, aside)
            warnings.warn(f"{path} is damaged ({error}); set aside as {aside.name}, the cell runs again", stacklevel=3)
            return None


def _spec_digest(cell: str, spec: Mapping[str, Any]) -> str:
    return digest({"cell": cell, "spec": dict(spec)})


def read_archive(path: Path) -> list[Record]:
    """Return the records of a committed file; none where there is no file.

    Raises:
        ValueError: the file is damaged; the message says how to get it back.
    """
    try:
        document = json.loads(lzma.decompress(path.read_bytes()))
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']}, this labkit reads {_FORMAT}")
        return [Record.of(item) for item in document["cells"]]
    except FileNotFoundError:
        return []
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); `git checkout {path}` brings the committed one back, cells in runs/ are safe"
        ) from None


def write_archive(path: Path, records: Iterable[Record]) -> None:
    """Write a committed file in one step: the same records give the same bytes.

    Raises:
        DiskFull: no room; the file that was there is as it was.
    """
    documents = sorted((record.as_dict() for record in records), key=lambda one: (one["cell"], one["sha256"]))
    text = json.dumps({"format": _FORMAT, "cells": documents}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_atomically(path, lzma.compress(text.encode(), preset=6))
