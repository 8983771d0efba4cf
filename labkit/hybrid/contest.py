"""A comparison of ways to train on one task: which runs tune it, which runs decide it, and what they came to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from labkit.hybrid.arms import ARMS
from labkit.hybrid.tasks import Run
from labkit.schema_predict_phase import PredictPhase
from labkit.training import sweep


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
    """Chosen peak learning rate, by arm."""
    interior: dict[str, bool] = field(default_factory=dict)
    """Whether it lies inside the learning rates tried."""

    def run(self, arm: str, rate: float, steps: int, seed: int) -> Run:
        """Return a run of this contest."""
        own = {"arm": arm, "learning_rate": rate, "steps": steps, "seed": seed}
        own |= {
            name: getattr(self, name) for name in ("task", "vocab_size", "context", "batch_size", "held_out_windows")
        }
        shared = {name: getattr(self.params, name) for name in Run.__dataclass_fields__ if name not in own}
        return Run(**own, **shared)

    def tuned_arms(self) -> list[str]:
        """Return the arms whose rate is tuned; the others take over that of one of them."""
        return list(dict.fromkeys(ARMS[arm].tuned_as or arm for arm in self.arms))

    def tuning_run(self, arm: str, rate: float) -> Run:
        """Return a run of the sweep, at the longest budget."""
        return self.run(arm, rate, self.steps, self.params.tuning_seed)

    def baseline_run(self) -> Run:
        """Return the baseline at its tuned rate and the longest budget, on the tuning seed."""
        return self.tuning_run("adamw", self.best_rate["adamw"])

    def lengths(self) -> list[int]:
        """Return the schedules' lengths in steps."""
        return [max(2, round(share * self.steps)) for share in self.budgets]

    def compared_runs(self) -> list[Run]:
        """Return the runs of the comparison: seeds outermost, so that all arms of a seed run close together."""
        pairs = itertools.product(self.seeds, self.lengths(), self.arms)
        return [self.run(arm, self.best_rate[arm], steps, seed) for seed, steps, arm in pairs]

    def loss(self, run: Run) -> float:
        """Return a run's final loss: the one it started from where it diverged, infinity where it failed."""
        found = self.results.get(run)
        return float("inf") if found is None else found["loss_nats"]

    def choose(self, losses: Mapping[str, Mapping[float, float]]) -> None:
        """Choose every arm's learning rate from the losses of the sweep.

        Where every run of a sweep failed any rate will do: the compared runs are tried at it, and listed if they fail.
        """
        for arm in self.arms:
            own = losses[ARMS[arm].tuned_as or arm]
            best = sweep.best_rate(own)
            self.best_rate[arm] = ARMS[arm].rate_factor * (min(own) if best is None else best)
            self.interior[arm] = best is not None and len(own) > 1 and not sweep.next_rates(own)

    def comparison(self) -> pd.DataFrame:
        """Return one row a run of the comparison: arm, steps, seed, seconds, loss and what it did.

        A run that diverged has the loss it started from; one that failed has no row.
        """
        return pd.DataFrame([self._row(run) for run in self.compared_runs() if run in self.results])

    def _row(self, run: Run) -> dict[str, Any]:
        row = {"arm": run.arm, "steps": run.steps, "seed": run.seed, "rate": run.learning_rate}
        result = self.results[run]
        made = sum(bool(jump["accepted"]) for jump in result["jumps"])
        kept = ("seconds", "real_steps", "probe_forwards", "tokens", "added_bytes")
        return (
            row
            | {name: result[name] for name in kept}
            | {
                "loss": result["loss_nats"],
                "predicted_steps": result["phases"].get("predict", 0),
                "jumps": made,
                "refused": len(result["jumps"]) - made,
                "diverged": result["diverged"],
            }
        )
