"""How fast an arm is at an equal final loss: frontiers of completed schedules, and the ratio of two with its interval.

Seeds are paired: all arms of a seed start alike. A speed is the geometric mean of those of the single seeds, its
interval Student's of their logarithms: a bootstrap of so few covers too little. Where steps were priced apart in
rounds, the error of their prices is added to that of the seeds (Welch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from labkit.base.units import settled
from labkit.stats import Interval, ratio_ci

BASELINE = "adamw"
ROUND = "seconds_in_round_"
"""What the columns of a run's seconds by the prices of single rounds begin with."""
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


def reach(runs: pd.DataFrame, arm: str, *, base: str = BASELINE, level: float = 0.95) -> Reach:
    """Return how much sooner an arm than the baseline reaches the lowest loss that both reach; nan without a pair."""
    own = paired(runs, arm, base)
    if arm not in set(own["arm"]):
        return Reach(ratio=math.nan)
    ratio, bound = speed(frontier(own, arm), frontier(own, base))
    if bound or arm == base or own["seed"].nunique() < LEAST_SEEDS:
        return Reach(ratio=settled(ratio), bound=bound)
    lines, baseline = (_frontiers(_by_seed(own, name)) for name in (arm, base))
    loss = np.maximum(lines[:, -1, 1], baseline[:, -1, 1])
    if ((loss > lines[:, 0, 1]) | (loss > baseline[:, 0, 1])).any():
        return Reach(ratio=settled(ratio))
    times = _seconds_to(baseline, loss), _seconds_to(lines, loss)
    rounds = _speeds_by_round(own, arm, base)
    interval = with_prices(times[0] / times[1], rounds, level) if len(rounds) else ratio_ci(*times, level=level)
    return Reach(ratio=interval.estimate, interval=interval)


def with_prices(speeds: np.ndarray, by_round: Sequence[float], level: float = 0.95) -> Interval:
    """Return the geometric mean of the seeds' speeds with an interval that holds the error of the prices, too.

    The two are independent samples that scatter differently: seeds at mean prices, and rounds of prices at mean losses.

    Args:
        speeds: [seeds] by the mean prices.
        by_round: [rounds] the speed of all seeds together by the prices of each round.
        level: nominal coverage.
    """
    rounds = np.asarray(by_round)
    return ratio_ci(speeds, rounds / np.exp(np.log(rounds).mean()), paired=False, level=level)


def _speeds_by_round(own: pd.DataFrame, arm: str, base: str) -> np.ndarray:
    """Return the speed of all seeds together by the prices of each round, [rounds]; none where runs have their time."""
    columns = [name for name in own.columns if name.startswith(ROUND)]
    lines, baseline = (_by_round(own[own["arm"] == name], columns) for name in (arm, base))
    loss = np.maximum(lines[:, -1, 1], baseline[:, -1, 1])
    return _seconds_to(baseline, loss) / _seconds_to(lines, loss)


def _by_round(runs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return the mean frontier of an arm's seeds by the prices of each round, [rounds, budgets, 2]."""
    means = runs.groupby("steps")[[*columns, "loss"]].mean()
    seconds = means[list(columns)].to_numpy().T
    return _frontiers(np.stack([seconds, np.broadcast_to(means["loss"], seconds.shape)], axis=-1))


def paired(runs: pd.DataFrame, arm: str, base: str = BASELINE) -> pd.DataFrame:
    """Return the runs of an arm and of the baseline, of the seeds that have every budget in both.

    A seed of which a run failed is left out on both sides: means over different seeds would compare seeds.
    """
    own = runs[runs["arm"].isin([arm, base])]
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


def price_columns(seconds: Sequence[float]) -> dict[str, float]:
    """Return a run's seconds, the geometric mean of the rounds, and those of each round, as columns of a table."""
    rounds = {f"{ROUND}{i}": float(value) for i, value in enumerate(seconds)}
    return {"seconds": float(np.exp(np.mean(np.log(seconds))))} | rounds
