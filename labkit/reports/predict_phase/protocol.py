"""What may be said about an arm: time to an equal final loss, and which claims the intervals allow.

Every run completes its own schedule, so a loss is compared with a loss at the end of a schedule and never with a point
on the way (notes on report 003, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from labkit.base.units import settled
from labkit.hybrid.config import LEADS
from labkit.reports.predict_phase import void
from labkit.reports.predict_phase.arms import ARMS
from labkit.reports.predict_phase.speed import BASELINE, LEAST_SEEDS, Reach, frontier, loss_at, paired, reach
from labkit.stats import LEAST_ACTS

MARGIN = 0.003
"""Relative difference in loss that counts as none: the report's 2 % is worth a run 1.2 to 1.5 times as long."""
ALPHA = 0.01
TARGET = 1.5
"""Speed the report set out for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the runs of one arm show against the baseline."""

    arm: str
    """Its name."""
    reach: Reach
    """Speed at equal final loss."""
    loss_change: float
    """Relative change of the loss against the baseline at the baseline's time; negative is better."""
    p_value: float
    """One-sided paired t-test that the arm is better at equal time, Holm-corrected over the arms that differ; nan for
    one whose losses are another's."""
    beats_truncated: bool
    """Whether it is better than the baseline with a schedule as long as the arm's own time allows."""
    equivalent: bool
    """Whether both one-sided tests put the difference within MARGIN."""
    n_seeds: int
    """Paired seeds."""
    acted: int | None
    """Predicted jumps that were kept, over all of its runs; None for an arm that makes none."""
    same_as: str
    """Arm that ended at the same losses to the last bit: the two differ in nothing but time; empty if none did."""
    claims: tuple[str, ...]
    """What may be said, derived from the rest."""
    void: tuple[str, ...] = ()
    """Why nothing may be said, by the conditions of the deciding protocol."""


def judge(runs: pd.DataFrame) -> list[Judgement]:
    """Judge every arm but the baseline.

    Args:
        runs: one row a run, with arm, steps, seed, seconds, loss and jumps; a run that diverged has its initial loss.
            An arm without a paired seed is not judged.

    Raises:
        ValueError: no run of the baseline.
    """
    if BASELINE not in set(runs["arm"]):
        raise ValueError(f"the comparison has no run of {BASELINE}")
    arms = [arm for arm in ARMS if arm != BASELINE and arm in set(paired(runs, arm)["arm"])]
    changes = {arm: equal_time_changes(runs, arm) for arm in arms}
    same = {arm: same_losses(runs, arm, [BASELINE, *arms[: arms.index(arm)]]) for arm in arms}
    corrected = holm({arm: _p_better(changes[arm]) for arm in arms if not same[arm]})
    found = [_judge(runs, arm, changes[arm], corrected.get(arm, math.nan), same[arm]) for arm in arms]
    nothing = void.of_comparison(runs, BASELINE, {own.arm: own.reach.interval for own in found})
    found = [replace(own, void=(*nothing, *void.of_arm(runs, own.arm))) for own in found]
    inner = {own.arm: own for own in found}
    return [replace(own, claims=tuple(claims(own, inner))) for own in found]


def same_losses(runs: pd.DataFrame, arm: str, others: Sequence[str]) -> str:
    """Return the first of some arms whose runs ended at the same losses as an arm's, to the last bit; empty if none."""

    def losses(name: str) -> pd.Series:
        return runs[runs["arm"] == name].set_index(["seed", "steps"])["loss"].sort_index()

    own = losses(arm)
    return next((other for other in others if own.equals(losses(other))), "")


def n_jumps(runs: pd.DataFrame, arm: str) -> int | None:
    """Count the predicted jumps that an arm kept over all of its runs; None for an arm that makes none."""
    hybrid = ARMS[arm].hybrid
    if hybrid is None or hybrid["predictor"] in LEADS:
        return None
    return int(runs.loc[runs["arm"] == arm, "jumps"].sum())


def equal_time_changes(runs: pd.DataFrame, arm: str) -> np.ndarray:
    """Return the relative change of the loss at the baseline's time, one value for each paired seed."""
    changes = []
    for _, own in paired(runs, arm).groupby("seed"):
        base = frontier(own, BASELINE)
        there = loss_at(frontier(own, arm), float(base["seconds"].iloc[-1]))
        changes.append(there / float(base["loss"].iloc[-1]) - 1)
    return np.array(changes)


def _p_better(changes: np.ndarray) -> float:
    if len(changes) < 2 or np.ptp(changes) == 0:
        return 1.0
    return float(scipy_stats.ttest_1samp(changes, 0.0, alternative="less").pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number (Holm 1979)."""
    order = sorted(p_values, key=p_values.__getitem__)
    corrected, highest = {}, 0.0
    for i, name in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - i) * p_values[name]))
        corrected[name] = highest
    return corrected


def is_equivalent(changes: np.ndarray, margin: float = MARGIN, alpha: float = 0.05) -> bool:
    """Say whether two one-sided t-tests put the mean change within the margin."""
    if len(changes) < LEAST_SEEDS or np.ptp(changes) == 0:
        return bool(len(changes) and np.all(changes == 0))
    low = scipy_stats.ttest_1samp(changes, -margin, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(changes, margin, alternative="less").pvalue
    return bool(max(low, high) < alpha)


def _judge(runs: pd.DataFrame, arm: str, changes: np.ndarray, p_value: float, same_as: str) -> Judgement:
    both = paired(runs, arm)
    own, base = frontier(both, arm), frontier(both, BASELINE)
    truncated = loss_at(base, float(own["seconds"].iloc[-1]))
    return Judgement(
        arm=arm,
        reach=reach(runs, arm),
        loss_change=settled(changes.mean()) if len(changes) else math.nan,
        p_value=settled(p_value) if math.isfinite(p_value) else math.nan,
        beats_truncated=bool(own["loss"].iloc[-1] < truncated),
        equivalent=is_equivalent(changes),
        n_seeds=len(changes),
        acted=n_jumps(runs, arm),
        same_as=same_as,
        claims=(),
    )


def claims(own: Judgement, found: Mapping[str, Judgement]) -> Sequence[str]:
    """Derive what may be said about an arm from its intervals and from those of its controls.

    Args:
        own: the arm.
        found: all arms, for the inner optimizer and the controls.
    """
    said = [f"void: {why}" for why in own.void]
    if own.acted is not None and own.acted < LEAST_ACTS:
        return [*said, f"not exercised: {own.acted} jumps were kept"]
    if said:
        return said
    low = _low(own.reach) if own.n_seeds >= LEAST_SEEDS else 0.0
    faster = low > 1 and own.beats_truncated and own.p_value < ALPHA
    if faster:
        said.append("faster at equal loss")
    if faster and low >= TARGET:
        said.append(f"at least {TARGET:g}x at equal loss")
    if faster and _due_to_prediction(own, found):
        said.append("due to prediction")
    if own.equivalent:
        said.append(f"no loss of quality within {MARGIN:.1%} at equal time")
    return said


def _low(found: Reach) -> float:
    if found.interval is not None:
        return found.interval.low
    return found.ratio if found.bound == "at least" else 0.0


def _due_to_prediction(own: Judgement, found: Mapping[str, Judgement]) -> bool:
    """Ask whether the arm beats its own inner optimizer, and no control is faster than the baseline."""
    arm = ARMS[own.arm]
    if arm.hybrid is None or arm.control:
        return False
    inner = found.get(arm.optimizer)
    controls = [other for name, other in found.items() if ARMS[name].control]
    better = inner is None or _low(own.reach) > (
        inner.reach.interval.high if inner.reach.interval else inner.reach.ratio
    )
    return better and not any(_low(other.reach) > 1 for other in controls)


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """How the arms that replace steps or decay by extrapolation stand against the best that does not."""

    best: str
    """The fastest arm that does not predict and is no control; its own rate tuned."""
    reaches: Mapping[str, Reach]
    """Speed of each predictive arm over it."""

    def said(self, own: Judgement) -> str:
        """Say what an arm's interval decides: a gain, the bound that excludes one anybody would use, or neither."""
        found = self.reaches[own.arm].interval
        if own.void or (own.acted is not None and own.acted < LEAST_ACTS) or found is None:
            return "nothing"
        if found.low > 1:
            return f"faster than {self.best}"
        return f"a gain of {USEFUL:g}x over {self.best} is excluded" if found.high < USEFUL else "undecided"


USEFUL = 1.05
"""Speed over the best arm without prediction below which nobody would use a predictive one."""


def goal(runs: pd.DataFrame, judgements: Sequence[Judgement]) -> Goal:
    """Hold every predictive arm against the fastest of the others."""
    others = [own for own in judgements if not (ARMS[own.arm].predicts or ARMS[own.arm].control or own.void)]
    speeds = {BASELINE: 1.0} | {own.arm: own.reach.ratio for own in others if math.isfinite(own.reach.ratio)}
    best = max(speeds, key=speeds.__getitem__)
    predictive = [own.arm for own in judgements if ARMS[own.arm].predicts]
    return Goal(best=best, reaches={arm: reach(runs, arm, base=best) for arm in predictive})


def table(judgements: Sequence[Judgement], runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row an arm, for people; with the runs of the deciding protocol, predictive arms against the others."""
    against = goal(runs, judgements) if runs is not None and void.DECIDES in runs else None
    return pd.DataFrame([_shown(own) | (_against(own, against) if against else {}) for own in judgements])


def _shown(own: Judgement) -> dict[str, Any]:
    return {
        "arm": own.arm,
        "what it is": ARMS[own.arm].words,
        "jumps kept": "" if own.acted is None else own.acted,
        "speed at equal loss": str(own.reach),
        "loss at equal time, %": 100 * own.loss_change,
        "p (Holm)": own.p_value,
        "beats the truncated baseline": own.beats_truncated,
        "may be said": "; ".join([f"the losses are those of {own.same_as}"] * bool(own.same_as) + [*own.claims])
        or "nothing",
    }


def _against(own: Judgement, found: Goal) -> dict[str, str]:
    """Return what a predictive arm shows against the best of the others; blanks for these."""
    if own.arm not in found.reaches:
        return {"speed over the best without prediction": "", "decides": ""}
    return {"speed over the best without prediction": str(found.reaches[own.arm]), "decides": found.said(own)}
