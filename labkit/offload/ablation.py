"""The same pass with one half taken away: nothing read, or nothing computed. The slower half bounds any schedule.

A roofline from data sheets would flatter or damn an engine by what a machine never does; these two are measured with
the engine's own reader and the model's own layers, in the run they are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labkit.offload.engine import StreamedLM
from labkit.offload.head import Batch
from labkit.offload.planner import schedule


def without_reading(model: StreamedLM, batch: Batch) -> float:
    """Return the seconds of a pass up and down that computes with whatever the buffers hold."""
    model.have_buffers(*batch["input_ids"].shape)
    model.passes.remembers = False
    try:
        with model.passes.pool.reading_nothing():
            began = time.perf_counter()
            model.gradients(batch)
            return time.perf_counter() - began
    finally:
        model.passes.remembers = True


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


@contextmanager
def reading_slowed(model: StreamedLM, times: int) -> Iterator[None]:
    """Let every read take so many times as long as it does: after it the reading thread sleeps, and takes no processor.

    The weights, their order and the computing stay what they are; only L of t(B) = L/B + c moves.
    """
    pool = model.passes.pool
    pool.settle()
    read = pool.fill

    def slowed(unit: int, memory: torch.Tensor) -> None:
        began = time.perf_counter()
        read(unit, memory)
        time.sleep((times - 1) * (time.perf_counter() - began))

    pool.fill = slowed
    try:
        yield
    finally:
        pool.settle()
        pool.fill = read
