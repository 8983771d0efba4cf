"""The numbers of a run of report 000 that the ledger judges, and what the others would take on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from labkit import models
from labkit.inertia import arms, compare, cost, deciding, ladder, matrix, policies, routing
from labkit.inertia.cost import REPORTED
from labkit.inertia.coverage import CoverageSpec
from labkit.inertia.dpo import optimizer_steps
from labkit.inertia.study import Study
from labkit.params import scale, stated_scope
from labkit.schema import Scale
from labkit.stats import mean_ci
from labkit.units import settled
from labkit.workflow.measured import Number, number

LOSS_STEPS = (5, 30, 50, 75)
"""Steps at which the report prints a loss, each the mean of the last five."""


def results(study: Study) -> dict[str, Number]:
    """Collect every number the ledger may ask for, with unit, interval and number of seeds."""
    found = property_results(study.coverage) | timing_results(study) | training_results(study)
    return found | convergence_results(study) | routing_results(study)


def property_results(coverage: Mapping[CoverageSpec, Mapping[str, Any]]) -> dict[str, Number]:
    """Count what needs no training: parameters, adapters of the report's targets, optimizer steps.

    Args:
        coverage: what `coverage.measure_coverage` returned.
    """
    found = {spec.model: done for spec, done in coverage.items() if "dense" not in spec.targets}
    out = {f"parameters/{name}": number(found[name]["total"], "parameters") for name in REPORTED}
    for name in REPORTED[1:]:
        ratio = found[name]["total"] / found["qwen2.5-0.5b"]["total"]
        out[f"parameter_ratio/{name}_over_qwen2.5-0.5b"] = number(ratio, "")
    for name in REPORTED[:2]:
        out[f"lora_trainable/{name}"] = number(found[name]["trainable"], "parameters")
        out[f"lora_percent/{name}"] = number(found[name]["percent"], "percent")
    ratio = found["phi-2"]["percent"] / found["qwen2.5-0.5b"]["percent"]
    out["lora_percent_ratio/phi-2_over_qwen2.5-0.5b"] = number(ratio, "")
    steps = optimizer_steps(arms.N_PAIRS, micro_batch=2, accumulation=4, epochs=5)
    return out | {"dpo/optimizer_steps": number(steps, "steps")}


def coverage_table(coverage: Mapping[CoverageSpec, Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out what the report's targets reach in its models and in this profile's, and Phi-2 with its own names."""
    return pd.DataFrame([_coverage_row(spec, done) for spec, done in coverage.items()])


def _coverage_row(spec: CoverageSpec, done: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": spec.model,
        "targets": ", ".join(target.removesuffix("_proj") for target in spec.targets),
        "trainable": done["trainable"],
        "percent": done["percent"],
        "unmatched": ", ".join(done["unmatched"]),
        "layers": f"{len(done['layers'])} of {done['n_layers']}",
    }


def timing_results(study: Study) -> dict[str, Number]:
    """Return ratios between the report's shapes and the exponents of time in bytes over the whole ladder."""
    out: dict[str, Number] = {}
    where, rungs = study.params.device, study.rungs
    for name in REPORTED[1:]:
        if name in rungs and "qwen2.5-0.5b" in rungs:
            found = compare.ratio(rungs[name], rungs["qwen2.5-0.5b"], "seconds_per_token", "model")
            ends = [found.interval.low, found.interval.high] if found.interval else None
            out[f"generation_ratio/{where}/{name}_over_qwen2.5-0.5b"] = number(found.value, "", ends)
    for key, quantity in (("decode", "seconds_per_token"), ("train", "train_seconds")):
        points = ladder.points(rungs.values(), quantity)
        if points["name"].nunique() >= 3:
            out[f"size_exponent/{key}"] = size_exponent(points)
    return out


def size_exponent(points: pd.DataFrame) -> Number:
    """Fit ln seconds = a + b ln bytes through the median of each size; return b with its 95 % interval.

    The interval is Student's, from how far the sizes lie off a power law.
    """
    medians = points.groupby("name").agg(bytes=("bytes", "first"), seconds=("seconds", "median"))
    fit = scipy_stats.linregress(np.log(medians["bytes"].to_numpy(float)), np.log(medians["seconds"].to_numpy(float)))
    width = scipy_stats.t.ppf(0.975, len(medians) - 2) * fit.stderr
    slope, low, high = map(settled, (fit.slope, fit.slope - width, fit.slope + width))
    return number(slope, "", [low, high], n_seeds=len(medians), note=f"{len(medians)} sizes")


def training_results(study: Study) -> dict[str, Number]:
    """Return losses and step times of the report's arms, for the models that ran all of its schedule."""
    out: dict[str, Number] = {}
    full = {arm: done for arm, done in study.arms.items() if arm.schedule_steps == arm.steps == arms.REPORT_STEPS}
    for model in dict.fromkeys(arm.model for arm in full):
        curves = [loss_of(done) for arm, done in full.items() if arm.model == model]
        seconds = [done["seconds_per_step"] for arm, done in full.items() if arm.model == model]
        for step in LOSS_STEPS:
            means = [float(curve[step - 5 : step].mean()) for curve in curves]
            out[f"loss/{model}/step_{step}"] = _over_seeds(means, "nats")
        out[f"final_loss/{model}"] = out[f"loss/{model}/step_{LOSS_STEPS[-1]}"]
        out[f"train_seconds_per_step/{model}"] = _over_seeds(seconds, "seconds")
        out[f"train_seconds/{model}"] = _over_seeds([arms.REPORT_STEPS * s for s in seconds], "seconds")
    if {"phi-2", "qwen2.5-0.5b"} <= {arm.model for arm in full}:
        large, small = (out[f"train_seconds/{name}"]["value"] for name in ("phi-2", "qwen2.5-0.5b"))
        out["train_time_ratio/phi-2_over_qwen2.5-0.5b"] = number(large / small, "")
    return out


def convergence_results(study: Study) -> dict[str, Number]:
    """Return the last loss of the larger of the trained models less that of the smaller, at the report's schedule."""
    ends: dict[str, dict[int, float]] = {}
    for arm, done in study.arms.items():
        if arm.schedule_steps == arm.steps == arms.REPORT_STEPS:
            ends.setdefault(arm.model, {})[arm.seed] = float(loss_of(done)[-5:].mean())
    if len(ends) != 2:
        return {}
    small, large = sorted(ends, key=lambda name: models.shape_of(name).parameters)
    shared = sorted(set(ends[small]) & set(ends[large]))
    return {
        f"loss_difference/step_{arms.REPORT_STEPS}": _over_seeds(
            [ends[large][n] - ends[small][n] for n in shared], "nats"
        )
    }


def routing_results(study: Study) -> dict[str, Number]:
    """Return the share of right answers that the report's rule gains over the best single model, by the questions."""
    rows = [row for answered in study.answers.values() for row in answered["rows"]]
    if len(study.answers) < 2:
        return {}
    policy = deciding.with_decisions(policies.KeywordRule(), study.decided)
    gain, sent_away = routing.gain_over_best(matrix.frame(rows), policy, bootstrap=study.params.bootstrap)
    told = {"n_seeds": len(rows) // len(study.answers), "acted": sent_away}
    return {"routing_gain/keyword_rule": number(gain.estimate, "", [gain.low, gain.high], **told)}


def loss_of(done: Mapping[str, Any]) -> np.ndarray:
    """Return the loss of each optimizer step of a finished arm, [steps]."""
    return np.array([row["loss"] for row in done["curve"]])


def out_of_reach(study: Study) -> dict[str, Number]:
    """Say what each number of the report's own scale would take on this machine, at the speeds measured in this run."""
    params = study.params
    if scale(params) is Scale.STATED:
        return {}
    out = {}
    for model in REPORTED[:2]:
        needs = _training_needs(study, [model])
        for key in [f"loss/{model}/step_{step}" for step in LOSS_STEPS] + [f"final_loss/{model}"]:
            out[key] = needs
    out["train_time_ratio/phi-2_over_qwen2.5-0.5b"] = _training_needs(study, REPORTED[:2])
    for name in REPORTED[1:]:
        if name not in study.rungs:
            out[f"generation_ratio/{params.device}/{name}_over_qwen2.5-0.5b"] = _timing_needs(study, name)
    return out | machine_bound() | {"seconds_per_query/bitnet-2b": _bitnet_needs()}


def machine_bound() -> dict[str, Number]:
    """Numbers that belong to one board: only a run there can meet or miss them."""
    why = "a time or a memory of the report's own board (Jetson AGX Thor); only profile jetson-thor can tell"
    keys = [f"cuda_speedup/{name}" for name in REPORTED] + ["peak_memory/cuda/qwen2.5-7b"]
    keys += [f"{quantity}/{name}" for quantity in ("load_seconds", "joules_per_query") for name in REPORTED]
    keys += [f"generation_seconds/{device}/{name}" for device in ("cpu", "cuda") for name in REPORTED]
    keys += [f"{quantity}/{name}" for quantity in ("train_seconds", "train_seconds_per_step") for name in REPORTED[:2]]
    keys += [f"generation_ratio/cuda/{name}_over_qwen2.5-0.5b" for name in REPORTED[1:]]
    return {key: {"why": why} for key in keys}


def _training_needs(study: Study, names: Sequence[str]) -> Number:
    """Price the report's steps on its models, with its own seeds, by the time for a parameter and step measured here.

    The arms are timed, so they run one after the other, and only the largest model has to fit.
    """
    rates = [done["seconds_per_step"] / models.shape_of(arm.model).parameters for arm, done in study.arms.items()]
    n_steps = arms.REPORT_STEPS * len(stated_scope(study.params.report_id())["seeds"])
    values = [models.shape_of(name).parameters for name in names]
    seconds = n_steps * sum(values) * float(np.median(rates)) if rates else math.nan
    why = f"no package index has the weights of {' and '.join(names)}; with them (hub or LABKIT_MODELS) it can be run"
    gib = max(cost.training_bytes(study.params, name) for name in names) / 2**30
    return {"why": why, "gib": gib} | ({"seconds": seconds} if math.isfinite(seconds) else {})


def _timing_needs(study: Study, name: str) -> Number:
    """Price both shapes of a ratio of decode times, at the largest rung's time per byte, and their random weights."""
    pair = (name, REPORTED[0])
    n_bytes = {one: cost.rung_parameters(one) * cost.weights_dtype(study.params).itemsize for one in pair}
    needs: Number = {"why": f"this profile's ladder ends below {name}", "gib": n_bytes[name] / 2**30}
    if study.rungs:
        largest = max(study.rungs.values(), key=lambda rung: rung["bytes_per_token"])
        per_byte = float(np.median(largest["seconds_per_token"])) / largest["bytes_per_token"]
        tokens = study.params.new_tokens * (study.params.decode_repeats + 1)
        needs["seconds"] = sum(tokens * n_bytes[one] * per_byte + cost.making_seconds(one) for one in pair)
    return needs


def _bitnet_needs() -> Number:
    gib = models.SHAPES["bitnet-2b"].parameters * 2 / 2**30
    return {
        "why": "BitNet's weights come from the hub only, and its speed from bitnet.cpp, not from PyTorch",
        "gib": gib,
    }


def _over_seeds(values: list[float], unit: str) -> Number:
    """Return the mean over seeds, with Student's interval where there are at least two."""
    if len(values) < 2:
        return number(values[0], unit)
    found = mean_ci(values)
    return number(found.estimate, unit, [found.low, found.high], n_seeds=len(values))
