"""Read a ledger and recompute what its report derives from its own numbers; no run and no GPU is needed.

A ledger (<report>.yaml, or ledger.yaml in its folder) holds one row, a `Claim`, for every number that a report prints.
A row with a formula says how the number follows from other rows; `audit` recomputes it over intervals
(labkit.ledger.formula), because a printed number stands for all that round to it:

    contradiction   no number that the printed inputs allow agrees with the printed result
    consistent      the printed values themselves agree to 1e-9; or, for a range or a bound, all recomputed lies in it
    rounding        anything between: the values differ, the precision of print can explain it
"""

from __future__ import annotations

import difflib
import keyword
import math
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from labkit.base import yaml12
from labkit.ledger import formula
from labkit.ledger.formula import Interval

ABOUT = 1.5
"""What "~" multiplies a printed precision by: "~4M" is 4M ± 0.75M. Less than 2, so that "~4M" does not excuse 5M."""

_NUMBER = re.compile(r"(?<![\w.])([-−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?)(?:([kMB])(?![A-Za-z]))?")
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_EXACT = ("setting", "count", "bound", "ordering")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Source(_Row):
    """Where a number stands."""

    section: str = Field(min_length=1)
    """Heading of the report, or another document with its revision."""
    wording: str = Field(min_length=1)
    """What the number is, in our own words."""


class Tolerance(_Row):
    """How far a measurement may lie from the number and still agree with it."""

    origin: Literal["printed", "stated", "seeds", "abs", "rel"]
    """printed: the precision of print. stated: a range as the source gives it, or a number ± `value` from the source.
    seeds: ± `value`, the spread over seeds. abs and rel: ± `value`, and ± `value` times the number; our own choice."""
    value: float | None = Field(None, ge=0)
    """Half-width; none for `printed` and for a stated range."""
    why: str = ""
    """Where `value` comes from; required with it."""


class Check(_Row):
    """A result that can decide the row."""

    key: str = Field(min_length=1)
    """Key in results.json."""
    grade: Literal["property", "reduced", "stated"]
    """Least evidence for a verdict. property: exact, however little is trained (a parameter count). reduced: a smaller
    scope of the report's experiment will do (a shape, such as an exponent). stated: only the report's own scope."""
    profiles: list[str] | None = None
    """Hardware profiles whose result speaks for this row; all, if not given."""
    resolved: list[str] = []
    """Results whose interval must exclude 0 first: two exponents that may both be 0 agree about nothing."""


class Claim(_Row):
    """One number of a report."""

    id: str = Field(pattern=r"^[a-z]\w*(\.[a-z]\w*)+$")
    """Dotted name, unique in the ledger; formulas use it as it is."""
    source: Source
    value: float | Annotated[list[float], Field(min_length=2, max_length=2)]
    """The number in `unit`, or a range [low, high]."""
    printed: str
    """How it stands in the source: "~256M", "100-150"."""
    unit: str = ""
    """Unit of `value`; empty for a pure number."""
    conditions: dict[str, str | float] = {}
    """What the number holds for: model, device class, epochs."""
    kind: Literal["measured", "expected", "derived", "setting", "bound", "ordering", "count"]
    """measured and expected: an outcome that the source says it saw or foresees. derived: follows from other numbers.
    setting: an input. bound: a least or most. ordering: a difference said to be 0, judged by an interval only.
    count: of things in the source. These last four are exact unless printed with "~"."""
    at: Literal["least", "most"] | None = None
    """For a bound: which one."""
    tolerance: Tolerance | None = None
    """Default: stated for a range, printed for a number."""
    formula: str | None = None
    """How the number follows from other rows; see labkit.ledger.formula."""
    where: dict[str, float] = {}
    """Constants of the formula."""
    checks: list[Check] = []
    """Results that can decide the row; the strongest one present does."""
    note: str = ""
    """What we saw, and where (file, revision)."""
    headline: str = ""
    """What the row says, as a sentence that a reader of the report wants decided; empty for the many that have none."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if any(map(keyword.iskeyword, self.id.split("."))):
            raise ValueError("a part of the id is a Python keyword, so that no formula could name it")
        printed = sorted(number for number, _ in _printed_numbers(self.printed))
        ends = self.value if isinstance(self.value, list) else [self.value]
        if len(printed) != len(ends) or not all(map(math.isclose, printed, ends)):
            raise ValueError(f"printed {self.printed!r} does not read as value {self.value}; a range is [low, high]")
        if (self.kind == "bound") != (self.at is not None):
            raise ValueError("a bound, and nothing else, says `at: least` or `at: most`")
        given = self.tolerance
        if given and given.value is None and given.origin != "printed" and (given.origin != "stated" or len(ends) == 1):
            raise ValueError(f"tolerance of origin {given.origin} needs a value")
        if given and given.value is not None and (given.origin == "printed" or not given.why):
            raise ValueError("tolerance: a value comes with a `why`, and never with origin printed")
        return self

    def as_input(self) -> Interval:
        """Return what the number stands for in a formula: a range as it is, a number with its printed precision."""
        if isinstance(self.value, list):
            return Interval(*self.value)
        margin = self._precision()
        return Interval(self.value - margin, self.value + margin)

    def tolerated(self) -> Interval:
        """Return the numbers that agree with the claim: value ± tolerance, and all beyond for a bound."""
        ends = self.value if isinstance(self.value, list) else [self.value, self.value]
        given = self.tolerance or Tolerance(origin="stated" if isinstance(self.value, list) else "printed")
        margins = [self._precision()] * 2 if given.origin == "printed" else [given.value or 0.0] * 2
        if given.origin == "rel":
            margins = [margin * abs(end) for margin, end in zip(margins, ends, strict=True)]
        low, high = ends[0] - margins[0], ends[1] + margins[1]
        return Interval(-math.inf if self.at == "most" else low, math.inf if self.at == "least" else high)

    def _precision(self) -> float:
        """Half a unit of the last printed digit, times `ABOUT` for a number with "~"; a range states its own width."""
        half = max(step for _, step in _printed_numbers(self.printed)) / 2
        if "~" in self.printed and not isinstance(self.value, list):
            return half * ABOUT
        return 0.0 if self.kind in _EXACT else half


def _printed_numbers(text: str) -> list[tuple[float, float]]:
    """Return each number of a printed text with the unit of its last digit."""
    found = []
    for digits, suffix in _NUMBER.findall(text):
        number = Decimal(digits.replace(",", "").replace("−", "-"))
        unit = Decimal(1).scaleb(int(number.as_tuple().exponent))
        found.append((float(number * _MULTIPLES[suffix]), float(unit * _MULTIPLES[suffix])))
    return found


class Defect(_Row):
    """One mistake of a report or its code, however many of its numbers it spoils."""

    id: str = Field(pattern=r"^[a-z]\w*$")
    """Name, unique in the ledger."""
    statement: str = Field(min_length=1)
    """What is wrong, in a sentence that needs no other."""
    rows: list[str] = Field(min_length=1)
    """Ids of the rows that it spoils: each contradicts the report's other numbers, its code or its records."""


class Ledger(_Row):
    """All rows of one report."""

    report: str
    """Report id; also the file's name."""
    source: str
    """What was read, with revisions."""
    claims: list[Claim]
    defects: list[Defect] = []
    """What is wrong, each mistake once."""


def report_of(path: Path) -> str:
    """Return which report a ledger is of: `<report>.yaml`, or `ledger.yaml` in the report's folder."""
    return path.parent.name if path.name == "ledger.yaml" else path.stem


def read_ledger(path: Path) -> Ledger:
    """Read and check a ledger.

    Raises:
        ValueError: not a ledger, an unknown or missing field, a duplicate id, or a formula that names no row; the
            message names file, row and remedy.
    """
    document = yaml12.read(path)
    try:
        ledger = Ledger.model_validate(document)
    except ValidationError as error:
        raise ValueError(_explain(path, document, error)) from None
    if ledger.report != report_of(path):
        raise ValueError(f"{path}: report is {ledger.report!r}; the file must be named {ledger.report}.yaml")
    repeated = [name for name, n in Counter(claim.id for claim in ledger.claims).items() if n > 1]
    if repeated:
        raise ValueError(f"{path}, row {repeated[0]}: this id stands twice; give each number its own")
    for claim in ledger.claims:
        _resolve_names(claim, {row.id for row in ledger.claims} - {claim.id}, path)
    _check_defects(ledger, path)
    return ledger


def _check_defects(ledger: Ledger, path: Path) -> None:
    known, spoilt = {claim.id for claim in ledger.claims}, Counter(row for one in ledger.defects for row in one.rows)
    names = Counter(one.id for one in ledger.defects)
    if repeated := [name for name, n in (names + spoilt).items() if n > 1]:
        raise ValueError(f"{path}, defects: {repeated[0]} stands twice; a row is counted under one defect")
    if strangers := sorted(set(spoilt) - known):
        near = difflib.get_close_matches(strangers[0], known, n=1)
        raise ValueError(f"{path}, defects: no row {strangers[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _explain(path: Path, document: Any, error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        match item["loc"]:
            case ("claims", int(i), *field) if isinstance(document["claims"][i], dict):
                place = ": ".join([f"row {document['claims'][i].get('id', i + 1)}", ".".join(map(str, field))]).rstrip(
                    ": "
                )
            case location:
                place = ".".join(map(str, location))
        lines.append(f"{path}, {place}: {item['msg']}")
    return "\n".join([*lines, "The fields of a row are described in labkit.ledger.audit.Claim."])


def _resolve_names(claim: Claim, rows: set[str], path: Path) -> None:
    try:
        missing = sorted(formula.names(claim.formula or "0") - rows - set(claim.where))
    except ValueError as error:
        raise ValueError(f"{path}, row {claim.id}: {error}") from None
    if missing:
        near = difflib.get_close_matches(missing[0], [*rows, *claim.where], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use another row's id, or set it under `where`"
        raise ValueError(f"{path}, row {claim.id}: the formula names {missing[0]!r}, which is not defined; {hint}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What recomputing one row gave."""

    claim: str
    """Id of the row."""
    kind: Literal["consistent", "rounding", "contradiction"]
    reported: Interval
    """Numbers that agree with the print."""
    recomputed: Interval
    """Numbers that the formula allows, given the print of its inputs."""
    why: str
    """The comparison in words."""


def audit(ledger_path: Path) -> list[Finding]:
    """Recompute every row that has a formula, in the ledger's order.

    Raises:
        ValueError: the ledger is invalid, or a formula cannot be evaluated; the message names file and row.
    """
    ledger = read_ledger(ledger_path)
    inputs = {claim.id: claim.as_input() for claim in ledger.claims}
    try:
        return [_recompute(claim, inputs) for claim in ledger.claims if claim.formula]
    except ValueError as error:
        raise ValueError(f"{ledger_path}, {error}") from None


def table(findings: list[Finding]) -> pd.DataFrame:
    """Lay findings out, a row each: claim, kind, reported, recomputed, why."""
    columns = ["claim", "kind", "reported", "recomputed", "why"]
    return pd.DataFrame([[str(getattr(f, name)) for name in columns] for f in findings], columns=columns)


def _recompute(claim: Claim, inputs: dict[str, Interval]) -> Finding:
    assert claim.formula is not None, "only rows with a formula are recomputed"
    values = inputs | {name: Interval.point(x) for name, x in claim.where.items()}
    try:
        box = formula.evaluate(claim.formula, values)
        point = formula.evaluate(claim.formula, {name: Interval.point(x.middle) for name, x in values.items()}).middle
    except ValueError as error:
        raise ValueError(f"row {claim.id}: {error}") from None
    reported = claim.tolerated()
    agrees = not isinstance(claim.value, list) and math.isclose(point, claim.value, rel_tol=1e-9)
    wide = isinstance(claim.value, list) or claim.kind == "bound"
    kind = "rounding" if box.meets(reported) else "contradiction"
    kind = "consistent" if agrees or (wide and box.inside(reported)) else kind
    why = f"recomputed {_with_value(point, box)}, reported {claim.printed} ({reported})"
    return Finding(claim=claim.id, kind=kind, reported=reported, recomputed=box, why=why)


def _with_value(point: float, box: Interval) -> str:
    value = formula.format_number(point)
    return value if str(box) == value else f"{value} ({box})"
