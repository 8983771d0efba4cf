"""Run everything report 001 needs on this machine, cell by cell: steps timed, learning compared, types checked.

Each cell works in a process of its own, and cells run one after the other: no timing has a neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from labkit.base import paths
from labkit.base.units import GIB
from labkit.cell import CellFunction
from labkit.progress import of_study
from labkit.reports.chunked_offload import checks, law, learning, rounds, speed
from labkit.reports.chunked_offload.checks import CheckSpec
from labkit.reports.chunked_offload.learning import LearnSpec
from labkit.reports.chunked_offload.params import ChunkedOffload
from labkit.reports.chunked_offload.rounds import RoundsSpec
from labkit.reports.chunked_offload.speed import SpeedSpec
from labkit.workflow.cells import Cells

MICRO_BATCH = 2
"""Windows that go through a layer together in the learning arms."""
FULL_BUDGET = 4 * GIB
"""Memory of the whole phi-4 shape's step: the report's card."""
FULL_BATCH = 32
"""Its samples."""
TIMED = "speed"
"""Label of the cell that times the steps."""
SLOTS = 2
"""One layer at work and one read ahead: the report's chunk of one layer."""


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: ChunkedOffload
    """What was asked for."""
    cells: Cells
    """The cells it stands on, and why some have no result."""
    speed: dict[str, Any] | None = None
    """Steps at the disk's own speed: what `speed.measure_speed` returned, or that part of the rounds."""
    rounds: dict[str, Any] | None = None
    """What `rounds.measure_rounds` returned; None where the profile slows no disk."""
    full: dict[str, Any] | None = None
    """The same for the whole phi-4 shape; None where the profile leaves it out."""
    learning: dict[LearnSpec, dict[str, Any]] = field(default_factory=dict)
    """What `learning.measure_learning` returned, by arm."""
    checks: dict[str, Any] | None = None
    """What `checks.measure_checks` returned."""


def run_study(params: ChunkedOffload) -> Study:
    """Run or load every cell.

    Returns:
        results; a cell that the machine could not do is listed in `cells.failures`, never dropped.

    Raises:
        MissingData: a model's weights or the text are not here and cannot be fetched.
        MissingCells: the report is rendered, and cells are not on record.
        RuntimeError: the steps could not be timed; no figure stands without them.
    """
    arms, full = learn_specs(params), full_spec(params)
    n_cells = 2 + len(arms) + (full is not None)
    with of_study(n_cells, "chunked offload", params.hardware, params.report_id()) as progress:
        study = Study(params, Cells.of(params.hardware, params.report_id(), progress))
        one = study.cells.one
        _time_steps(study)
        for arm in arms:
            label = f"learning, batch {arm.batch_size}, seed {arm.seed}"
            if done := one(learning.measure_learning, arm, label):
                study.learning[arm] = done
        study.checks = one(checks.measure_checks, CheckSpec(arm=arms[0]), "number types")
        if full is not None:
            study.full = one(speed.measure_speed, full, "phi-4 shape", _with_room(params, speed.measure_speed))
    study.cells.require()
    return study


def _time_steps(study: Study) -> None:
    """Time the steps, in rounds where the disk is slowed as well; a run without them ends here.

    Where nothing may run, steps that could not be timed count as missing.
    """
    params, cells = study.params, study.cells
    work, spec = timed_work(params)
    found = cells.one(work, spec, TIMED, _with_room(params, work))
    if found is not None:
        study.rounds = found if params.slowdowns else None
        study.speed = law.at_own_speed(found) if params.slowdowns else found
    elif not cells.missing:
        _refuse_untimed(study, work.name, work.identity(spec))


def timed_work(params: ChunkedOffload) -> tuple[CellFunction, SpeedSpec | RoundsSpec]:
    """Return the cell function that times the steps, and its spec."""
    if params.slowdowns:
        return rounds.measure_rounds, rounds_spec(params)
    return speed.measure_speed, speed_spec(params)


def _with_room(params: ChunkedOffload, work: CellFunction) -> Callable[[Any], dict[str, Any]]:
    """Time steps with the weights where outputs go: a temporary folder may lie in memory, or on a small disk."""
    weights = paths.runs(params.hardware, params.report_id()) / "weights"
    return lambda spec: work(spec, weights / "streamed")


def _refuse_untimed(study: Study, name: str, identity: dict[str, Any]) -> None:
    params, cells = study.params, study.cells
    why = cells.failures[TIMED]
    if cells.only_recorded:
        cells.missing.append((name, identity, f"{TIMED}, failed: {why}"))
        return
    tried = f"{params.streamed_shape} could not be timed within {params.budget_gib} GiB"
    raise RuntimeError(f"{tried}: {why}; run it again with nothing beside it, or give it more: -p budget_gib=...")


def rounds_spec(params: ChunkedOffload) -> RoundsSpec:
    """Return what is timed in rounds: every batch size with both halves, at every speed of the disk."""
    steps = replace(speed_spec(params), ablated=tuple(params.batch_sizes))
    return RoundsSpec(steps=steps, slowdowns=tuple(params.slowdowns))


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
    """Return the threads of every cell: cells run alone, so one has those of all workers."""
    return params.workers * params.threads
