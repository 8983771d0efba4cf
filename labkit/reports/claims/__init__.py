"""The notebook of all claims: it reads what the reports have published."""

from labkit.reports.claims.params import Claims
from labkit.workflow.report import Report

REPORT = Report(params=Claims, explorer="explorer:ledger")
