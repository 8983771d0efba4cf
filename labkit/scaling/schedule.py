"""What a cell does when: how many steps, which windows at each of them, and at which learning rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np


def n_steps(n_train_tokens: int, epochs: float, batch_size: int, context: int) -> int:
    """Return the optimizer steps of a cell: whole batches in `epochs` passes, at least one."""
    return max(1, int(epochs * n_train_tokens // (batch_size * context)))


def batches(stream: np.ndarray, steps: int, batch_size: int, context: int, seed: int) -> Iterator[np.ndarray]:
    """Yield start offsets of the windows of each batch, shape [batch_size].

    Each pass cuts the stream into windows from a random phase and visits them in random order without replacement;
    the order depends on the seed alone, so all cells of a seed see the same tokens in the same order.
    """
    rng = np.random.default_rng(seed)
    queue = np.empty(0, np.int64)
    for _ in range(steps):
        while len(queue) < batch_size:
            phase = rng.integers(min(context, len(stream) - context))
            queue = np.concatenate([queue, rng.permutation(np.arange(phase, len(stream) - context, context))])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def rate_at(step: int, steps: int, peak: float, warmup_fraction: float, final_fraction: float) -> float:
    """Return the learning rate of a step: linear rise, then a cosine to `final_fraction` of the peak."""
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def order_hash(n_train_tokens: int, steps: int, batch_size: int, context: int, seed: int) -> str:
    """Return the hash of the data order that a cell of this seed must have seen."""
    order = hashlib.sha256()
    for starts in batches(np.empty(n_train_tokens, np.uint8), steps, batch_size, context, seed):
        order.update(starts.tobytes())
    return order.hexdigest()
