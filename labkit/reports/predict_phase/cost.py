"""Say what a run of report 003 would take before anything starts: 6 FLOPs per parameter and token of a real step."""

from __future__ import annotations

import torch

from labkit import device, models
from labkit.base.units import GIB
from labkit.reports.predict_phase.arms import ARMS, Arm
from labkit.reports.predict_phase.contest import Contest
from labkit.reports.predict_phase.frontier import DECAY, read_steps
from labkit.reports.predict_phase.params import PredictPhase
from labkit.reports.predict_phase.study import make_study, n_cells, n_oracles, original_specs
from labkit.reports.predict_phase.tasks import ADAPTED, CNN, TASKS
from labkit.workflow.cost import Cost

_GEMM_SHARE = 0.35
"""Of a matrix product's rate: the models are small, and attention, norms and optimizer are not products."""
_PROCESS_SECONDS = 5.0
_STATES = 8
"""Copies of the weights that a hybrid holds at most: gradient, two moments, history, a copy for undoing."""
_CNN_VALUES = 52_000
_CNN_FLOPS = 7.5e6
"""FLOPs of a digit forward and backward: its convolutions use each weight at 64 places."""
_ORACLE_RUNS = 5


def plan_study(params: PredictPhase) -> Cost:
    """Estimate the cost of a run without training a step."""
    rate, basis = training_rate(params)
    study = make_study(params)
    work = [_work(contest) for contest in study.contests()]
    oracle = _ORACLE_RUNS * n_oracles(params) * params.steps * params.batch_size * params.context
    original = n_parameters(params.original_task, params.original_vocab_size, 1024)
    n_runs = 2 * len(original_specs(params))
    original_tokens = n_runs * params.original_steps * params.original_batch_size * params.original_context
    tokens = sum(n for n, _ in work) + oracle + original_tokens
    flops = (
        sum(n * each for n, each in work) + 6.0 * values_of(study.scratch) * oracle + 6.0 * original * original_tokens
    )
    return Cost(
        n_cells=n_cells(params),
        kinds="runs tuned and compared, the report's protocol, oracle, memory",
        tokens=tokens,
        flops=flops,
        flops_per_second=params.workers * rate,
        basis=basis,
        other_seconds=_PROCESS_SECONDS * 6,
        peak_bytes=max(*(_memory(contest) for contest in study.contests()), 16.0 * original) + GIB,
        disk_bytes=n_cells(params) * 12e3 + 50e6,
    )


def _work(contest: Contest) -> tuple[float, float]:
    """Return the tokens of a comparison and the FLOPs of each: frozen weights need no gradient of their own."""
    steps = tuning_steps(contest) + compared_steps(contest)
    if contest.task == CNN:
        return steps * contest.batch_size, _CNN_FLOPS
    each = (4.0 if contest.task in ADAPTED else 6.0) * values_of(contest)
    return steps * contest.batch_size * contest.context, each


def tuning_steps(contest: Contest) -> int:
    """Return the nominal steps of a comparison's sweeps if none needs an extension."""
    arms = {ARMS[arm].run_as or arm: ARMS[arm] for arm in contest.tuned_arms()}.values()
    shorter = sum(contest.lengths()) - contest.steps if contest.deciding else 0
    around = min(3, len(contest.learning_rates))
    steps = sum(len(contest.learning_rates) * _length(contest, arm) for arm in arms)
    steps += sum(around * shorter for arm in arms if not arm.reads)
    return steps + sum(len(arm.gates) * contest.steps for arm in arms)


def compared_steps(contest: Contest) -> int:
    """Return the nominal steps of a comparison's runs."""
    arms = {ARMS[arm].run_as or arm: arm for arm in contest.arms}.values()
    lengths = {arm: _length(contest, own) if (own := ARMS[arm]).reads else sum(contest.lengths()) for arm in arms}
    return sum(len(contest.seeds_of(arm)) * steps for arm, steps in lengths.items())


def _length(contest: Contest, arm: Arm) -> int:
    """Return the steps of an arm's longest run; one that decays before every read-out takes those steps twice."""
    again = sum(read_steps(contest.steps)[:-1]) if arm.decays else 0
    return contest.steps + round(DECAY * again)


def values_of(contest: Contest) -> int:
    """Return the parameters of a comparison's model."""
    if contest.task in ADAPTED:
        return models.SHAPES[ADAPTED[contest.task]].parameters
    if contest.task == CNN:
        return _CNN_VALUES
    return n_parameters(contest.task, contest.vocab_size, contest.context)


def _memory(contest: Contest) -> float:
    """Return the bytes of a comparison's workers: weights and what training adds, and a step's logits twice."""
    adapted = contest.task in ADAPTED
    vocabulary = models.SHAPES[ADAPTED[contest.task]].config().vocab_size if adapted else contest.vocab_size
    weights = values_of(contest) * (2.0 if adapted else 4.0 * _STATES)
    logits = 2 * 4.0 * contest.batch_size * contest.context * vocabulary
    return contest.params.workers * (weights + logits)


def n_parameters(task: str, vocab_size: int, context: int) -> int:
    """Return the parameters of a task's model, by its shape."""
    model = models.build("gpt2", device="meta", **TASKS[task], vocab_size=vocab_size, n_positions=context)
    return sum(p.numel() for p in model.parameters())


def training_rate(params: PredictPhase) -> tuple[float, str]:
    """Return FLOP/s of one worker, and where the figure comes from."""
    if params.device not in device.available_devices():
        return params.assumed_tflops * 1e12, f"assumed {params.assumed_tflops:g} TFLOP/s; no {params.device} here"
    device.set_threads(params.threads)
    measured = device.gemm_flops(getattr(torch, params.dtype), device=params.device, repeats=3).median
    return _GEMM_SHARE * measured, f"{_GEMM_SHARE:.0%} of a {params.dtype} matrix product measured here"
