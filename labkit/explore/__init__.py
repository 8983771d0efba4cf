"""Small panels to play with what the reports' runs left on record: no training, answers while a slider moves.

from labkit import explore

explore.law()            # in a notebook: controls beside a plot
print(explore.law())     # anywhere: the same answer as text
"""

from __future__ import annotations

from labkit.lazy import exports

_HOMES = {
    "Explorer": "panel",
    "inertia": "inertia_law",
    "offload": "offload_plan",
    "phases": "phase_timeline",
    "law": "scaling_law",
    "ledger": "claim_table",
}
"""Module of each public name, imported when it is asked for."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
