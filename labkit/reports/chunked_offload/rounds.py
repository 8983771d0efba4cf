"""Time rounds of steps that put the law of the gain to the test: every batch size, at several speeds of the disk.

A round runs each batch size at each speed once, in an order drawn anew. Beside the steps it times reading alone and
computing alone, which is all that the law is told; and it copies memory at its start and at its end, because a round in
which the machine was not the same throughout shows nothing (`labkit.reports.chunked_offload.void`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labkit import metrics
from labkit.base.units import MIB
from labkit.cell import cell
from labkit.device import copy_bandwidth
from labkit.offload import ablation
from labkit.offload.engine import StreamedLM
from labkit.offload.readers import disk_bytes_read
from labkit.reports.chunked_offload import speed
from labkit.reports.chunked_offload.speed import SpeedSpec

_COPIED = 64 * MIB
"""What is copied to see whether the machine is still the same, more than a processor's cache holds; twice this is left
free by the plan."""
_COPIES = 201
"""How often: about a second, so that a pause of the machine is no disturbance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsSpec:
    """What is timed in rounds."""

    steps: SpeedSpec
    """The shape, its batch sizes and the limit; `repeats` is the number of rounds, `seed` also draws their order."""
    slowdowns: tuple[int, ...]
    """How many times as long each read takes, 1 for the disk as it is."""


@cell(
    "offload.rounds",
    version=2,
    packages=("transformers", "peft"),
    timing=(
        *("seconds", "stalled_seconds", "read_seconds", "compute_seconds", "peak_bytes", "disk_bytes"),
        *("process", "crossover_tokens", "reader", "limits", "why_not_cold", "copies"),
    ),
    timed=True,
)
def measure_rounds(spec: RoundsSpec, folder: Path | None = None) -> dict[str, Any]:
    """Write the random weights, time the rounds, and delete the weights.

    Args:
        spec: what to time.
        folder: where the weights go meanwhile; None for a temporary one.

    Returns:
        what `speed.measure_speed` returns, with `slowdown` in every row and ablation, computing alone only at 1, and
        copies: bytes/s of a copy in memory before and after each round.

    Raises:
        DiskFull: no room for the weights.
        LimitReached: a step wanted more memory than the budget.
    """
    return speed.under_limit(spec.steps, folder, f"{__name__}:time_rounds", {"spec": asdict(spec)})


def time_rounds(spec: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Time the rounds on a checkpoint that is there; this is what runs under the limit."""
    own = RoundsSpec(steps=speed.spec_of(spec["steps"]), slowdowns=tuple(spec["slowdowns"]))
    steps = own.steps
    model = speed.opened(steps, folder, spare_bytes=2 * _COPIED)
    run = f"{steps.shape} streamed, in rounds"
    metrics.begin(run, dict(spec))
    model.callbacks.append(metrics.of_steps(run))
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=steps.learning_rate)
    batches = {n: speed.batch_of(steps, model, n) for n in steps.batch_sizes}
    model.step(batches[steps.batch_sizes[0]], optimizer)
    rows, ablations, copies = [], [], []
    for repeat in range(steps.repeats):
        before = _copied(steps.device)
        for n, slowdown in order(own, repeat):
            rows.append(_timed(model, optimizer, batches[n], slowdown) | {"batch": n, "repeat": repeat})
            ablations += _halves(model, batches[n], slowdown, {"batch": n, "repeat": repeat, "slowdown": slowdown})
        copies.append({"repeat": repeat, "before": before, "after": _copied(steps.device)})
    plans = {str(n): _planned(model, n, steps.seq_len) for n in steps.batch_sizes}
    return {"rows": rows, "ablations": ablations, "copies": copies, "plans": plans, "reader": speed.reader_of(model)}


def order(spec: RoundsSpec, repeat: int) -> list[tuple[int, int]]:
    """Draw the order of a round: batch sizes with slowdowns."""
    every = [*itertools.product(spec.steps.batch_sizes, spec.slowdowns)]
    return [every[i] for i in np.random.default_rng((spec.steps.seed, repeat)).permutation(len(every))]


def _timed(
    model: StreamedLM, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], slowdown: int
) -> dict[str, Any]:
    before = disk_bytes_read()
    with ablation.reading_slowed(model, slowdown):
        report = model.step(batch, optimizer)
    row = speed.row_of(len(batch["input_ids"]), 0, report)
    return row | {"slowdown": slowdown, "disk_bytes": disk_bytes_read() - before}


def _halves(
    model: StreamedLM, batch: dict[str, torch.Tensor], slowdown: int, name: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Time reading alone and computing alone at the disk's own speed; where it is slowed, reading with batch 1 only.

    What is read does not depend on the batch, and what is computed not on the disk.
    """
    if slowdown > 1 and name["batch"] > 1:
        return []
    with ablation.reading_slowed(model, slowdown):
        read = ablation.without_computing(model, batch)
    computed = ablation.without_reading(model, batch) if slowdown == 1 else None
    return [{**name, "read_seconds": read, "compute_seconds": computed}]


def _copied(device: str) -> float:
    return copy_bandwidth(_COPIED, _COPIES, device=device).median


def _planned(model: StreamedLM, n: int, seq_len: int) -> dict[str, Any]:
    return speed.planned(model, n, seq_len) | {"spilled_bytes": model.plan_for(n, seq_len).spilled_bytes}
