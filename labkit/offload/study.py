"""Run everything report 001 needs on this machine, piece by piece: steps timed, learning compared, types checked.

A piece is a pure function of one frozen description, runs in a process of its own and is stored as soon as it is there;
a rerun asks the store first, so a run killed at any moment loses at most the piece under way. Pieces run one after the
other: no timing has a neighbour.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from labkit import paths
from labkit.files import DiskFull
from labkit.offload import checks, learning, speed
from labkit.offload.checks import CheckSpec
from labkit.offload.learning import LearnSpec
from labkit.offload.speed import SpeedSpec
from labkit.progress import Progress, of_study
from labkit.record import Store, cell_key, source_hash
from labkit.schema_chunked_offload import ChunkedOffload
from labkit.units import GIB

MICRO_BATCH = 2
"""Windows that go through a layer together in the learning arms."""
FULL_BUDGET = 4 * GIB
"""Memory of the whole phi-4 shape's step: the report's card."""
FULL_BATCH = 32
"""Its samples."""
SLOTS = 2
"""One layer at work and one read ahead: the report's chunk of one layer."""


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: ChunkedOffload
    """What was asked for."""
    speed: dict[str, Any] | None = None
    """What `speed.measure_speed` returned."""
    full: dict[str, Any] | None = None
    """The same for the whole phi-4 shape; None where the profile leaves it out."""
    learning: dict[LearnSpec, dict[str, Any]] = field(default_factory=dict)
    """What `learning.measure_learning` returned, by arm."""
    checks: dict[str, Any] | None = None
    """What `checks.measure_checks` returned."""
    failures: dict[str, str] = field(default_factory=dict)
    """Error of each piece that has no result."""
    cached: int = 0
    """Number of pieces that were found finished."""


def run_study(params: ChunkedOffload) -> Study:
    """Run or load every piece.

    Returns:
        results and failures; a piece that the machine could not do is listed in `failures`, never dropped.

    Raises:
        MissingData: a model's weights or the text are not here and cannot be fetched.
        RuntimeError: the steps could not be timed; no figure stands without them.
    """
    study = Study(params)
    arms = learn_specs(params)
    full = full_spec(params)
    n_pieces = 2 + len(arms) + (full is not None)
    with of_study(n_pieces, "chunked offload", params.hardware, params.report_id()) as progress:
        runner = _Runner(study, progress)
        study.speed = runner.run("speed", speed_spec(params), runner.timed)
        if study.speed is None:
            tried = f"{params.streamed_shape} could not be timed within {params.budget_gib} GiB"
            remedy = "run it again with nothing beside it, or give it more: -p budget_gib=..."
            raise RuntimeError(f"{tried}: {study.failures['speed']}; {remedy}")
        for arm in arms:
            if done := runner.run(f"learning, batch {arm.batch_size}", arm, learning.measure_learning):
                study.learning[arm] = done
        study.checks = runner.run("number types", CheckSpec(arm=arms[0]), checks.measure_checks)
        if full is not None:
            study.full = runner.run("phi-4 shape", full, runner.timed)
    return study


class _Runner:
    """Walks through the pieces with one store and one progress display."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study, self._progress = study, progress
        folder = paths.runs(study.params.hardware, study.params.report_id())
        self._store, self._weights = Store(folder / "cells"), folder / "weights"

    def timed(self, spec: SpeedSpec) -> Mapping[str, Any]:
        return speed.measure_speed(spec, self._weights / spec.shape)

    def run(self, label: str, spec: Any, work: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any] | None:
        """Load a piece, or run and store it; what the machine did to it becomes a failure, bad input is raised."""
        source = source_hash([type(spec).__module__])
        inputs = {"piece": dataclasses.asdict(spec), "source": source, "torch": torch.__version__}
        stored = self._store.load(cell_key(inputs))
        if stored is not None:
            self._study.cached += 1
            self._progress.skip(1, label)
            return stored
        done = None
        self._progress.note(label)
        try:
            done = self._store.run_or_load(inputs, lambda: work(spec))
        except (RuntimeError, MemoryError, DiskFull) as error:
            self._study.failures[label] = f"{type(error).__name__}: {error}"
        self._progress.advance(1, label)
        return done


def speed_spec(params: ChunkedOffload) -> SpeedSpec:
    """Return what is timed: the streamed shape at every batch size, with ablations at 1 and at the largest up to 32."""
    largest = max(n for n in params.batch_sizes if n <= FULL_BATCH)
    return SpeedSpec(
        shape=params.streamed_shape,
        budget_bytes=round(params.budget_gib * GIB),
        batch_sizes=tuple(params.batch_sizes),
        ablated=tuple(dict.fromkeys((1, largest))),
        repeats=params.speed_repeats,
        **_common(params),
    )


def full_spec(params: ChunkedOffload) -> SpeedSpec | None:
    """Return the step of the whole phi-4 shape, None where the profile leaves it out."""
    if not params.full_steps:
        return None
    one = {"batch_sizes": (FULL_BATCH,), "ablated": (FULL_BATCH,), "repeats": params.full_steps}
    return SpeedSpec(shape="phi-4", budget_bytes=FULL_BUDGET, **one, **_common(params))


def _common(params: ChunkedOffload) -> dict[str, Any]:
    return {
        "dtype": params.weights_dtype,
        "seq_len": params.seq_len,
        "lora_rank": params.lora_rank,
        "lora_alpha": params.lora_alpha,
        "trained_ends": params.trained_ends,
        "learning_rate": params.speed_learning_rate,
        "slots": SLOTS,
        "device": params.device,
        "threads": n_threads(params),
        "seed": 0,
    }


def learn_specs(params: ChunkedOffload) -> list[LearnSpec]:
    """Return the learning arms: each batch size with each seed."""
    return [
        LearnSpec(
            model=params.learn_model,
            dtype="float32",
            batch_size=n,
            micro_batch=min(n, MICRO_BATCH),
            steps=params.learn_steps,
            held_out=params.held_out_windows,
            seq_len=params.learn_seq_len,
            lora_rank=params.lora_rank,
            lora_alpha=params.lora_alpha,
            trained_ends=params.trained_ends,
            learning_rate=params.learning_rate,
            device=params.device,
            threads=n_threads(params),
            seed=seed,
        )
        for n in params.learn_batch_sizes
        for seed in params.seeds
    ]


def n_threads(params: ChunkedOffload) -> int:
    """Return the threads of every piece: pieces run alone, so one has those of all workers."""
    return params.workers * params.threads
