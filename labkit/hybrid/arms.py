"""The arms of the comparison: an optimizer, what predicts on top of it, and what is read out at the end.

Lengths of phases are shares of the schedule, so that an arm means the same at every budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.hybrid.config import REPORT, HybridConfig

JUMP = {"full_steps": 16, "predict_steps": 8, "correct_steps": 2, "confidence_threshold": 0.05}
"""Lengths of the gated jumps: half a block ahead at most, then two real steps (notes on report 003, candidate C2)."""

WARMUP = 0.1
"""Share of the schedule before anything is predicted: the report's 5 of 50 steps."""


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
        hybrid=JUMP
        | {
            "predictor": "last-update",
            "full_steps": 6,
            "predict_steps": 32,
            "max_gain": 100.0,
            "line_search": True,
            "advance_schedule": False,
            "correct_steps": 1,
            "damp_momentum": False,
        },
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


def hybrid_config(arm: Arm, total: int, seed: int) -> HybridConfig | None:
    """Return an arm's configuration for a schedule of so many steps; warmups grow with the schedule."""
    if arm.hybrid is None:
        return None
    values = {"seed": seed} | dict(arm.hybrid)
    values["warmup_steps"] = max(1, round(WARMUP * total))
    return HybridConfig(**values)
