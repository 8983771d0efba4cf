"""Tiny specs that show whether the cell functions of report 001 still do what their versions promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from labkit.base.units import GIB
from labkit.cell import CellFunction
from labkit.reports.chunked_offload.checks import CheckSpec, measure_checks
from labkit.reports.chunked_offload.learning import LearnSpec, measure_learning
from labkit.reports.chunked_offload.rounds import RoundsSpec, measure_rounds
from labkit.reports.chunked_offload.speed import SpeedSpec, measure_speed

# Micro-batches with a smaller last one, three pieces of the head, one layer between the trained ends. Ample memory and
# a fixed number of buffers leave the plan nothing to choose by speed; one thread adds in one order.
_SPEED = SpeedSpec(
    shape="phi3-tiny",
    dtype="float32",
    budget_bytes=8 * GIB,
    batch_sizes=(1, 5),
    ablated=(1, 5),
    repeats=2,
    seq_len=171,
    lora_rank=2,
    lora_alpha=6,
    trained_ends=2,
    learning_rate=0.03,
    slots=2,
    device="cpu",
    threads=1,
    seed=3,
)
_LEARN = LearnSpec(
    model="tiny-phi3",
    dtype="float32",
    batch_size=3,
    micro_batch=2,
    steps=2,
    held_out=3,
    seq_len=12,
    lora_rank=2,
    lora_alpha=6,
    trained_ends=1,
    learning_rate=0.03,
    device="cpu",
    threads=1,
    seed=1,
)
# One in eight of the windows is enough to compare types on: two of them here.
_CHECK = replace(_LEARN, batch_size=2, micro_batch=1, steps=1, held_out=16, seed=2)
GOLDENS: dict[CellFunction, tuple[Any, ...]] = {
    measure_speed: (_SPEED,),
    measure_rounds: (RoundsSpec(steps=replace(_SPEED, seed=4), slowdowns=(1, 2)),),
    measure_learning: (_LEARN,),
    measure_checks: (CheckSpec(arm=_CHECK),),
}
