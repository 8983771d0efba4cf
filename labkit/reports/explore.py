"""Small panels to play with what the reports' runs left on record: no training, answers while a slider moves.

from labkit.reports import explore

explore.law()            # in a notebook: controls beside a plot
print(explore.law())     # anywhere: the same answer as text
"""

from __future__ import annotations

from collections.abc import Callable

from labkit.workflow.panel import Explorer
from labkit.workflow.report import Report, reports


def _explorers() -> dict[str, Report]:
    """Return the reports that have an explorer, by the name of its function."""
    return {one.explorer.partition(":")[2]: one for one in reports().values() if one.explorer}


def __getattr__(name: str) -> Callable[..., Explorer]:
    """Import an explorer when it is asked for: some count parameters of models."""
    found = _explorers()
    if name not in found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {', '.join(found)}")
    return found[name].function(found[name].explorer)


def __dir__() -> list[str]:
    return sorted(_explorers())
