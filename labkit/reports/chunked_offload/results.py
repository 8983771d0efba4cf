"""Numbers of report 001 for the ledger, from what a run measured, and what a profile cannot measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labkit import models
from labkit.base.scale import Scale
from labkit.base.units import GIB, MIB
from labkit.offload import shapes
from labkit.reports.chunked_offload import cost, law
from labkit.reports.chunked_offload.learning import LearnSpec
from labkit.reports.chunked_offload.params import ChunkedOffload
from labkit.reports.chunked_offload.study import FULL_BATCH, FULL_BUDGET, Study
from labkit.reports.chunked_offload.void import why_void
from labkit.stats import mean_ci, ratio_ci
from labkit.stats.affine import AffineFit, fit_affine
from labkit.workflow.measured import Number, number
from labkit.workflow.params import scale, stated_scope

BATCHES = (1, 8, 32, 64, 128)
"""Samples of a step that the report or its code name."""
RANGE = (32, 128)
"""Batch sizes between which the report states its gain."""


def results(study: Study) -> dict[str, Number]:
    """Return every number a run has for the ledger, by key."""
    timed = speed_results(study) | law_results(study)
    return property_results(study.params) | timed | learning_results(study) | full_results(study)


def property_results(params: ChunkedOffload) -> dict[str, Number]:
    """Count what is exact however little is trained: parameters of the shape and of its adapters."""
    total = models.SHAPES["phi-4"].parameters
    without_gqa = shapes.n_parameters("phi-4", num_key_value_heads=40)
    trainable = n_trainable(params, "phi-4")
    as_divided = "phi-4's adapters over the parameters without grouped queries, as the report divides"
    return {
        "parameters/phi-4": number(total, "parameters"),
        "parameters/phi-4-without-gqa": number(without_gqa, "parameters"),
        "trainable/phi-4": number(trainable, "parameters"),
        "trainable_percent/phi-4": number(100 * trainable / total, "percent"),
        "trainable_percent/phi-4-without-gqa": number(100 * trainable / without_gqa, "percent", note=as_divided),
    }


def n_trainable(params: ChunkedOffload, shape: str) -> int:
    """Count the adapter parameters of a shape, map by map."""
    model = models.build("phi-4", device="meta", **shapes.overrides(shape))
    layers = shapes.trained_layers(shape, params.trained_ends)
    maps = [m for name, m in model.named_modules() if name.rpartition(".")[2] in shapes.TARGETS]
    each = sum(params.lora_rank * (m.in_features + m.out_features) for m in maps) // shapes.n_layers(shape)
    return each * len(layers)


def speed_results(study: Study) -> dict[str, Number]:
    """Return how much cheaper a sample is in a larger batch than alone; nothing from rounds that show nothing."""
    if study.speed is None or void(study):
        return {}
    out = {f"speedup/batch_{n}": speedup(study.speed, n) for n in study.params.batch_sizes[1:]}
    ends = [out[f"speedup/batch_{n}"]["value"] for n in study.params.batch_sizes if RANGE[0] <= n <= RANGE[1]]
    if set(RANGE) <= set(study.params.batch_sizes):
        out["speedup_range"] = number([min(ends), max(ends)], "")
    return out | (_seconds(study.speed) if study.params.streamed_shape == "phi-4" else {})


def law_results(study: Study) -> dict[str, Number]:
    """Return how the gains that reading and computing alone predict compare with those measured, as slopes."""
    timed = study.rounds or study.speed
    return {} if timed is None or void(study) else law.results(timed)


def void(study: Study) -> list[str]:
    """Say why the rounds of a study show nothing; an empty list if they count, or if there were none."""
    return why_void(study.rounds) if study.rounds else []


def speedup(timed: Mapping[str, Any], n: int) -> Number:
    """Return seconds per sample of batch 1 over those of batch n, by rounds; Student's interval of the logarithms."""
    alone, many = seconds_of(timed, 1), seconds_of(timed, n) / n
    if len(alone) < 2:
        return number(float(alone[0] / many[0]), "")
    found = ratio_ci(alone, many)
    told = {"note": f"{len(alone)} interleaved rounds", "seconds": float(alone.sum() + n * many.sum())}
    return number(found.estimate, "", [found.low, found.high], n_seeds=len(alone), **told)


def seconds_of(timed: Mapping[str, Any], n: int) -> np.ndarray:
    """Return the seconds of each timed step of a batch size, [repeats], in the order of the rounds."""
    rows = sorted((row for row in timed["rows"] if row["batch"] == n), key=lambda row: row["repeat"])
    return np.array([row["seconds"] for row in rows])


def _seconds(timed: Mapping[str, Any]) -> dict[str, Number]:
    """Return seconds per sample and memory, which belong to a card and to the shape of the report."""
    each = {n: float(np.median(seconds_of(timed, n))) / n for n in sorted({row["batch"] for row in timed["rows"]})}
    peak = {n: max(row["peak_bytes"] for row in timed["rows"] if row["batch"] == n) for n in each}
    inside = [each[n] for n in each if RANGE[0] <= n <= RANGE[1]]
    out = {f"seconds_per_sample/batch_{n}": number(each[n], "seconds") for n in each if n in (1, *RANGE)}
    out |= {f"peak_memory/batch_{n}": number(peak[n] / MIB, "MiB") for n in each if n in (1, RANGE[1])}
    out["samples_per_second/batch_1"] = number(1 / each[1], "samples per second")
    if set(RANGE) <= set(each):
        out["seconds_per_sample_range"] = number([min(inside), max(inside)], "seconds")
        out["samples_per_second_range"] = number([1 / max(inside), 1 / min(inside)], "samples per second")
    return out


def learning_results(study: Study) -> dict[str, Number]:
    """Return what streaming changes of the loss on held-out text after training, over the windows of all arms."""
    if not study.learning:
        return {}
    streamed, resident = (
        np.concatenate([done[arm]["held_out_after"] for done in study.learning.values()])
        for arm in ("streamed", "resident")
    )
    found = mean_ci(100 * (streamed - resident) / resident.mean())
    key = "held_out_percent/streamed_over_resident"
    note = f"{len(streamed)} windows"
    told = number(found.estimate, "percent", [found.low, found.high], n_seeds=len(study.learning), note=note)
    return {key: told} | held_out_results(study)


def held_out_results(study: Study) -> dict[str, Number]:
    """Return what streamed training changes of the loss on held-out text, by batch size."""
    return {
        f"held_out_nats/{state}/batch_{n}": _mean_nats(value, len(arms))
        for n, arms in arms_by_batch(study).items()
        for state, value in held_out(study, arms).items()
    }


def arms_by_batch(study: Study) -> dict[int, list[LearnSpec]]:
    """Group the finished learning arms by batch size; those of a group differ by their seeds."""
    sizes = dict.fromkeys(arm.batch_size for arm in study.learning)
    return {n: [arm for arm in study.learning if arm.batch_size == n] for n in sizes}


def held_out(study: Study, arms: Sequence[LearnSpec], kind: str = "streamed") -> dict[str, np.ndarray]:
    """Return the nats per token of each held-out window before and after training, and the change, [n].

    The seeds of a window are averaged: they score the same text, and are no windows of their own.
    """
    before, after = (
        np.mean([study.learning[arm][kind][f"held_out_{when}"] for arm in arms], axis=0) for when in ("before", "after")
    )
    return {"before": before, "after": after, "change": after - before}


def _mean_nats(windows: np.ndarray, n_seeds: int) -> Number:
    found, note = mean_ci(windows), f"{len(windows)} windows, seeds averaged: {n_seeds}"
    return number(found.estimate, "nats", [found.low, found.high], n_seeds=len(windows), note=note)


def full_results(study: Study) -> dict[str, Number]:
    """Return the memory that a real optimizer step of the whole phi-4 shape took."""
    timed = study.full or (study.speed if study.params.streamed_shape == "phi-4" else None)
    if timed is None:
        return {}
    peak = max(row["peak_bytes"] for row in timed["rows"])
    note = "anonymous memory of the whole process, which the kernel would have ended at the limit"
    return {"peak_memory/phi-4": number(peak / GIB, "GiB", exact=True, note=note)}


def amortisation(timed: Mapping[str, Any]) -> AffineFit:
    """Fit the seconds of a step, T(B) = L + c B: a sample takes L/B + c (report, batched weight loading)."""
    rows = timed["rows"]
    return fit_affine([row["batch"] for row in rows], [row["seconds"] for row in rows])


def roofline_share(timed: Mapping[str, Any], n: int) -> Number:
    """Return the slower of reading alone and computing alone over the whole step, the medians of a batch size."""
    parts = [row for row in timed["ablations"] if row["batch"] == n]
    bounds = [float(np.median([row[name] for row in parts])) for name in ("read_seconds", "compute_seconds")]
    return number(max(bounds) / float(np.median(seconds_of(timed, n))), "")


def out_of_reach(study: Study) -> dict[str, Number]:
    """Say what each number that this run does not have would take here, and why rounds that show nothing do not."""
    params = study.params
    out: dict[str, Number] = {}
    if scale(params) is not Scale.STATED:
        why = "a time or a memory of the report's card with the report's shape; only profile gtx1650 can tell"
        out = {key: {"why": why} for key in _of_the_card()} | _missing_gains(study)
        out |= {} if study.full else {"peak_memory/phi-4": _full_needs(study)}
    return out | _void_needs(study)


def _missing_gains(study: Study) -> dict[str, Number]:
    """Price the gains of batch sizes that were not run: batch 1 is the other arm of each."""
    sizes = study.params.batch_sizes
    why = f"this profile's batches end at {sizes[-1]}"
    missing = {f"speedup/batch_{n}": [n] for n in BATCHES[1:] if n not in sizes}
    if not set(RANGE) <= set(sizes):
        missing["speedup_range"] = [n for n in BATCHES if RANGE[0] <= n <= RANGE[1]]
    return {key: {"why": why, **_gain_seconds(study, own)} for key, own in missing.items()}


def _void_needs(study: Study) -> dict[str, Number]:
    """Say of everything that the rounds would have shown why they do not, and what the same rounds take again."""
    if not void(study):
        return {}
    shown = [f"speedup/batch_{n}" for n in study.params.batch_sizes[1:]]
    shown += ["speedup_range"] if set(RANGE) <= set(study.params.batch_sizes) else []
    again = sum(row["seconds"] for row in study.rounds["rows"])
    again += sum(row["read_seconds"] + (row["compute_seconds"] or 0.0) for row in study.rounds["ablations"])
    needs = {"why": f"the rounds are void: {'; '.join(void(study))}", "seconds": again + _making_seconds(study)}
    return dict.fromkeys([*shown, *law.results(study.rounds)], needs)


def _of_the_card() -> list[str]:
    each = [f"seconds_per_sample/batch_{n}" for n in (1, *RANGE)] + ["seconds_per_sample_range"]
    rates = ["samples_per_second/batch_1", "samples_per_second_range"]
    return each + rates + [f"peak_memory/batch_{n}" for n in (1, RANGE[1])]


def _gain_seconds(study: Study, batches: Sequence[int]) -> dict[str, float]:
    """Return the seconds of as many rounds as here of batch 1 and other sizes, by the law fitted to those that ran."""
    if study.speed is None:
        return {}
    step = amortisation(study.speed)
    steps = study.params.speed_repeats * sum(step.predict(n) for n in (1, *batches)) + step.predict(1)
    return {"seconds": float(steps + _making_seconds(study))}


def _making_seconds(study: Study) -> float:
    return cost.making_seconds(study.params.streamed_shape)


def _full_needs(study: Study) -> Number:
    """Price the whole shape with the report's number of steps: one first, then each with its two halves apart.

    A pass is scaled from the step timed here, by the parameters of one shape over those of the other.
    """
    why = "this profile leaves the whole phi-4 shape out; its random weights take 29 GB of disk for a while"
    needs: Number = {"why": why, "gib": FULL_BUDGET / GIB}
    if study.speed is not None:
        ratio = models.SHAPES["phi-4"].parameters / study.speed["weights"]["parameters"]
        n_passes = 1 + 2 * stated_scope(study.params.report_id())["full_steps"]
        passes = n_passes * ratio * amortisation(study.speed).predict(FULL_BATCH)
        needs["seconds"] = float(passes + cost.making_seconds("phi-4"))
    return needs
