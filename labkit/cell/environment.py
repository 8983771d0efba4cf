"""The numeric environment of a cell: what rounds its numbers beside its own code and data.

Two machines with the same packages, instruction set and number of threads give the same bits; a machine with another
instruction set rounds products in another order. What a timed cell measures depends on the processor itself, too.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LIMIT = "ONEDNN_MAX_CPU_ISA"
_CPUINFO = Path("/proc/cpuinfo")
_ONEDNN = {
    "SSE41": {"sse4_1"},
    "AVX": {"avx"},
    "AVX2": {"avx2"},
    "AVX512_CORE": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "AVX512_CORE_VNNI": {"avx512_vnni"},
    "AVX512_CORE_BF16": {"avx512_bf16"},
    "AVX512_CORE_FP16": {"avx512_fp16"},
    "AVX512_CORE_AMX": {"amx_tile", "amx_int8", "amx_bf16"},
}
"""Instruction sets that oneDNN chooses between, lowest first, with the processor's flags that each needs beyond the
ones before it (oneDNN developer guide, "CPU Dispatcher Control")."""
WITHOUT_AMX = "AVX512_CORE_FP16"
"""The highest of them without AMX.

AMX kernels round a row by how many rows stand beside it: in bfloat16 a pair scored alone and in a batch of two was up
to 1.33 nats apart (LOG.md, 2026-11-26).
"""


def hold_onednn(level: str) -> None:
    """Keep oneDNN at an instruction set or below, unless ONEDNN_MAX_CPU_ISA says otherwise.

    oneDNN reads the variable once, at a process's first product, and workers inherit it: call this on import.
    """
    os.environ.setdefault(_LIMIT, level)


def instruction_set(device: str = "cpu") -> str:
    """Name what computes: the processor's maker, what torch's own kernels use, and what oneDNN is held to or can use.

    Makers differ because MKL chooses its kernels by them. On "cuda" it is the accelerator's name and capability.
    """
    import torch

    if device == "cuda":
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        return f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}"
    maker, _ = _processor()
    return f"{maker} {torch.backends.cpu.get_cpu_capability()}, oneDNN {_onednn_level()}"


def packages(names: Iterable[str]) -> dict[str, str | None]:
    """Return the installed versions of packages, without the suffix of a build; None for one that is not here."""
    return {name: _version(name) for name in sorted(names)}


def of(names: Iterable[str], device: str, *, timed: bool) -> dict[str, Any]:
    """Return the environment that is part of a cell's key.

    Args:
        names: the packages that compute it.
        device: "cpu" or "cuda".
        timed: whether the cell measures time; the machine's kind then counts, too.
    """
    own: dict[str, Any] = {"packages": packages(names), "instruction_set": instruction_set(device)}
    return own | ({"machine": machine_kind()} if timed else {})


@functools.cache
def machine_kind() -> str:
    """Name the kind of this machine: processor and usable cores, nothing that names the host."""
    from labkit import device

    about = device.describe()
    return f"{about['cpu']}, {about['n_cores']} cores"


def _onednn_level() -> str:
    here = _supported()
    limit = os.environ.get(_LIMIT, "").upper()
    allowed = list(_ONEDNN)[: list(_ONEDNN).index(limit) + 1] if limit in _ONEDNN else list(_ONEDNN)
    return next((level for level in reversed(here) if level in allowed), "unknown")


def _supported() -> list[str]:
    _, flags = _processor()
    levels = []
    for level, needed in _ONEDNN.items():
        if not needed <= flags:
            break
        levels.append(level)
    return levels


@functools.cache
def _processor() -> tuple[str, frozenset[str]]:
    """Return the processor's maker and flags; elsewhere than on Linux only its architecture."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = said.get("flags", said.get("Features", ""))
    return said.get("vendor_id", platform.machine()), frozenset(flags.split())


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None
