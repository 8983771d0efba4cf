"""Energy in three states: measured in joules, unavailable with the reason, or not requested. Never a silent zero."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from .here import ROOT


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """The energy of a block, or why there is none: never a bare zero.

    Raises:
        ValueError: a measured energy that is not positive, or an unavailable one without a reason.
    """

    state: Literal["measured", "unavailable", "not requested"]
    """Only a measured energy may enter a result."""
    joules: float | None = None
    """Energy of the whole sensor's domain, other processes and idle power included."""
    seconds: float | None = None
    """Length of the block."""
    sensor: str = ""
    """What was read."""
    reason: str = ""
    """Why there is no measurement."""

    def __post_init__(self) -> None:
        if self.state == "measured" and not (self.joules and self.joules > 0):
            raise ValueError(f"joules is {self.joules}: a measured energy is above 0; 0 means that the sensor is stuck")
        if self.state == "unavailable" and not self.reason:
            raise ValueError("reason is empty: an unavailable energy says why")


class SensorError(Exception):
    """An energy sensor is missing or cannot be read."""


@dataclass(kw_only=True, slots=True)
class EnergyMeter:
    """Holds the energy of a block once the block has ended."""

    energy: Energy = Energy(state="not requested")
    """What was measured, or why nothing was."""


@contextmanager
def energy_meter(device: str = "cpu", *, requested: bool = True, root: Path = ROOT) -> Iterator[EnergyMeter]:
    """Meter the energy of a block: `with energy_meter("cpu") as meter: ...`, then `meter.energy`.

    The CPU is read from Linux's powercap RAPL zones, packages and DRAM; a GPU from NVML's total energy counter, which
    moves about every 100 ms. Both count everything that runs on the chip. Anything else, a counter that stood still
    included, is unavailable with its reason, because 0 J would pass for a result.

    Raises:
        ValueError: the device is neither "cpu" nor "cuda".
    """
    sensors = {"cpu": lambda: _rapl_counters(root), "cuda": _nvml_counters}
    if device not in sensors:
        raise ValueError(f"device is {device!r}; energy is metered on 'cpu' or 'cuda'")
    meter, counters, start = EnergyMeter(), None, time.perf_counter()
    if requested:
        try:
            counters = sensors[device]()
        except SensorError as error:
            meter.energy = Energy(state="unavailable", reason=str(error))
    if counters is None:
        yield meter
        return
    stop = threading.Event()
    poller = threading.Thread(target=counters.poll, args=(stop,), daemon=True)
    poller.start()
    try:
        yield meter
    finally:
        stop.set()
        poller.join()
        meter.energy = counters.energy(time.perf_counter() - start)


class _Counters:
    """Energy counters that only grow, apart from starting over at the end of their range."""

    def __init__(self, sensor: str, read: Callable[[], list[float]], ranges: list[float]) -> None:
        self._sensor, self._read, self._ranges = sensor, read, ranges
        self._joules, self._last = 0.0, read()

    def update(self) -> None:
        now = self._read()
        for last, value, span in zip(self._last, now, self._ranges, strict=True):
            self._joules += value - last if value >= last else value - last + span
        self._last = now

    def poll(self, stop: threading.Event) -> None:
        """Read now and then: a package's counter starts over after some minutes of full load."""
        while not stop.wait(30.0):
            self.update()

    def energy(self, seconds: float) -> Energy:
        try:
            self.update()
        except SensorError as error:
            return Energy(state="unavailable", reason=str(error), seconds=seconds, sensor=self._sensor)
        if self._joules == 0:
            reason = (
                f"the counter did not move in {seconds:.3g} s: the sensor is stuck or the block was too short for it"
            )
            return Energy(state="unavailable", reason=reason, seconds=seconds, sensor=self._sensor)
        return Energy(state="measured", joules=self._joules, seconds=seconds, sensor=self._sensor)


def _rapl_counters(root: Path) -> _Counters:
    """Open the packages and their DRAM; core and uncore are parts of a package, and psys overlaps it."""
    zones = {zone: (zone / "name").read_text().strip() for zone in (root / "sys/class/powercap").glob("intel-rapl:*")}
    counted = sorted(zone for zone, name in zones.items() if name.startswith("package") or name == "dram")
    if not counted:
        raise SensorError("no RAPL counter under /sys/class/powercap: a virtual machine has none, nor has macOS")
    ranges = [int((zone / "max_energy_range_uj").read_text()) / 1e6 for zone in counted]
    return _Counters(f"RAPL {', '.join(zones[zone] for zone in counted)}", lambda: _read_rapl(counted), ranges)


def _read_rapl(zones: list[Path]) -> list[float]:
    try:
        return [int((zone / "energy_uj").read_text()) / 1e6 for zone in zones]
    except OSError as error:
        raise SensorError(f"{error.filename}: {error.strerror}; Linux lets only root read RAPL counters") from error


def _nvml_counters() -> _Counters:
    if not torch.cuda.is_available():
        raise SensorError("no CUDA device is here")
    try:
        import pynvml
    except ImportError as error:
        raise SensorError("NVML is read through nvidia-ml-py: pip install nvidia-ml-py") from error

    def read() -> list[float]:
        try:
            return [pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3]
        except pynvml.NVMLError as error:
            raise SensorError(f"NVML cannot read the energy counter: {error}") from error

    # CUDA_VISIBLE_DEVICES renumbers torch's devices but not NVML's; the UUID names the same one to both.
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        raise SensorError(f"NVML does not start: {error}") from error
    return _Counters("NVML total energy", read, [math.inf])
