"""Report 004, scaling grid, retold: its parameters, cells, tables, figures and ledger."""

from __future__ import annotations

from labkit.base.lazy import exports
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.workflow.report import Report

REPORT = Report(
    params=ScalingGrid,
    study="study:run_grid",
    cost="cost:plan_grid",
    explorer="explorer:law",
    texts=lambda params: [params.corpus],
)

_HOMES = {
    "conclusions": "findings",
    "control_table": "isoflop_results",
    "early_stopped_slopes": "findings",
    "exponent_choices": "findings",
    "fit_all": "findings",
    "fit_table": "findings",
    "floors_table": "findings",
    "gates_table": "findings",
    "grid_runs": "findings",
    "grid_seconds": "results",
    "isoflop_paths": "isoflop_results",
    "isoflop_table": "isoflop_results",
    "leak_table": "findings",
    "misaligned_targets": "findings",
    "out_of_reach": "prices",
    "published_parameters": "findings",
    "run_grid": "study",
    "scored_table": "findings",
    "start_table": "isoflop_results",
}
"""Module of each name that the notebook uses, imported when it is asked for: who reads parameters needs no torch."""
__all__ = ["REPORT", *_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
