"""Say what a grid would take before anything heavy starts: FLOPs, time, memory, disk.

The FLOPs are exact for the planned cells (they leave out what a rate sweep may add). The rate is measured on a few
steps of a middle-sized cell when the device is here, and the profile's assumption when it is not; the basis is always
named.
"""

from __future__ import annotations

import statistics
import time

import torch

from labkit import device
from labkit.reports.scaling_grid import isoflop
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.reports.scaling_grid.study import planned_cells
from labkit.scaling.counts import parameter_counts, training_flops
from labkit.scaling.optim import adamw
from labkit.scaling.train import Cell, build, steps_of, train_step
from labkit.workflow.cost import Cost

TRAIN_BYTES = {"wikitext-2": 10_900_000, "wiki-sample": 2_410_000}
"""Size of the training split of each corpus, to two digits, for planning only."""
_BYTES_PER_TOKEN = {512: 2.0, 1024: 2.5, 2048: 3.0, 4096: 3.5, 8192: 4.0, 16384: 4.4, 32768: 4.7}
_MEASURE_STEPS = 3


def plan_grid(params: ScalingGrid) -> Cost:
    """Estimate the cost of a grid without loading its corpus.

    Args:
        params: the resolved parameters, of this machine or another.
    """
    cells, tokens = planned_cells(params), n_train_tokens(params)
    cells += isoflop.planned(params, n_train_tokens(isoflop.at_equal_flops(params)))
    rate, basis = training_rate(params)
    largest = max(cells, key=lambda cell: parameter_counts(cell.config()).total)
    return Cost(
        n_cells=len(cells),
        tokens=sum(cell_tokens(cell, tokens) for cell in cells),
        flops=sum(cell_flops(cell, tokens) for cell in cells),
        flops_per_second=rate,
        basis=basis,
        peak_bytes=params.workers * cell_bytes(largest),
        disk_bytes=len(cells) * 20e3 + 50e6,
    )


def n_train_tokens(params: ScalingGrid) -> int:
    """Estimate the tokens of the training split from its bytes and the vocabulary size."""
    size = min((s for s in _BYTES_PER_TOKEN if s >= params.vocab_size), default=max(_BYTES_PER_TOKEN))
    return int(TRAIN_BYTES[params.corpus] / _BYTES_PER_TOKEN[size])


def cell_tokens(cell: Cell, train_tokens: int) -> int:
    """Return the tokens a cell sees."""
    return steps_of(cell, train_tokens) * cell.batch_size * cell.context


def cell_flops(cell: Cell, train_tokens: int) -> float:
    """Return a cell's training FLOPs."""
    steps = steps_of(cell, train_tokens)
    return steps * training_flops(cell.config(), cell.batch_size, cell.context)


def cell_bytes(cell: Cell) -> float:
    """Estimate a cell's peak memory: weights, gradients and AdamW's two moments in float32, logits and their gradient,
    and about 40 activations of the width per layer and token (20 kept, their gradients while they are used), beside
    0.4 GiB for the process."""
    n_tokens = cell.batch_size * cell.context
    activations = n_tokens * (3 * cell.vocab_size + 40 * cell.d_model * cell.n_layers)
    return 16.0 * parameter_counts(cell.config()).total + 4.0 * activations + 0.4 * 2**30


def training_rate(params: ScalingGrid) -> tuple[float, str]:
    """Return FLOP/s of training with all workers, and where the figure comes from."""
    if params.device not in device.available_devices():
        assumed = params.assumed_tflops
        return assumed * 1e12, f"assumed {assumed:g} TFLOP/s; no {params.device} device here"
    cells = sorted(planned_cells(params), key=lambda cell: training_flops(cell.config(), 1, cell.context))
    cell = cells[len(cells) // 2]
    measured_on = f"measured on {_MEASURE_STEPS} steps of {cell.mixer} d{cell.d_model} l{cell.n_layers}"
    return measured_rate(cell) * params.workers, f"{measured_on}, x {params.workers} workers"


def measured_rate(cell: Cell) -> float:
    """Train a cell for a few steps on random tokens; return the FLOP/s of the median step."""
    threads = torch.get_num_threads()
    device.set_threads(cell.threads)
    model = build(cell.config()).to(cell.device)
    optimizer = adamw(model, cell.learning_rate, cell.weight_decay, (0.9, cell.beta2))
    batch = max(1, min(cell.batch_size, 8192 // cell.context))
    ids = torch.randint(cell.vocab_size, (batch, cell.context + 1), device=cell.device)
    seconds = []
    for _ in range(_MEASURE_STEPS + 1):
        start = time.perf_counter()
        train_step(model, optimizer, ids, cell)
        if cell.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    device.set_threads(threads)
    return training_flops(cell.config(), batch, cell.context) / statistics.median(seconds[1:])
