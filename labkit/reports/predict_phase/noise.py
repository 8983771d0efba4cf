"""The gradient noise scale along a tuned run: the windows of a batch whose noise is as large as its signal.

The simple noise scale is tr(S) / |G|^2, with G the mean gradient and S the covariance of a window's (McCandlish et al.,
2018, appendix A.1). Extrapolating a path amplifies its noise with its signal, so a jump should be worth more where a
batch is large against this scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit import device
from labkit.cell import cell
from labkit.hybrid.vectors import add, empty_like, gradients, norm
from labkit.reports.predict_phase.oracle import POINTS
from labkit.reports.predict_phase.race import Race
from labkit.reports.predict_phase.tasks import PACKAGES, Run, revisions

BATCHES = 16
"""Gradients of whole batches that an estimate rests on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseSpec:
    """A tuned run whose noise is measured."""

    run: Run
    """The baseline."""


@cell("hybrid.noise", version=1, data=lambda spec: revisions(spec.run), packages=PACKAGES)
def measure_noise(spec: NoiseSpec) -> dict[str, Any]:
    """Estimate the noise scale at the oracle's points of the schedule.

    Returns:
        points: for each, the step, |G|^2, tr(S) of one window, and the noise scale in windows; None where the estimate
        of |G|^2 is not above 0, because noise hides it.
    """
    run = spec.run
    device.set_threads(run.threads)
    race, points = Race(run), []
    for share in POINTS:
        step = round(share * run.steps)
        race.go(step)
        signal, noise = _moments(race, run.batch_size)
        points.append({"step": step, "signal": signal, "noise": noise, "scale": noise / signal if signal > 0 else None})
    return {"points": points}


def _moments(race: Race, batch_size: int) -> tuple[float, float]:
    """Return unbiased estimates of |G|^2 and of tr(S) for one window, from BATCHES gradients; no step is taken."""
    mean, squares = empty_like(race.parameters, race.parameters[0].dtype, None), 0.0
    for _ in range(BATCHES):
        race.backward()
        own = gradients(race.parameters)
        squares += norm(own) ** 2 / BATCHES
        add(mean, own, 1 / BATCHES)
        race.drop_gradients()
    return signal_and_noise(squares, norm(mean) ** 2, batch_size, BATCHES)


def signal_and_noise(mean_square: float, square_of_mean: float, batch_size: int, n: int) -> tuple[float, float]:
    """Return |G|^2 and tr(S) of one window from the mean square of n batch gradients and the square of their mean."""
    signal = (n * square_of_mean - mean_square) / (n - 1)
    return signal, (mean_square - square_of_mean) * batch_size * n / (n - 1)
