"""Say what a run of report 001 would take before anything heavy starts: FLOPs, time, memory, disk.

Training counts 6 FLOPs per parameter and token of a pass (up, recomputed, back to the hidden states), at half the speed
of a matrix product measured here. Reading and the making of random weights are counted in bytes at assumed rates.
"""

from __future__ import annotations

import torch

from labkit import device, models
from labkit.base.units import GB, GIB
from labkit.offload import shapes
from labkit.reports.chunked_offload.learning import ABOVE_BASE, side_by_side
from labkit.reports.chunked_offload.params import ChunkedOffload
from labkit.reports.chunked_offload.speed import SpeedSpec
from labkit.reports.chunked_offload.study import FULL_BATCH, FULL_BUDGET, n_threads, rounds_spec, speed_spec
from labkit.workflow.cost import Cost

_READ_BYTES_PER_SECOND = 1.5 * GB
"""Of an ordinary NVMe disk; the run itself measures it."""
_DRAW_VALUES_PER_SECOND = 1.2e8
_PROCESS_SECONDS = 5.0
"""A fresh interpreter until it has imported what a cell needs."""
_GEMM_SHARE = 0.5
_WARM_UP = 1


def plan_study(params: ChunkedOffload) -> Cost:
    """Estimate the cost of a run without writing a weight."""
    rate, basis = training_rate(params)
    n_learn = len(params.learn_batch_sizes) * len(params.seeds)
    return Cost(
        n_cells=2 + n_learn + bool(params.full_steps),
        kinds="shapes timed, arms trained twice, number types",
        tokens=sum(tokens for _, tokens in passes(params)),
        flops=sum(6.0 * values * tokens for values, tokens in passes(params)),
        flops_per_second=rate,
        basis=basis,
        other_seconds=reading_seconds(params) + _PROCESS_SECONDS * (2 + 2 * n_learn),
        peak_bytes=max(params.budget_gib * GIB, FULL_BUDGET if params.full_steps else 0, learn_bytes(params)),
        disk_bytes=max(weight_bytes(params, name) for name in streamed(params)),
    )


def streamed(params: ChunkedOffload) -> list[str]:
    """List the shapes that are streamed with random weights."""
    return [params.streamed_shape, *(["phi-4"] if params.full_steps else [])]


def weight_bytes(params: ChunkedOffload, shape: str) -> float:
    """Return the bytes of a shape's random weights."""
    return shapes.n_parameters(shape) * getattr(torch, params.weights_dtype).itemsize


def passes(params: ChunkedOffload) -> list[tuple[float, float]]:
    """List parameters and tokens of all timed, ablated and learning steps together, by model."""
    learn = models.SHAPES[params.learn_model].parameters
    n_windows = len(params.seeds) * params.learn_steps * sum(params.learn_batch_sizes)
    scored = len(params.seeds) * len(params.learn_batch_sizes) * 2 * params.held_out_windows / 3
    full = FULL_BATCH * (2 * params.full_steps + _WARM_UP) if params.full_steps else 0
    return [
        (float(shapes.n_parameters(params.streamed_shape)), float(computed_samples(params) * params.seq_len)),
        (float(models.SHAPES["phi-4"].parameters), float(full * params.seq_len)),
        (float(learn), 2 * (n_windows + scored) * params.learn_seq_len),
    ]


def computed_samples(params: ChunkedOffload) -> int:
    """Count the samples that pass through the streamed shape: steps at each speed of the disk, and computing alone."""
    steps = timed_steps(params)
    n_speeds = max(1, len(params.slowdowns))
    return steps.repeats * (n_speeds * sum(steps.batch_sizes) + sum(steps.ablated)) + _WARM_UP


def timed_steps(params: ChunkedOffload) -> SpeedSpec:
    """Return the steps that are timed, in rounds with a slowed disk or without."""
    return rounds_spec(params).steps if params.slowdowns else speed_spec(params)


def reading_seconds(params: ChunkedOffload) -> float:
    """Return the seconds of making and of reading random weights that no computing hides."""
    full = 2 * params.full_steps + _WARM_UP if params.full_steps else 0
    seconds = 0.0
    for name, n_passes in ((params.streamed_shape, read_passes(params)), ("phi-4", full)):
        n_bytes = weight_bytes(params, name) if n_passes else 0.0
        making = making_seconds(name) if n_passes else 0.0
        seconds += making + 2 * n_passes * n_bytes / _READ_BYTES_PER_SECOND
    return seconds


def read_passes(params: ChunkedOffload) -> float:
    """Count the passes whose reading no computing hides, in passes at the disk's own speed.

    Those are a step and reading alone for each size with its halves. Where the disk is slowed they are those of batch
    1, and take as many times as long.
    """
    steps = timed_steps(params)
    unhidden = 2 * len(steps.ablated)
    slowed = sum(2 * times for times in params.slowdowns[1:])
    return steps.repeats * (unhidden + slowed) + _WARM_UP


def making_seconds(shape: str) -> float:
    """Return the seconds of drawing a shape's random weights and writing them."""
    return shapes.n_parameters(shape) / _DRAW_VALUES_PER_SECOND


def learn_bytes(params: ChunkedOffload) -> float:
    """Return the memory of a learning arm: float32 weights, the streamed twin beside them, what micro-batches keep."""
    twins = side_by_side(params.device, n_threads(params))
    weights = 4.0 * models.SHAPES[params.learn_model].parameters
    return weights * (1 + ABOVE_BASE * (twins - 1)) + 0.5 * GIB * twins


def training_rate(params: ChunkedOffload) -> tuple[float, str]:
    """Return FLOP/s of training, and where the figure comes from."""
    if params.device not in device.available_devices():
        return params.assumed_tflops * 1e12, f"assumed {params.assumed_tflops:g} TFLOP/s; no {params.device} here"
    device.set_threads(n_threads(params))
    measured = device.gemm_flops(getattr(torch, params.weights_dtype), device=params.device, repeats=3).median
    return _GEMM_SHARE * measured, f"half of a {params.weights_dtype} matrix product measured here"
