"""Which cells a profile of report 000 has beside its training arms: what is timed, loaded, asked and scored."""

from __future__ import annotations

from typing import Any

from labkit import models
from labkit.decoding import ladder, quantize
from labkit.decoding.loading import LoadSpec
from labkit.decoding.quantize import QuantizedRung
from labkit.models.revisions import revision
from labkit.reports.size_inertia.fidelity import FidelitySpec
from labkit.reports.size_inertia.judged import ReferenceSpec
from labkit.reports.size_inertia.matrix import MatrixSpec
from labkit.reports.size_inertia.params import SizeInertia


def n_threads(params: SizeInertia) -> int:
    """Return the threads of every cell: cells run alone, so one has those of all workers."""
    return params.workers * params.threads


def rungs(params: SizeInertia) -> list[ladder.Rung]:
    """Return the rungs of a profile's ladder."""
    return [ladder.rung(name, **_timing(params)) for name in params.ladder]


def quantized_rungs(params: SizeInertia) -> list[QuantizedRung]:
    """Return the quantized rungs: each of them in its own type, int8 and int4."""
    return [
        QuantizedRung(rung=ladder.rung(name, **_timing(params) | {"train": False}), weights=weights)
        for weights in (params.weights_dtype, *quantize.WEIGHTS)
        for name in params.quantized
    ]


def fidelity_specs(params: SizeInertia) -> list[FidelitySpec]:
    """Return the pretrained models that are quantized: those with controls, in int8 and int4."""
    shared = {"dtype": params.weights_dtype, "device": params.device, "threads": n_threads(params)}
    shared["n_tokens"] = params.fidelity_tokens
    return [
        FidelitySpec(model=model, weights=weights, **shared)
        for model in params.control_models
        for weights in quantize.WEIGHTS
    ]


def loads(params: SizeInertia) -> list[LoadSpec]:
    """Return one load for each model."""
    where = {"dtype": params.weights_dtype, "device": params.device, "threads": n_threads(params)}
    return [LoadSpec(model=model, **where) for model in params.models]


def reference_specs(params: SizeInertia) -> list[ReferenceSpec]:
    """Return the untrained models that arms are held against."""
    where = {"dtype": params.weights_dtype, "device": params.device, "threads": n_threads(params)}
    return [ReferenceSpec(model=model, balanced_pairs=params.balanced_pairs, **where) for model in params.models]


def question_specs(params: SizeInertia) -> list[MatrixSpec]:
    """Return the questions to each model."""
    common = {"dtype": params.weights_dtype, "n_questions": params.questions, "max_new_tokens": params.answer_tokens}
    common |= {"threads": n_threads(params), "device": params.device, "seed": 0}
    return [MatrixSpec(model=model, **common) for model in params.models]


def _timing(params: SizeInertia) -> dict[str, Any]:
    counts = {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens}
    counts |= {"repeats": params.decode_repeats, "threads": n_threads(params)}
    return counts | {"dtype": params.weights_dtype, "device": params.device}


def require_weights(model: str) -> None:
    """Fetch weights that cannot even be told from others because they are not here."""
    try:
        revision(model)
    except models.MissingWeights:
        models.prepare(model)
