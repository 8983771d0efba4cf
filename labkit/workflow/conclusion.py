"""What may be concluded, in sentences made from verdicts: another run changes them, and nobody types one.

conclusion.of(claims.judge(out_dir))        # Markdown: what holds, what does not, what is undecided and why
conclusion.lead(report, profile, out_dir)   # Markdown: the same in short, for the top of its page
conclusion.table(["cpu", "cpu-24gb"])       # Markdown: every headline with its verdict on some profiles
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from labkit.ledger import claims
from labkit.ledger.audit import Defect, report_of
from labkit.ledger.verdict import Verdict
from labkit.workflow.judged import judge_profile

HOLDS, FAILS = "Holds", "Does not hold"
GROUPS: dict[str, tuple[Verdict, ...]] = {
    HOLDS: (Verdict.REPRODUCED,),
    FAILS: (Verdict.CONTRADICTED, Verdict.INCONSISTENT),
    "Undecided here": (Verdict.UNDECIDED, Verdict.NOT_EXERCISED),
    "Agrees with the report's other numbers, and no run measures it": (Verdict.AUDITED, Verdict.INPUT),
    "Out of reach of this profile": (Verdict.OUT_OF_REACH,),
    "Not measured on this profile": (Verdict.NOT_ATTEMPTED, Verdict.STALE),
}
"""Headings by the verdicts below them, in the order in which a reader wants them."""


def group_of(verdict: str) -> str:
    """Return the heading that a verdict stands below."""
    return next(heading for heading, verdicts in GROUPS.items() if verdict in verdicts)


def of(judged: pd.DataFrame) -> str:
    """Return the headlines of judged rows as Markdown, under what may be said of each.

    Args:
        judged: what `claims.judge` returned, for one report or for all.
    """
    main = claims.headlines(judged)
    parts = []
    for heading, verdicts in GROUPS.items():
        rows = main[main["verdict"].isin(list(map(str, verdicts)))]
        if len(rows):
            parts.append("\n".join([f"**{heading}.**", "", *map(_line, rows.itertuples(index=False))]))
    return "\n\n".join([_told(main), *parts])


def lead(report: str, hardware: str, folder: Path) -> str:
    """Return the answer that a report's page opens with: how many headlines are decided, and each with its verdict.

    Args:
        report: which report; the ledger's own notebook has all headlines in a table of its own.
        hardware: the profile.
        folder: what the run publishes.
    """
    if report == "claims":
        return f"**Answer.** {answer(judge_profile(hardware))}"
    main = claims.headlines(claims.judge(folder))
    rows = [_row([one["statement"], _cell(one)]) for _, one in main.iterrows()]
    return "\n".join([f"**Answer.** {_told(main)}", "", _row(["claim", "what came out"]), _row(["---"] * 2), *rows])


def answer(judged: pd.DataFrame) -> str:
    """Say in a sentence how many headlines of judged rows are decided, and which way."""
    return _told(claims.headlines(judged))


def _told(main: pd.DataFrame) -> str:
    counts = main["verdict"].value_counts()
    told = ", ".join(f"{counts[name]} {name}" for name in map(str, Verdict) if name in counts)
    return f"Of {len(main)} headline claims {claims.decided(main)} are decided on this profile: {told}."


def _line(row: tuple[str, ...]) -> str:
    measured = f" Measured: {_measured(row)}." if row.measured else ""
    return f"- {row.statement}{measured} *{str(row.verdict).capitalize()}*: {row.why.rstrip('.')}."


def _measured(row: tuple[str, ...]) -> str:
    return f"{row.measured} {row.unit}".strip()


def table(profiles: Sequence[str]) -> str:
    """Return every headline as a row of a Markdown table, with verdict and measurement on each profile."""
    found = {profile: claims.headlines(judge_profile(profile)).set_index("claim") for profile in profiles}
    head = ["claim", *(f"on `{profile}`" for profile in profiles)]
    lines = [_row(head), _row(["---"] * len(head))]
    for name in next(iter(found.values())).index:
        rows = [main.loc[name] for main in found.values()]
        lines.append(_row([rows[0]["statement"], *map(_cell, rows)]))
    decided = (f"{claims.decided(main)} on `{profile}`" for profile, main in found.items())
    return "\n".join([*lines, "", f"Of {len(lines) - 2} headline claims decided: {', '.join(decided)}."])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: pd.Series) -> str:
    return f"**{row['verdict']}**" + (f": {row['measured']} {row['unit']}".rstrip() if row["measured"] else "")


def defects(report: str | None = None) -> pd.DataFrame:
    """Return what is wrong in a report, or in all of them: report, defect, how many numbers it spoils."""
    found: list[tuple[str, Defect]] = [
        (name, one) for name in map(report_of, claims.ledgers(report)) for one in claims.defects(name)
    ]
    rows = [{"report": name, "defect": one.statement, "numbers": len(one.rows)} for name, one in found]
    return pd.DataFrame(rows, columns=["report", "defect", "numbers"])


def defect_list(most: int) -> str:
    """Return the gravest defects of each report as a Markdown list, and how many there are of each."""
    every, lines = defects(), []
    for report, own in every.groupby("report", sort=False):
        lines.append(f"- {report}: {len(own)} defects spoil {own['numbers'].sum()} numbers.")
        lines += [f"  - {statement}" for statement in own["defect"].head(most)]
    return "\n".join(lines)
