"""Report 001, chunked offload, retold: its parameters, cells, tables, figures and ledger."""

from labkit.reports.chunked_offload.params import CORPUS, ChunkedOffload
from labkit.workflow.report import Report

REPORT = Report(
    params=ChunkedOffload,
    study="study:run_study",
    cost="cost:plan_study",
    explorer="explorer:offload",
    texts=lambda params: [CORPUS],
    weights=lambda params: [params.learn_model],
)
