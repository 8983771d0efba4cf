"""The cells of one report on one profile: load what is there, run the rest, keep each at once.

A run has one failure policy: bad input is raised; a cell that the machine or its own mathematics killed is listed with
its reason and never dropped; it is tried again by the next run.

While a published profile is rendered (LABKIT_RENDER=1) nothing runs: a cell is taken from the record whatever machine
computed it, and at the end `require` names what is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from labkit.base import paths
from labkit.base.files import DiskFull
from labkit.base.modes import rendering
from labkit.cell import CellFunction, Json
from labkit.workflow import reach
from labkit.workflow.origin import origin
from labkit.workflow.store import ARCHIVE, Record, Store, write_archive

FRESH = "LABKIT_FRESH"
"""Variable that is 1 while committed cells are left aside, so that everything is measured here."""
ANYWHERE = "LABKIT_ANYWHERE"
"""Variable that is 1 while a run goes on with cells that another processor computed, where no time is in question."""
KILLED = (RuntimeError, MemoryError, ArithmeticError, DiskFull)
"""What the machine or its mathematics does to a cell; everything else is bad input or a defect, and is raised."""


class MissingCells(ValueError):
    """A report cannot be rendered, because cells that it shows are not on record."""

    def __init__(self, message: str, cells: Cells) -> None:
        """Keep what was found and what was not."""
        super().__init__(message)
        self.cells = cells


class Progress(Protocol):
    """What is told how far the cells are; `labkit.progress.Progress` is one."""

    def advance(self, n: int = 1, message: str = "") -> None:
        """Count n cells as done."""

    def skip(self, n: int = 1, message: str = "") -> None:
        """Count n cells as found."""

    def note(self, message: str) -> None:
        """Show a remark on the cell under way."""


def store_of(hardware: str, report: str) -> Store:
    """Return the cells of a report on a profile: those of its runs here, then those committed beside its figures."""
    if os.environ.get(FRESH) == "1":
        return Store(paths.runs(hardware, report) / "cells")
    places = filter(None, (paths.output_root(), paths.repository()))
    published = dict.fromkeys(paths.figures_of(place, hardware, report) for place in places)
    return Store(paths.runs(hardware, report) / "cells", tuple(folder / ARCHIVE for folder in published))


@dataclass
class Cells:
    """The cells that one walk through a report asks for."""

    store: Store
    """Where they are kept."""
    progress: Progress | None = None
    """What is told how far they are."""
    only_recorded: bool = field(default_factory=rendering)
    """Take every cell from the record, and run none."""
    anywhere: bool = field(default_factory=lambda: os.environ.get(ANYWHERE) == "1")
    """Take a cell from the record whatever instruction set rounded it, unless its times are asked for."""
    untimed: frozenset[str] = frozenset()
    """Names of timed cell functions of which this walk takes no time."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason of each cell that has no result, by its label."""
    cached: int = 0
    """Cells that were found finished."""
    used: dict[str, Record] = field(default_factory=dict)
    """Records this walk stands on, failed ones included, by key."""
    labels: dict[str, str] = field(default_factory=dict)
    """Their labels, by key."""
    missing: list[tuple[str, Json, str]] = field(default_factory=list)
    """Cells that are not on record while nothing may run: function, identity, label."""
    unknown: int = 0
    """How many of them have no result under another version or data either: what follows from them is not known."""
    elsewhere: Counter[str] = field(default_factory=Counter)
    """Cells on record that another environment computed, so that they run again here: numbers by instruction set."""
    adopted: Counter[str] = field(default_factory=Counter)
    """Cells that another instruction set computed and that are taken all the same: numbers by instruction set."""

    @classmethod
    def of(cls, hardware: str, report: str, progress: Progress | None = None) -> Cells:
        """Return the cells of a report on a profile."""
        return cls(store_of(hardware, report), progress)

    def load(self, work: CellFunction, spec: Any, label: str) -> Json | None:
        """Return a finished cell's result, or None; a failure on record is listed while nothing may run."""
        identity = work.identity(spec)
        records = self.store.find(identity)
        if self.only_recorded:
            return self._recorded(work, identity, label, records)
        here, finished = work.environment(spec), [one for one in records if one.result is not None]
        record = next((one for one in finished if one.environment == here), None) or self._adopt(work, here, finished)
        if record is None:
            self.elsewhere.update({one.environment["instruction_set"] for one in finished})
            return None
        return self._use(record, label)

    def _adopt(self, work: CellFunction, here: Json, finished: list[Record]) -> Record | None:
        """Return a result that only another rounding tells from one of this machine, if such are asked for."""
        if not self.anywhere or (work.timed and work.name not in self.untimed):
            return None
        same = (one for one in finished if one.environment["packages"] == here["packages"])
        if (record := next(same, None)) is not None:
            self.adopted[record.environment["instruction_set"]] += 1
        return record

    def _recorded(self, work: CellFunction, identity: Json, label: str, records: list[Record]) -> Json | None:
        record = next((one for one in records if one.result is not None), records[0] if records else None)
        if record is None:
            self.missing.append((work.name, identity, label))
            # With what the same spec once gave, a sweep goes on and names what comes after it, too.
            outdated = self.store.of_spec(work.name, identity["spec"])
            self.unknown += outdated is None
            return outdated.result if outdated else None
        if record.result is None:
            self.failures[label] = str(record.failure)
        return self._use(record, label)

    def _use(self, record: Record, label: str, found: int = 1) -> Json | None:
        self.used[record.key], self.labels[record.key] = record, label
        self.cached += found
        return record.result

    def keep(self, work: CellFunction, spec: Any, label: str, result: Json, seconds: float | None = None) -> Json:
        """Store a finished cell, and return its result as it will be read again.

        Raises:
            DiskFull: no room.
            ValueError: a number is not finite.
        """
        record = self._record(work, spec, seconds, result=json.loads(json.dumps(dict(result), sort_keys=True)))
        self.store.save(record)
        self.failures.pop(label, None)
        return self._use(record, label, found=0)

    def fail(self, work: CellFunction, spec: Any, label: str, error: BaseException) -> None:
        """List a cell that has no result, and keep the reason for who renders the report."""
        self.failures[label] = f"{type(error).__name__}: {error}"
        record = self._record(work, spec, None, failure=self.failures[label])
        self._use(record, label, found=0)
        if not isinstance(error, DiskFull):
            self.store.save(record)

    def _record(self, work: CellFunction, spec: Any, seconds: float | None, **outcome: Any) -> Record:
        about = origin() | {"seconds": seconds if seconds is None else round(seconds, 3)}
        about["code"] = reach.code_hash(work.name)
        bound = {"identity": work.identity(spec), "environment": work.environment(spec)}
        return Record(**bound, **{"result": None, "failure": None} | outcome, provenance=about)

    def one(
        self, work: CellFunction, spec: Any, label: str, do: Callable[[Any], Json] | None = None, weight: int = 1
    ) -> Json | None:
        """Load a cell, or run it in this process and keep it.

        Args:
            work: the cell function.
            spec: what it works on.
            label: name of the cell for people.
            do: replaces `work` where it needs more than the spec, such as a folder for its checkpoints.
            weight: what it counts for in the progress.
        """
        if (found := self.load(work, spec, label)) is not None or self.only_recorded:
            self._skip(weight, label)
            return found
        if self.progress:
            self.progress.note(label)
        started = time.perf_counter()
        try:
            found = self.keep(work, spec, label, (do or work)(spec), time.perf_counter() - started)
        except KILLED as error:
            self.fail(work, spec, label, error)
        self._advance(weight, label, found)
        return found

    def each(
        self,
        work: CellFunction,
        labels: Mapping[Any, str],
        pool: Executor | None,
        weigh: Callable[[Any], int] = lambda spec: 1,
    ) -> Iterator[tuple[Any, Json | None, bool]]:
        """Yield each spec with its result and whether it was computed now: those found, then as the pool ends them.

        A cell without a result yields None; why stands in `failures`.
        """
        waiting: dict[Future, Any] = {}
        for spec, label in labels.items():
            found = self.load(work, spec, label)
            if found is None and not self.only_recorded:
                waiting[pool.submit(_timed, work, spec)] = spec
            else:
                self._skip(weigh(spec), label)
                yield spec, found, False
        for future in as_completed(waiting):
            spec = waiting[future]
            yield spec, self.collect(work, spec, labels[spec], future, weigh(spec)), True

    def submit(self, pool: Executor, work: CellFunction, spec: Any) -> Future:
        """Hand a cell to a pool; `collect` takes what comes back."""
        return pool.submit(_timed, work, spec)

    def collect(self, work: CellFunction, spec: Any, label: str, future: Future, weight: int = 1) -> Json | None:
        """Keep what a pool has finished, or list why there is nothing."""
        found = None
        try:
            result, seconds = future.result()
            found = self.keep(work, spec, label, result, seconds)
        except KILLED as error:
            self.fail(work, spec, label, error)
        self._advance(weight, label, found)
        return found

    def _advance(self, weight: int, label: str, found: Json | None) -> None:
        loss = found.get("loss_nats") if found else None
        if self.progress:
            self.progress.advance(weight, label if loss is None else f"{label}, loss {loss:.3f}")

    def _skip(self, weight: int, label: str) -> None:
        if self.progress:
            self.progress.skip(weight, label)

    def require(self) -> None:
        """Refuse to go on where nothing may run and something is missing.

        Raises:
            MissingCells: the message lists them.
        """
        if not self.missing:
            return
        lines = "\n".join(f"  {name}: {label}" for name, _, label in self.missing)
        raise MissingCells(f"{len(self.missing)} cells are not on record:\n{lines}", self)

    def remarks(self) -> list[str]:
        """Say what a reader of the numbers should know about where the cells came from."""
        said = [f"{self.cached} of {len(self.used)} cells were on record"] if self.used else []
        said += [f"{n} of them were computed elsewhere ({where})" for where, n in self.adopted.items()]
        said += [
            f"{n} cells on record were computed elsewhere ({where}) and run again here"
            for where, n in self.elsewhere.items()
        ]
        return said

    def pack(self, folder: Path) -> None:
        """Write the committed file of the cells that this walk used."""
        write_archive(folder / ARCHIVE, self.used.values())


def _timed(work: CellFunction, spec: Any) -> tuple[Json, float]:
    started = time.perf_counter()
    return work(spec), time.perf_counter() - started
