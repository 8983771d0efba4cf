"""Checks labkit.device against the operating system's own answers and against kernel files written out by hand.

Memory peaks are compared with arrays of known size, affinity with what the kernel was told, rates with a clock that the
test moves, and the cgroup and powercap readers with trees laid out as the kernel's admin guide describes them.

Run: pytest tests/test_device.py
"""

from __future__ import annotations

import getpass
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from labkit import device
from labkit.device.energy import _Counters
from labkit.units import GIB, MIB


def write_tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
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


def test_peak_memory_sees_an_array_that_is_gone_at_the_end() -> None:
    with device.peak_memory("cpu") as peak:
        fill(96 * MIB)
    assert 95 * MIB <= peak.added_bytes <= 112 * MIB


def test_peak_memory_forgets_what_came_before_the_block() -> None:
    fill(256 * MIB)
    with device.peak_memory("cpu") as peak:
        fill(32 * MIB)
    assert peak.added_bytes < 64 * MIB or not peak.isolated


def test_inner_block_does_not_hide_the_peak_of_the_outer_one() -> None:
    with device.peak_memory("cpu") as outer:
        fill(96 * MIB)
        with device.peak_memory("cpu") as inner:
            fill(16 * MIB)
    assert outer.added_bytes >= 95 * MIB
    assert inner.added_bytes < 64 * MIB or not inner.isolated


def test_peak_memory_is_known_also_after_an_error() -> None:
    def fail() -> None:
        with device.peak_memory("cpu") as peak:
            peaks.append(peak)
            fill(96 * MIB)
            raise MemoryError

    peaks: list[device.PeakMemory] = []
    with pytest.raises(MemoryError):
        fail()
    assert peaks[0].added_bytes >= 95 * MIB


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


def test_polling_catches_a_counter_that_starts_over_more_than_once() -> None:
    class StopAfter(threading.Event):
        """A clock that strikes n times at once instead of every half minute."""

        def __init__(self, n: int) -> None:
            super().__init__()
            self.left = n

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            return self.left < 0

    values = iter([90.0, 50.0, 10.0, 80.0, 30.0])
    counters = _Counters("counter", lambda: [next(values)], [100.0])
    counters.poll(StopAfter(3))
    assert counters.energy(1.0).joules == 60 + 60 + 70 + 50


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
