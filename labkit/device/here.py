"""What is here: devices, and the cores, memory and disk this process may use.

Memory and cores are those of the container: a limit set by a cgroup (version 1 or 2) counts, the host's total does not,
and page cache that the kernel gives back on demand does not count as used. Functions that read /proc, /sys or cgroup
files take the `root` under which to find them.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path("/")
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


def usable_cores(root: Path = ROOT) -> int:
    """Count the cores this process may use: its affinity, cut to the whole cores of its cgroup's CPU quota."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _cgroup_folders("cpu", root)]
    return max(1, math.floor(min([n_cores, *quotas])))


def memory_limit_bytes(root: Path = ROOT) -> int:
    """Return the memory this process may use at most: the host's, or its cgroup's limit where that is smaller."""
    return min([psutil.virtual_memory().total, *(limit for _, limit in _memory_limits(root))])


def available_memory_bytes(root: Path = ROOT) -> int:
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
