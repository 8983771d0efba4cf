"""Judge what was measured against what the reports say: a verdict is derived from results, never typed.

`verdict` takes the first line that applies:

    stale                    the row's result stands on cells of another version, or on other data or parameters
    inconsistent in source   the audit (labkit.audit) contradicts the row
    reproduced               a result is strong enough, and it or its interval meets the reported value ± tolerance
    not reproduced           a result is strong enough, and it does not
    out of reach             a result is too weak, and the run says what a strong one would cost
    audited only             the row follows from the report's other rows
    out of reach             there is no result, and the run says what one would cost
    not attempted            none of this; a result too weak to decide is still shown

A result is too weak if the run was a smoke or custom one (whatever it shows), if the row demands the report's own scale
and the run was reduced, or if an ordering has no interval or rests on exponents that are not told from 0. Smoke results
therefore never show as reproduced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.table import Column, Table
from rich.text import Text

from labkit import params, paths
from labkit.audit import Check, Claim, Finding, audit, read_ledger
from labkit.formula import Interval
from labkit.schema import Scale
from labkit.units import GB, GIB, MB, MIB
from labkit.workflow import evidence

LEDGER = Path(__file__).resolve().parent / "ledger"
COLUMNS = ["claim", "reported", "measured", "unit", "verdict", "grade", "why"]
_SIZES = {"GB": GB, "GiB": GIB, "MB": MB, "MiB": MIB}
_TIMES = {"milliseconds": 1e-3, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


class Verdict(StrEnum):
    """What can be said about a number."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    OUT_OF_REACH = "out of reach"
    INCONSISTENT = "inconsistent in source"
    AUDITED = "audited only"
    NOT_ATTEMPTED = "not attempted"
    STALE = "stale"


class Grade(StrEnum):
    """How strong the evidence is, weakest first."""

    TEXT = "recomputed from the text"
    PROPERTY = "property"
    SMOKE = "smoke"
    REDUCED = "reduced scale"
    STATED = "stated scale"


_GRADES = {Scale.REDUCED: Grade.REDUCED, Scale.STATED: Grade.STATED}

_Ends = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Result(_Entry):
    """One measured number: a value or a range [low, high], with its 95 % interval if there is one."""

    value: float | _Ends
    ci: _Ends | None = None
    unit: str = ""
    n_seeds: int = 1
    note: str = ""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        _ = self.interval(), self.values()
        return self

    def values(self) -> Interval:
        """Return the value as an interval."""
        return Interval(*self.value) if isinstance(self.value, list) else Interval.point(self.value)

    def interval(self) -> Interval:
        """Return what is compared with the claim: the 95 % interval if there is one, else the value."""
        return Interval(*self.ci) if self.ci else self.values()

    def __str__(self) -> str:
        return f"{self.values()} [{self.interval()}]" if self.ci else str(self.values())


class OutOfReach(_Entry):
    """A number the profile cannot measure, and what it would take."""

    why: str
    seconds: float | None = None
    gib: float | None = None

    def __str__(self) -> str:
        needs = [f"{self.seconds / 3600:.3g} h"] if self.seconds is not None else []
        needs += [f"{self.gib:.3g} GiB"] if self.gib is not None else []
        return f"{self.why}; needs {', '.join(needs)}" if needs else self.why


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a run has to say about one row."""

    check: Check
    """The check of the row that it answers."""
    grade: Grade
    """Its strength."""
    result: Result | None
    """The measurement, in the row's unit."""
    out_of_reach: OutOfReach | None
    """The cost of one that would be strong enough."""
    unresolved: tuple[str, ...] = ()
    """Results that the row needs told from 0, and are not."""


class Judgement(NamedTuple):
    """A verdict, the evidence it stands on (None without any) and the reason in words."""

    verdict: Verdict
    grade: Grade | None
    why: str


def verdict(
    claim: Claim, result: Evidence | None, findings: Sequence[Finding], scale: Scale | None, stale: Sequence[str] = ()
) -> Judgement:
    """Derive the verdict on one row; the order is the table in the module's docstring.

    Args:
        claim: the row.
        result: what the run says about it, None if nothing.
        findings: of the report's audit.
        scale: how much of the report's experiment the run held, None without a run.
        stale: why the run no longer stands; nothing if it does.
    """
    found = next((finding for finding in findings if finding.claim == claim.id), None)
    if result and stale:
        grade = result.grade if result.result else None
        return Judgement(Verdict.STALE, grade, f"{'; '.join(stale)}; run the report again")
    if found and found.kind == "contradiction":
        return Judgement(Verdict.INCONSISTENT, Grade.TEXT, found.why)
    measured, cost = (result.result, result.out_of_reach) if result else (None, None)
    lack = _lack(claim, result, measured, scale) if result and measured else ""
    if result and measured and not lack:
        return _compare(claim, result.grade, measured)
    if measured and cost:
        return Judgement(Verdict.OUT_OF_REACH, result.grade, f"{cost}; measured {lack}")
    if found:
        also = f"; measured {lack}" if lack else ""
        return Judgement(Verdict.AUDITED, Grade.TEXT, f"{found.kind}: {found.why}{also}")
    if cost:
        return Judgement(Verdict.OUT_OF_REACH, None, str(cost))
    return Judgement(Verdict.NOT_ATTEMPTED, result and result.grade, f"measured {lack}" if lack else _nothing(claim))


def _compare(claim: Claim, grade: Grade, result: Result) -> Judgement:
    reported, measured = claim.tolerated(), result.interval()
    agrees = measured.meets(reported)
    why = f"{measured} {'meets' if agrees else 'misses'} {reported}; seeds: {result.n_seeds}"
    return Judgement(Verdict.REPRODUCED if agrees else Verdict.NOT_REPRODUCED, grade, why)


def _lack(claim: Claim, evidence: Evidence, result: Result, scale: Scale | None) -> str:
    """Say why a result cannot decide a row; empty if it can."""
    if scale not in (Scale.REDUCED, Scale.STATED):
        return f"in a {scale} run, which decides nothing"
    if evidence.check.grade == "stated" and scale is not Scale.STATED:
        return "at reduced scale, and the number is about the report's own"
    if claim.kind == "ordering" and result.ci is None:
        return "without an interval, so that no difference can be told from 0"
    if evidence.unresolved:
        return f"while {' and '.join(evidence.unresolved)} cannot be told from 0, so that any difference would do"
    return ""


def _nothing(claim: Claim) -> str:
    if claim.checks:
        return f"no result {' or '.join(check.key for check in claim.checks)} from a profile that counts"
    reasons = {"setting": "an input, not an outcome", "count": "counts things in the source: there is nothing to run"}
    return reasons.get(claim.kind, "no run measures it")


def _evidence(claim: Claim, results: Results) -> Evidence | None:
    """Pick what a run says best about a row: a result that decides it, else any result, else a cost; then by grade."""

    def rank(one: Evidence) -> tuple[bool, bool, int]:
        decides = one.result is not None and not _lack(claim, one, one.result, results.scale)
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
    """Return the ledger of a report, or of all reports.

    Raises:
        ValueError: the report has no ledger.
    """
    every = sorted(folder.glob("*.yaml"))
    found = [path for path in every if report in (None, path.stem)]
    if not found:
        known = ", ".join(path.stem for path in every)
        raise ValueError(f"no ledger {report!r} in {folder}; there are: {known or 'none'}")
    return found


def load(report: str | None = None) -> list[Claim]:
    """Return every row of a report's ledger, or of all ledgers.

    Raises:
        ValueError: no such ledger, or an invalid one; the message names file, row and remedy.
    """
    return [claim for path in ledgers(report) for claim in read_ledger(path).claims]


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
        report = _read_results(alone).report
    rows: list[dict[str, str]] = []
    for ledger in ledgers(report, ledger_dir):
        file = alone if alone.exists() else folder / ledger.stem / "results.json"
        rows += _judge_ledger(ledger, file, (stale or {}).get(ledger.stem, ()))
    return pd.DataFrame(rows, columns=COLUMNS)


def judge_profile(hardware: str, report: str | None = None) -> pd.DataFrame:
    """Judge what is published for a profile, against versions, data and parameters as they are now; see `judge`."""
    folder = paths.output_root() / "figures" / hardware
    files = {path.stem: folder / path.stem / "results.json" for path in ledgers(report)}
    stale = {name: why_stale(name, hardware, _read_results(file)) for name, file in files.items() if file.exists()}
    return judge(folder, report=report, stale=stale)


def why_stale(report: str, hardware: str, results: Results) -> list[str]:
    """Say why published results no longer stand. Of those recorded before cells were kept only parameters can tell."""
    resolved = params.resolve(report, hardware)
    made_with = results.params or (results.provenance or {}).get("params", {})
    return evidence.why_stale(results.evidence or evidence.NONE, made_with, resolved)


def _judge_ledger(ledger: Path, file: Path, stale: Sequence[str]) -> list[dict[str, str]]:
    results = _read_results(file) if file.exists() else None
    before_cells = f" ({evidence.OLD})" if results and results.evidence is None else ""
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


def _read_results(file: Path) -> Results:
    try:
        return Results.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    except ValueError as error:
        problems = str(error)
    raise ValueError(f"{file}: {problems}; run the report again to replace it")


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Count the rows of `judge` per verdict; every verdict has a line, also at 0."""
    counts = judged["verdict"].value_counts()
    return pd.DataFrame({"verdict": list(map(str, Verdict)), "claims": [int(counts.get(v, 0)) for v in Verdict]})


def render(judged: pd.DataFrame) -> Table:
    """Lay the rows of `judge` out for a terminal."""
    colours = {Verdict.REPRODUCED: "green", Verdict.NOT_REPRODUCED: "red", Verdict.INCONSISTENT: "magenta"}
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS))
    for row in judged.itertuples(index=False):
        cells = [Text(str(cell)) for cell in row]
        cells[COLUMNS.index("verdict")].stylize(colours.get(row.verdict, "dim"))
        table.add_row(*cells)
    return table
