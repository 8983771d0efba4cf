"""Energy in four states: measured, estimated from a stated model, unavailable with the reason, or not requested.

Never a silent zero: a sensor that stood still, or cannot be read, gives no joules. An estimate is made only where
somebody stated the watts, and says so wherever it goes.
"""

from __future__ import annotations

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .here import ROOT
from .sensors import Sensor, SensorError, find

FEWEST_UPDATES = 20
"""Updates of a sensor within a block below which its joules are coarse."""
DEVICES = ("cpu", "cuda")
"""What energy is metered on."""
_COUNTER_PERIOD_S = 0.02
_POWER_PERIOD_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """The energy of a block, or why there is none: never a bare zero.

    Raises:
        ValueError: a measured or estimated energy that is not positive, an estimate without its model and inputs, or an
            unavailable one without a reason.
    """

    state: Literal["measured", "estimated", "unavailable", "not requested"]
    """Only a measured energy may be called one; an estimate is shown with its model."""
    joules: float | None = None
    """Energy of the whole sensor's domain, other processes and idle power included."""
    seconds: float | None = None
    """Length of the block, from the first reading of a sensor to the last."""
    sensor: str = ""
    """What was read."""
    reason: str = ""
    """Why there is no measurement, or what it lacks."""
    model: str = ""
    """In words, how an estimate follows from its inputs."""
    inputs: Mapping[str, float] = field(default_factory=dict)
    """Stated or measured numbers that an estimate was made from, by name with their unit."""
    n_updates: int | None = None
    """Changes of the sensor's reading seen within the block; it may have made more than were looked for."""
    resolution_joules: float | None = None
    """Energy per update: both ends of the block are known no better than this."""

    def __post_init__(self) -> None:
        has_joules = self.joules is not None and self.joules > 0 and math.isfinite(self.joules)
        if self.state in ("measured", "estimated") and not has_joules:
            raise ValueError(
                f"joules is {self.joules}: a {self.state} energy is above 0; 0 means that the sensor is stuck"
            )
        if self.state == "estimated" and not (self.model and self.inputs):
            raise ValueError("model or inputs is empty: an estimated energy says what it was made from")
        if self.state == "unavailable" and not self.reason:
            raise ValueError("reason is empty: an unavailable energy says why")

    @property
    def watts(self) -> float | None:
        """Mean power over the block, or None where there are no joules."""
        return self.joules / self.seconds if self.joules and self.seconds else None

    @property
    def coarse(self) -> bool:
        """Say whether joules come from fewer than 20 updates of the sensor, so that their size is all they show."""
        return self.state == "measured" and (self.n_updates or 0) < FEWEST_UPDATES

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON, for a record."""
        return asdict(self) | {"inputs": dict(self.inputs), "coarse": self.coarse}


def estimate(seconds: float, watts: float, model: str) -> Energy:
    """Estimate a block's energy from a power that somebody stated.

    Args:
        seconds: measured length of the block.
        watts: stated power of the device during it.
        model: where the watts come from, such as "35 W of a meter at the plug".

    Raises:
        ValueError: seconds or watts is not positive and finite, or the model is empty.
    """
    for name, value in (("seconds", seconds), ("watts", watts)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; an estimate needs a positive number")
    inputs = {"seconds": float(seconds), "watts": float(watts)}
    words = f"watts x seconds; {model}" if model else ""
    return Energy(state="estimated", joules=seconds * watts, seconds=seconds, model=words, inputs=inputs)


def stated_watts(device: str = "cpu", environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the power that the user stated in LABKIT_CPU_WATTS or LABKIT_CUDA_WATTS, or None: there is no default.

    Raises:
        ValueError: the variable does not hold a positive number, or the device is neither "cpu" nor "cuda".
    """
    _require_device(device)
    name = f"LABKIT_{device.upper()}_WATTS"
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        watts = float(text)
    except ValueError:
        watts = math.nan
    if not (math.isfinite(watts) and watts > 0):
        raise ValueError(f"{name} is {text!r}; write the watts as a positive number, or unset it")
    return watts


@dataclass(kw_only=True, slots=True)
class EnergyMeter:
    """Holds the energy of a block once the block has ended."""

    energy: Energy = Energy(state="not requested")
    """What was measured, or why nothing was."""


@contextmanager
def energy_meter(
    device: str = "cpu", *, requested: bool = True, root: Path = ROOT, watts: float | None = None
) -> Iterator[EnergyMeter]:
    """Meter the energy of a block: `with energy_meter("cpu") as meter: ...`, then `meter.energy`.

    The CPU is read from Linux's powercap RAPL zones, packages and DRAM, or AMD's driver; a GPU from NVML's total energy
    counter, or its polled power where it has none; a Jetson from the power monitor of its input. All count everything
    that runs on the chip or board. Anything else, a sensor that stood still included, is unavailable with its reason,
    because 0 J would pass for a result.

    Args:
        device: "cpu" or "cuda".
        requested: False meters nothing.
        root: folder under which /sys is looked for.
        watts: a stated power (see `stated_watts`); where nothing can be measured, the energy is estimated from it.

    Raises:
        ValueError: the device is neither "cpu" nor "cuda".
    """
    _require_device(device)
    meter, running = EnergyMeter(), None
    if requested:
        try:
            sensor = find(device, root)
            running = (_Power if sensor.unit == "watts" else _Counters)(sensor)
        except SensorError as error:
            meter.energy = Energy(state="unavailable", reason=str(error))
    stop = threading.Event()
    poller = threading.Thread(target=running.poll, args=(stop,), daemon=True) if running else None
    if poller:
        poller.start()
    start = time.perf_counter()
    try:
        yield meter
    finally:
        seconds = time.perf_counter() - start
        if running and poller:
            stop.set()
            poller.join()
            meter.energy = running.energy()
        if watts is not None and meter.energy.state == "unavailable":
            guess = estimate(seconds, watts, f"{watts:g} W stated for the {device}")
            meter.energy = replace(guess, reason=meter.energy.reason)


def idle_power(seconds: float, device: str = "cpu", *, root: Path = ROOT) -> Energy:
    """Meter the device while this process sleeps: what a block of that length takes without any work in it.

    Without a sensor it returns at once.

    Raises:
        ValueError: seconds is not positive, or the device is neither "cpu" nor "cuda".
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; idling takes a positive time")
    with energy_meter(device, root=root) as meter:
        if meter.energy.state != "unavailable":
            time.sleep(seconds)
    return meter.energy


def above_idle(energy: Energy, idle: Energy) -> Energy:
    """Subtract the idle power over the same time; both energies are kept apart for showing side by side.

    Returns:
        a measured energy above idle, or an unavailable one with its reason: a side not measured, different sensors, or
        a difference within their resolution.
    """
    reason = ""
    if not (energy.state == idle.state == "measured" and idle.watts and energy.joules and energy.seconds):
        reason = f"the block's energy is {energy.state} and the idle one {idle.state}; both must be measured"
    elif energy.sensor != idle.sensor:
        reason = f"the block was read from {energy.sensor} and idling from {idle.sensor}"
    else:
        net = energy.joules - idle.watts * energy.seconds
        blur = (energy.resolution_joules or 0) + (idle.resolution_joules or 0) * energy.seconds / (idle.seconds or 1)
        if net > blur:
            return replace(energy, joules=net, sensor=f"{energy.sensor}, idle power subtracted")
        reason = f"{net:.3g} J above idle is within the resolution of {blur:.3g} J"
    return Energy(state="unavailable", reason=reason, seconds=energy.seconds, sensor=energy.sensor)


def _require_device(device: str) -> None:
    if device not in DEVICES:
        raise ValueError(f"device is {device!r}; energy is metered on 'cpu' or 'cuda'")


class _Meter(ABC):
    """Adds up the joules of a sensor's parts from one reading to the next, and counts how often they changed."""

    period_s: float

    def __init__(self, sensor: Sensor, clock: Callable[[], float] = time.perf_counter) -> None:
        self._sensor, self._name, self._clock = sensor, f"{sensor.name} {', '.join(sensor.parts)}", clock
        self._last, self._at = sensor.read(), clock()
        self._began = self._at
        self._joules, self._n_updates, self._moved = 0.0, 0, [False] * len(self._last)
        self._error: SensorError | None = None

    def update(self) -> None:
        """Read the sensor and add what was used since the last reading."""
        now, at = self._sensor.read(), self._clock()
        self._joules += self._gain(now, at - self._at)
        changed = [value != last for value, last in zip(now, self._last, strict=True)]
        self._n_updates += any(changed)
        self._moved = [a or b for a, b in zip(self._moved, changed, strict=True)]
        self._last, self._at = now, at

    @abstractmethod
    def _gain(self, now: list[float], seconds: float) -> float:
        """Return the joules between the last reading and this one."""

    def poll(self, stop: threading.Event) -> None:
        """Read often enough to count updates and to see every start-over of a counter."""
        while self._error is None and not stop.wait(self.period_s):
            self._try_update()

    def _try_update(self) -> None:
        try:
            self.update()
        except SensorError as error:
            self._error = error

    def energy(self) -> Energy:
        """Read a last time and sum up; a sensor of which no part moved has measured nothing."""
        if self._error is None:
            self._try_update()
        seconds = self._at - self._began
        common = {"seconds": seconds, "sensor": self._name}
        if self._error is not None:
            return Energy(state="unavailable", reason=str(self._error), **common)
        if not self._n_updates or self._joules <= 0:
            reason = (
                f"the sensor did not move in {seconds:.3g} s: it is stuck or the block was too short for it; "
                f"last reading {', '.join(f'{value:.6g}' for value in self._last)}"
            )
            return Energy(state="unavailable", reason=reason, **common)
        still = [part for part, moved in zip(self._sensor.parts, self._moved, strict=True) if not moved]
        return Energy(
            state="measured",
            joules=self._joules,
            reason=f"{', '.join(still)} stood still" if still else "",
            n_updates=self._n_updates,
            resolution_joules=self._joules / self._n_updates,
            **common,
        )


class _Counters(_Meter):
    """Energy counters that only grow, apart from starting over at the end of their range."""

    period_s = _COUNTER_PERIOD_S

    def _gain(self, now: list[float], seconds: float) -> float:
        gains = [
            value - last if value >= last else value - last + span
            for last, value, span in zip(self._last, now, self._sensor.ranges, strict=True)
        ]
        if not all(math.isfinite(gain) and gain >= 0 for gain in gains):
            raise SensorError(f"{self._name} went back from {self._last} J to {now} J, which no counter may do")
        return sum(gains)


class _Power(_Meter):
    """Power that is polled and integrated over time by trapezoids."""

    period_s = _POWER_PERIOD_S

    def _gain(self, now: list[float], seconds: float) -> float:
        return seconds * (sum(self._last) + sum(now)) / 2
