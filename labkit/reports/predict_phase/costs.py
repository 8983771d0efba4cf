"""What a step of each arm costs, measured apart from the runs: interleaved rounds, arms in random order.

A run trains in the background of other work, so its own time says nothing. Its cost is put together from what it did:
real steps, forward passes of probes and jumps, each at the price measured here (`price`). A round takes as many real
steps of every arm, one arm after the other, so that a slow minute of the machine meets all arms; ratios are taken
within a round, and their spread over rounds is the error of a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from labkit import device
from labkit.cell import cell
from labkit.hybrid.config import LEADS
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.gate import probe_size
from labkit.reports.predict_phase.arms import ARMS, hybrid_config
from labkit.reports.predict_phase.tasks import PACKAGES, Run, build, data_of, revisions
from labkit.reports.predict_phase.train import Probe, optimizer_of, readouts_of, take_step

STEPS = 30
"""Real steps of an arm in a round."""
ADAPTER_STEPS = 3
"""The same on adapters of a pretrained model, where a step takes many seconds."""
WARM = 3
"""Steps of each arm before the first round: optimizers make their state in the first. One that jumps goes on to its
first jump."""
_LONGEST_WAIT = 200
FORWARDS = 5
"""Probes of an arm in a round."""
RATE = 1e-6
"""Learning rate: steps cost the same at every rate, and jumps that nobody refuses must not spoil the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostSpec:
    """A comparison whose steps are priced."""

    run: Run
    """Task, sizes and machine; its arm is not used, its steps are those of a round."""
    arms: tuple[str, ...]
    """What is priced."""
    rounds: int
    """Rounds."""


@cell(
    "hybrid.costs",
    version=1,
    data=lambda spec: revisions(spec.run),
    packages=(*PACKAGES, "scikit-learn"),
    timing=("step", "forward", "jump"),
    timed=True,
)
def measure_costs(spec: CostSpec) -> dict[str, Any]:
    """Measure seconds of a real step, of a probe and of a jump for every arm, round by round.

    Returns:
        order: the arms of each round; step, forward, jump: seconds by arm, one a round. Arms that do not jump have no
        forward and no jump.
    """
    device.set_threads(spec.run.threads)
    device.set_determinism(spec.run.seed, spec.run.device)
    rng, timers = np.random.default_rng(spec.run.seed), _timers(spec)
    found: dict[str, dict[str, list[float]]] = {"step": {}, "forward": {}, "jump": {}}
    orders = []
    for _ in range(spec.rounds):
        orders.append([str(arm) for arm in rng.permutation(spec.arms)])
        for arm in orders[-1]:
            for kind, seconds in timers[arm].round(spec.run.steps).items():
                found[kind].setdefault(arm, []).append(seconds)
    return {"order": orders} | found


def _timers(spec: CostSpec) -> dict[str, _Timer]:
    """Build every arm; weights that no arm trains are held once."""
    timers: dict[str, _Timer] = {}
    for arm in spec.arms:
        timers[arm] = _timer(replace(spec.run, arm=arm, learning_rate=RATE), spec.rounds)
        first = next(iter(timers.values())).model
        for own, shared in zip(timers[arm].model.parameters(), first.parameters(), strict=True):
            if not own.requires_grad:
                own.data = shared.data
        timers[arm].warm()
    return timers


def _timer(run: Run, rounds: int) -> _Timer:
    model, data = build(run), data_of(run)
    total = 4 * (_LONGEST_WAIT + rounds * run.steps)
    run = replace(run, steps=total)
    optimizer, schedule = optimizer_of(run, model)
    probe, hybrid = Probe(run, model, data), None
    if ARMS[run.arm].hybrid is not None:
        config = replace(
            hybrid_config(ARMS[run.arm], total, run.seed, probe_size(run.batch_size)),
            warmup_steps=1,
            predict_until=1.0,
            gate="always",
        )
        hybrid = Hybrid(model, optimizer, config, total_steps=total, scheduler=schedule, probe=probe.draw)
    return _Timer(run, model, optimizer, schedule, hybrid, probe, data.batches())


@dataclass
class _Timer:
    """One arm that is trained a few steps at a time; every jump is made, so that there is one to time."""

    run: Run
    """Its description."""
    model: nn.Module
    """What is trained."""
    optimizer: Any
    """What takes the steps."""
    schedule: Any
    """Its rate."""
    hybrid: Hybrid | None
    """What jumps or leads; None for a plain arm."""
    probe: Probe
    """Measures losses of fresh batches."""
    batches: Iterator[Tensor]
    """What it reads."""
    done: int = 0
    """Real steps taken."""
    jump: float = field(default=0.0)
    """Seconds of the last jump, for a round that holds none."""

    def __post_init__(self) -> None:
        parameters, arm = [p for p in self.model.parameters() if p.requires_grad], ARMS[self.run.arm]
        # A read-out is chosen beforehand, so one is kept up to date and no more.
        reads = () if arm.decays else arm.reads[:1]
        self._readouts = readouts_of(self.run, parameters, self.optimizer, reads) if reads else None

    def warm(self) -> None:
        """Take the first steps, which are not timed."""
        self.steps(WARM)
        while self._may_jump and not self.jump and self.done < _LONGEST_WAIT:
            self.steps(1)

    @property
    def _may_jump(self) -> bool:
        return self.hybrid is not None and self.hybrid.config.predictor not in LEADS

    def steps(self, n: int) -> float:
        """Take real steps; return their seconds, those of jumps left out."""
        before, began = self._jumps(), time.perf_counter()
        for _ in range(n):
            take_step(self.run, self.model, self.optimizer, self.schedule, self.hybrid, next(self.batches))
            self.done += 1
            if self._readouts:
                self._readouts.observe(self.done)
        seconds, jumps = time.perf_counter() - began, self._jumps()[len(before) :]
        if jumps:
            self.jump = float(np.mean(jumps))
        return seconds - sum(jumps)

    def _jumps(self) -> list[float]:
        rows = self.hybrid.history.rows if self.hybrid else []
        return [row["seconds"] for row in rows if row["phase"] == "predict" and row["accepted"]]

    def round(self, n: int) -> dict[str, float]:
        """Return seconds of a real step and, where the arm jumps, of a probe and of a jump."""
        found = {"step": self.steps(n) / n}
        if not self._may_jump:
            return found
        losses, began = self.probe.draw(self.hybrid.config.probe_batches), time.perf_counter()
        for _ in range(FORWARDS):
            losses()
        return found | {"forward": (time.perf_counter() - began) / FORWARDS, "jump": self.jump}


def price(costs: Mapping[str, Any], arm: str, counts: Mapping[str, int]) -> np.ndarray:
    """Return the seconds of a run by the prices of each round, [rounds].

    Args:
        costs: what `measure_costs` returned.
        arm: its arm.
        counts: its real steps, probe forwards and jumps asked for, by the names step, forward and jump.
    """
    seconds: np.ndarray = np.zeros(len(costs["order"]))
    for kind, n in counts.items():
        if n:
            seconds = seconds + n * np.asarray(costs[kind][arm])
    return seconds
