"""A comparison of ways to train on one task: which runs tune it, which runs decide it, and what they came to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from labkit.reports.predict_phase import costs, speed, void
from labkit.reports.predict_phase.arms import ARMS, LEAST_JUMPS, MAIN
from labkit.reports.predict_phase.costs import CostSpec
from labkit.reports.predict_phase.params import PredictPhase
from labkit.reports.predict_phase.tasks import ADAPTED, Run
from labkit.training import sweep


class Entry(NamedTuple):
    """One arm at one budget with one seed, and the run that serves it; one run may serve several."""

    arm: str
    """Arm."""
    steps: int
    """Budget in nominal steps."""
    run: Run
    """What is trained."""


@dataclass
class Contest:
    """One task with its arms, budgets and seeds, and the runs that are there."""

    params: PredictPhase
    """What all contests share."""
    task: str
    """Model that all arms train."""
    vocab_size: int
    """Tokens of its vocabulary."""
    context: int
    """Tokens of a window."""
    batch_size: int
    """Windows of a step."""
    held_out_windows: int
    """Windows scored."""
    steps: int
    """Nominal steps of the longest schedule."""
    budgets: list[float]
    """Schedules as shares of it."""
    arms: list[str]
    """Ways to train."""
    learning_rates: list[float]
    """Peak learning rates tried for each."""
    seeds: list[int]
    """Paired seeds."""
    results: dict[Run, dict[str, Any]] = field(default_factory=dict)
    """What `train.train` returned, tuning runs and those of other contests of the study included."""
    best_rate: dict[str, float] = field(default_factory=dict)
    """Chosen peak learning rate at the longest budget, by arm."""
    interior: dict[str, bool] = field(default_factory=dict)
    """Whether it lies inside the learning rates tried."""
    by_budget: dict[tuple[str, int], tuple[float, bool]] = field(default_factory=dict)
    """The same two of every budget, by arm and steps, where rates are tuned for each."""
    read_out: dict[tuple[str, int], str] = field(default_factory=dict)
    """Chosen read-out by arm and steps, of arms that have several."""
    gates: dict[str, str] = field(default_factory=dict)
    """Arm that one with a tuned gate runs as."""
    deciding: bool = False
    """Whether it follows the deciding protocol: rates for every budget, costs of steps measured apart."""
    costs: dict[str, Any] | None = None
    """What `costs.measure_costs` returned; None where a run's own time counts."""
    floors: dict[str, float] = field(default_factory=dict)
    """Nats per token of n-gram predictors on the scored windows, where they are known."""

    def run(self, arm: str, rate: float, steps: int, seed: int) -> Run:
        """Return a run of this contest that serves an arm at a budget."""
        own = {"arm": self.runs_as(arm), "learning_rate": rate, "seed": seed}
        own |= {"steps": self.steps if ARMS[arm].reads else steps}
        own |= {
            name: getattr(self, name) for name in ("task", "vocab_size", "context", "batch_size", "held_out_windows")
        }
        shared = {name: getattr(self.params, name) for name in Run.__dataclass_fields__ if name not in own}
        return Run(**own, **shared)

    def runs_as(self, arm: str) -> str:
        """Return the arm whose runs serve an arm: itself, that which it reads, or the chosen one of its gates."""
        return ARMS[arm].run_as or self.gates.get(arm) or next(iter(ARMS[arm].gates), arm)

    def tuned_arms(self) -> list[str]:
        """Return the arms whose rate is tuned; the others take over that of one of them."""
        return list(dict.fromkeys(ARMS[arm].tuned_as or arm for arm in self.arms))

    def tuning_run(self, arm: str, rate: float, steps: int | None = None) -> Run:
        """Return a run of the sweep, at the longest budget unless another is given."""
        return self.run(arm, rate, steps or self.steps, self.params.tuning_seed)

    def baseline_run(self) -> Run:
        """Return the baseline at its tuned rate and the longest budget, on the tuning seed."""
        return self.tuning_run("adamw", self.best_rate["adamw"])

    def lengths(self) -> list[int]:
        """Return the schedules' lengths in steps."""
        return [max(2, round(share * self.steps)) for share in self.budgets]

    def rate(self, arm: str, steps: int) -> float:
        """Return the chosen peak learning rate of an arm at a budget."""
        return self.by_budget[arm, steps][0] if (arm, steps) in self.by_budget else self.best_rate[arm]

    def is_inside(self, arm: str, steps: int) -> bool:
        """Say whether it lies inside the learning rates tried."""
        return self.by_budget[arm, steps][1] if (arm, steps) in self.by_budget else self.interior[arm]

    def seeds_of(self, arm: str) -> list[int]:
        """Return the seeds an arm runs on: in the deciding protocol side arms have fewer."""
        side = self.deciding and arm not in MAIN
        return [seed for seed in self.seeds if not side or seed in self.params.side_seeds]

    def entries(self) -> list[Entry]:
        """Return what is compared: seeds outermost, so that all arms of a seed run close together."""
        triples = itertools.product(self.seeds, self.lengths(), self.arms)
        chosen = [(seed, steps, arm) for seed, steps, arm in triples if seed in self.seeds_of(arm)]
        return [Entry(arm, steps, self.run(arm, self.rate(arm, steps), steps, seed)) for seed, steps, arm in chosen]

    def compared_runs(self) -> list[Run]:
        """Return the runs of the comparison, in the order of `entries`."""
        return list(dict.fromkeys(entry.run for entry in self.entries()))

    def cost_spec(self, rounds: int) -> CostSpec:
        """Return the cell in which the steps of all arms are priced; a short task has short rounds."""
        steps = min(costs.ADAPTER_STEPS if self.task in ADAPTED else costs.STEPS, self.steps)
        run = self.run("adamw", costs.RATE, steps, self.params.tuning_seed)
        return CostSpec(run=run, arms=tuple(self.arms), rounds=rounds)

    def loss(self, run: Run, arm: str = "", steps: int = 0) -> float:
        """Return a run's final loss: the one it started from where it diverged, infinity where it failed.

        Of an arm that is read within a run, the loss of its chosen read-out, or of its best while none is chosen.
        """
        found = self.results.get(run)
        if found is None or not (arm and ARMS[arm].reads):
            return float("inf") if found is None else found["loss_nats"]
        read = found["frontier"][str(steps)]
        chosen = self.read_out.get((arm, steps))
        return read[chosen] if chosen else min(read[name] for name in ARMS[arm].reads)

    def choose(self, losses: Mapping[str, Mapping[float, float]], steps: int | None = None) -> None:
        """Choose every arm's learning rate from the losses of the sweep, at the longest budget or at another.

        Where every run of a sweep failed any rate will do: the compared runs are tried at it, and listed if they fail.
        """
        for arm in self.arms:
            own = losses[ARMS[arm].tuned_as or arm]
            best = sweep.best_rate(own)
            rate = ARMS[arm].rate_factor * (min(own) if best is None else best)
            inside = best is not None and len(own) > 1 and not sweep.next_rates(own)
            if steps is None or steps == self.steps:
                self.best_rate[arm], self.interior[arm] = rate, inside
            if steps is not None:
                self.by_budget[arm, steps] = rate, inside

    def choose_read_outs(self) -> None:
        """Choose the read-out of every arm that has several, at every budget, on the tuning seed at the chosen rate."""
        for arm in (name for name in self.arms if len(ARMS[name].reads) > 1):
            for steps in self.lengths():
                found = self.results.get(self.tuning_run(arm, self.rate(arm, steps), steps))
                read = found["frontier"][str(steps)] if found else dict.fromkeys(ARMS[arm].reads, 0.0)
                self.read_out[arm, steps] = min(ARMS[arm].reads, key=read.__getitem__)

    def gate_runs(self, arm: str) -> dict[str, Run]:
        """Return the runs that an arm's gate is chosen by: at the baseline's rate, on the tuning seed, by gate."""
        seed, rate = self.params.tuning_seed, self.best_rate["adamw"]
        return {gate: self.run(gate, rate, self.steps, seed) for gate in ARMS[arm].gates}

    def choose_gate(self, arm: str) -> None:
        """Choose the strictest gate that keeps LEAST_JUMPS jumps; where none does, the one that keeps most."""
        kept = {gate: _n_kept(self.results.get(run)) for gate, run in self.gate_runs(arm).items()}
        enough = [gate for gate, n in kept.items() if n >= LEAST_JUMPS]
        self.gates[arm] = enough[0] if enough else max(kept, key=kept.__getitem__)

    def comparison(self, *, own_time: bool = False) -> pd.DataFrame:
        """Return one row an arm, budget and seed: seconds, loss and what was done.

        A run that diverged has the loss it started from; one that failed has no row. In the deciding protocol the
        seconds are what the steps cost by the prices of each round, and each row has what decides whether it is void.

        Args:
            own_time: give the seconds that runs took themselves, also where their steps were priced apart.
        """
        priced = self.costs is not None and not own_time
        return pd.DataFrame([self._row(entry, priced) for entry in self.entries() if entry.run in self.results])

    def _row(self, entry: Entry, priced: bool) -> dict[str, Any]:
        arm, steps, run = entry
        row = {"arm": arm, "steps": steps, "seed": run.seed, "rate": run.learning_rate}
        result = self.results[run]
        made = _n_kept(result)
        kept = ("seconds", "real_steps", "probe_forwards", "tokens", "added_bytes")
        return (
            row
            | {name: result[name] for name in kept}
            | {
                "loss": self.loss(run, arm, steps),
                "predicted_steps": result["phases"].get("predict", 0),
                "jumps": made,
                "refused": len(result["jumps"]) - made,
                "diverged": result["diverged"],
            }
            | (self._of_budget(steps, result) if ARMS[arm].reads else {})
            | (self._priced(entry, result) if priced else {})
        )

    def _of_budget(self, steps: int, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return a budget's part of a run that serves several."""
        part = steps / result["real_steps"]
        tokens = steps * self.batch_size * self.context
        return {"seconds": part * result["seconds"], "real_steps": steps, "tokens": tokens}

    def _priced(self, entry: Entry, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a run costs by the prices of each round, and what decides whether it is void."""
        steps = entry.steps if ARMS[entry.arm].reads else result["real_steps"]
        counts = {"step": steps, "forward": result["probe_forwards"], "jump": _n_asked(result)}
        floor = {"bigram": self.floors["bigram"]} if self.floors else {}
        inside = {void.DECIDES: self.is_inside(entry.arm, entry.steps)}
        return speed.price_columns(costs.price(self.costs, entry.arm, counts)) | inside | floor


def _n_kept(result: Mapping[str, Any] | None) -> int:
    """Count the jumps that a run kept."""
    return sum(bool(jump["accepted"]) for jump in result["jumps"]) if result else 0


def _n_asked(result: Mapping[str, Any]) -> int:
    """Count the jumps that a run tried: kept or probed and refused; one that was undone went there and back."""
    tried = sum(bool(jump["accepted"]) or "probe_before" in jump for jump in result["jumps"])
    return tried + sum(jump.get("remark", "").startswith("undone") for jump in result["jumps"])
