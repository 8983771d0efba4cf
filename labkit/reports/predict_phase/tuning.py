"""Rates, gates and read-outs chosen on the tuning seed, which no comparison uses; and how many runs that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from labkit.reports.predict_phase.arms import ARMS
from labkit.reports.predict_phase.contest import Contest
from labkit.reports.predict_phase.tasks import Run
from labkit.training.sweep import best_rate, next_rates

MAX_EXTENSIONS = 3
"""Learning rates beyond the declared ones that are tried before an optimum at the edge is taken as not found."""
DECIDING_EXTENSIONS = 6
"""The same where rates are tuned for every budget: an optimum that is not interior makes an arm void there."""


class Runner(Protocol):
    """What runs cells, or finds them on record."""

    @property
    def is_lost(self) -> bool:
        """Whether what follows from the cells cannot be told."""

    def train(self, runs: Iterable[Run]) -> None:
        """Load runs, or train them."""

    def is_known(self, run: Run) -> bool:
        """Say whether a run has been asked for before."""

    def extend(self, n: int) -> None:
        """Say that so many cells more than planned are to come."""


def tune(contest: Contest, runner: Runner) -> None:
    """Sweep every arm's learning rate on the tuning seed, and beyond an edge that is best.

    A tuned gate is chosen at the baseline's rate, before its own rate is swept. In the deciding protocol the other
    budgets are swept, too, around the best rate of the longest.
    """
    arms = contest.tuned_arms()
    gated = [arm for arm in arms if ARMS[arm].gates]
    plain = {arm: list(contest.learning_rates) for arm in arms if arm not in gated}
    found = _sweep(contest, runner, plain)
    contest.choose(found | dict.fromkeys(gated, found["adamw"]))
    if gated:
        _choose_gates(contest, runner, gated)
        found |= _sweep(contest, runner, {arm: _around(found["adamw"]) for arm in gated})
        contest.choose(found)
    shorter = [steps for steps in contest.lengths() if steps != contest.steps] if contest.deciding else []
    for steps in shorter:
        # A run that serves all budgets has been read at this one, too, at every rate tried.
        rates = {arm: list(found[arm]) if ARMS[arm].reads else _around(found[arm]) for arm in arms}
        contest.choose(_sweep(contest, runner, rates, steps), steps)
    contest.choose_read_outs()


def _choose_gates(contest: Contest, runner: Runner, gated: list[str]) -> None:
    runner.train(run for arm in gated for run in contest.gate_runs(arm).values())
    for arm in gated:
        contest.choose_gate(arm)


def _sweep(
    contest: Contest, runner: Runner, wanted: dict[str, list[float]], steps: int | None = None
) -> dict[str, dict[float, float]]:
    """Return losses of the tuning seed by arm and rate, extended until the best rate lies inside."""
    losses: dict[str, dict[float, float]] = {arm: {} for arm in wanted}
    for extension in range((DECIDING_EXTENSIONS if contest.deciding else MAX_EXTENSIONS) + 1):
        pairs = [(arm, rate) for arm, rates in wanted.items() for rate in rates]
        runs = {(arm, rate): contest.tuning_run(arm, rate, steps) for arm, rate in pairs}
        asked = [run for run in dict.fromkeys(runs.values()) if steps is None or not runner.is_known(run)]
        if extension:
            runner.extend(len(asked))
        runner.train(asked)
        for (arm, rate), run in runs.items():
            losses[arm][rate] = contest.loss(run, arm, steps or contest.steps)
        wanted = {arm: further for arm, own in losses.items() if (further := next_rates(own))}
        if not wanted or runner.is_lost:
            break
    return losses


def _around(losses: Mapping[float, float]) -> list[float]:
    """Return the best of some rates with one on either side, in their ratio; the only one where there is but one."""
    tried = sorted(losses)
    best = best_rate(losses) or tried[0]
    ratio = tried[1] / tried[0] if len(tried) > 1 else 1.0
    return list(dict.fromkeys([best / ratio, best, best * ratio]))


def n_compared(contest: Contest) -> int:
    """Return the runs of a comparison, if one run of each that serves all budgets is enough."""
    arms = {ARMS[arm].run_as or arm: arm for arm in contest.arms}.values()
    return sum(len(contest.seeds_of(arm)) * (1 if ARMS[arm].reads else len(contest.budgets)) for arm in arms)


def n_tuned(contest: Contest) -> int:
    """Return the runs of a comparison's sweeps if none needs an extension."""
    arms = contest.tuned_arms()
    shorter = len(contest.lengths()) - 1 if contest.deciding else 0
    around = min(3, len(contest.learning_rates))
    own = {ARMS[arm].run_as or arm for arm in arms}
    more = sum(around * shorter for arm in own if not ARMS[arm].reads)
    return len(own) * len(contest.learning_rates) + more + sum(len(ARMS[arm].gates) for arm in arms)
