"""What may be said about an arm: time to an equal final loss, and which claims the intervals allow.

Every run completes its own schedule, so a loss is compared with a loss at the end of a schedule and never with a point
on the way (notes on report 003, section 3). Seeds are paired: all arms of a seed start alike. A speed is the geometric
mean of those of the single seeds, its interval Student's of their logarithms: a bootstrap of so few covers too little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from labkit.hybrid.arms import ARMS
from labkit.hybrid.config import LEADS
from labkit.stats import LEAST_ACTS, Interval, ratio_ci
from labkit.units import settled

BASELINE = "adamw"
MARGIN = 0.003
"""Relative difference in loss that counts as none: the report's 2 % is worth a run 1.2 to 1.5 times as long."""
ALPHA = 0.01
TARGET = 1.5
"""Speed the report set out for."""
LEAST_SEEDS = 3
"""Seeds below which no interval is given and nothing may be said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """How fast an arm is at the lowest final loss that it and the baseline both reach."""

    ratio: float
    """Baseline's time over the arm's; where one is better at its shortest budget than the other at its longest, the
    bound that their times give."""
    bound: str = ""
    """"at least" if the arm's shortest budget is already better, "at most" if the baseline's is, else empty."""
    interval: Interval | None = None
    """95 % interval of Student's t over the seeds; None for a bound or too few seeds."""

    def __str__(self) -> str:
        if self.bound:
            return f"{self.bound} {self.ratio:.3g}"
        return f"{self.ratio:.3g}" if self.interval is None else str(self.interval)


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


def frontier(runs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return an arm's mean seconds and mean loss at each budget, sorted by seconds, the loss made monotone.

    Args:
        runs: one row a run, with arm, steps, seed, seconds and loss.
        arm: which one.
    """
    means = runs[runs["arm"] == arm].groupby("steps")[["seconds", "loss"]].mean().sort_values("seconds")
    return means.assign(loss=means["loss"].cummin())


def loss_at(line: pd.DataFrame, seconds: float) -> float:
    """Return a frontier's loss at a time, linear in its logarithm; beyond its ends the loss of the nearest end."""
    return float(np.interp(math.log(seconds), np.log(line["seconds"]), line["loss"]))


def time_to(line: pd.DataFrame, loss: float) -> tuple[float, str]:
    """Return when a frontier reaches a loss that its longest budget reaches, and "at least" if its shortest one did.

    Raises:
        ValueError: it never reaches it.
    """
    if loss > line["loss"].iloc[0]:
        return float(line["seconds"].iloc[0]), "at least"
    if loss < line["loss"].iloc[-1]:
        raise ValueError(f"the frontier ends at {line['loss'].iloc[-1]} and never reaches {loss}")
    return float(_seconds_to(line[["seconds", "loss"]].to_numpy(), np.array(loss))), ""


def _seconds_to(lines: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return when frontiers reach a loss, log-linear in time between budgets, [...].

    Args:
        lines: [..., budgets, 2] seconds and losses that never rise.
        loss: [...] losses that the longest budgets reach; where the shortest one already does, its time is returned.
    """
    seconds, losses = np.log(lines[..., 0]), lines[..., 1]
    at = _first_at(losses, loss)
    before = _first_at(losses, _pick(losses, np.maximum(at - 1, 0)))
    high, low = _pick(losses, before), _pick(losses, at)
    share = np.where(at > 0, (high - loss) / np.where(at > 0, high - low, 1.0), 0.0)
    return np.exp((1 - share) * _pick(seconds, before) + share * _pick(seconds, at))


def _first_at(losses: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return the first budget whose loss is not above a given one; losses never rise."""
    return (losses > loss[..., None]).sum(-1)


def _pick(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, places[..., None], axis=-1)[..., 0]


def reach(runs: pd.DataFrame, arm: str, *, level: float = 0.95) -> Reach:
    """Return how much sooner an arm than the baseline reaches the lowest loss that both reach; nan without a pair."""
    own = paired(runs, arm)
    if arm not in set(own["arm"]):
        return Reach(ratio=math.nan)
    ratio, bound = speed(frontier(own, arm), frontier(own, BASELINE))
    if bound or arm == BASELINE or own["seed"].nunique() < LEAST_SEEDS:
        return Reach(ratio=settled(ratio), bound=bound)
    lines, base = (_frontiers(_by_seed(own, name)) for name in (arm, BASELINE))
    loss = np.maximum(lines[:, -1, 1], base[:, -1, 1])
    if ((loss > lines[:, 0, 1]) | (loss > base[:, 0, 1])).any():
        return Reach(ratio=settled(ratio))
    interval = ratio_ci(_seconds_to(base, loss), _seconds_to(lines, loss), level=level)
    return Reach(ratio=interval.estimate, interval=interval)


def paired(runs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return the runs of an arm and of the baseline, of the seeds that have every budget in both.

    A seed of which a run failed is left out on both sides: means over different seeds would compare seeds.
    """
    own = runs[runs["arm"].isin([arm, BASELINE])]
    n_budgets = own.groupby("arm")["steps"].nunique().sum()
    counts = own.groupby("seed").size()
    return own[own["seed"].isin(counts[counts == n_budgets].index)]


def _by_seed(runs: pd.DataFrame, arm: str) -> np.ndarray:
    """Return an arm's seconds and losses, [seeds, budgets, 2]."""
    own = runs[runs["arm"] == arm].sort_values(["seed", "steps"])
    return own[["seconds", "loss"]].to_numpy().reshape(own["seed"].nunique(), -1, 2)


def _frontiers(runs: np.ndarray) -> np.ndarray:
    """Return the frontier of each seed, sorted by seconds and the loss made monotone, [seeds, budgets, 2] as given."""
    runs = np.take_along_axis(runs, np.argsort(runs[..., 0], axis=-1)[..., None], axis=-2)
    return np.stack([runs[..., 0], np.minimum.accumulate(runs[..., 1], axis=-1)], axis=-1)


def speed(own: pd.DataFrame, base: pd.DataFrame) -> tuple[float, str]:
    """Return the baseline's time over an arm's at the lowest loss that both frontiers reach, and "" or which bound."""
    loss = max(float(line["loss"].iloc[-1]) for line in (own, base))
    (own_seconds, own_bound), (base_seconds, base_bound) = (time_to(line, loss) for line in (own, base))
    bound = own_bound or ("at most" if base_bound else "")
    return base_seconds / own_seconds, bound


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
    inner = {own.arm: own for own in found}
    return [_with_claims(own, inner) for own in found]


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


def _with_claims(own: Judgement, found: Mapping[str, Judgement]) -> Judgement:
    return Judgement(**{name: getattr(own, name) for name in own.__slots__} | {"claims": tuple(claims(own, found))})


def claims(own: Judgement, found: Mapping[str, Judgement]) -> Sequence[str]:
    """Derive what may be said about an arm from its intervals and from those of its controls.

    Args:
        own: the arm.
        found: all arms, for the inner optimizer and the controls.
    """
    said = []
    if own.acted is not None and own.acted < LEAST_ACTS:
        return [f"not exercised: {own.acted} jumps were kept"]
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


def table(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Return one row an arm, for people."""
    rows: list[dict[str, Any]] = [
        {
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
        for own in judgements
    ]
    return pd.DataFrame(rows)
