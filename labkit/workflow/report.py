"""What the framework asks of a report, and how it finds every report: a package below labkit.reports with a `REPORT`.

    REPORT = Report(params=MyReport, study="study:run_study", cost="cost:plan_study", texts=lambda p: [p.corpus])

Functions are named, not imported: a study takes seconds to import, and who reads a report's parameters runs nothing.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.workflow.schema import Params

PACKAGE = "labkit.reports"


def _none(params: Any) -> Sequence[str]:
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One report: its parameters, and where its functions are found, as `module:function` of its own package."""

    params: type[Params]
    """Model of its parameters, which names the report."""
    study: str = ""
    """Walks through its cells; empty for a report that computes nothing."""
    cost: str = ""
    """Says beforehand what a run takes; empty for a report that computes nothing."""
    explorer: str = ""
    """Returns an `Explorer` of what is on record; `labkit.reports.explore` has it under the function's name."""
    needs: str = ""
    """Looks at what only this report needs, and returns `labkit.workflow.doctor.Check`s; empty if that is nothing."""
    texts: Callable[[Any], Sequence[str]] = _none
    """Texts that a run reads, by their names in `labkit.corpora`, from its parameters."""
    weights: Callable[[Any], Sequence[str]] = _none
    """Pretrained models that a run reads, by their names in `labkit.models`, from its parameters."""

    @property
    def package(self) -> str:
        """Dotted name of its package."""
        return f"{PACKAGE}.{self.params.report_id()}"

    def function(self, named: str) -> Callable[..., Any]:
        """Import a function that one of the fields names."""
        module, _, name = named.partition(":")
        return getattr(importlib.import_module(f"{self.package}.{module}"), name)


@functools.cache
def reports() -> Mapping[str, Report]:
    """Return every report by its name.

    Raises:
        ValueError: a package and the report in it have different names.
    """
    found: dict[str, Report] = {}
    for info in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        if info.ispkg:
            report = importlib.import_module(f"{PACKAGE}.{info.name}").REPORT
            if report.params.report_id() != info.name:
                raise ValueError(
                    f"{PACKAGE}.{info.name} holds the report {report.params.report_id()!r}; give both one name"
                )
            found[info.name] = report
    return found
