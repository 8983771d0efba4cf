"""The same pass with one half taken away: nothing read, or nothing computed. The slower half bounds any schedule.

A roofline from data sheets would flatter or damn an engine by what a machine never does; these two are measured with
the engine's own reader and the model's own layers, in the run they are compared with.
"""

from __future__ import annotations

import time

from labkit.offload.engine import StreamedLM
from labkit.offload.head import Batch
from labkit.offload.planner import schedule


def without_reading(model: StreamedLM, batch: Batch) -> float:
    """Return the seconds of a pass up and down that computes with whatever the buffers hold."""
    model.have_buffers(*batch["input_ids"].shape)
    with model.passes.pool.reading_nothing():
        began = time.perf_counter()
        model.gradients(batch)
        return time.perf_counter() - began


def without_computing(model: StreamedLM, batch: Batch) -> float:
    """Return the seconds of reading what a pass up and down reads, in the same order with the same buffers."""
    passes = model.passes
    walk = schedule(len(passes.skeleton.layers), passes.skeleton.lowest_trained, len(passes.head.pieces))
    model.have_buffers(*batch["input_ids"].shape)
    began = time.perf_counter()
    for unit, after in zip(walk, [*walk[1:], None], strict=True):
        with passes.pool.hold(unit):
            if after is not None:
                passes.pool.prefetch(after)
    return time.perf_counter() - began
