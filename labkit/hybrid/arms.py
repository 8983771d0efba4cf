"""The arms of the comparison: an optimizer, what predicts on top of it, and what is read out at the end.

Lengths of phases are shares of the schedule, so that an arm means the same at every budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.hybrid.config import REPORT, HybridConfig

JUMP = {"full_steps": 16, "predict_steps": 8, "correct_steps": 2, "confidence_threshold": 0.05}
"""Lengths of the gated jumps: half a block ahead at most, then two real steps (notes on report 003, candidate C2)."""

WARMUP = 0.1
"""Share of the schedule before anything is predicted: the report's 5 of 50 steps."""

SLOW = 1 / 16
"""Share of the tuned rate in the arms that show what prediction gains where the rate is far too low."""

LINE_WINDOWS = 8
"""Least windows of the line search along the last update, which asks for small differences many times."""

_LAST_UPDATE = JUMP | {
    "predictor": "last-update",
    "full_steps": 6,
    "predict_steps": 32,
    "max_gain": 100.0,
    "line_search": True,
    "advance_schedule": False,
    "correct_steps": 1,
    "damp_momentum": False,
}
"""Fast Forward: its jumps come on top of the schedule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train."""

    optimizer: str = "adamw"
    """What takes the real steps: adamw or muon."""
    hybrid: Mapping[str, Any] | None = None
    """Values of the HybridConfig; None trains without one."""
    tail_average: bool = False
    """Read out the exponential average of the last weights instead of the last ones."""
    control: bool = False
    """Whether it is there to fail: a claim about prediction must not hold for it."""
    words: str = ""
    """What it is, for a table."""
    tuned_as: str = ""
    """Arm whose learning rate it takes over; empty for one that is tuned itself."""
    rate_factor: float = 1.0
    """Multiple of the tuned rate that it runs at."""
    micro_batches: int = 1
    """Parts of a step's batch whose gradients are accumulated."""
    dtype: str = ""
    """Compute type of matrix products; empty for the run's."""
    probe_windows: int = 0
    """Least windows a jump is probed on; 0 for a share of the batch."""


ARMS: dict[str, Arm] = {
    "adamw": Arm(words="AdamW, rate tuned"),
    "adamw-tail": Arm(tail_average=True, tuned_as="adamw", words="the same, average of the last weights read out"),
    "lookahead": Arm(
        hybrid={"predictor": "outer-nesterov", "outer_steps": 5, "outer_rate": 0.5, "outer_momentum": 0.0},
        words="Lookahead over AdamW",
    ),
    "outer-nesterov": Arm(hybrid={"predictor": "outer-nesterov"}, words="outer Nesterov over AdamW"),
    "ema-nesterov": Arm(hybrid={"predictor": "ema-nesterov"}, words="gradient taken ahead, over AdamW"),
    "block-trend": Arm(hybrid=JUMP | {"predictor": "block-trend"}, words="gated jumps along the block trend"),
    "modal": Arm(hybrid=JUMP | {"predictor": "modal"}, words="gated jumps along slow modes"),
    "learned": Arm(hybrid=JUMP | {"predictor": "learned"}, words="gated jumps scaled by the online ensemble"),
    "coasting": Arm(hybrid=JUMP | {"predictor": "coasting", "predict_steps": 3}, words="momentum coasting"),
    "last-update": Arm(
        hybrid=_LAST_UPDATE,
        probe_windows=LINE_WINDOWS,
        words="Fast Forward: the last update again while the loss falls",
    ),
    "frozen": Arm(
        hybrid={"predictor": "frozen", "gate": "always", "damp_momentum": False} | REPORT,
        control=True,
        words="the original: Predict changes nothing",
    ),
    "random": Arm(
        hybrid=JUMP | {"predictor": "random", "gate": "always"},
        control=True,
        words="random jumps as long as the trend's",
    ),
    "rejecting": Arm(
        hybrid=JUMP | {"predictor": "block-trend", "gate": "never"},
        tuned_as="adamw",
        control=True,
        words="every jump probed and refused",
    ),
    "muon": Arm(optimizer="muon", words="Muon, rate tuned"),
    "muon-ema-nesterov": Arm(
        optimizer="muon", hybrid={"predictor": "ema-nesterov"}, words="gradient taken ahead, over Muon"
    ),
    "muon-block-trend": Arm(
        optimizer="muon", hybrid=JUMP | {"predictor": "block-trend"}, words="gated jumps over Muon"
    ),
}
"""Arms by name."""


def _trend(words: str, **values: Any) -> Arm:
    """Return jumps along the block trend at the baseline's rate with other settings."""
    kept = {name: values.pop(name) for name in ("micro_batches", "dtype") if name in values}
    return Arm(hybrid=JUMP | {"predictor": "block-trend"} | values, tuned_as="adamw", words=words, **kept)


def _at_rate(factor: float, hybrid: Mapping[str, Any] | None = None) -> Arm:
    words = f"{ARMS['last-update'].words if hybrid else 'AdamW'}, {factor:g} times the tuned rate"
    windows = LINE_WINDOWS if hybrid else 0
    return Arm(hybrid=hybrid, tuned_as="adamw", rate_factor=factor, probe_windows=windows, words=words)


SETTINGS: dict[str, dict[str, Arm]] = {
    "rate": {
        "adamw-x1.5": _at_rate(1.5),
        "adamw-x2": _at_rate(2.0),
        "adamw-slow": _at_rate(SLOW),
        "last-update-slow": _at_rate(SLOW, _LAST_UPDATE),
    },
    "horizon": {
        f"horizon-{n}": _trend(f"unprobed jumps of {n} steps", gate="always", predict_steps=n, max_gain=2.0)
        for n in (4, 8, 16, 32)
    },
    "confidence": {
        f"confidence-{c:g}": _trend(
            f"asked from confidence {c:g}, kept if the loss falls", confidence_threshold=c, least_gain=0.0
        )
        for c in (0.0, 0.2, 0.5)
    },
    "interval": {
        f"interval-{n}": _trend(
            f"probed every {n} predicted steps, kept while the loss falls", correction_interval=n, least_gain=0.0
        )
        for n in (1, 4)
    },
    "memory": {
        "mixed-precision": _trend("bfloat16 matrix products", dtype="bfloat16"),
        "accumulated": _trend("4 micro-batches a step", micro_batches=4),
        "offloaded": _trend("history and copies in the processor's memory", history_device="cpu"),
        "memory-optimized": _trend("all three", dtype="bfloat16", micro_batches=4, history_device="cpu"),
    },
}
"""Settings that report 003 recommends to study or combines, by what they vary; each is an arm of ARMS, too.

Those of "rate" may also stand among a profile's `arms` (`schema_predict_phase.ArmName`): they then run at every budget.
The others run at the longest budget only, but for "horizon-8" over batch sizes (`study.BY_BATCH`).
"""
for _family in SETTINGS.values():
    ARMS |= _family


def hybrid_config(arm: Arm, total: int, seed: int, probe_size: int) -> HybridConfig | None:
    """Return an arm's configuration for a schedule of so many steps; warmups grow with the schedule.

    Args:
        arm: way to train.
        total: nominal steps.
        seed: of the run.
        probe_size: windows of one probe batch.
    """
    if arm.hybrid is None:
        return None
    values = {"seed": seed} | dict(arm.hybrid)
    values["warmup_steps"] = max(1, round(WARMUP * total))
    if arm.probe_windows:
        values["probe_batches"] = math.ceil(arm.probe_windows / probe_size)
    return HybridConfig(**values)
