"""Checks labkit.device against the operating system's own answers and against kernel files written out by hand.

Memory peaks are compared with arrays of known size, affinity with what the kernel was told, rates with a clock that the
test moves, and readers of cgroups, powercap and hwmon with trees laid out as the kernel's admin and hwmon guides say.

Run: pytest tests/test_device.py
"""

from __future__ import annotations

import getpass
import itertools
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from labkit import device
from labkit.base.units import GIB, MIB
from labkit.device import sensors
from labkit.device.energy import (
    Energy,
    _Counters,
    _Power,
    above_idle,
    energy_meter,
    estimate,
    idle_power,
    stated_watts,
)


def write_tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.new").write_text(f"{content}\n")
        # The kernel shows whole numbers only, also to a reader that comes at the same moment.
        os.replace(root / f"{name}.new", root / name)
    return root


def test_a_missing_device_is_named_with_what_is_here_and_the_remedy() -> None:
    missing = sorted({"cuda", "tpu"} - set(device.available_devices()))
    for name in missing:
        with pytest.raises(device.MissingDevice, match=rf"'{name}' is not here.* sees cpu.*: \w+"):
            device.require(name)


def test_a_device_that_is_here_is_the_one_returned() -> None:
    assert [device.require(name).type for name in device.available_devices()] == list(device.available_devices())


def test_description_is_json_and_names_nobody() -> None:
    text = json.dumps(device.describe(), allow_nan=False)
    for private in (socket.gethostname(), getpass.getuser(), str(Path.home()), str(Path.cwd())):
        assert not re.search(rf"\b{re.escape(private)}\b", text)
    assert device.describe()["torch"] == torch.__version__


def test_usable_cores_follow_the_affinity_of_the_process() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from labkit import device; "
    run = subprocess.run([sys.executable, "-c", code + "print(device.usable_cores())"], capture_output=True, check=True)
    assert int(run.stdout) == 1


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/user/job", "sys/fs/cgroup/user/job/cpu.max": "150000 100000"},
        {"proc/self/cgroup": "0::/user/job", "sys/fs/cgroup/user/cpu.max": "100000 100000"},
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/5f",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    ],
)
def test_usable_cores_follow_the_quota_of_the_container(tmp_path: Path, files: dict[str, object]) -> None:
    assert device.usable_cores(write_tree(tmp_path, files)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"},
        {
            "proc/self/cgroup": "4:memory:/\n1:cpu:/\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000",
        },
    ],
)
def test_without_a_limit_the_host_counts(tmp_path: Path, files: dict[str, object]) -> None:
    root = write_tree(tmp_path, files)
    assert device.usable_cores(root) == len(os.sched_getaffinity(0))
    assert device.memory_limit_bytes(root) == psutil.virtual_memory().total


VERSION_2 = {
    "proc/self/cgroup": "0::/user/job",
    "sys/fs/cgroup/user/memory.max": 64 * MIB,
    "sys/fs/cgroup/user/memory.current": 60 * MIB,
    "sys/fs/cgroup/user/memory.stat": f"anon {20 * MIB}\nfile {40 * MIB}\n"
    f"active_file {10 * MIB}\ninactive_file {25 * MIB}",
    "sys/fs/cgroup/user/job/memory.max": "max",
}
VERSION_1 = {
    "proc/self/cgroup": "5:memory:/docker/5f\n0::/",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": 64 * MIB,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": 60 * MIB,
    "sys/fs/cgroup/memory/memory.stat": f"active_file 0\ninactive_file 0\n"
    f"total_active_file {10 * MIB}\ntotal_inactive_file {25 * MIB}",
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1])
def test_memory_is_the_containers_and_page_cache_is_not_used(tmp_path: Path, files: dict[str, object]) -> None:
    root = write_tree(tmp_path, files)
    assert device.memory_limit_bytes(root) == 64 * MIB
    assert device.available_memory_bytes(root) == (64 - (60 - 35)) * MIB


def test_available_memory_is_never_negative(tmp_path: Path) -> None:
    over = VERSION_2 | {"sys/fs/cgroup/user/memory.current": 120 * MIB}
    assert device.available_memory_bytes(write_tree(tmp_path, over)) == 0


def test_free_disk_is_that_of_the_folder_to_be_made(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    free = device.free_disk_bytes(tmp_path / "runs" / "cpu")
    assert free == pytest.approx(stat.f_bavail * stat.f_frsize, abs=GIB)


def fill(n_bytes: int) -> None:
    np.ones(n_bytes, dtype=np.uint8)


@pytest.fixture(scope="module")
def small() -> Iterator[Executor]:
    """A process that holds little: of a large one the system may take back cold pages while a block is measured."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def gone_at_the_end() -> int:
    with device.peak_memory("cpu") as peak:
        fill(96 * MIB)
    return peak.added_bytes


def test_peak_memory_sees_an_array_that_is_gone_at_the_end(small: Executor) -> None:
    assert 95 * MIB <= small.submit(gone_at_the_end).result() <= 112 * MIB


def after_more() -> tuple[int, bool]:
    fill(256 * MIB)
    with device.peak_memory("cpu") as peak:
        fill(32 * MIB)
    return peak.added_bytes, peak.isolated


def test_peak_memory_forgets_what_came_before_the_block(small: Executor) -> None:
    added, isolated = small.submit(after_more).result()
    assert added < 64 * MIB or not isolated


def nested() -> tuple[int, int, bool]:
    with device.peak_memory("cpu") as outer:
        fill(96 * MIB)
        with device.peak_memory("cpu") as inner:
            fill(16 * MIB)
    return outer.added_bytes, inner.added_bytes, inner.isolated


def test_inner_block_does_not_hide_the_peak_of_the_outer_one(small: Executor) -> None:
    outer, inner, isolated = small.submit(nested).result()
    assert outer >= 95 * MIB
    assert inner < 64 * MIB or not isolated


def ended_by_an_error() -> int:
    peaks: list[device.PeakMemory] = []
    with suppress(MemoryError), device.peak_memory("cpu") as peak:
        peaks.append(peak)
        fill(96 * MIB)
        raise MemoryError
    return peaks[0].added_bytes


def test_peak_memory_is_known_also_after_an_error(small: Executor) -> None:
    assert small.submit(ended_by_an_error).result() >= 95 * MIB


def ticking(seconds: float) -> Callable[[], float]:
    """Return a clock that moves on by `seconds` at each look."""
    now = iter(i * seconds for i in range(1000))
    return lambda: next(now)


def test_a_copy_counts_bytes_read_and_bytes_written() -> None:
    ceiling = device.copy_bandwidth(1024, repeats=3, clock=ticking(0.5))
    assert ceiling.samples == (4096.0, 4096.0, 4096.0)
    assert (ceiling.median, ceiling.unit) == (4096.0, "bytes/s")


def test_a_multiply_add_counts_as_two_flops() -> None:
    ceiling = device.gemm_flops(torch.float64, rows=2, cols=8, repeats=2, clock=ticking(1.0))
    assert ceiling.samples == (2 * 2 * 8 * 8,) * 2


def test_ceilings_of_this_machine_keep_their_samples() -> None:
    for ceiling in (device.copy_bandwidth(MIB, 5), device.gemm_flops(torch.bfloat16, 16, 64, 5)):
        assert len(ceiling.samples) == 5
        assert sorted(ceiling.samples)[2] == ceiling.median > 0


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        device.copy_bandwidth(1024, 0)


def rapl_zone(zone: str, name: str, microjoules: int) -> dict[str, object]:
    folder = f"sys/class/powercap/{zone}"
    return {
        f"{folder}/name": name,
        f"{folder}/energy_uj": microjoules,
        f"{folder}/max_energy_range_uj": 262_143_328_850,
    }


RAPL = (
    rapl_zone("intel-rapl:0", "package-0", 1_000_000)
    | rapl_zone("intel-rapl:0:0", "core", 500_000)
    | rapl_zone("intel-rapl:0:1", "dram", 2_000_000)
    | rapl_zone("intel-rapl:1", "psys", 9_000_000)
    | rapl_zone("intel-rapl-mmio:0", "package-0", 1_000_000)
)


def test_energy_is_what_packages_and_memory_used_counted_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path, RAPL)
    with device.energy_meter("cpu", root=root) as meter:
        for zone, microjoules in {":0": 6, ":0:0": 4, ":0:1": 3, ":1": 19, "-mmio:0": 6}.items():
            write_tree(root, {f"sys/class/powercap/intel-rapl{zone}/energy_uj": microjoules * 1_000_000})
    assert (meter.energy.state, meter.energy.sensor) == ("measured", "RAPL package-0, dram")
    assert meter.energy.joules == pytest.approx(5.0 + 1.0, rel=1e-12)


def test_a_counter_that_started_over_is_unwrapped(tmp_path: Path) -> None:
    root = write_tree(tmp_path, rapl_zone("intel-rapl:0", "package-0", 262_143_000_000))
    with device.energy_meter("cpu", root=root) as meter:
        write_tree(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 671_150})
    assert meter.energy.joules == pytest.approx(1.0, rel=1e-9)


def sensor_of(
    readings: list[list[float]], unit: str = "joules", ranges: tuple[float, ...] = (math.inf,)
) -> sensors.Sensor:
    """Return a sensor that gives these readings one after the other."""
    values = iter(readings)
    parts = tuple(f"part {i}" for i in range(len(readings[0])))
    return sensors.Sensor(name="sensor", parts=parts, unit=unit, read=lambda: next(values), ranges=ranges)  # type: ignore[arg-type]


def test_polling_catches_a_counter_that_starts_over_more_than_once() -> None:
    class StopAfter(threading.Event):
        """A clock that strikes n times at once instead of every half minute."""

        def __init__(self, n: int) -> None:
            super().__init__()
            self.left = n

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            return self.left < 0

    counters = _Counters(sensor_of([[90.0], [50.0], [10.0], [80.0], [30.0]], ranges=(100.0,)))
    counters.poll(StopAfter(3))
    assert counters.energy().joules == 60 + 60 + 70 + 50


def test_a_counter_that_stood_still_is_unavailable_and_not_zero(tmp_path: Path) -> None:
    with device.energy_meter("cpu", root=write_tree(tmp_path, RAPL)) as meter:
        fill(MIB)
    assert (meter.energy.state, meter.energy.joules) == ("unavailable", None)
    assert "did not move" in meter.energy.reason


def test_no_sensor_is_unavailable_with_its_reason(tmp_path: Path) -> None:
    with device.energy_meter("cpu", root=tmp_path) as meter:
        assert meter.energy.state == "unavailable"
    assert (meter.energy.joules, "no RAPL counter" in meter.energy.reason) == (None, True)


def test_a_counter_that_cannot_be_read_is_unavailable_with_its_reason(tmp_path: Path) -> None:
    root = write_tree(tmp_path, RAPL)
    with device.energy_meter("cpu", root=root) as meter:
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert meter.energy.state == "unavailable"
    assert "energy_uj" in meter.energy.reason


def test_energy_nobody_asked_for_is_not_requested(tmp_path: Path) -> None:
    with device.energy_meter("cpu", requested=False, root=tmp_path) as meter:
        fill(MIB)
    assert meter.energy == device.Energy(state="not requested")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_energy_here_is_positive_or_explained(name: str) -> None:
    with device.energy_meter(name) as meter:
        fill(MIB)
    assert (meter.energy.joules or 0) > 0 or meter.energy.reason


@pytest.mark.parametrize(
    "wrong", [{"state": "measured", "joules": 0.0}, {"state": "measured"}, {"state": "unavailable"}]
)
def test_a_bare_zero_cannot_be_called_measured(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"joules is|reason is empty"):
        device.Energy(**wrong)  # type: ignore[arg-type]


def test_energy_of_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'tpu'"), device.energy_meter("tpu"):
        pass


def ina3221(folder: str, **watts: float) -> dict[str, object]:
    """Write out an INA3221 at 5 V as the kernel shows it: millivolts and milliamperes on up to three labelled rails."""
    files: dict[str, object] = {f"{folder}/name": "ina3221", f"{folder}/in7_label": "sum of shunt voltages"}
    for i, (rail, power) in enumerate(watts.items(), start=1):
        files |= {f"{folder}/in{i}_label": rail, f"{folder}/in{i}_input": 5000, f"{folder}/curr{i}_input": 200 * power}
    return files


HWMON = "sys/class/hwmon/hwmon3"
ORIN_NANO = ina3221(HWMON, VDD_IN=10, VDD_CPU_GPU_CV=4, VDD_SOC=3)
AGX_ORIN = ina3221(HWMON, VDD_GPU_SOC=8, VDD_CPU_CV=4, VIN_SYS_5V0=5)
THOR = ina3221(HWMON, VDD_GPU=9, VDD_CPU_SOC_MSS=6, VIN_SYS_5V0=5) | {
    "sys/class/hwmon/hwmon4/name": "ina238",
    "sys/class/hwmon/hwmon4/in1_input": 20_000,
    "sys/class/hwmon/hwmon4/power1_input": 28_000_000,
}
XAVIER = ina3221(HWMON, GPU=3, CPU=2, SOC=2) | ina3221("sys/class/hwmon/hwmon5", CV=1, VDDRQ=1, SYS5V=4)
OLD_NANO_FOLDER = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
OLD_NANO = {
    f"{OLD_NANO_FOLDER}/rail_name_0": "POM_5V_IN",
    f"{OLD_NANO_FOLDER}/in_power0_input": 4500,
    f"{OLD_NANO_FOLDER}/rail_name_1": "POM_5V_GPU",
    f"{OLD_NANO_FOLDER}/in_power1_input": 900,
}


@pytest.mark.parametrize(
    ("board", "parts", "watts"),
    [
        (ORIN_NANO, ("VDD_IN",), 10),
        (ina3221("sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1", VDD_IN=7), ("VDD_IN",), 7),
        (AGX_ORIN, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 17),
        (THOR, ("VIN",), 28),
        (XAVIER, ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), 13),
        (OLD_NANO, ("POM_5V_IN",), 4.5),
    ],
)
def test_a_jetson_is_read_at_its_input_or_at_all_rails_that_make_it_up(
    tmp_path: Path, board: dict[str, object], parts: tuple[str, ...], watts: float
) -> None:
    sensor = sensors.jetson(write_tree(tmp_path, board))
    assert (sensor.parts, sensor.unit) == (parts, "watts")
    assert sum(sensor.read()) == pytest.approx(watts, rel=1e-12)


def test_one_rail_of_several_is_not_taken_for_the_whole_board(tmp_path: Path) -> None:
    with energy_meter("cpu", root=write_tree(tmp_path, ina3221(HWMON, VIN_SYS_5V0=5, VDDQ=1))) as meter:
        fill(MIB)
    assert meter.energy.state == "unavailable"
    assert "VDDQ, VIN_SYS_5V0; which make a total is unknown" in meter.energy.reason


def test_polled_power_is_integrated_by_trapezoids() -> None:
    power = _Power(sensor_of([[10.0, 2.0], [20.0, 2.0], [20.0, 2.0], [40.0, 2.0]], unit="watts"), clock=ticking(0.5))
    for _ in range(2):
        power.update()
    energy = power.energy()
    assert energy.joules == pytest.approx(0.5 * (17 + 22 + 32), rel=1e-12)
    assert (energy.n_updates, energy.reason) == (2, "part 1 stood still")


def rising(root: Path, name: str, values: Iterator[object], stop: threading.Event) -> None:
    """Let a kernel file change every 10 ms, as a sensor does."""
    while not stop.wait(0.01):
        write_tree(root, {name: next(values)})


@contextmanager
def live(root: Path, name: str, values: Iterator[object]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=rising, args=(root, name, values, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_jetsons_power_is_polled_over_the_block(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    with (
        live(root, f"{HWMON}/curr1_input", (2000 + i % 2 * 200 for i in itertools.count())),
        energy_meter("cpu", root=root) as meter,
    ):
        time.sleep(0.4)
    energy = meter.energy
    assert (energy.state, energy.sensor) == ("measured", "INA power monitor of the board, polled VDD_IN")
    assert energy.joules / energy.seconds == pytest.approx(10.5, abs=0.55)
    assert energy.coarse
    assert energy.resolution_joules == pytest.approx(energy.joules / energy.n_updates)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "did not move"),
        ({f"{HWMON}/curr1_input": None}, "curr1_input: No such file"),
        ({f"{HWMON}/curr1_input": "on"}, "holds 'on', which is no number"),
    ],
)
def test_a_power_monitor_that_is_stuck_or_lost_is_unavailable(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    with energy_meter("cpu", root=root) as meter:
        for name, content in change.items():
            (root / name).unlink() if content is None else write_tree(root, {name: content})
        time.sleep(0.12)
    assert (meter.energy.state, meter.energy.joules) == ("unavailable", None)
    assert reason in meter.energy.reason


def test_a_power_monitor_that_reads_zero_watts_is_unavailable() -> None:
    energy = _Power(sensor_of([[0.0], [0.0]], unit="watts"), clock=ticking(1.0)).energy()
    assert (energy.state, energy.joules) == ("unavailable", None)


def test_amds_driver_counts_sockets_and_not_their_cores(tmp_path: Path) -> None:
    files: dict[str, object] = {f"{HWMON}/name": "amd_energy"}
    for i, (label, microjoules) in enumerate({"Ecore000": 5, "Esocket0": 7, "Esocket1": 11}.items(), start=1):
        files |= {f"{HWMON}/energy{i}_label": label, f"{HWMON}/energy{i}_input": microjoules * 1_000_000}
    root = write_tree(tmp_path, files)
    with energy_meter("cpu", root=root) as meter:
        write_tree(root, {f"{HWMON}/energy{i}_input": 20_000_000 for i in (1, 2, 3)})
    assert (meter.energy.sensor, meter.energy.joules) == ("amd_energy Esocket0, Esocket1", 13.0 + 9.0)


def test_a_counter_nobody_may_read_makes_way_for_the_next_sensor(tmp_path: Path) -> None:
    root = write_tree(tmp_path, RAPL | ORIN_NANO)
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.mkdir()
    assert sensors.find("cpu", root).parts == ("VDD_IN",)
    (root / HWMON / "curr1_input").unlink()
    with pytest.raises(sensors.SensorError, match=r"energy_uj: .*root.*; no amd_energy.*curr1_input"):
        sensors.find("cpu", root)


@pytest.mark.parametrize(("n", "coarse"), [(19, True), (20, False)])
def test_joules_from_fewer_than_twenty_updates_are_coarse(n: int, coarse: bool) -> None:
    counters = _Counters(sensor_of([[float(i)] for i in range(n + 1)] + [[float(n)]]), clock=ticking(2 / (n + 1)))
    for _ in range(n):
        counters.update()
    energy = counters.energy()
    assert (energy.joules, energy.n_updates, energy.resolution_joules, energy.coarse) == (n, n, 1.0, coarse)
    assert energy.watts == pytest.approx(n / 2)


def test_a_zone_that_stood_still_beside_others_is_named() -> None:
    energy = _Counters(sensor_of([[1.0, 4.0], [3.0, 4.0]], ranges=(9.0, 9.0))).energy()
    assert (energy.state, energy.joules, energy.reason) == ("measured", 2.0, "part 1 stood still")


def test_a_counter_without_an_end_that_goes_back_is_unavailable_and_not_infinite() -> None:
    energy = _Counters(sensor_of([[50.0], [3.0]])).energy()
    assert energy.state == "unavailable"
    assert "went back" in energy.reason


class Nvml:
    """Answers as NVML does on GPUs with and without a counter; the real one needs a GPU."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, millijoules: Exception | int, milliwatts: Exception | int) -> None:
        self._millijoules, self._milliwatts = millijoules, milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._answer(handle, self._millijoules)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._answer(handle, self._milliwatts)

    def _answer(self, handle: str, value: Exception | int) -> int:
        assert handle == "gpu 0"
        if isinstance(value, Exception):
            raise value
        return value


NOT_SUPPORTED = Nvml.NVMLError_NotSupported("Not Supported")


def test_a_gpu_without_an_energy_counter_has_its_power_polled_and_says_so() -> None:
    counter = sensors.nvml(Nvml(2_500, 30_000), "gpu 0")
    assert (counter.name, counter.unit, counter.read()) == ("NVML total energy", "joules", [2.5])
    power = sensors.nvml(Nvml(NOT_SUPPORTED, 30_000), "gpu 0")
    assert ("polled since there is no energy counter" in power.name, power.unit, power.read()) == (True, "watts", [30])


@pytest.mark.parametrize("error", [NOT_SUPPORTED, Nvml.NVMLError("GPU is lost")])
def test_a_gpu_that_supports_neither_reading_is_a_sensor_error(error: Exception) -> None:
    with pytest.raises(sensors.SensorError, match=str(error)):
        sensors.nvml(Nvml(error, NOT_SUPPORTED), "gpu 0")


def test_an_estimate_carries_its_model_and_inputs() -> None:
    energy = estimate(4.0, 35.0, "read off a meter at the plug")
    assert (energy.state, energy.joules, energy.coarse) == ("estimated", 140.0, False)
    assert (energy.model, energy.inputs) == (
        "watts x seconds; read off a meter at the plug",
        {"seconds": 4.0, "watts": 35.0},
    )
    assert json.loads(json.dumps(energy.as_dict(), allow_nan=False))["inputs"] == {"seconds": 4.0, "watts": 35.0}


@pytest.mark.parametrize(
    "wrong", [(0.0, 35.0, "m"), (4.0, 0.0, "m"), (4.0, -1.0, "m"), (4.0, math.inf, "m"), (4.0, 35.0, "")]
)
def test_an_estimate_without_positive_inputs_or_a_model_is_refused(wrong: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError, match=r"seconds is|watts is|model or inputs"):
        estimate(*wrong)


def test_watts_are_those_the_user_stated_and_nothing_otherwise() -> None:
    assert stated_watts("cpu", {}) is None
    assert stated_watts("cpu", {"LABKIT_CPU_WATTS": "28.5", "LABKIT_CUDA_WATTS": "70"}) == 28.5
    assert stated_watts("cuda", {"LABKIT_CUDA_WATTS": "70"}) == 70
    for text in ("28 W", "-3", "0", "nan", "inf"):
        with pytest.raises(ValueError, match=f"LABKIT_CPU_WATTS is '{text}'"):
            stated_watts("cpu", {"LABKIT_CPU_WATTS": text})


def test_stated_watts_fill_in_where_nothing_is_measured_and_only_there(tmp_path: Path) -> None:
    with energy_meter("cpu", root=tmp_path, watts=30.0) as meter:
        time.sleep(0.02)
    assert meter.energy.state == "estimated"
    assert meter.energy.joules == pytest.approx(30.0 * meter.energy.seconds)
    assert "no RAPL counter" in meter.energy.reason
    root = write_tree(tmp_path, RAPL)
    with energy_meter("cpu", root=root, watts=30.0) as meter:
        write_tree(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 6_000_000})
    assert (meter.energy.state, meter.energy.joules) == ("measured", 5.0)


def measured(joules: float, seconds: float, **other: object) -> Energy:
    values = {"sensor": "RAPL", "n_updates": 100, "resolution_joules": joules / 100} | other
    return Energy(state="measured", joules=joules, seconds=seconds, **values)  # type: ignore[arg-type]


def test_idle_power_is_subtracted_for_as_long_as_the_block_lasted() -> None:
    net = above_idle(measured(100.0, 4.0), measured(20.0, 2.0))
    assert (net.state, net.joules) == ("measured", 100.0 - 10.0 * 4.0)
    assert "idle power subtracted" in net.sensor


@pytest.mark.parametrize(
    ("idle", "reason"),
    [
        (measured(49.9, 2.0), "within the resolution"),
        (measured(60.0, 2.0), "within the resolution"),
        (measured(20.0, 2.0, sensor="NVML"), "idling from NVML"),
        (Energy(state="unavailable", reason="no sensor"), "the idle one unavailable"),
    ],
)
def test_what_cannot_be_told_from_idle_is_unavailable(idle: Energy, reason: str) -> None:
    net = above_idle(measured(100.0, 4.0), idle)
    assert (net.state, net.joules) == ("unavailable", None)
    assert reason in net.reason


def test_idle_power_is_what_the_sensor_counts_while_nothing_is_done(tmp_path: Path) -> None:
    root = write_tree(tmp_path, rapl_zone("intel-rapl:0", "package-0", 0))
    counts = (i * 20_000 for i in itertools.count(1))
    with live(root, "sys/class/powercap/intel-rapl:0/energy_uj", counts):
        idle = idle_power(0.3, root=root)
    assert idle.state == "measured"
    assert 0.3 <= idle.seconds < 0.6
    assert 0.05 < idle.watts <= 2.2
    began = time.perf_counter()
    assert idle_power(30.0, root=tmp_path / "nowhere").state == "unavailable"
    assert time.perf_counter() - began < 5, "without a sensor there is nothing to wait for"
    with pytest.raises(ValueError, match="seconds is 0"):
        idle_power(0)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_seed_gives_the_same_numbers_in_all_three_libraries() -> None:
    settings = device.set_determinism(7)
    first = draw()
    device.set_determinism(7)
    second = draw()
    device.set_determinism(8)
    other = draw()
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert (settings["seed"], settings["device"]) == (7, "cpu")
    assert json.dumps(settings)


def test_threads_are_those_asked_for() -> None:
    before = torch.get_num_threads()
    device.set_threads(1)
    assert torch.get_num_threads() == 1
    device.set_threads(before)
    with pytest.raises(ValueError, match="n is 0"):
        device.set_threads(0)
