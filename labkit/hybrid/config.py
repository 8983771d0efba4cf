"""What a hybrid training run does: when it predicts, how, and what it takes to believe a prediction."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from labkit.base.fielddocs import documented

Predictor = Literal[
    "block-trend",
    "last-update",
    "modal",
    "coasting",
    "learned",
    "frozen",
    "random",
    "noise-matched",
    "ema-nesterov",
    "outer-nesterov",
]
"""Ways to predict; `frozen` (no change), `random` (a random direction of equal norm) and `noise-matched` (of equal
noise, too) are controls."""
LEADS = ("ema-nesterov", "outer-nesterov")
"""Predictors that shift the weights of real steps and skip none."""
Gate = Literal["probe", "always", "never"]
"""Who decides on a jump: losses on fresh training batches, nobody, or nobody and it never happens."""


@documented
@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """Phases, predictor, gate and memory of a hybrid run; lengths count nominal steps, those of the schedule."""

    predictor: Predictor = "block-trend"
    """What the jump is made of."""
    warmup_steps: int = 50
    """Real steps before anything is recorded."""
    full_steps: int = 16
    """Real steps of a Full phase, which the predictor learns from."""
    predict_steps: int = 8
    """Most steps of a Predict phase: they cost no backward pass."""
    correct_steps: int = 2
    """Real steps of a Correct phase, after which the jump is judged."""
    correction_interval: int = 0
    """Predicted steps between two probes inside a Predict phase; 0 takes them in one jump."""
    confidence_threshold: float = 0.3
    """Least confidence of the predictor, in [0, 1], that starts a Predict phase."""
    max_gain: float = 0.5
    """Most predicted steps for each real step of the block before: from 1 on, a linear jump makes converged directions
    diverge."""
    max_consecutive: int = 5
    """Predict phases in a row without a Full one between."""
    gate: Gate = "probe"
    """Who decides whether a jump stays."""
    line_search: bool = False
    """Double the jump while the probe's loss falls, up to `predict_steps` (Fast Forward)."""
    most_wait: int = 8
    """Most Full phases without a question: the wait doubles with every refusal in a row, and ends with a kept jump."""
    probe_batches: int = 2
    """Fresh training batches a jump is probed on, forward only."""
    least_gain: float = 0.5
    """Share of what as many real steps would gain that a jump must show in the probe."""
    predict_until: float = 0.75
    """Share of the schedule after which no jump starts: extrapolation works against the decay of the rate."""
    advance_schedule: bool = True
    """Whether predicted steps count in the schedule; if not they come on top of it."""
    damp_momentum: bool = True
    """Shrink the optimizer's momentum after a jump by its agreement with the new gradient."""
    divergence_threshold: float = 3.0
    """Standard deviations above the forecast at which the loss after a jump undoes it."""
    strikes: int = 3
    """Undone jumps after which Predict is off for the rest of the run."""
    lead: float = 0.6
    """EMA-Nesterov: multiple of the mean step that the gradient is taken ahead by."""
    memory: float = 0.98
    """EMA-Nesterov: decay of the mean step."""
    outer_steps: int = 20
    """Outer Nesterov: real steps of an outer one."""
    outer_rate: float = 0.7
    """Outer Nesterov: rate of the outer step."""
    outer_momentum: float = 0.5
    """Outer Nesterov: momentum of the outer step."""
    history_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of recorded differences; weights themselves are kept in their own."""
    history_device: str | None = None
    """Where history and the copy for undoing lie; None leaves them beside the weights."""
    seed: int = 0
    """Of the random control and of the batches that probes draw."""

    def __post_init__(self) -> None:
        for name in ("full_steps", "predict_steps", "correct_steps", "max_consecutive", "probe_batches", "outer_steps"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_steps", "correction_interval", "strikes", "most_wait"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("confidence_threshold", "predict_until", "memory", "outer_momentum"):
            self._check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("max_gain", "divergence_threshold"):
            self._check(name, getattr(self, name) > 0, "above 0")
        hints = get_type_hints(type(self))
        for name in ("predictor", "gate", "history_dtype"):
            choices = get_args(hints[name])
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"HybridConfig: {name} is {getattr(self, name)!r}; it must be {rule}")

    @property
    def probes(self) -> bool:
        """Whether jumps are believed by losses on fresh training batches, which have to be drawn."""
        return self.gate != "always" and self.predictor not in LEADS

    def as_dict(self) -> dict[str, Any]:
        """Return every value as plain JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


REPORT = {
    "warmup_steps": 5,
    "full_steps": 10,
    "predict_steps": 5,
    "correct_steps": 5,
    "correction_interval": 2,
    "confidence_threshold": 0.3,
    "divergence_threshold": 2.5,
    "max_gain": 1.0,
    "predict_until": 1.0,
}
"""The configuration of report 003; its Correct phase always has 5 steps (src/phases.rs), and it predicts to the end."""
UPDATES = REPORT["warmup_steps"] + REPORT["full_steps"]
"""Steps that change weights in the report's run: Warmup and the one Full phase."""
MEMORY_OPTIMIZED_BATCH = 2
"""Samples of a step in its memory-optimized arm; the effective batch of 8 is a field that its step never reads."""
