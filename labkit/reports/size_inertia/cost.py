"""Say what a run of report 000 would take before anything heavy starts: FLOPs, time, memory, disk.

Training is counted in FLOPs, 4 per parameter and token of a step with a frozen base (forward, and the gradient of the
activations) and 2 of a forward pass, at half the speed of a matrix product measured here. Decoding is counted in bytes
of weights at the copy bandwidth measured here.

The product that is measured is the first one of a run's processes, at which oneDNN decides what it uses: it is kept to
what the training arms are kept to.
"""

from __future__ import annotations

import torch

from labkit import device
from labkit.cell import environment
from labkit.models import SHAPES, shape_of
from labkit.reports.size_inertia import factorial, tiers
from labkit.reports.size_inertia.params import SizeInertia
from labkit.workflow.cost import Cost

environment.hold_onednn(environment.WITHOUT_AMX)
REPORTED = ("qwen2.5-0.5b", "phi-2", "qwen2.5-7b")
"""The report's models, smallest first."""
TOKENS_PER_PAIR = 190
"""Prompt, chosen and rejected text of a packed pair, to two digits."""
N_TRAIN, N_VALIDATION = 115, 23
"""Pairs of the training split, and those of them that a sweep leaves to choose by."""
BALANCED_SHARE = 0.5
"""Tokens of a word-balanced pair over those of a written one."""
_GEMM_SHARE = 0.5
_INIT_VALUES_PER_SECOND = 8e7
_LOAD_SECONDS = 6.0
_PROCESS_BYTES = 0.6 * 2**30
_RUNG_PARAMETERS = {"qwen2-16m": 16e6, "qwen2-48m": 48e6, "qwen2-110m": 110e6, "qwen2-250m": 250e6, "qwen2-1b": 1e9}


def plan_study(params: SizeInertia) -> Cost:
    """Estimate the cost of a run without loading a model."""
    flops, rate, basis = training_flops(params), *training_rate(params)
    seconds = decoding_seconds(params)
    return Cost(
        n_cells=n_cells(params),
        kinds="shapes timed, arms trained, models questioned",
        tokens=sum(n_arm_steps(params, model) for model in params.models) * params.batch_pairs * TOKENS_PER_PAIR,
        flops=flops,
        flops_per_second=rate,
        basis=basis,
        other_seconds=seconds,
        peak_bytes=peak_bytes(params),
        disk_bytes=50e6 + sum(6 * shape_of(model).parameters for model in params.models),
    )


def n_arms(params: SizeInertia, model: str) -> int:
    """Count a model's training arms: the report's rates and the tuned one for each seed, the sweep, controls, sizes."""
    of_seeds = (len(params.report_rates) + 1) * len(params.seeds)
    return of_seeds + len(params.learning_rates) + n_control_arms(params, model)


def n_control_arms(params: SizeInertia, model: str) -> int:
    """Count a model's arms with shuffled labels, template negatives and fewer pairs."""
    smaller = sum(size != N_TRAIN for size in params.dataset_sizes)
    return len(params.shuffles) + 1 + smaller if model in params.control_models else 0


def n_arm_steps(params: SizeInertia, model: str) -> int:
    """Count a model's optimizer steps, all arms together."""
    tuned = len(params.seeds) + n_control_arms(params, model)
    swept = len(params.learning_rates) * params.sweep_steps
    reported = len(params.report_rates) * len(params.seeds)
    return reported * params.report_steps + tuned * params.tuned_steps + swept


def n_cells(params: SizeInertia) -> int:
    """Count the cells of a run."""
    arms = sum(n_arms(params, model) for model in params.models)
    quantized = 3 * len(params.quantized) + 2 * len(params.control_models)
    of_models = 2 * len(params.models) + (len(params.models) > 1)
    n_covered = len({*REPORTED, *params.models}) + 1
    asked = sum(len(tiers.specs(params, tier)) for tier in params.tiers) + bool(params.tiers)
    judged = len(params.models) + bool(params.balanced_pairs)
    timed = len(params.ladder) + len(factorial.rungs(params)) + quantized
    return arms + timed + of_models + asked + n_covered + judged + 1


def training_flops(params: SizeInertia) -> float:
    """Return the FLOPs of all arms: steps, reference and held-out passes."""
    total = 0.0
    for model in params.models:
        per_token = 4 * n_arm_steps(params, model) * params.batch_pairs + 2 * n_scored_pairs(params, model)
        total += per_token * TOKENS_PER_PAIR * shape_of(model).parameters
    return total


def n_scored_pairs(params: SizeInertia, model: str) -> int:
    """Count the pairs that are scored without training: by the reference once, and after each arm."""
    n_sweep = len(params.learning_rates)
    each = 2 * params.held_out_pairs + BALANCED_SHARE * params.balanced_pairs
    judged = each * (n_arms(params, model) - n_sweep) + n_sweep * (N_VALIDATION + 2)
    # By the arms, which share a folder, and by the reference's own cell.
    reference = 2 * each + N_TRAIN * (3 if model in params.control_models else 1)
    return round(judged + reference)


def training_rate(params: SizeInertia) -> tuple[float, str]:
    """Return FLOP/s of training, and where the figure comes from."""
    if params.device not in device.available_devices():
        return params.assumed_tflops * 1e12, f"assumed {params.assumed_tflops:g} TFLOP/s; no {params.device} here"
    measured = device.gemm_flops(weights_dtype(params), device=params.device, repeats=3).median
    return _GEMM_SHARE * measured, f"half of a {params.weights_dtype} matrix product measured here"


def decoding_seconds(params: SizeInertia) -> float:
    """Return the seconds of timing shapes and answering questions: weights made, read once a token, loaded."""
    if params.device not in device.available_devices():
        return 0.0
    bandwidth = device.copy_bandwidth(repeats=3, device=params.device).median / 2
    rungs = sum(
        rung_seconds(params, name, bandwidth) for name in (*params.ladder, *params.quantized, *params.quantized)
    )
    answers = sum(question_seconds(params, model, params.questions, bandwidth) for model in params.models)
    answers += sum(tier_seconds(params, tier, bandwidth) for tier in params.tiers)
    shapes = factorial.seconds(params, bandwidth)
    return rungs + shapes + answers + _LOAD_SECONDS * sum(n_arms(params, model) for model in params.models)


def rung_seconds(params: SizeInertia, name: str, bandwidth: float) -> float:
    """Return the seconds of one rung: random weights made, then the repeats and a warm-up."""
    values = rung_parameters(name)
    tokens = params.new_tokens * (params.decode_repeats + 1)
    return making_seconds(name) + tokens * (2e-3 + values * weights_dtype(params).itemsize / bandwidth)


def making_seconds(name: str) -> float:
    """Return the seconds of making a rung's random weights."""
    return rung_parameters(name) / _INIT_VALUES_PER_SECOND


def question_seconds(params: SizeInertia, model: str, n: int, bandwidth: float) -> float:
    """Return the seconds of one model's answers to n questions."""
    per_token = 5e-3 + shape_of(model).parameters * weights_dtype(params).itemsize / bandwidth
    return n * params.answer_tokens * per_token


def tier_seconds(params: SizeInertia, tier: str, bandwidth: float) -> float:
    """Return the seconds of one tier's answers: samples decoded side by side, notes read as half as many tokens."""
    model, notes, samples = tiers.parsed(tier)
    alone = question_seconds(params, model, params.generated_questions, bandwidth)
    return alone * (1 + 0.5 * bool(notes)) * (1 + 0.5 * (samples - 1))


def peak_bytes(params: SizeInertia) -> float:
    """Return the memory of the largest cell: a rung's weights, or a model's with activations of two pairs."""
    rung = 1.1 * max(map(rung_parameters, params.ladder)) * weights_dtype(params).itemsize
    widest = 4 if "float32" in params.factorial_dtypes else 2
    rung = max(rung, 1.1 * factorial.largest(params) * widest)
    return max(rung + _PROCESS_BYTES, *(training_bytes(params, model) for model in params.models))


def training_bytes(params: SizeInertia, model: str) -> float:
    """Return the memory of an arm: the frozen weights, the activations of two pairs, the process."""
    return shape_of(model).parameters * weights_dtype(params).itemsize + 1.5 * 2**30 + _PROCESS_BYTES


def rung_parameters(name: str) -> float:
    """Return the parameters of a rung, to two digits for those that are no published model."""
    return float(SHAPES[name].parameters) if name in SHAPES else _RUNG_PARAMETERS[name]


def weights_dtype(params: SizeInertia) -> torch.dtype:
    """Return the type frozen weights are held in."""
    return getattr(torch, params.weights_dtype)
