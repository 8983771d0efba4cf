"""A cell: one finished piece of work, a pure function of one frozen spec.

    @cell("scaling.train", version=1, data=lambda spec: corpora.revisions(spec.corpus), timing=("seconds",))
    def train_cell(spec: Cell) -> dict: ...

A cell's identity is its function's name and version, its spec and the revisions of the data it reads; with the numeric
environment it is the key it is stored under. Source text is in neither: `labkit evidence check` holds the code against
the version by running goldens (`labkit.workflow.lock`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from labkit.cell import environment

Json = dict[str, Any]
_NUMERIC = ("torch", "numpy")


class CellFunction:
    """A function whose results are kept; it is called like the function it wraps."""

    def __init__(
        self,
        work: Callable[..., Json],
        *,
        name: str,
        version: int,
        data: Callable[[Any], Mapping[str, str]] | None,
        packages: tuple[str, ...],
        timing: tuple[str, ...],
        timed: bool,
        labels: tuple[str, ...],
        later: tuple[str, ...] = (),
    ) -> None:
        """Wrap `work`; see `cell` for the arguments."""
        functools.update_wrapper(self, work)
        self.work, self.name, self.version = work, name, version
        self.timing, self.timed = timing, timed
        self._data, self._packages, self._labels, self._later = data, packages, labels, later

    def __call__(self, spec: Any, *args: Any, **options: Any) -> Json:
        """Do the work."""
        return self.work(spec, *args, **options)

    def __reduce__(self) -> str:
        """Pickle by name, as a function is, so that worker processes find it."""
        return self.work.__qualname__

    def __repr__(self) -> str:
        return f"cell {self.name} v{self.version}"

    def spec(self, spec: Any) -> Json:
        """Return a spec as plain JSON, without what only names it and later fields that are at their default."""
        given = plain(spec)
        unset = {field.name: field.default for field in dataclasses.fields(spec)} if self._later else {}
        absent = {name for name in self._later if given[name] == unset[name]}
        return {name: value for name, value in given.items() if name not in self._labels and name not in absent}

    def identity(self, spec: Any) -> Json:
        """Return what a result is bound to wherever it was computed: name, version, spec and data revisions.

        Raises:
            MissingData: a revision can be told only from data that is neither here nor to be fetched.
        """
        data = dict(self._data(spec)) if self._data else {}
        return {"cell": self.name, "version": self.version, "spec": self.spec(spec), "data": data}

    def environment(self, spec: Any) -> Json:
        """Return the numeric environment that a result computed now would have."""
        where = next((value for value in _values(plain(spec), "device")), "cpu")
        return environment.of((*_NUMERIC, *self._packages), where, timed=self.timed)


def cell(
    name: str,
    *,
    version: int,
    data: Callable[[Any], Mapping[str, str]] | None = None,
    packages: tuple[str, ...] = (),
    timing: tuple[str, ...] = (),
    timed: bool = False,
    labels: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
    onednn: str | None = None,
) -> Callable[[Callable[..., Json]], CellFunction]:
    """Make a function of one frozen spec a cell function.

    Args:
        name: "<library>.<work>", unique.
        version: raised whenever the same spec gives another result; that makes the function's cells stale.
        data: revisions by name of all data that a spec reads: corpora, weights, files that ship with the package.
        packages: what computes it beside torch and numpy.
        timing: names of result fields, at any depth, that no two runs share: times, memory. Goldens leave them out.
        timed: whether time is what it measures; its cells then belong to a kind of machine.
        labels: fields of the spec that only name it for people, or repeat what the data revisions say.
        later: fields added since the version began, whose default is what was done before: at it they are left out.
        onednn: the instruction set that oneDNN is kept at in any process that imports the function.
    """
    if onednn is not None:
        environment.hold_onednn(onednn)

    def wrap(work: Callable[..., Json]) -> CellFunction:
        own = {"name": name, "version": version, "data": data, "packages": packages}
        return CellFunction(work, **own, timing=timing, timed=timed, labels=labels, later=later)

    return wrap


def plain(spec: Any) -> Json:
    """Return a dataclass, or a mapping, as what JSON gives back: lists for tuples."""
    values = dataclasses.asdict(spec) if dataclasses.is_dataclass(spec) else dict(spec)
    return json.loads(json.dumps(values))


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _values(value: Any, name: str) -> list[Any]:
    """List the values of a key at any depth."""
    if isinstance(value, list):
        return [found for item in value for found in _values(item, name)]
    if not isinstance(value, dict):
        return []
    own = [value[name]] if isinstance(value.get(name), str) else []
    return own + [found for item in value.values() for found in _values(item, name)]
