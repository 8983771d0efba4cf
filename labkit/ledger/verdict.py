"""The rule: what a measurement says about a number of a report. A verdict follows from evidence and can fail.

`verdict` takes the first line that applies:

    stale                    the row's result stands on cells of another version, or on other data or parameters
    inconsistent in source   the audit (labkit.ledger.audit) contradicts the row
    input                    a setting or a count of things: nothing that could come out otherwise
    not exercised            the mechanism that the row is about acted fewer than LEAST_ACTS times
    reproduced               the whole 95 % interval lies inside the reported value ± tolerance
    contradicted             the interval and the reported value ± tolerance have no number in common
    undecided                neither; the reason says how many times too wide the interval is, how many times the
                             repetitions would decide, and how long they take where that was measured
    out of reach             a result is too weak, and the run says what a strong one would cost
    audited only             the row follows from the report's other rows
    out of reach             there is no result, and the run says what one would cost
    not attempted            none of this; a result too weak to decide is still shown

Without an interval there is no verdict, except on what a repetition cannot change: a count, a property, a limit that
the kernel held a run to. A result is too weak if the run was a smoke or custom one (whatever it shows), or if the row
demands the report's own scale and the run was reduced. Smoke results therefore never show as reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labkit.base.scale import Scale
from labkit.ledger.audit import Check, Claim, Finding
from labkit.ledger.formula import Interval
from labkit.stats import LEAST_ACTS


class Verdict(StrEnum):
    """What can be said about a number."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_EXERCISED = "not exercised"
    OUT_OF_REACH = "out of reach"
    INCONSISTENT = "inconsistent in source"
    AUDITED = "audited only"
    NOT_ATTEMPTED = "not attempted"
    STALE = "stale"
    INPUT = "input"


DECIDED = (Verdict.REPRODUCED, Verdict.CONTRADICTED, Verdict.INCONSISTENT)
"""Verdicts that answer the question whether a number holds."""


class Grade(StrEnum):
    """How strong the evidence is, weakest first."""

    TEXT = "recomputed from the text"
    PROPERTY = "property"
    SMOKE = "smoke"
    REDUCED = "reduced scale"
    STATED = "stated scale"


_Ends = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Result(_Entry):
    """One measured number: a value or a range [low, high], with its 95 % interval if there is one."""

    value: float | _Ends
    ci: _Ends | None = None
    unit: str = ""
    n_seeds: int = 1
    """Independent repetitions behind it: seeds, or rounds of a timing."""
    exact: bool = False
    """Whether no repetition could change it: a count, or a limit that was enforced."""
    acted: int | None = None
    """How often the mechanism that it is about acted; None where there is nothing to count."""
    seconds: float | None = None
    """What its repetitions took together, every arm of them; None where that was not measured."""
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
    claim: Claim, evidence: Evidence | None, findings: Sequence[Finding], scale: Scale | None, stale: Sequence[str] = ()
) -> Judgement:
    """Derive the verdict on one row; the order is the table in the module's docstring.

    Args:
        claim: the row.
        evidence: what the run says about it, None if nothing.
        findings: of the report's audit.
        scale: how much of the report's experiment the run held, None without a run.
        stale: why the run no longer stands; nothing if it does.
    """
    found = next((finding for finding in findings if finding.claim == claim.id), None)
    if evidence and stale:
        grade = evidence.grade if evidence.result else None
        return Judgement(Verdict.STALE, grade, f"{'; '.join(stale)}; run the report again")
    if found and found.kind == "contradiction":
        return Judgement(Verdict.INCONSISTENT, Grade.TEXT, found.why)
    weak = lack(evidence, scale) if evidence and evidence.result else ""
    if evidence and evidence.result and not weak:
        measured = _compare(claim, evidence, evidence.result)
        return _as_input(claim, measured) if _is_input(claim) else measured
    if _is_input(claim):
        return Judgement(Verdict.INPUT, evidence and evidence.grade, _INPUTS[claim.kind])
    return _undone(claim, evidence, found, weak)


_INPUTS = {"setting": "an input, not an outcome", "count": "counts things in the source: there is nothing to run"}


def _is_input(claim: Claim) -> bool:
    return claim.kind in _INPUTS


def _as_input(claim: Claim, measured: Judgement) -> Judgement:
    """An input that we arrive at as well is no success; one that we do not is told."""
    if measured.verdict is Verdict.CONTRADICTED:
        return measured
    return Judgement(Verdict.INPUT, measured.grade, f"{_INPUTS[claim.kind]}; {measured.why}")


def _undone(claim: Claim, evidence: Evidence | None, found: Finding | None, weak: str) -> Judgement:
    """Judge a row that no measurement decides."""
    cost = evidence.out_of_reach if evidence else None
    if evidence and evidence.result and cost:
        return Judgement(Verdict.OUT_OF_REACH, evidence.grade, f"{cost}; measured {weak}")
    if found:
        also = f"; measured {weak}" if weak else ""
        return Judgement(Verdict.AUDITED, Grade.TEXT, f"{found.kind}: {found.why}{also}")
    if cost:
        return Judgement(Verdict.OUT_OF_REACH, None, str(cost))
    return Judgement(
        Verdict.NOT_ATTEMPTED, evidence and evidence.grade, f"measured {weak}" if weak else _nothing(claim)
    )


def _nothing(claim: Claim) -> str:
    if claim.checks:
        return f"no result {' or '.join(check.key for check in claim.checks)} from a profile that counts"
    return "no run measures it"


def lack(evidence: Evidence, scale: Scale | None) -> str:
    """Say why a run is too weak to decide a row, whatever it measured; empty if it is not."""
    if scale not in (Scale.REDUCED, Scale.STATED):
        return f"in a {scale} run, which decides nothing"
    if evidence.check.grade == "stated" and scale is not Scale.STATED:
        return "at reduced scale, and the number is about the report's own"
    return ""


def _compare(claim: Claim, evidence: Evidence, result: Result) -> Judgement:
    """Hold a strong result against the row."""
    reported, measured = claim.tolerated(), result.interval()
    kind, why = Verdict.UNDECIDED, ""
    if result.acted is not None and result.acted < LEAST_ACTS:
        kind, why = Verdict.NOT_EXERCISED, f"it acted {result.acted} times, and says something from {LEAST_ACTS} on"
    elif result.ci is None and not (result.exact or evidence.check.grade == "property"):
        why = f"{measured} has no interval, so that nothing tells how far another run would lie from it"
    elif not measured.meets(reported):
        kind, why = Verdict.CONTRADICTED, f"{measured} lies outside {reported}"
    elif evidence.unresolved:
        why = f"{' and '.join(evidence.unresolved)} cannot be told from 0, so that any difference would do"
    elif measured.inside(reported):
        kind, why = Verdict.REPRODUCED, f"{measured} lies inside {reported}"
    else:
        why = f"{measured} reaches into {reported} and beyond: {_too_wide(result, reported)}"
    told = f"; repetitions: {result.n_seeds}" if result.ci else ""
    return Judgement(kind, evidence.grade, why + told)


def times_too_wide(estimate: float, measured: Interval, reported: Interval) -> float:
    """Return how many times narrower an interval around the same estimate must be to decide; infinite if none would.

    Args:
        estimate: the number that the interval is about.
        measured: its interval, which neither lies inside the reported numbers nor outside them.
        reported: numbers that agree with the claim.
    """
    below, above = estimate - measured.low, measured.high - estimate
    if estimate > reported.high:
        return below / (estimate - reported.high)
    if estimate < reported.low:
        return above / (reported.low - estimate)
    sides = [(below, estimate - reported.low), (above, reported.high - estimate)]
    return max(_over(reach, room) for reach, room in sides)


def _over(reach: float, room: float) -> float:
    return reach / room if room > 0 else math.inf if reach > 0 else 0.0


def _too_wide(result: Result, reported: Interval) -> str:
    """Say how far a result is from deciding; an interval shrinks as the root of the repetitions."""
    times = times_too_wide(result.values().middle, result.interval(), reported)
    if math.isinf(times):
        return "the estimate lies on the edge, so that no number of repetitions decides"
    takes = "" if result.seconds is None else f", {times**2 * result.seconds / 3600:.2g} h of steps here"
    return f"{times:.2g} times too wide, about {times**2:.2g} times the repetitions would decide{takes}"
