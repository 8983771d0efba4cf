"""Go or no-go: what prediction could be worth if the best length of every jump were known.

At three points of a tuned run the drift of the last block is followed for as many steps as lower the held-out loss
most, which no gate can know. What counts is the end of the schedule: the same skipped steps with the jump and without
it, and not at all skipped. The share of the skipped progress that the jump delivers bounds every gate of its class. A
jump of one step skips too little to be told from noise at the end, so jumps are judged from `LEAST_JUDGED` steps on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from labkit import device
from labkit.hybrid.race import Race
from labkit.hybrid.tasks import Run
from labkit.hybrid.vectors import Tensors, add, copies

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
    baseline = Race(run)
    baseline.go(run.steps)
    final = baseline.loss()
    return {"final": final, "block": BLOCK, "points": [_point(run, share) for share in POINTS]}


def _point(run: Run, share: float) -> dict[str, Any]:
    step = max(BLOCK, round(share * run.steps))
    race = Race(run)
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
    race = Race(run)
    race.go(step)
    if drift is not None:
        add([p.data for p in race.parameters], drift, float(length))
    race.skip(length)
    race.go(run.steps)
    return race.loss()
