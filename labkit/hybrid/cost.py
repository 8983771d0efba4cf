"""Say what a run of report 003 would take before anything starts: 6 FLOPs per parameter and token of a real step."""

from __future__ import annotations

import torch

from labkit import device, models
from labkit.cost import Cost
from labkit.hybrid.study import ORACLE_SEEDS, budgets, n_pieces, tuned_arms
from labkit.hybrid.train import TASKS
from labkit.schema_predict_phase import PredictPhase
from labkit.units import GIB

_GEMM_SHARE = 0.35
"""Of a matrix product's rate: the models are small, and attention, norms and optimizer are not products."""
_PROCESS_SECONDS = 5.0
_STATES = 8
"""Copies of the weights that a hybrid holds at most: gradient, two moments, history, a copy for undoing."""
_ORACLE_RUNS = 7 * ORACLE_SEEDS


def plan_study(params: PredictPhase) -> Cost:
    """Estimate the cost of a run without training a step."""
    values = n_parameters(params.task, params.vocab_size, params.context)
    rate, basis = training_rate(params)
    steps = params.steps * len(tuned_arms(params)) * len(params.learning_rates)
    steps += len(params.seeds) * len(params.arms) * sum(budgets(params)) + _ORACLE_RUNS * params.steps
    tokens = steps * params.batch_size * params.context
    original = n_parameters(params.original_task, params.original_vocab_size, 1024)
    original_tokens = 2 * 2 * params.original_steps * params.original_batch_size * params.original_context
    return Cost(
        n_cells=n_pieces(params),
        pieces="pieces (runs tuned and compared, the report's protocol, oracle, memory)",
        tokens=tokens + original_tokens,
        flops=6.0 * (values * tokens + original * original_tokens),
        flops_per_second=params.workers * rate,
        basis=basis,
        other_seconds=_PROCESS_SECONDS * 6,
        peak_bytes=max(params.workers * _STATES * 4.0 * values + _activation_bytes(params), 16.0 * original) + GIB,
        disk_bytes=n_pieces(params) * 12e3 + 50e6,
    )


def n_parameters(task: str, vocab_size: int, context: int) -> int:
    """Return the parameters of a task's model, by its shape."""
    model = models.build("gpt2", device="meta", **TASKS[task], vocab_size=vocab_size, n_positions=context)
    return sum(p.numel() for p in model.parameters())


def _activation_bytes(params: PredictPhase) -> float:
    """Return the bytes of a step's logits, twice: their gradient lies beside them."""
    return 2 * 4.0 * params.workers * params.batch_size * params.context * params.vocab_size


def training_rate(params: PredictPhase) -> tuple[float, str]:
    """Return FLOP/s of one worker, and where the figure comes from."""
    if params.device not in device.available_devices():
        return params.assumed_tflops * 1e12, f"assumed {params.assumed_tflops:g} TFLOP/s; no {params.device} here"
    device.set_threads(params.threads)
    measured = device.gemm_flops(getattr(torch, params.dtype), device=params.device, repeats=3).median
    return _GEMM_SHARE * measured, f"{_GEMM_SHARE:.0%} of a {params.dtype} matrix product measured here"
