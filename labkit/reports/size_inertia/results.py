"""The numbers of a run of report 000 that the ledger judges, and what the others would take on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from labkit import models
from labkit.base.scale import Scale
from labkit.base.units import settled
from labkit.decoding import compare, ladder
from labkit.dpo.arm import optimizer_steps
from labkit.reports.size_inertia import arms, balanced, convergence, cost, factorial, matrix, preferred, tiers
from labkit.reports.size_inertia.convergence import over_seeds
from labkit.reports.size_inertia.cost import REPORTED
from labkit.reports.size_inertia.coverage import CoverageSpec
from labkit.reports.size_inertia.study import Study
from labkit.routing import deciding, policies
from labkit.routing import replays as routing
from labkit.workflow.measured import Number, number
from labkit.workflow.params import scale, stated_scope

LOSS_STEPS = (5, 30, 50, 75)
"""Steps at which the report prints a loss, each the mean of the last five."""


def results(study: Study) -> dict[str, Number]:
    """Collect every number the ledger may ask for, with unit, interval and number of seeds."""
    found = property_results(study.coverage) | timing_results(study) | training_results(study)
    found |= convergence_results(study) | preference_results(study) | routing_results(study)
    return allowed(found, study)


def allowed(found: Mapping[str, Number], study: Study) -> dict[str, Number]:
    """Leave out what the protocol voids."""
    void = voided(study)
    return {key: value for key, value in found.items() if not any(_is_of(key, name) for name in void)}


def _is_of(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}/")


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
    # Where a factorial was timed it decides: widths and depths vary independently there.
    shapes = factorial.of_dtype(study.factorial, study.params.weights_dtype) or list(rungs.values())
    for key, quantity in factorial.QUANTITIES.items():
        points = ladder.points(shapes, quantity)
        if points["name"].nunique() >= 3:
            out[f"size_exponent/{key}"] = size_exponent(points)
    return out | factorial.results_of(study.factorial, study.params.weights_dtype)


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
    full = {
        arm: done
        for arm, done in study.arms.items()
        if arm.role == "report" and arm.schedule_steps == arm.steps == arms.REPORT_STEPS
    }
    for model in dict.fromkeys(arm.model for arm in full):
        curves = [loss_of(done) for arm, done in full.items() if arm.model == model]
        seconds = [done["seconds_per_step"] for arm, done in full.items() if arm.model == model]
        for step in LOSS_STEPS:
            means = [float(curve[step - 5 : step].mean()) for curve in curves]
            out[f"loss/{model}/step_{step}"] = over_seeds(means, "nats")
        out[f"final_loss/{model}"] = out[f"loss/{model}/step_{LOSS_STEPS[-1]}"]
        out[f"train_seconds_per_step/{model}"] = over_seeds(seconds, "seconds")
        out[f"train_seconds/{model}"] = over_seeds([arms.REPORT_STEPS * s for s in seconds], "seconds")
    if {"phi-2", "qwen2.5-0.5b"} <= {arm.model for arm in full}:
        large, small = (out[f"train_seconds/{name}"]["value"] for name in ("phi-2", "qwen2.5-0.5b"))
        out["train_time_ratio/phi-2_over_qwen2.5-0.5b"] = number(large / small, "")
    return out


def convergence_results(study: Study) -> dict[str, Number]:
    """Return who ends with the lower loss, each at its best rate, and the loss of preference itself."""
    done, rates = study.arms, study.report_rates
    found = convergence.results(done, rates)
    return found | convergence.preference_loss(done, rates, study.references)


def preference_results(study: Study) -> dict[str, Number]:
    """Return for each model, kind of arm and set of pairs how often the chosen text is preferred, in each way."""
    return {
        f"{_family(row)}/{row.kind}": number(row.accuracy, "", [row.low, row.high], n_seeds=row.runs)
        for row in preferences_table(study).itertuples(index=False)
    }


_KEYS = {words: name for name, words in preferred.SETS.items()}


def preferences_table(study: Study) -> pd.DataFrame:
    """Lay out what each kind of arm prefers: margin against the reference, log-probability by sum and per token."""
    return preferred.table(study.arms, study.references, study.params.models)


def _family(row: Any) -> str:
    """Return the first parts of a key: a way, a set of pairs, a model."""
    return f"preference/{row.way.replace(' ', '_')}/{_KEYS[row.pairs_of]}/{row.model}"


def voided(study: Study) -> dict[str, str]:
    """Say which results the protocol voids, and why: a result that is void is no evidence, whatever it shows.

    Returns:
        reasons by key; preferences of one model in one way over one set of pairs share a key.
    """
    out: dict[str, str] = {}
    losses = convergence.last_losses(study.arms, study.report_rates)
    if len(losses) == 2 and (edges := convergence.void({name: study.report_rates[name] for name in losses})):
        out |= dict.fromkeys((f"loss_difference/step_{arms.REPORT_STEPS}", "preference_loss/smaller"), "; ".join(edges))
    if study.tier_rows and (close := tiers.void(tiers.frame(study.tier_rows))):
        out["routing_gain/keyword_rule"] = "; ".join(close)
    return out | _void_preferences(study)


def _void_preferences(study: Study) -> dict[str, str]:
    """Void margins where shuffled labels are told from chance, and balanced pairs where words tell the texts apart."""
    out: dict[str, str] = {}
    table = preferences_table(study)
    # A tie counts half: words that are the same in both texts must tell nothing.
    words = balanced.share(study.balance["words"]) if study.balance else 0.5
    for row in table[(table["kind"] == "shuffled") & (table["way"] == preferred.MARGIN)].itertuples(index=False):
        if not row.low <= 0.5 <= row.high:
            out[_family(row)] = (
                f"shuffled labels are told from chance, {row.accuracy:.3g} [{row.low:.3g}, {row.high:.3g}]"
            )
    for row in table[table["pairs_of"] == preferred.SETS["balanced"]].itertuples(index=False):
        if words != 0.5:
            out[_family(row)] = f"a bag of words prefers {words:.1%} of the balanced pairs rightly"
    return out


def routing_results(study: Study) -> dict[str, Number]:
    """Return the share of right answers that the report's rule gains over the best single model, by the questions.

    Where tiers answered the generated questions, it is judged on those.
    """
    if study.params.tiers:
        asked = study.tier_rows and study.tier_decided
        gain = asked and _gain(study, tiers.frame(study.tier_rows), study.tier_decided)
        return {"routing_gain/keyword_rule": gain} if gain else {}
    rows = [row for answered in study.answers.values() for row in answered["rows"]]
    if len(study.answers) < 2:
        return {}
    return {"routing_gain/keyword_rule": _gain(study, matrix.frame(rows), study.decided)}


def _gain(study: Study, answers: pd.DataFrame, decided: Mapping[str, Any]) -> Number:
    policy = deciding.with_decisions(policies.KeywordRule(), decided)
    gain, sent_away = routing.gain_over_best(answers, policy, bootstrap=study.params.bootstrap)
    told = {"n_seeds": answers["query"].nunique(), "acted": sent_away}
    return number(gain.estimate, "", [gain.low, gain.high], **told)


def loss_of(done: Mapping[str, Any]) -> np.ndarray:
    """Return the loss of each optimizer step of a finished arm, [steps]."""
    return np.array([row["loss"] for row in done["curve"]])


def out_of_reach(study: Study) -> dict[str, Number]:
    """Say what each number of the report's own scale would take on this machine, at the speeds measured in this run."""
    params = study.params
    out: dict[str, Number] = {key: {"why": f"void: {why}"} for key, why in voided(study).items()}
    if scale(params) is Scale.STATED:
        return out
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
