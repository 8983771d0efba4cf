"""The arms of the comparison: an optimizer, what predicts on top of it, and what is read out at the end.

Lengths of phases are shares of the schedule, so that an arm means the same at every budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from labkit.hybrid.config import LEADS, REPORT, HybridConfig
from labkit.hybrid.readouts import MEANS, RIDGES

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
    """What takes the real steps: a name that `optimizers.make_optimizer` knows."""
    schedule: str = "linear"
    """How the rate goes on after its rise: linear or cosine to zero, or constant."""
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
    reads: tuple[str, ...] = ()
    """Read-outs of a run that serves all budgets (`readouts`), the best of them chosen on the tuning seed; empty for
    one that ends with its schedule."""
    decays: bool = False
    """Whether that run lets its rate fall before it is read: warmup-stable-decay."""
    run_as: str = ""
    """Arm whose runs it reads in its own way; empty for one with runs of its own."""
    gates: tuple[str, ...] = ()
    """Arms that differ in their gate, strictest first; it runs as the first that keeps enough jumps on the tuning
    seed."""

    @property
    def predicts(self) -> bool:
        """Whether it replaces steps or decay by extrapolation."""
        jumps = self.hybrid is not None and self.hybrid["predictor"] not in LEADS and not self.control
        return jumps or any(name in RIDGES for name in self.reads)


ARMS: dict[str, Arm] = {
    "adamw": Arm(words="AdamW, rate tuned"),
    "adamw-tail": Arm(tail_average=True, tuned_as="adamw", words="AdamW, average of the last weights read out"),
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

MAIN = (
    "adamw",
    "adamw-cosine",
    "constant-ema",
    "wsd",
    "ema-nesterov",
    "muon",
    "muon-constant-ema",
    "muon-ema-nesterov",
)
"""Arms of the deciding protocol that run on every seed; the others run on the side seeds."""
GATES = {f"trend-gate-{n}": gain for n, gain in enumerate((0.5, 0.25, 0.0, -0.5, -1.0, -2.0))}
"""Gates from the usual one to one that refuses hardly anything: the least gain of a jump, as a share of what as many
real steps would gain. Below 0 a jump may raise the probe's loss by that much."""
LEAST_JUMPS = 10
"""Jumps that the tuning seed's run must keep for its gate to be taken."""


def _constant(words: str, optimizer: str = "adamw", **values: Any) -> Arm:
    return Arm(optimizer=optimizer, schedule="constant", words=words, **values)


def _read_from(arm: str, reads: Iterable[str], words: str) -> Arm:
    return replace(ARMS[arm], run_as=arm, reads=tuple(reads), words=words)


ARMS |= {
    "adamw-cosine": Arm(schedule="cosine", words="AdamW, cosine decay, rate tuned"),
    "constant": _constant("AdamW at a constant rate, every read-out", reads=(*MEANS, *RIDGES)),
    "muon-constant": _constant("Muon at a constant rate, every read-out", "muon", reads=(*MEANS, *RIDGES)),
    "wsd": _constant("AdamW, warmup-stable-decay", reads=("last",), decays=True),
    "schedule-free": _constant("schedule-free AdamW", "schedule-free", reads=("average",)),
    "ademamix": Arm(optimizer="ademamix", words="AdEMAMix, linear decay"),
    "noise-matched": Arm(
        hybrid=JUMP | {"predictor": "noise-matched", "gate": "always"},
        tuned_as="block-trend-tuned",
        control=True,
        words="jumps of the trend's length and noise without its drift",
    ),
}
ARMS |= {
    name: Arm(
        hybrid=JUMP | {"predictor": "block-trend", "confidence_threshold": 0.0, "least_gain": gain},
        words=f"gated jumps, least gain {gain:g}",
    )
    for name, gain in GATES.items()
}
ARMS |= {
    "constant-ema": _read_from("constant", MEANS, "AdamW at a constant rate, exponential mean read out"),
    "constant-rre": _read_from("constant", RIDGES, "AdamW at a constant rate, reduced-rank extrapolation read out"),
    "muon-constant-ema": _read_from("muon-constant", MEANS, "Muon at a constant rate, exponential mean read out"),
    "muon-constant-rre": _read_from("muon-constant", RIDGES, "the same, reduced-rank extrapolation read out"),
    "block-trend-tuned": Arm(
        hybrid=ARMS["block-trend"].hybrid,
        gates=tuple(GATES),
        words="gated jumps along the block trend, gate tuned until jumps are kept",
    ),
}


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
