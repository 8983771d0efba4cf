"""Does what is published still stand? Which cells a report lacks, which are stale and why, and what they would take.

A result is stale if a cell it stands on has another version, data revision or spec now, or if other versions of the
packages that computed it are installed. The instruction set and the machine are provenance: another machine's evidence
is evidence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.base import paths
from labkit.base.modes import RENDER
from labkit.cell import Json, data, environment
from labkit.workflow import goldens, reach
from labkit.workflow.cells import Cells, MissingCells, store_of
from labkit.workflow.report import reports
from labkit.workflow.schema import Layer, Params
from labkit.workflow.store import ARCHIVE, Record, write_archive


def summary(records: Iterable[Record]) -> Json:
    """Say what results stand on, for results.json: functions with their versions and numbers, data, packages."""
    versions: dict[str, int] = {}
    n_cells: Counter[str] = Counter()
    revisions: dict[str, str] = {}
    packages: dict[str, str | None] = {}
    for record in records:
        name = record.identity["cell"]
        versions[name] = record.identity["version"]
        n_cells[name] += 1
        revisions |= record.identity["data"]
        packages |= record.environment["packages"]
    cells = {name: {"version": version, "cells": n_cells[name]} for name, version in sorted(versions.items())}
    return {"functions": cells, "data": dict(sorted(revisions.items())), "packages": dict(sorted(packages.items()))}


def why_stale(evidence: Mapping[str, Any], made_with: Mapping[str, Any], resolved: Params) -> list[str]:
    """Say why results on record no longer stand; an empty list if they do.

    Args:
        evidence: the `summary` that they were recorded with.
        made_with: the parameters that they were recorded with.
        resolved: the present ones.
    """
    declared = reach.declared()
    # A parameter that is no longer asked for decides nothing; what it decided has a version.
    reasons = _changed("parameter", made_with, resolved.model_dump(), only="new")
    versions = {name: one["version"] for name, one in evidence["functions"].items()}
    reasons += _changed("version of", versions, {name: one.version for name, one in declared.items()}, only="old")
    reasons += _changed("data", evidence["data"], {label: _revision(label) for label in evidence["data"]})
    return reasons + _changed("package", evidence["packages"], environment.packages(evidence["packages"]))


def other_science(made_with: Mapping[str, Any], resolved: Params) -> list[str]:
    """Name the science parameters that are others now than results on record were made with."""
    asked = resolved.model_dump()
    shared = [name for name in made_with if name in asked and resolved.layer(name) is Layer.SCIENCE]
    return _changed("parameter", {name: made_with[name] for name in shared}, {name: asked[name] for name in shared})


def _revision(label: str) -> str:
    try:
        return data.current(label)
    except (ValueError, OSError) as error:
        return f"not to be told ({error})"


def _changed(what: str, old: Mapping[str, Any], new: Mapping[str, Any], *, only: str = "") -> list[str]:
    """Name what differs; `only` keeps to the names of one side."""
    names = {"": {**old, **new}, "old": old, "new": new}[only]
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return [f"{what} {name}: {_short(a)} -> {_short(b)}" for name, (a, b) in pairs.items() if a != b]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a report's evidence on a profile looks like now."""

    n_present: int = 0
    """Cells that are on record and stand."""
    missing: tuple[str, ...] = ()
    """Cells that were never computed."""
    outdated: Mapping[str, str] = field(default_factory=dict)
    """Cells on record with another version or other data, each with the reason; none of them can be shown."""
    other_packages: Mapping[str, str] = field(default_factory=dict)
    """Cells that other versions of packages computed, each with the difference; they can be shown."""
    seconds: float = 0.0
    """What the cells that have to run took when they were last computed, as far as that is on record."""

    def why_run(self) -> list[str]:
        """Say why cells have to run; an empty list if all stand."""
        said = [f"{len(self.missing)} cells are missing"] if self.missing else []
        reasons = Counter([*self.outdated.values(), *self.other_packages.values()])
        return said + [f"{n} cells are stale ({why})" for why, n in reasons.items()]


def look(resolved: Params) -> State:
    """Walk through a report without running anything, and say which of its cells are there."""
    if not reports()[resolved.report_id()].study:
        return State()
    cells = walk(resolved)
    asked = [
        (f"{name}: {label}", cells.store.of_spec(name, identity["spec"]), identity)
        for name, identity, label in cells.missing
    ]
    others = {key: why for key, one in cells.used.items() if (why := _other_packages(one))}
    lost = [old for _, old, _ in asked if old] + [cells.used[key] for key in others]
    return State(
        n_present=len(cells.used),
        missing=tuple(label for label, old, _ in asked if old is None),
        outdated={label: _difference(old, new) for label, old, new in asked if old},
        other_packages={f"{cells.used[key].identity['cell']}: {cells.labels[key]}": why for key, why in others.items()},
        seconds=sum(one.provenance["seconds"] or 0.0 for one in lost),
    )


def _other_packages(record: Record) -> str:
    old = record.environment["packages"]
    return "; ".join(_changed("package", old, environment.packages(old)))


def functions_of(report: str) -> list[str]:
    """Return the cell functions that a report walks through: those that it holds goldens of."""
    own = f"{reports()[report].package}.goldens"
    return [name for name in reach.declared() if goldens.module_of(name) == own]


def walk(resolved: Params) -> Cells:
    """Return the cells of a report that are on record, and those that are missing, running none."""
    report = reports()[resolved.report_id()]
    with _only_recorded():
        try:
            return report.function(report.study)(resolved).cells
        except MissingCells as error:
            return error.cells


@contextmanager
def _only_recorded() -> Iterator[None]:
    before = os.environ.get(RENDER)
    os.environ[RENDER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RENDER]
        else:
            os.environ[RENDER] = before


def save(resolved: Params) -> tuple[Path, int]:
    """Pack the finished cells of a report into its committed file, also of a run that is not complete.

    Cells of other versions or data than the present ones, and cells whose code nobody signed, are left out.

    Returns:
        the file, and the number of cells in it.

    Raises:
        ValueError: there is no cell to pack, or one was computed by code that is not signed or not committed.
        DiskFull: no room; the file that was there is as it was.
    """
    from labkit.workflow import lock

    store, signed = store_of(resolved.hardware, resolved.report_id()), lock.read()
    current = [record for record in store.records() if _is_current(record)]
    for record in current:
        name, code = record.identity["cell"], record.provenance["code"]
        if code not in signed.get(name, {}).get("code", ()):
            raise ValueError(
                f"a cell of {name} was computed by code that is not signed; run `labkit evidence check` and save again"
            )
        if record.provenance["git"]["dirty"]:
            raise ValueError(
                f"a cell of {name} was computed with changes that no commit holds; commit them and compute it again"
            )
    if not current:
        raise ValueError(f"no finished cell of {resolved.report_id()} on {resolved.hardware} is here")
    path = paths.figures(resolved.hardware, resolved.report_id()) / ARCHIVE
    write_archive(path, current)
    return path, len(current)


def _is_current(record: Record) -> bool:
    one = reach.declared().get(record.identity["cell"])
    same = all(_revision(label) == revision for label, revision in record.identity["data"].items())
    return one is not None and one.version == record.identity["version"] and same


def _difference(record: Record, new: Mapping[str, Any]) -> str:
    old = record.identity
    if old["version"] != new["version"]:
        return f"version {old['version']} -> {new['version']}"
    return "; ".join(_changed("data", old["data"], new["data"])) or f"it failed: {record.failure}"
