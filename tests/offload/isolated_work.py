"""Work that is sent to an interpreter of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from labkit.offload.engine import StreamedLM

MIB = 1 << 20


def hold(mib: int) -> dict[str, Any]:
    """Touch so much memory."""
    return {"bytes": torch.ones(mib * MIB, dtype=torch.uint8).numel()}


def hold_above(mib: int, memory: int) -> dict[str, Any]:
    """Touch so much memory, knowing the limit."""
    return hold(mib) | told(memory)


def told(memory: int) -> dict[str, Any]:
    """Say what the limit is."""
    return {"memory": memory}


def fail() -> dict[str, Any]:
    """Fail with a text."""
    raise KeyError("what went wrong")


def steps(folder: str, memory: int, n_layers: int) -> dict[str, Any]:
    """Take two optimizer steps of a checkpoint, cold, and report them beside the kernel's own counters."""
    ends = [0, 1, n_layers - 2, n_layers - 1]
    lora = LoraConfig(r=8, target_modules=["qkv_proj", "down_proj"], layers_to_transform=ends)
    model = StreamedLM(folder, lora=lora, memory=memory)
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-3)
    ids = torch.randint(3, model.vocabulary, (4, 16), generator=torch.Generator().manual_seed(0))
    rows = []
    for _ in range(2):
        before = _rchar()
        report = model.step({"input_ids": ids}, optimizer)
        row = {name: getattr(report, name) for name in ("loss", "bytes_read", "row_bytes_read", "peak_bytes")}
        row |= {"planned_peak": report.plan.peak_bytes, "planned_bytes": report.plan.bytes_read}
        rows.append(row | {"rchar": _rchar() - before})
    return {"rows": rows}


def _rchar() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def wait(folder: str) -> dict[str, Any]:
    """Say who is at work in which group, and wait to be stopped."""
    (Path(folder) / "at_work").write_text(f"{os.getpid()} {Path('/proc/self/cgroup').read_text().strip()}")
    time.sleep(60)
    return {}
