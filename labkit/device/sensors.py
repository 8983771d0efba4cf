"""Energy sensors of this machine, read from the kernel's own files and from NVML.

A sensor counts joules or shows watts. Which files there are, and their units, follow the kernel's admin guide
(power/powercap) and hwmon guide (ina3221, ina238, amd_energy). Functions take the `root` under which to find them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

WHOLE_BOARD = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed a whole Jetson: Thor's INA238; Orin Nano and NX, Xavier NX, TX2; Nano."""
PARTS_OF_BOARD = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that make up a Jetson without such a rail: AGX Orin, AGX Thor, AGX Xavier. VIN_SYS_5V0 alone is one of three:
it feeds inputs, outputs and memory (NVIDIA's developer guide; rbonghi/jetson_stats issue 344)."""


class SensorError(Exception):
    """An energy sensor is missing or cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensor:
    """Something that can be read again and again."""

    name: str
    """What it is and how it is read."""
    parts: tuple[str, ...]
    """Zones or rails that are added up."""
    unit: Literal["joules", "watts"]
    """A counter of energy, or power now."""
    read: Callable[[], list[float]]
    """One value per part; raises SensorError."""
    ranges: tuple[float, ...] = ()
    """Joules at which each counter starts over; infinite if it never does."""


def find(device: str, root: Path) -> Sensor:
    """Open the best sensor of a device: for "cpu" RAPL, AMD's driver, a Jetson's rails; for "cuda" NVML, then rails.

    Raises:
        SensorError: none of them works; the message gives the reason of each.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SensorError("no CUDA device is here")
        openers: tuple[Callable[[], Sensor], ...] = (open_nvml, lambda: jetson(root))
    else:
        openers = (lambda: rapl(root), lambda: amd_energy(root), lambda: jetson(root))
    reasons = []
    for opener in openers:
        try:
            return opener()
        except SensorError as error:
            reasons.append(str(error))
    raise SensorError("; ".join(reasons))


def rapl(root: Path) -> Sensor:
    """Open the packages and their DRAM; core and uncore are parts of a package, and psys overlaps it."""
    zones = {zone: _text(zone / "name") for zone in (root / "sys/class/powercap").glob("intel-rapl:*")}
    counted = sorted(zone for zone, name in zones.items() if name.startswith("package") or name == "dram")
    if not counted:
        raise SensorError("no RAPL counter under /sys/class/powercap: a virtual machine has none, nor has macOS")
    return _checked(
        Sensor(
            name="RAPL",
            parts=tuple(zones[zone] for zone in counted),
            unit="joules",
            read=lambda: [_number(zone / "energy_uj") / 1e6 for zone in counted],
            ranges=tuple(_number(zone / "max_energy_range_uj") / 1e6 for zone in counted),
        )
    )


def amd_energy(root: Path) -> Sensor:
    """Open the sockets of AMD's hwmon driver, which keeps 64-bit sums."""
    sockets = {
        _text(label): label.with_name(label.name.replace("_label", "_input"))
        for folder in _hwmon(root, "amd_energy")
        for label in sorted(folder.glob("energy*_label"))
        if _text(label).startswith("Esocket")
    }
    if not sockets:
        raise SensorError("no amd_energy driver under /sys/class/hwmon")
    return _checked(
        Sensor(
            name="amd_energy",
            parts=tuple(sockets),
            unit="joules",
            read=lambda: [_number(path) / 1e6 for path in sockets.values()],
            ranges=(math.inf,) * len(sockets),
        )
    )


def jetson(root: Path) -> Sensor:
    """Open the rail that feeds a whole Jetson, or the rails that make it up; all of the board, not one chip."""
    rails = dict(_rails(root))
    if not rails:
        raise SensorError("no INA3221 or INA238 power monitor, as Jetson boards have, under /sys")
    whole = next(((name,) for name in WHOLE_BOARD if name in rails), ())
    parts = whole or next((names for names in PARTS_OF_BOARD if rails.keys() >= set(names)), ())
    if not parts:
        raise SensorError(f"the power monitor has the rails {', '.join(sorted(rails))}; which make a total is unknown")
    return _checked(
        Sensor(
            name="INA power monitor of the board, polled",
            parts=parts,
            unit="watts",
            read=lambda: [rails[name]() for name in parts],
        )
    )


def _rails(root: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield the name of each rail with a reader of its watts; one chip may be found under two paths."""
    for folder in _hwmon(root, "ina3221"):
        for label in sorted(folder.glob("in[123]_label")):
            volts, amps = folder / f"in{label.name[2]}_input", folder / f"curr{label.name[2]}_input"
            yield _text(label), lambda volts=volts, amps=amps: _number(volts) * _number(amps) / 1e6
    for folder in _hwmon(root, "ina238"):
        # Without a label its one channel is, on a Jetson, the input of the carrier board.
        label = folder / "power1_label"
        yield (
            _text(label) if label.exists() else "VIN",
            lambda power=folder / "power1_input": _number(power) / 1e6,
        )
    # Jetson Linux up to release 32 has a driver of its own.
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        yield _text(label), lambda power=power: _number(power) / 1e3


def _hwmon(root: Path, driver: str) -> list[Path]:
    folders = [*(root / "sys/class/hwmon").glob("hwmon*")]
    folders += (root / "sys/bus/i2c/drivers" / driver).glob("*/hwmon/hwmon*")
    return sorted(folder for folder in folders if (folder / "name").exists() and _text(folder / "name") == driver)


def open_nvml() -> Sensor:
    """Open the current CUDA device's energy counter, or its power where it has no counter.

    Raises:
        SensorError: nvidia-ml-py is not installed, NVML does not start, or it supports neither reading.
    """
    try:
        import pynvml
    except ImportError as error:
        raise SensorError("NVML is read through nvidia-ml-py: pip install nvidia-ml-py") from error
    # CUDA_VISIBLE_DEVICES renumbers torch's devices but not NVML's; the UUID names the same one to both.
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        raise SensorError(f"NVML does not start: {error}") from error
    return nvml(pynvml, handle)


def nvml(library: Any, handle: Any) -> Sensor:
    """Open a GPU's total energy counter (from Volta on; it moves about every 100 ms), or else its polled power.

    On Jetson NVML starts and then supports neither (HazyResearch/intelligence-per-watt issue 40).

    Raises:
        SensorError: NVML supports neither, or fails in another way.
    """

    def reader(ask: Callable[[Any], int]) -> Callable[[], list[float]]:
        def read() -> list[float]:
            try:
                return [ask(handle) / 1e3]
            except library.NVMLError as error:
                raise SensorError(f"NVML cannot read it: {error}") from error

        return read

    try:
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError_NotSupported:
        read = reader(library.nvmlDeviceGetPowerUsage)
        name = "NVML power, polled since there is no energy counter"
        return _checked(Sensor(name=name, parts=("gpu",), unit="watts", read=read))
    except library.NVMLError as error:
        raise SensorError(f"NVML cannot read the energy counter: {error}") from error
    read = reader(library.nvmlDeviceGetTotalEnergyConsumption)
    return Sensor(name="NVML total energy", parts=("gpu",), unit="joules", read=read, ranges=(math.inf,))


def _checked(sensor: Sensor) -> Sensor:
    """Return a sensor that can be read once, so that one that cannot makes way for the next."""
    sensor.read()
    return sensor


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        hint = "; Linux lets only root read RAPL counters" if path.name == "energy_uj" else ""
        raise SensorError(f"{path}: {error.strerror}{hint}") from error


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text)
    except ValueError as error:
        raise SensorError(f"{path} holds {text!r}, which is no number") from error
