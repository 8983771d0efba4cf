"""Run everything report 000 needs on this machine, piece by piece: time shapes, ask questions, train arms.

A piece is a pure function of one frozen description. Its result is stored as soon as it is there, and a rerun asks the
store first, so a run killed at any moment loses at most the piece under way (and of a training arm at most the steps
since its last checkpoint). Pieces run one after the other: each may use all threads, and no timing has a neighbour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from labkit import device, memory, models, paths
from labkit.inertia import arms, cost, dpo, fidelity, ladder, loading, matrix, quantize
from labkit.inertia.dpo import DpoArm
from labkit.inertia.fidelity import FidelitySpec
from labkit.inertia.loading import LoadSpec
from labkit.inertia.matrix import MatrixSpec
from labkit.inertia.quantize import QuantizedRung
from labkit.progress import Progress, of_study
from labkit.record import Store, cell_key, source_hash
from labkit.schema import SizeInertia


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: SizeInertia
    """What was asked for."""
    rungs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `ladder.measure_rung` returned, by rung."""
    quantized: dict[QuantizedRung, dict[str, Any]] = field(default_factory=dict)
    """What `quantize.measure_quantized` returned."""
    fidelity: dict[FidelitySpec, dict[str, Any]] = field(default_factory=dict)
    """What `fidelity.measure_fidelity` returned."""
    loads: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Cold and warm load times, by model."""
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `matrix.answer_questions` returned, by model."""
    arms: dict[DpoArm, dict[str, Any]] = field(default_factory=dict)
    """What `dpo.train_arm` returned."""
    best_rate: dict[str, float] = field(default_factory=dict)
    """Chosen peak learning rate, by model."""
    failures: dict[str, str] = field(default_factory=dict)
    """Error of each piece that has no result."""
    cached: int = 0
    """Number of pieces that were found finished."""


def run_study(params: SizeInertia) -> Study:
    """Run or load every piece.

    Returns:
        results and failures; a piece that failed (a shape larger than the memory that is left is one) is listed in
        `failures`, never dropped.

    Raises:
        MissingData: a model's weights are not here and cannot be fetched.
        ValueError: bad input, such as a target module that matches nothing.
    """
    device.set_threads(n_threads(params))
    study = Study(params)
    with of_study(cost.n_pieces(params), "size inertia", params.hardware, params.report_id()) as progress:
        run = _Runner(study, progress)
        run.shapes()
        run.questions()
        for model in params.models:
            run.train(model)
    return study


def n_threads(params: SizeInertia) -> int:
    """Return the threads of every piece: pieces run alone, so one has those of all workers."""
    return params.workers * params.threads


class _Runner:
    """Walks through the pieces with one store and one progress display."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study, self._params, self._progress = study, study.params, progress
        folder = paths.runs(study.params.hardware, study.params.report_id())
        self._store, self._work = Store(folder / "cells"), folder / "arms"

    def shapes(self) -> None:
        for spec in rungs(self._params):
            self._into(self._study.rungs, spec.name, f"rung {spec.name}", spec, ladder.measure_rung)
        for spec in quantized_rungs(self._params):
            label = f"rung {spec.rung.name} in {spec.weights}"
            self._into(self._study.quantized, spec, label, spec, quantize.measure_quantized)
        for spec in fidelity_specs(self._params):
            label = f"{spec.model} in {spec.weights}"
            self._into(self._study.fidelity, spec, label, spec, fidelity.measure_fidelity)
        for spec in loads(self._params):
            self._into(self._study.loads, spec.model, f"load {spec.model}", spec, loading.measure_load)

    def questions(self) -> None:
        for spec in question_specs(self._params):
            self._into(self._study.answers, spec.model, f"questions to {spec.model}", spec, matrix.answer_questions)

    def train(self, model: str) -> None:
        """Sweep the rate, then run the report's arms and the tuned ones."""
        losses = self._sweep(model)
        for seed in self._params.seeds:
            self._arm(arms.report_arm(self._params, model, seed))
        rate = arms.best_rate(losses)
        if rate is None:
            return
        self._study.best_rate[model] = rate
        for arm in arms.tuned_arms(self._params, model, rate):
            self._arm(arm)

    def _sweep(self, model: str) -> dict[float, float]:
        """Try the declared rates, and further ones while the best lies at their edge; return validation losses."""
        losses: dict[float, float] = {}
        wanted = list(self._params.learning_rates)
        for extension in range(arms.MAX_EXTENSIONS + 1):
            self._progress.extend(len(wanted) if extension else 0)
            for arm in (arms.sweep_arm(self._params, model, rate) for rate in wanted):
                self._arm(arm)
                if arm in self._study.arms:
                    losses[arm.learning_rate] = self._study.arms[arm]["validation"]["loss"]
            further = arms.next_rate(losses)
            wanted = [] if further is None else [further]
            if not wanted:
                break
        return losses

    def _arm(self, arm: DpoArm) -> None:
        def work(spec: DpoArm) -> dict[str, Any]:
            folder = self._work / cell_key(dataclasses.asdict(spec))[:16]
            steps = _Steps(self._progress)
            # transformers takes seconds to import, and most who read a study train nothing.
            from labkit.trainer_metrics import of_trainers

            with of_trainers(spec.name, dataclasses.asdict(spec)):
                return dpo.train_arm(spec, folder, steps, reference_dir=self._work / "references")

        self._into(self._study.arms, arm, f"arm {arm.name}", arm, work)

    def _into(self, results: dict, key: Any, label: str, spec: Any, work: Callable[[Any], Mapping[str, Any]]) -> None:
        """Load a piece, or run and store it; what the machine did to it becomes a failure, bad input is raised."""
        source = source_hash([type(spec).__module__])
        inputs = {"piece": dataclasses.asdict(spec), "source": source, "torch": torch.__version__}
        stored = self._store.load(cell_key(inputs))
        if stored is not None:
            results[key] = stored
            self._study.cached += 1
            self._progress.skip(1, label)
            return
        self._progress.note(label)
        try:
            self._store.save(cell_key(inputs), inputs, work(spec))
            results[key] = self._store.load(cell_key(inputs))
        except (RuntimeError, MemoryError, FloatingPointError, models.TooLarge) as error:
            self._study.failures[label] = f"{type(error).__name__}: {error}"
        finally:
            memory.release()  # kernels of `labkit run` tell glibc to keep it, and a large shape needs the pages
        self._progress.advance(1, label)


class _Steps:
    """Shows an arm's steps as remarks: what is counted are pieces."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def advance(self, n: int = 1, message: str = "") -> None:
        self._progress.note(message)


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
    where = {"dtype": params.weights_dtype, "device": params.device, "threads": n_threads(params)}
    return [
        FidelitySpec(model=model, weights=weights, **where)
        for model in params.control_models
        for weights in quantize.WEIGHTS
    ]


def loads(params: SizeInertia) -> list[LoadSpec]:
    """Return one load for each model."""
    where = {"dtype": params.weights_dtype, "device": params.device, "threads": n_threads(params)}
    return [LoadSpec(model=model, **where) for model in params.models]


def question_specs(params: SizeInertia) -> list[MatrixSpec]:
    """Return the questions to each model."""
    common = {"dtype": params.weights_dtype, "n_questions": params.questions, "max_new_tokens": params.answer_tokens}
    common |= {"threads": n_threads(params), "device": params.device, "seed": 0}
    return [MatrixSpec(model=model, **common) for model in params.models]


def _timing(params: SizeInertia) -> dict[str, Any]:
    counts = {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens}
    counts |= {"repeats": params.decode_repeats, "threads": n_threads(params)}
    return counts | {"dtype": params.weights_dtype, "device": params.device}
