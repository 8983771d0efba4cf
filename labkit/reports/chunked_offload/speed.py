"""Time optimizer steps of a streamed random-weight model at several batch sizes, in a process of its own under a limit.

Every batch size runs the same mathematics with the same buffers in one process; the sizes take turns, so that a slow
minute of the machine meets all of them. Between them the same passes are timed with nothing read and with nothing
computed: the slower of these two bounds any schedule.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from labkit import metrics
from labkit.cell import cell
from labkit.device.pagecache import drop_pages
from labkit.offload import ablation, shapes
from labkit.offload.engine import StreamedLM
from labkit.offload.isolated import run_isolated
from labkit.offload.random_weights import write_random_checkpoint
from labkit.offload.readers import calibrate, disk_bytes_read
from labkit.offload.step_report import StepReport


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSpec:
    """What is timed."""

    shape: str
    """Name in `shapes`."""
    dtype: str
    """Type of the weights."""
    budget_bytes: int
    """Memory of the whole process."""
    batch_sizes: tuple[int, ...]
    """Samples of a step."""
    ablated: tuple[int, ...]
    """Batch sizes that are also run with nothing read and with nothing computed."""
    repeats: int
    """Timed steps of each."""
    seq_len: int
    """Tokens of a sample."""
    lora_rank: int
    """Rank of the adapters."""
    lora_alpha: int
    """Their scale."""
    trained_ends: int
    """Layers with adapters at either end."""
    learning_rate: float
    """AdamW's learning rate."""
    slots: int
    """Buffers: one layer at work and one read ahead are the report's chunk of one layer."""
    device: str
    """Device."""
    threads: int
    """Threads."""
    seed: int
    """Of weights, adapters and tokens."""


@cell(
    "offload.speed",
    version=1,
    packages=("transformers", "peft"),
    timing=(
        *("seconds", "stalled_seconds", "read_seconds", "compute_seconds", "peak_bytes", "disk_bytes"),
        *("process", "crossover_tokens", "reader", "limits", "why_not_cold"),
    ),
    timed=True,
)
def measure_speed(spec: SpeedSpec, folder: Path | None = None) -> dict[str, Any]:
    """Write the random weights, time the steps, and delete the weights.

    Args:
        spec: what to time.
        folder: where the weights go meanwhile; None for a temporary one.

    Returns:
        weights: what was written; rows: one per timed step; ablations; plans by batch size; limits: what was enforced.

    Raises:
        DiskFull: no room for the weights.
        LimitReached: a step wanted more memory than the budget.
    """
    return under_limit(spec, folder, f"{__name__}:time_steps", {"spec": asdict(spec)})


def under_limit(spec: SpeedSpec, folder: Path | None, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Call a function on a shape's random weights in a process that may hold `budget_bytes`, and delete the weights.

    Args:
        spec: which shape, and which limit.
        folder: where the weights go meanwhile; None for a temporary one.
        function: "package.module:name"; it is also given the weights' folder.
        arguments: its other keyword arguments.

    Returns:
        what it returned, with limits, weights and why_not_cold.

    Raises:
        DiskFull: no room for the weights.
        LimitReached: it wanted more memory than the budget.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return under_limit(spec, Path(temporary) / spec.shape, function, arguments)
    dtype, more = getattr(torch, spec.dtype), shapes.overrides(spec.shape)
    weights = write_random_checkpoint(folder, "phi-4", dtype=dtype, seed=spec.seed, **more)
    try:
        why_not_cold = drop_pages(sorted(folder.glob("*.safetensors")))
        asked = {**arguments, "folder": str(folder)}
        done = run_isolated(function, asked, threads=spec.threads, limit_bytes=spec.budget_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done | {"weights": weights | {"shape": spec.shape}, "why_not_cold": why_not_cold}


def time_steps(spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """Time the steps of a checkpoint that is there; this is what runs under the limit."""
    own = spec_of(spec)
    model = opened(own, folder)
    run = f"{own.shape} streamed, timed"
    metrics.begin(run, spec)
    model.callbacks.append(metrics.of_steps(run))
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=own.learning_rate)
    batches = {n: batch_of(own, model, n) for n in own.batch_sizes}
    model.step(batches[own.batch_sizes[0]], optimizer)
    rows, ablations = [], []
    for repeat, n in _turns(own):
        before = disk_bytes_read()
        report = model.step(batches[n], optimizer)
        rows.append(row_of(n, repeat, report) | {"disk_bytes": disk_bytes_read() - before})
        if n in own.ablated:
            read = ablation.without_computing(model, batches[n])
            computed = ablation.without_reading(model, batches[n])
            ablations.append({"batch": n, "repeat": repeat, "read_seconds": read, "compute_seconds": computed})
    plans = {str(n): planned(model, n, own.seq_len) for n in own.batch_sizes}
    return {"rows": rows, "ablations": ablations, "plans": plans, "reader": reader_of(model)}


def spec_of(plain: Mapping[str, Any]) -> SpeedSpec:
    """Return the spec that JSON gave back with lists for its tuples."""
    return SpeedSpec(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})


def reader_of(model: StreamedLM) -> dict[str, Any]:
    """Say how a model's weights are read, and what each way of reading reached in a trial."""
    return {"way": model.reader, "bytes_per_second": dict(model.trial.bytes_per_second)}


def opened(spec: SpeedSpec, folder: str, spare_bytes: int = 0) -> StreamedLM:
    """Open the checkpoint with the same buffers for all batch sizes; the plan leaves `spare_bytes` of the budget."""
    lora = LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        target_modules=list(shapes.TARGETS),
        layers_to_transform=shapes.trained_layers(spec.shape, spec.trained_ends),
    )
    # Past the page cache where the file system allows it, so that every read comes from the disk.
    way = "direct" if "direct" in calibrate([*Path(folder).glob("*.safetensors")]).bytes_per_second else "drop"
    common = {"memory": spec.budget_bytes - spare_bytes, "device": spec.device, "seed": spec.seed}
    return StreamedLM(folder, lora=lora, reader=way, slots=spec.slots, **common)


def batch_of(spec: SpeedSpec, model: StreamedLM, n: int) -> dict[str, torch.Tensor]:
    """Draw the tokens of a step of n samples, [n, seq_len]."""
    generator = torch.Generator().manual_seed(spec.seed)
    return {"input_ids": torch.randint(3, model.vocabulary, (n, spec.seq_len), generator=generator)}


def _turns(spec: SpeedSpec) -> Iterator[tuple[int, int]]:
    """Let the batch sizes take turns, another one first in each round."""
    sizes = spec.batch_sizes
    for repeat in range(spec.repeats):
        for i in range(len(sizes)):
            yield repeat, sizes[(i + repeat) % len(sizes)]


def row_of(n: int, repeat: int, report: StepReport) -> dict[str, Any]:
    """Return what is kept of a timed step of n samples."""
    kept = ("seconds", "stalled_seconds", "loads", "bytes_read", "row_bytes_read", "peak_bytes", "loss", "grad_norm")
    return {"batch": n, "repeat": repeat} | {name: getattr(report, name) for name in kept}


def planned(model: StreamedLM, n: int, seq_len: int) -> dict[str, Any]:
    """Return what is kept of the plan of a step of n samples."""
    plan = model.plan_for(n, seq_len)
    kept = ("micro_batch", "slots", "spill", "head_pieces", "peak_bytes", "bytes_read", "flops", "crossover_tokens")
    return {name: getattr(plan, name) for name in kept} | {"parts": dict(plan.parts)}
