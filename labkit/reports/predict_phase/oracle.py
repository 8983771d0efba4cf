"""Go or no-go: what prediction could be worth if the best length of every jump were known.

At three points of a tuned run the drift of the last block is followed for as many steps as lower the held-out loss
most, which no gate can know. What counts is the end of the schedule: the same skipped steps with the jump and without
it, and not at all skipped. The share of the skipped progress that the jump delivers bounds every gate of its class. A
jump of one step skips too little to be told from noise at the end, so jumps are judged from `LEAST_JUDGED` steps on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit import device
from labkit.cell import cell
from labkit.hybrid.vectors import Tensors, copies
from labkit.reports.predict_phase.race import Place, Race
from labkit.reports.predict_phase.tasks import PACKAGES, Run, revisions

POINTS = (0.2, 0.4, 0.6)
"""Shares of the schedule at which jumps start."""
BLOCK = 16
"""Most steps whose mean displacement is the direction."""
LENGTHS = (1, 2, 4, 8, 16, 32)
"""Steps a jump may stand for."""
LEAST_JUDGED = 8
"""Steps that the jump judged at the end stands for at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleSpec:
    """A tuned run whose jumps are known beforehand."""

    run: Run
    """The baseline."""


@cell("hybrid.oracle", version=1, data=lambda spec: revisions(spec.run), packages=PACKAGES)
def measure_oracle(spec: OracleSpec) -> dict[str, Any]:
    """Find the best jump at each point and what it is worth at the end.

    Returns:
        final: the baseline's final loss; block: steps of the drift; points: for each, the step, the loss at every
        length of jump, the best length and the one judged, the final losses with that jump and with the same steps left
        out.
    """
    run = spec.run
    device.set_threads(run.threads)
    race, block = Race(run), block_steps(run.steps)
    points = [_point(race, run.steps, block, share) for share in POINTS]
    race.go(run.steps)
    return {"final": race.loss(), "block": block, "points": points}


def block_steps(steps: int) -> int:
    """Return the steps whose mean displacement is the direction: a tenth of the schedule, BLOCK at most."""
    return max(2, min(BLOCK, round(0.1 * steps)))


def _point(race: Race, steps: int, block: int, share: float) -> dict[str, Any]:
    """Try jumps at a share of the schedule, and take the race back to it."""
    step = max(block, round(share * steps))
    race.go(step - block)
    before = copies(race.parameters)
    race.go(step)
    drift = [(p.detach() - b) / block for p, b in zip(race.parameters, before, strict=True)]
    lengths = [n for n in LENGTHS if step + n < steps]
    here, losses = race.loss(), race.losses_along(drift, lengths)
    best = min(lengths, key=lambda n: losses[n])
    judged = min(max(best, LEAST_JUDGED), lengths[-1])
    place = race.place()
    jumped, left_out = (_finish(race, place, steps, judged, drift if jump else None) for jump in (True, False))
    race.take_back(place)
    return {
        "step": step,
        "here": here,
        "losses": {str(n): loss for n, loss in losses.items()},
        "best": best,
        "judged": judged,
        "jumped": jumped,
        "left_out": left_out,
    }


def _finish(race: Race, place: Place, steps: int, length: int, drift: Tensors | None) -> float:
    """Return the final loss where steps after a place are left out, with a jump in their place or without one."""
    race.take_back(place)
    if drift is not None:
        race.jump(drift, length)
    race.skip(length)
    race.go(steps)
    return race.loss()
