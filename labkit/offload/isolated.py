"""Run a measurement in an interpreter of its own under a limit that the kernel enforces.

A notebook's kernel holds plots, tables and whatever ran before; what a model takes can be told only in a process that
does nothing else. The limit is a memory cgroup where this process may make one, and RLIMIT_DATA always, which refuses
memory beyond it at the moment it is asked for.

    python -m labkit.offload.isolated < request.json    (what `run_isolated` starts; it writes the result to a file)
"""

from __future__ import annotations

import errno
import importlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.base.units import MIB, format_bytes
from labkit.device import memory
from labkit.offload.memory import anonymous_bytes

IN_PLACE = "LABKIT_IN_PLACE"
"""Variable that is 1 where goldens run: an interpreter takes longer to start than a tiny cell takes."""
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_KILLED = -9
_UNTOUCHED = 128 * MIB
"""Private memory that is mapped and never touched: stacks of threads still to come, gaps before huge pages.

Training a 2.5B shape maps 101 MiB of it with eight threads at once.
"""
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_PEAKS = ("memory.peak", "memory.max_usage_in_bytes")


class LimitReached(RuntimeError):
    """The kernel refused memory or ended the process at the limit."""


def run_isolated(
    function: str, arguments: Mapping[str, Any], *, threads: int, limit_bytes: int = 0, above_bytes: int = 0
) -> dict[str, Any]:
    """Call a function in a new interpreter.

    Args:
        function: "package.module:name"; it takes and returns what JSON can hold.
        arguments: its keyword arguments.
        threads: torch's threads.
        limit_bytes: anonymous memory of the process at most; 0 for no limit.
        above_bytes: a limit instead by so much above what the process holds once its modules are imported; the
            function is then told the limit, as `memory`.

    Returns:
        what it returned, and under `limits` what was enforced and how far it was used.

    Raises:
        LimitReached: it wanted more memory.
        RuntimeError: it failed otherwise; its error output has been shown.
    """
    request = {"function": function, "arguments": dict(arguments), "threads": threads}
    request |= {"limit_bytes": limit_bytes, "above_bytes": above_bytes}
    if os.environ.get(IN_PLACE) == "1":
        return _in_place(json.loads(json.dumps(request)))
    with tempfile.TemporaryDirectory() as folder, _cgroup(bool(limit_bytes or above_bytes)) as group:
        request |= {"out": str(Path(folder) / "out.json"), "cgroup": None if group is None else str(group)}
        code = _run(json.dumps(request), _environment(threads))
        out = Path(request["out"])
        answer = json.loads(out.read_text()) if out.exists() else {}
        if code or "result" not in answer:
            kind = LimitReached if code == _KILLED or answer.get("memory") else RuntimeError
            raise kind(answer.get("error") or f"{function} ended with exit code {code}")
        limits = answer["limits"] | {"cgroup": group is not None, "cgroup_peak_bytes": _read(group, _PEAKS)}
        return answer["result"] | {"limits": limits}


def _run(request: str, environment: Mapping[str, str]) -> int:
    """Run the interpreter until it ends; it has ended, too, when this process is interrupted: its cgroup has to go."""
    child = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, text=True, env=environment)
    try:
        child.communicate(request)
    except BaseException:
        child.kill()
        raise
    finally:
        child.wait()
    return child.returncode


def _in_place(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do the work in this process, under no limit: a limit cannot be taken back."""
    work = _found(request["function"])
    _set_threads(request["threads"])
    base = anonymous_bytes()
    told = {"memory": base + request["above_bytes"]} if request["above_bytes"] else {}
    return work(**request["arguments"], **told) | {"limits": {"limit_bytes": 0, "base_bytes": base, "cgroup": False}}


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of the child: torch takes large pieces of memory in huge pages, and glibc as it likes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return kept | {"THP_MEM_ALLOC_ENABLE": "1", "OMP_NUM_THREADS": str(threads)}


@contextmanager
def _cgroup(wanted: bool) -> Iterator[Path | None]:
    """Make a memory cgroup below this process's own, version 2 or 1; None where that is not allowed."""
    group = None
    try:
        if wanted:
            group = Path(tempfile.mkdtemp(prefix="labkit-", dir=_own_group()))
            next(group / name for name in _LIMITS if (group / name).exists())
    except (OSError, StopIteration):
        if group is not None:
            group.rmdir()
        group = None
    try:
        yield group
    finally:
        if group is not None:
            group.rmdir()


def _whole_pages(n_bytes: int) -> int:
    """Round up: the kernel rounds down, and a budget must not lie above the limit."""
    return -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _own_group() -> Path:
    lines = _MEMBERSHIP.read_text().splitlines() if _MEMBERSHIP.exists() else []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _CGROUPS / "memory" / name.lstrip("/")
    return _CGROUPS / (lines[-1].split(":", 2)[2].lstrip("/") if lines else "")


def _read(group: Path | None, names: tuple[str, ...]) -> int | None:
    found = [group / name for name in names if (group / name).exists()] if group is not None else []
    return int(found[0].read_text()) if found else None


def _serve() -> None:
    """Do what stands on the standard input, and write what came of it.

    An interrupt reaches the whole group of processes. The one that waits for this one ends it, so that one is told.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.load(sys.stdin)
    group = Path(request["cgroup"]) if request["cgroup"] else None
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    answer: dict[str, Any] = {}
    try:
        work = _found(request["function"])
        _set_threads(request["threads"])
        answer["limits"] = _limit(request["limit_bytes"], request["above_bytes"], group)
        told = {"memory": answer["limits"]["limit_bytes"]} if request["above_bytes"] else {}
        answer["result"] = work(**request["arguments"], **told)
    except BaseException as error:
        answer |= {"error": f"{type(error).__name__}: {error}", "memory": _is_about_memory(error)}
        raise
    finally:
        Path(request["out"]).write_text(json.dumps(answer))


def _found(function: str) -> Callable[..., dict[str, Any]]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _set_threads(threads: int) -> None:
    from labkit import device

    device.set_threads(threads)


def _limit(limit_bytes: int, above_bytes: int, group: Path | None) -> dict[str, Any]:
    """Limit the cgroup, if there is one, and private memory; what is mapped and never touched is let through there."""
    base = anonymous_bytes()
    limit = limit_bytes or (_whole_pages(base + above_bytes) if above_bytes else 0)
    if not limit:
        return {"limit_bytes": 0, "base_bytes": base}
    if limit < base:
        raise MemoryError(
            f"the limit is {format_bytes(limit)}, and the process holds {format_bytes(base)} before it begins"
        )
    if group is not None:
        next(group / name for name in _LIMITS if (group / name).exists()).write_text(str(_whole_pages(limit)))
    data = limit + memory.counted("VmData") - base + _UNTOUCHED
    resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))
    return {"limit_bytes": limit, "base_bytes": base, "rlimit_data": data}


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # oneDNN says only that it could not create a primitive when there is no memory for its code.
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in ("allocate memory", "create a primitive"))


if __name__ == "__main__":
    _serve()
