"""Every number of the reports with its verdict: filter, and look at the evidence of one."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from labkit.ledger import claims
from labkit.ledger.audit import report_of
from labkit.workflow.panel import Answer, Explorer, published

ALL = "all"
SHOWN = 12
"""Rows of the table; the sentence says how many there are."""


def ledger(hardware: str | None = None, folder: Path | None = None) -> Explorer:
    """Explore the claims of all reports on a profile.

    Args:
        hardware: profile whose published results are judged; the largest published one where not given.
        folder: a notebook's own outputs, to be explored instead of published ones.
    """
    hardware, file = published("claims", "claims.csv", hardware, folder)
    judged = pd.read_csv(file, keep_default_na=False)
    reports = [report_of(path) for path in claims.ledgers()]
    of_report = {report: {claim.id for claim in claims.load(report)} for report in reports}
    controls = {
        "report": widgets.Dropdown(options=[ALL, *reports], description="report"),
        "verdict": widgets.Dropdown(options=[ALL, *map(str, claims.Verdict)], description="verdict"),
        "words": widgets.Text(description="name contains", continuous_update=False),
        "row": widgets.BoundedIntText(value=1, min=1, max=len(judged), description="evidence of row"),
    }

    def answer(report: str, verdict: str, words: str, row: int) -> Answer:
        rows = judged[judged["claim"].str.contains(words, case=False, regex=False)]
        rows = rows if report == ALL else rows[rows["claim"].isin(of_report[report])]
        rows = rows if verdict == ALL else rows[rows["verdict"] == verdict]
        if rows.empty:
            return Answer(text=f"No claim on {hardware} is like that.")
        start = (min(row, len(rows)) - 1) // SHOWN * SHOWN
        part = rows.iloc[start : start + SHOWN][["claim", "reported", "measured", "unit", "verdict", "grade"]]
        part.index = range(start + 1, start + 1 + len(part))
        one = rows.iloc[min(row, len(rows)) - 1]
        text = (
            f"{len(rows)} claims on {hardware}, rows {start + 1} to {start + len(part)} shown.\n"
            f"{one['claim']}: reported {one['reported']} {one['unit']}, measured {one['measured'] or 'nothing'}: "
            f"{one['verdict']}. {one['why']}"
        )
        return Answer(text=text, table=part.to_html(border=0))

    return Explorer("Which numbers hold?", controls, answer)
