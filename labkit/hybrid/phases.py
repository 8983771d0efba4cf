"""The four phases as a machine that knows no framework: Warmup, then Full, Predict and Correct in turn.

From Full or Correct a confident predictor leads to Predict, at most `max_consecutive` times without a Full phase
between; a Predict phase that was kept leads to Correct, one that was refused to Full (report 003; src/phases.rs).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from labkit.hybrid.config import HybridConfig


class Phase(StrEnum):
    """What a step of the schedule is."""

    WARMUP = "warmup"
    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


@dataclass
class PhaseMachine:
    """Where a run stands; every method is one transition."""

    config: HybridConfig
    """Lengths of the phases."""
    total: int
    """Nominal steps of the run."""
    nominal: int = 0
    """Nominal steps done: real ones, and predicted ones where they advance the schedule."""
    phase: Phase = Phase.WARMUP
    """Phase of the next step."""
    left: int = 0
    """Steps left in it."""
    consecutive: int = 0
    """Predict phases since the last Full one."""
    strikes: int = 0
    """Jumps that were undone after they had been accepted."""
    reach: int = 0
    """Most steps of the next Predict phase; halved when one is undone."""
    refused: int = 0
    """Predict phases refused since the last kept one."""
    waiting: int = 0
    """Full phases still to come before a jump may be asked for again."""

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"a run needs at least 1 step; got {self.total}")
        self.left = self.left or self.config.warmup_steps
        self.reach = self.reach or self.config.predict_steps
        if not self.left:
            self._enter_full()

    @property
    def over(self) -> bool:
        """Whether the schedule is complete."""
        return self.nominal >= self.total

    @property
    def may_predict(self) -> bool:
        """Whether a Predict phase may follow the phase that has just ended."""
        return (
            not self.over
            and self.phase in (Phase.FULL, Phase.CORRECT)
            and self.left == 0
            and self.waiting == 0
            and self.consecutive < self.config.max_consecutive
            and self.nominal < self.config.predict_until * self.total
            and (not self.config.strikes or self.strikes < self.config.strikes)
        )

    def count_real(self) -> None:
        """Count a step with a backward pass."""
        if self.phase is Phase.PREDICT or self.left < 1:
            raise RuntimeError(f"no real step is due in phase {self.phase} with {self.left} steps left")
        self.nominal += 1
        self.left -= 1

    def horizon(self, block_steps: int) -> int:
        """Return how many steps may be predicted from a block of so many real ones."""
        cap = int(self.config.max_gain * block_steps)
        return max(0, min(self.reach, cap, self.total - self.nominal))

    def predict(self, steps: int) -> None:
        """Enter and complete a Predict phase of so many kept steps; 0 means it was refused."""
        if not steps:
            self.refused += 1
            self.waiting = min(self.config.most_wait, 2 ** (self.refused - 1) - 1)
            self._enter_full()
            return
        self.refused = 0
        self.nominal += steps if self.config.advance_schedule else 0
        self.consecutive += 1
        self.phase, self.left = Phase.CORRECT, self.config.correct_steps

    def end_phase(self) -> None:
        """Go on from a phase that has ended without a Predict phase after it."""
        self.waiting = max(0, self.waiting - 1)
        self._enter_full()

    def undo(self, nominal: int) -> None:
        """Go back to where a jump started: it is undone, the next one is half as long."""
        self.nominal = nominal
        self.strikes += 1
        self.reach = max(1, self.reach // 2)
        self._enter_full()

    def _enter_full(self) -> None:
        self.phase, self.left, self.consecutive = Phase.FULL, self.config.full_steps, 0

    def state(self) -> dict[str, Any]:
        """Return where it stands, as plain JSON."""
        kept = asdict(self)
        return {
            name: kept[name] for name in ("nominal", "left", "consecutive", "strikes", "reach", "refused", "waiting")
        } | {"phase": str(self.phase)}

    @classmethod
    def restored(cls, config: HybridConfig, total: int, state: dict[str, Any]) -> Self:
        """Return a machine that stands where `state` was taken."""
        machine = cls(config, total)
        for name, value in state.items():
            setattr(machine, name, Phase(value) if name == "phase" else value)
        return machine
