"""Report 003, predict phase, retold: its parameters, cells, tables, figures and ledger."""

from labkit.reports.predict_phase.params import PredictPhase
from labkit.workflow.report import Report

REPORT = Report(
    params=PredictPhase,
    study="study:run_study",
    cost="cost:plan_study",
    explorer="explorer:phases",
    texts=lambda params: [params.corpus],
    weights=lambda params: [params.finetune_task.removesuffix("-lora")] if params.finetune_steps else [],
)
