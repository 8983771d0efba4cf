"""Which training arms a run of report 000 has: the report's schedule, a learning-rate sweep, tuned arms, controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig

from labkit import models
from labkit.dpo.arm import DpoArm
from labkit.reports.size_inertia.params import SizeInertia
from labkit.workflow.doctor import Check

REPORT_STEPS = 75
"""Optimizer steps of the report's schedule: 115 pairs in micro-batches of 2, four accumulated, five epochs."""
N_PAIRS = 115
"""Training pairs of the report, and of the set shipped here."""
MAX_EXTENSIONS = 2
"""Learning rates beyond the declared ones that are tried before an optimum at the edge is accepted as not found."""
SWEEP_PAIRS = 92
"""Pairs that the arms of a sweep see, four fifths; the other 23 choose between the learning rates."""

ALLOWED_UNMATCHED = {"phi-2": ("o_proj",)}
"""Targets of the report's list that a model of the report does not have: it trained Phi-2 without them."""


def report_arm(params: SizeInertia, model: str, seed: int, rate: float | None = None) -> DpoArm:
    """Return the report's own schedule, stopped after the profile's number of steps.

    Args:
        params: of the profile.
        model: what is trained.
        seed: of the adapters and the order of the pairs.
        rate: peak learning rate, by default the report's; at another one the arm's role is "rate".
    """
    own = rate is None or rate == params.report_learning_rate
    peak = params.report_learning_rate if own else rate
    return DpoArm(
        **_common(params, model, seed),
        name=f"{model} report s{seed}" if own else f"{model} rate {peak:g} s{seed}",
        role="report" if own else "rate",
        n_pairs=N_PAIRS,
        steps=params.report_steps,
        schedule_steps=REPORT_STEPS,
        learning_rate=peak,
        warmup_steps=params.report_warmup_steps,
    )


def sweep_arm(params: SizeInertia, model: str, rate: float) -> DpoArm:
    """Return one rate of a sweep, on four fifths of the pairs, with a schedule that it completes.

    The held-out pairs have no say in the choice of a rate, so all but one of them are left unscored.
    """
    base = _completed(params, model, params.seeds[0], params.sweep_steps)
    shared = {"n_pairs": SWEEP_PAIRS, "validate_on_rest": True, "eval_pairs": 1}
    return dataclasses.replace(base, name=f"{model} sweep {rate:g}", role="sweep", learning_rate=rate, **shared)


def tuned_arms(params: SizeInertia, model: str, rate: float) -> list[DpoArm]:
    """Return the arms at the chosen rate: all pairs for each seed, then controls and smaller sets."""
    arms = []
    for seed in params.seeds:
        base = _completed(params, model, seed, params.tuned_steps)
        arms.append(dataclasses.replace(base, name=f"{model} tuned s{seed}", learning_rate=rate))
    return arms + controls(params, arms[0]) if model in params.control_models else arms


def controls(params: SizeInertia, tuned: DpoArm) -> list[DpoArm]:
    """Return what a tuned arm is held against: shuffled labels, template negatives, and smaller sets of pairs."""
    shuffled = [
        {"name": f"{tuned.model} shuffle {seed}", "role": "shuffled", "variant": "shuffled", "label_seed": seed}
        for seed in params.shuffles
    ]
    template = {"name": f"{tuned.model} template", "role": "template", "variant": "template"}
    fewer = [
        {"name": f"{tuned.model} {n} pairs", "role": "fewer pairs", "n_pairs": n}
        for n in params.dataset_sizes
        if n != N_PAIRS
    ]
    return [dataclasses.replace(tuned, **changes) for changes in (*shuffled, template, *fewer)]


def coverage(params: SizeInertia, model: str) -> models.Coverage:
    """Return what the targets reach in a model.

    Raises:
        ValueError: a target matches nothing in it, and is not one of `ALLOWED_UNMATCHED`.
    """
    config = LoraConfig(r=params.lora_rank, target_modules=list(params.lora_targets))
    return reached(model, config, ALLOWED_UNMATCHED.get(model, ()))


def reach(params: SizeInertia) -> list[Check]:
    """Look whether the targets reach something in every model, before anything heavy starts."""
    try:
        found = {name: coverage(params, name).trainable for name in params.models}
    except ValueError as error:
        return [Check("adapters", False, str(error))]
    return [Check("adapters", True, ", ".join(f"{name} {n:,} parameters" for name, n in found.items()))]


def reached(model: str, config: LoraConfig, allow_unmatched: Sequence[str]) -> models.Coverage:
    """Return what a configuration reaches in a model's shape."""
    return models.lora_coverage(models.build(model, device="meta"), config, allow_unmatched=allow_unmatched)


def _completed(params: SizeInertia, model: str, seed: int, steps: int) -> DpoArm:
    """Return an arm with a tenth of its steps as warm-up and a linear decay to zero at its own end."""
    return DpoArm(
        **_common(params, model, seed),
        name="",
        n_pairs=N_PAIRS,
        steps=steps,
        schedule_steps=steps,
        learning_rate=params.learning_rates[0],
        warmup_steps=max(1, round(0.1 * steps)) if steps > 1 else 0,
    )


def _common(params: SizeInertia, model: str, seed: int) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "batch_pairs": params.batch_pairs,
        "beta": params.beta,
        "lora_rank": params.lora_rank,
        "lora_alpha": params.lora_alpha,
        "lora_dropout": params.lora_dropout,
        "targets": tuple(params.lora_targets),
        "allow_unmatched": ALLOWED_UNMATCHED.get(model, ()),
        "dtype": params.weights_dtype,
        "threads": params.workers * params.threads,
        "device": params.device,
        "eval_pairs": params.held_out_pairs,
    }
