"""Put every number of the reports beside what was measured, with its verdict: `labkit.ledger.verdict` derives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Column, Table
from rich.text import Text

from labkit.base import paths
from labkit.base.scale import Scale
from labkit.base.units import GB, GIB, MB, MIB
from labkit.ledger import OLD
from labkit.ledger.audit import Check, Claim, Defect, audit, read_ledger, report_of, table
from labkit.ledger.formula import Interval
from labkit.ledger.verdict import DECIDED, Evidence, Grade, OutOfReach, Result, Verdict, lack, verdict

LEDGER = Path(__file__).resolve().parents[1] / "reports"
"""Folder of the reports, each with its ledger."""
HEADLINES = ["statement", "measured", "unit", "verdict", "why", "claim"]
COLUMNS = ["claim", "reported", "measured", "unit", "verdict", "grade", "why"]
_SIZES = {"GB": GB, "GiB": GIB, "MB": MB, "MiB": MIB}
_TIMES = {"milliseconds": 1e-3, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


class Results(BaseModel):
    """The part of figures/<profile>/<report>/results.json that verdicts use."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    report: str
    profile: str
    scale: Annotated[Scale, Field(strict=False)]
    params: dict[str, Any] | None = None
    evidence: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    results: dict[str, Result]
    out_of_reach: dict[str, OutOfReach] = {}


_GRADES = {Scale.REDUCED: Grade.REDUCED, Scale.STATED: Grade.STATED}


def _evidence(claim: Claim, results: Results) -> Evidence | None:
    """Pick what a run says best about a row: a result that decides it, else any result, else a cost; then by grade."""

    def rank(one: Evidence) -> tuple[bool, bool, int]:
        decides = one.result is not None and not lack(one, results.scale)
        return decides, one.result is not None, list(Grade).index(one.grade)

    heard = [check for check in claim.checks if results.profile in (check.profiles or [results.profile])]
    answers = [_answer(claim, check, results) for check in heard]
    return max((one for one in answers if one.result or one.out_of_reach), key=rank, default=None)


def _answer(claim: Claim, check: Check, results: Results) -> Evidence:
    result = results.results.get(check.key)
    return Evidence(
        check=check,
        grade=Grade.PROPERTY if check.grade == "property" else _GRADES.get(results.scale, Grade.SMOKE),
        result=result and _in_unit(result, claim.unit, check.key),
        out_of_reach=results.out_of_reach.get(check.key),
        unresolved=tuple(key for key in check.resolved if not _told_from_zero(results.results.get(key))),
    )


def _told_from_zero(result: Result | None) -> bool:
    return result is not None and result.ci is not None and not result.interval().meets(Interval.point(0))


def _in_unit(result: Result, unit: str, key: str) -> Result:
    """Express a result in the ledger's unit."""
    if result.unit == unit:
        return result
    scales = next((s for s in (_SIZES, _TIMES) if result.unit in s and unit in s), None)
    if scales is None:
        raise ValueError(f"result {key} is in {result.unit!r}, its ledger row in {unit!r}; publish it in that unit")
    factor = scales[result.unit] / scales[unit]
    value = [x * factor for x in result.value] if isinstance(result.value, list) else result.value * factor
    return result.model_copy(update={"value": value, "ci": result.ci and [x * factor for x in result.ci], "unit": unit})


def ledgers(report: str | None = None, folder: Path = LEDGER) -> list[Path]:
    """Return the ledger of a report, or of all reports in the order of their notebooks.

    Raises:
        ValueError: the report has no ledger.
    """
    order = {name: i for i, name in enumerate(paths.reports() if paths.repository() else ())}
    own = [*folder.glob("*.yaml"), *folder.glob("*/ledger.yaml")]
    every = sorted(own, key=lambda path: (order.get(report_of(path), len(order)), report_of(path)))
    found = [path for path in every if report in (None, report_of(path))]
    if not found:
        known = ", ".join(map(report_of, every))
        raise ValueError(f"no ledger {report!r} in {folder}; there are: {known or 'none'}")
    return found


def load(report: str | None = None) -> list[Claim]:
    """Return every row of a report's ledger, or of all ledgers.

    Raises:
        ValueError: no such ledger, or an invalid one; the message names file, row and remedy.
    """
    return [claim for path in ledgers(report) for claim in read_ledger(path).claims]


def contradictions(report: str) -> pd.DataFrame:
    """Return the numbers of a report that its other numbers exclude, each with the reason.

    Raises:
        ValueError: no such ledger, or an invalid one.
    """
    found = table(audit(ledgers(report)[0]))
    return found.loc[found["kind"] == "contradiction", ["claim", "why"]].reset_index(drop=True)


def judge(
    results_dir: Path | str,
    *,
    report: str | None = None,
    stale: Mapping[str, Sequence[str]] | None = None,
    ledger_dir: Path = LEDGER,
) -> pd.DataFrame:
    """Put every number of the reports beside what was measured, with a verdict.

    Args:
        results_dir: figures/<profile>, or the folder of one report in it (recognised by its results.json); without
            results, rows are judged by the audit alone.
        report: one report; all of them if not given.
        stale: why what is on record of a report no longer stands, by report.
        ledger_dir: folder of ledgers.

    Returns:
        one row per number: claim, reported (as printed), measured, unit, verdict, grade, why.

    Raises:
        ValueError: a ledger or a results.json is invalid; the message names the file.
    """
    folder = Path(results_dir)
    alone = folder / "results.json"
    if alone.exists():
        report = read_results(alone).report
    rows: list[dict[str, str]] = []
    for ledger in ledgers(report, ledger_dir):
        file = alone if alone.exists() else folder / report_of(ledger) / "results.json"
        rows += _judge_ledger(ledger, file, (stale or {}).get(report_of(ledger), ()))
    return pd.DataFrame(rows, columns=COLUMNS)


def _judge_ledger(ledger: Path, file: Path, stale: Sequence[str]) -> list[dict[str, str]]:
    results = read_results(file) if file.exists() else None
    before_cells = f" ({OLD})" if results and results.evidence is None else ""
    findings, rows = audit(ledger), []
    for claim in read_ledger(ledger).claims:
        try:
            heard = _evidence(claim, results) if results else None
        except ValueError as error:
            raise ValueError(f"{file}, {error}") from None
        judged = verdict(claim, heard, findings, results and results.scale, stale)
        measured = str(heard.result or "") if heard else ""
        why = judged.why + (before_cells if measured else "")
        why = f"{why}. {claim.note}" if claim.note else why
        row = (claim.id, claim.printed, measured, claim.unit, judged.verdict, judged.grade or "", why)
        rows.append(dict(zip(COLUMNS, map(str, row), strict=True)))
    return rows


def read_results(file: Path) -> Results:
    """Read a results.json.

    Raises:
        ValueError: it is none; the message names the file.
    """
    try:
        return Results.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    except ValueError as error:
        problems = str(error)
    raise ValueError(f"{file}: {problems}; run the report again to replace it")


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Count the rows of `judge` per verdict; every verdict has a line, also at 0; inputs come last and are none."""
    counts = judged["verdict"].value_counts()
    return pd.DataFrame({"verdict": list(map(str, Verdict)), "claims": [int(counts.get(v, 0)) for v in Verdict]})


def headlines(judged: pd.DataFrame) -> pd.DataFrame:
    """Pick the rows of `judge` that a reader of the reports wants decided, each with its claim as a sentence.

    Returns:
        one row per headline: statement, measured, unit, verdict, why, claim.
    """
    statements = {claim.id: claim.headline for claim in load() if claim.headline}
    found = judged[judged["claim"].isin(statements)]
    return found.assign(statement=found["claim"].map(statements))[HEADLINES].reset_index(drop=True)


def decided(judged: pd.DataFrame) -> int:
    """Count the rows whose verdict says whether they hold."""
    return int(judged["verdict"].isin(list(map(str, DECIDED))).sum())


def defects(report: str | None = None) -> list[Defect]:
    """Return what is wrong in a report, or in all of them, each mistake once, however many numbers it spoils.

    Raises:
        ValueError: no such ledger, or an invalid one.
    """
    return [one for path in ledgers(report) for one in read_ledger(path).defects]


def render(judged: pd.DataFrame) -> Table:
    """Lay the rows of `judge` or `headlines` out for a terminal, which folds all but the names."""
    colours = {Verdict.REPRODUCED: "green", Verdict.CONTRADICTED: "red", Verdict.INCONSISTENT: "magenta"}
    table = Table(*(Column(name, overflow="fold", no_wrap=name == "claim") for name in judged.columns))
    place = list(judged.columns).index("verdict")
    for row in judged.itertuples(index=False):
        cells = [Text(str(cell)) for cell in row]
        cells[place].stylize(colours.get(row.verdict, "dim"))
        table.add_row(*cells)
    return table
