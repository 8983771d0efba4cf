"""One run that serves every budget: trained at a constant rate, read out at several steps, scored at each.

An arm that needs no decay is read as it goes. Warmup-stable-decay (Hu et al., 2024, arXiv 2404.06395) leaves the run
before each of these steps, lets the rate fall to zero by it, and goes back: a budget costs its own steps and no more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from labkit.hybrid.optimizers import Schedule
from labkit.hybrid.readouts import Readouts
from labkit.hybrid.rollback import Snapshot
from labkit.hybrid.vectors import Tensors, assign, copies

READ_AT = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the schedule at which such a run is read; a budget must be one of them."""
DECAY = 0.2
"""Share of a budget in which the rate of warmup-stable-decay falls."""

Frontier = dict[str, dict[str, float]]
"""Held-out nats per token by step and read-out."""


def read_steps(total: int) -> list[int]:
    """Return the steps at which a run of so many is read."""
    return sorted({max(2, round(share * total)) for share in READ_AT})


@dataclass
class Follower:
    """A run under way, and what was read out of it."""

    parameters: Sequence[nn.Parameter]
    """What is trained."""
    optimizer: Any
    """What takes the steps."""
    schedule: Schedule
    """Its rate."""
    take_step: Callable[[Tensor], float]
    """Takes one step on windows and returns its loss."""
    score: Callable[[], float]
    """Returns the held-out loss of the present weights."""
    losses: list[float] = field(default_factory=list)
    """Training losses of the run itself, decays left out."""
    n_steps: int = 0
    """Steps taken, decays included."""
    seconds: float = 0.0
    """Of training; scoring is not counted."""
    frontier: Frontier = field(default_factory=dict)
    """What was read out."""

    def go(self, batches: Iterator[Tensor], total: int, readouts: Readouts) -> None:
        """Train at a constant rate and read out as it goes; the model is left with the last first read-out."""
        ends = set(read_steps(total))
        for step in range(1, total + 1):
            self.losses.append(self._timed(next(batches)))
            began = time.perf_counter()
            readouts.observe(step)
            self.seconds += time.perf_counter() - began
            if step in ends:
                self._read(step, readouts.values(step), last=step == total)

    def decay(self, batches: Iterator[Tensor], total: int) -> None:
        """Train at a constant rate, and let it fall to zero before every step that is read."""
        snapshot = Snapshot(self.parameters)
        for end in read_steps(total):
            start = round((1 - DECAY) * end)
            while self.schedule.done < start:
                self.losses.append(self._timed(next(batches)))
            # The branch reads the batches that the run will read after it.
            batches, ahead = itertools.tee(batches)
            snapshot.take(self.optimizer, self.schedule)
            self.schedule.fall = (start, end)
            fallen = [self._timed(next(ahead)) for _ in range(end - start)]
            self._read(end, {"last": copies(self.parameters)}, last=end == total)
            self.schedule.fall = None
            if end < total:
                snapshot.restore(self.optimizer, self.schedule)
            else:
                self.losses += fallen

    def _timed(self, windows: Tensor) -> float:
        began = time.perf_counter()
        loss = self.take_step(windows)
        self.seconds += time.perf_counter() - began
        self.n_steps += 1
        return loss

    def _read(self, step: int, values: dict[str, Tensors], *, last: bool) -> None:
        """Score every read-out; the run goes on from its own weights, and ends at its first read-out."""
        here, data = copies(self.parameters), [p.data for p in self.parameters]
        self.frontier[str(step)] = {}
        for name, tensors in values.items():
            assign(data, tensors)
            self.frontier[str(step)][name] = self.score()
        assign(data, next(iter(values.values())) if last else here)
