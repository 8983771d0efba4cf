"""Go or no-go: what prediction could be worth if the best length of every jump were known.

At three points of a tuned run the drift of the last block is followed for as many steps as lower the held-out loss
most, which no gate can know. What counts is the end of the schedule: the same skipped steps with the jump and without
it, and not at all skipped. The share of the skipped progress that the jump delivers bounds every gate of its class. A
jump of one step skips too little to be told from noise at the end, so jumps are judged from `LEAST_JUDGED` steps on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit import device
from labkit.hybrid.optimizers import Schedule, make_optimizer, warmup_steps
from labkit.hybrid.tasks import Run, Text, build, losses_of, score
from labkit.hybrid.vectors import Tensors, add, assign, copies

POINTS = (0.2, 0.4, 0.6)
"""Shares of the schedule at which jumps start."""
BLOCK = 16
"""Steps whose mean displacement is the direction."""
LENGTHS = (1, 2, 4, 8, 16, 32)
"""Steps a jump may stand for."""
LEAST_JUDGED = 8
"""Steps that the jump judged at the end stands for at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleSpec:
    """A tuned run whose jumps are known beforehand."""

    run: Run
    """The baseline."""

    def inputs(self) -> dict[str, Any]:
        """Return the values as plain JSON."""
        return asdict(self)


def measure_oracle(spec: OracleSpec) -> dict[str, Any]:
    """Find the best jump at each point and what it is worth at the end.

    Returns:
        final: the baseline's final loss; points: for each, the step, the loss at every length of jump, the best length
        and the one judged, the final losses with that jump and with the same steps left out.
    """
    run = spec.run
    device.set_threads(run.threads)
    baseline = _Race(run)
    baseline.go(run.steps)
    final = baseline.loss()
    return {"final": final, "block": BLOCK, "points": [_point(run, share) for share in POINTS]}


def _point(run: Run, share: float) -> dict[str, Any]:
    step = max(BLOCK, round(share * run.steps))
    race = _Race(run)
    race.go(step - BLOCK)
    before = copies(race.parameters)
    race.go(step)
    drift = [(p.detach() - b) / BLOCK for p, b in zip(race.parameters, before, strict=True)]
    lengths = [n for n in LENGTHS if step + n < run.steps]
    losses = race.losses_along(drift, lengths)
    best = min(lengths, key=lambda n: losses[n])
    judged = min(max(best, LEAST_JUDGED), lengths[-1])
    jumped, left_out = (_finish(run, step, judged, drift if jump else None) for jump in (True, False))
    return {
        "step": step,
        "here": race.loss(),
        "losses": {str(n): loss for n, loss in losses.items()},
        "best": best,
        "judged": judged,
        "jumped": jumped,
        "left_out": left_out,
    }


def _finish(run: Run, step: int, length: int, drift: Tensors | None) -> float:
    """Return the final loss of a run that leaves out steps after `step`, with a jump in their place or without one."""
    race = _Race(run)
    race.go(step)
    if drift is not None:
        add([p.data for p in race.parameters], drift, float(length))
    race.skip(length)
    race.go(run.steps)
    return race.loss()


class _Race:
    """A plain run that can be stopped, jumped and gone on with."""

    def __init__(self, run: Run) -> None:
        device.set_determinism(run.seed, run.device)
        self._run, self._text = run, Text(run)
        self._model: nn.Module = build(run)
        self.parameters = list(self._model.parameters())
        self._optimizer = make_optimizer(
            self._model, "adamw", run.learning_rate, weight_decay=run.weight_decay, beta2=run.beta2
        )
        self._schedule = Schedule(self._optimizer, run.steps, warmup_steps(run.steps, run.warmup_fraction))
        self._batches, self._held_out = self._text.batches(), self._text.held_out()

    def go(self, nominal: int) -> None:
        """Train until a nominal step of the schedule."""
        while self._schedule.done < nominal:
            losses_of(self._model, next(self._batches)).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self._run.grad_clip)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()

    def skip(self, steps: int) -> None:
        """Leave out steps of the schedule."""
        for _ in range(steps):
            self._schedule.step()

    def loss(self) -> float:
        """Return the held-out loss in nats per token."""
        return float(score(self._model, self._held_out, self._run.batch_size).mean())

    def losses_along(self, drift: Tensors, lengths: list[int]) -> dict[int, float]:
        """Return the held-out loss after jumps of each length; the weights are as before."""
        here, found = copies(self.parameters), {}
        data: list[Tensor] = [p.data for p in self.parameters]
        for n in lengths:
            add(data, drift, float(n))
            found[n] = self.loss()
            assign(data, here)
        return found
