"""The same pass with one half taken away: nothing read, or nothing computed. The slower half bounds any schedule.

A roofline from data sheets would flatter or damn an engine by what a machine never does; these two are measured with
the engine's own reader and the model's own layers, in the run they are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.offload.engine import StreamedLM
from labkit.offload.head import Batch


def without_reading(model: StreamedLM, batch: Batch) -> float:
    """Return the seconds of a pass up and down that computes with whatever the buffers hold."""
    with _reading_nothing(model):
        began = time.perf_counter()
        model.gradients(batch)
        return time.perf_counter() - began


@contextmanager
def _reading_nothing(model: StreamedLM) -> Iterator[None]:
    pool = model.passes.pool
    read, pool.fill = pool.fill, lambda unit, memory: None
    try:
        yield
    finally:
        pool.fill = read
        pool.forget()


def without_computing(model: StreamedLM, batch: Batch) -> float:
    """Return the seconds of reading what a pass up and down reads, in the same order with the same buffers."""
    passes = model.passes
    walk = _walk(len(passes.skeleton.layers), passes.skeleton.lowest_trained, len(passes.head.pieces))
    model.have_buffers(*batch["input_ids"].shape)
    began = time.perf_counter()
    for unit, after in zip(walk, [*walk[1:], None], strict=True):
        with passes.pool.hold(unit):
            if after is not None:
                passes.pool.prefetch(after)
    return time.perf_counter() - began


def _walk(n_layers: int, lowest: int, n_pieces: int) -> list[int]:
    pieces = [*range(n_layers, n_layers + n_pieces)]
    again = pieces[::-1] if n_pieces > 1 else []
    return [*range(n_layers), *pieces, *again, *range(n_layers - 1, lowest - 1, -1)]
