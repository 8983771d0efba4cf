"""Small panels to play with what the reports' runs left on record: no training, answers while a slider moves.

from labkit.reports import explore

explore.law()            # in a notebook: controls beside a plot
print(explore.law())     # anywhere: the same answer as text
"""

from __future__ import annotations

from labkit.base.lazy import exports

_HOMES = {
    "Explorer": "workflow.panel",
    "inertia": "reports.size_inertia.explorer",
    "offload": "reports.chunked_offload.explorer",
    "phases": "reports.predict_phase.explorer",
    "law": "reports.scaling_grid.explorer",
    "ledger": "reports.claims.explorer",
}
"""Module of each public name, imported when it is asked for."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES, within="labkit")
