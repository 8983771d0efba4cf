"""Report 000, size inertia, retold: its parameters, cells, tables, figures and ledger."""

from labkit.reports.size_inertia.params import SizeInertia
from labkit.workflow.report import Report

REPORT = Report(
    params=SizeInertia,
    study="study:run_study",
    cost="cost:plan_study",
    explorer="explorer:inertia",
    needs="arms:reach",
    weights=lambda params: params.models,
)
