"""What is here: devices, the cores and memory this process may use, measured ceilings, energy, and one place for seeds.

Memory and cores are those of the container: a limit set by a cgroup (version 1 or 2) counts, the host's total does not,
and page cache that the kernel gives back on demand does not count as used. Functions that read /proc, /sys or cgroup
files take the `root` under which to find them.
"""

from __future__ import annotations

import math
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch

from labkit.units import MIB

_ROOT = Path("/")
_CUDA_REMEDY = "install a CUDA build of torch and an NVIDIA driver, or choose a profile that runs on the cpu"


class MissingDevice(ValueError):
    """The device asked for is not here."""


def available_devices() -> tuple[str, ...]:
    """List the devices torch can use here: "cpu", and "cuda" where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def require(device: str) -> torch.device:
    """Return the device asked for, never another one in its place.

    Raises:
        MissingDevice: it is not here, or it is neither "cpu" nor "cuda".
    """
    here = available_devices()
    if device not in here:
        remedy = _CUDA_REMEDY if device == "cuda" else "write 'cpu' or 'cuda'"
        raise MissingDevice(
            f"device {device!r} is not here; torch {torch.__version__} sees {', '.join(here)}: {remedy}"
        )
    return torch.device(device)


def describe() -> dict[str, Any]:
    """Describe this machine for a record: JSON values only, and nothing that names the host or its user.

    `memory_available_bytes` changes from moment to moment; leave it out of what must be the same twice.
    """
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "n_cores": usable_cores(),
        "n_threads": torch.get_num_threads(),
        "memory_total_bytes": memory_limit_bytes(),
        "memory_available_bytes": available_memory_bytes(),
        "torch": str(torch.__version__),
        "cuda": _describe_cuda(),
    }


def _describe_cuda() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"name": gpu.name, "memory_bytes": gpu.total_memory, "compute_capability": f"{gpu.major}.{gpu.minor}"}


def _cpu_model() -> str:
    cpuinfo, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if not names and board.exists():
        names = [board.read_text().rstrip("\0")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores(root: Path = _ROOT) -> int:
    """Count the cores this process may use: its affinity, cut to the whole cores of its cgroup's CPU quota."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _cgroup_folders("cpu", root)]
    return max(1, math.floor(min([n_cores, *quotas])))


def memory_limit_bytes(root: Path = _ROOT) -> int:
    """Return the memory this process may use at most: the host's, or its cgroup's limit where that is smaller."""
    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_limits(root))])


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Return the memory this process could still allocate without swapping or being killed."""
    left = [limit - _memory_used(folder) for folder, limit in _memory_limits(root)]
    return max(0, min([psutil.virtual_memory().available, *left]))


def free_disk_bytes(path: Path) -> int:
    """Return the free disk space where `path` is, or would be created."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _cgroup_folders(controller: str, root: Path) -> list[Path]:
    """List the folders that may limit this process, its own cgroup first and then those around it.

    A container sees its own cgroup as the mount's root while /proc names its place on the host, so the folders around
    a missing one are looked at too.
    """
    membership = root / "proc/self/cgroup"
    folders: list[Path] = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount, group = root / "sys/fs/cgroup" / (controller if controllers else ""), Path(name.lstrip("/"))
        folders += [mount / part for part in (group, *group.parents)]
    return folders


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def _cpu_quota(folder: Path) -> float:
    version_1 = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    quota, period = _words(folder / "cpu.max") or version_1 or ("max", "1")
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def _memory_limits(root: Path) -> list[tuple[Path, int]]:
    folders = _cgroup_folders("memory", root)
    limits = [(folder, _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")) for folder in folders]
    return [(folder, int(words[0])) for folder, words in limits if words and words[0] != "max"]


def _memory_used(folder: Path) -> int:
    """Return what a cgroup holds without the file pages that the kernel drops when memory is short."""
    used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
    words = _words(folder / "memory.stat")
    stat = dict(zip(words[::2], words[1::2], strict=True))
    # Version 1 counts child groups only in the total_* lines.
    cached = sum(int(stat.get(f"total_{key}", stat.get(key, 0))) for key in ("active_file", "inactive_file"))
    return int(used[0]) - cached


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process since it started or since `reset_peak_rss`."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> bool:
    """Start the peak of resident memory anew; False where the kernel does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@dataclass(kw_only=True, slots=True, eq=False)
class PeakMemory:
    """The largest memory reached in a block; `bytes` is final when the block ends."""

    device: str
    """Resident memory of this process ("cpu") or memory allocated by torch ("cuda")."""
    start_bytes: int
    """Memory in use when the block began."""
    isolated: bool
    """False where the peak cannot be reset: `bytes` may then come from before the block."""
    bytes: int = 0
    """The peak, what was in use before included."""

    @property
    def added_bytes(self) -> int:
        """The peak above what was in use when the block began."""
        return self.bytes - self.start_bytes


_open_peaks: list[PeakMemory] = []


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[PeakMemory]:
    """Measure the peak memory of a block: `with peak_memory("cpu") as peak: ...`, then `peak.bytes`. Blocks may nest.

    Raises:
        MissingDevice: the device is not here.
    """
    require(device)
    _note_peak(device)
    start_bytes, isolated = _start_peak(device)
    peak = PeakMemory(device=device, start_bytes=start_bytes, isolated=isolated)
    _open_peaks.append(peak)
    try:
        yield peak
    finally:
        _note_peak(device)
        _open_peaks.remove(peak)


def _start_peak(device: str) -> tuple[int, bool]:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), True
    return psutil.Process().memory_info().rss, reset_peak_rss()


def _note_peak(device: str) -> None:
    """Hand the peak so far to every open block, because an inner block is about to reset it."""
    reached = torch.cuda.max_memory_allocated() if device == "cuda" else peak_rss_bytes()
    for peak in _open_peaks:
        if peak.device == device:
            peak.bytes = max(peak.bytes, reached)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """A measured upper limit of this machine."""

    name: str
    """What was measured, with its sizes."""
    unit: str
    """Unit of the samples."""
    samples: tuple[float, ...]
    """One rate per repeat, in the order measured."""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


def copy_bandwidth(
    n_bytes: int = 128 * MIB,
    repeats: int = 5,
    *,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Ceiling:
    """Measure how fast a tensor of n_bytes is copied within a device's memory, in bytes/s.

    Bytes read and bytes written both count, as in the STREAM benchmark: one copy moves 2 n_bytes.
    """
    where = require(device)
    source = torch.ones(n_bytes, dtype=torch.uint8, device=where)
    target = torch.zeros_like(source)
    samples = _rates(lambda: target.copy_(source), 2 * n_bytes, repeats, where, clock)
    return Ceiling(name=f"copy of {n_bytes} bytes on {device}", unit="bytes/s", samples=samples)


def gemm_flops(
    dtype: torch.dtype = torch.float32,
    rows: int = 512,
    cols: int = 2048,
    repeats: int = 5,
    *,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Ceiling:
    """Measure the product [rows, cols] x [cols, cols] in FLOP/s, at 2 rows cols^2 FLOPs (a multiply-add is two)."""
    where = require(device)
    x, weight = (torch.ones(n, cols, dtype=dtype, device=where) for n in (rows, cols))
    samples = _rates(lambda: x @ weight, 2 * rows * cols**2, repeats, where, clock)
    return Ceiling(name=f"{dtype} GEMM {rows} x {cols} x {cols} on {device}", unit="FLOP/s", samples=samples)


def _rates(
    work: Callable[[], object], amount: int, repeats: int, device: torch.device, clock: Callable[[], float]
) -> tuple[float, ...]:
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least 1 is needed")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    seconds = []
    for _ in range(repeats):
        wait()
        start = clock()
        work()
        wait()
        seconds.append(clock() - start)
    return tuple(amount / taken for taken in seconds)


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
def energy_meter(device: str = "cpu", *, requested: bool = True, root: Path = _ROOT) -> Iterator[EnergyMeter]:
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


def set_threads(n: int) -> None:
    """Let torch use n CPU threads.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; at least one thread is needed")
    torch.set_num_threads(n)


def set_determinism(seed: int, device: str = "cpu") -> dict[str, Any]:
    """Seed python, numpy and torch, ask CUDA for deterministic algorithms, and return what was set, for the record.

    Limits: PYTHONHASHSEED (the order of sets of strings) has no effect in a running interpreter, so it is only
    reported; CUBLAS_WORKSPACE_CONFIG counts only before the first CUDA call; operations that have no deterministic form
    warn and go on; and the same seed gives other numbers on another device, thread count or torch version.

    Raises:
        MissingDevice: the device is not here.
    """
    require(device)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that still draw from numpy's global state)
    torch.manual_seed(seed)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return {
        "seed": seed,
        "device": device,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "python_hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
        "n_threads": torch.get_num_threads(),
    }
