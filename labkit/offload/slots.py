"""A few buffers that the layers of a model take turns in, filled by one thread ahead of use.

A layer is asked for before it is needed (`prefetch`) and held while it is used (`hold`). The buffer that was used
longest ago is refilled, never one that is held. A schedule that walks the layers up and then down again finds the last
ones still there, so with K buffers every turn saves K loads: 2L - 2K in each step but the first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Fill = Callable[[int, torch.Tensor], None]
"""Writes the weights of a layer into a buffer of bytes."""


class StaleBuffer(RuntimeError):
    """A buffer was refilled while somebody was using it: a defect of the schedule, never of the data."""


@dataclass(slots=True, eq=False)
class Slot:
    """One buffer."""

    memory: torch.Tensor
    """uint8, as large as the largest layer."""
    owner: int | None = None
    """Layer whose weights it holds or is being filled with."""
    generation: int = 0
    """Counts its fillings; whoever uses a buffer checks that the number has not changed."""
    holders: int = 0
    """How many are using it."""
    used: int = 0
    """When it was last used, on a clock that counts uses."""
    filling: Future | None = None
    """The filling under way or done."""
    fresh: bool = False
    """Whether it was filled and not used since."""


@dataclass(slots=True)
class SlotCounts:
    """What the buffers have done so far."""

    loads: int = 0
    """Layers read."""
    hits: int = 0
    """Layers that were still there from an earlier use."""
    stalled_seconds: float = 0.0
    """Time that was spent waiting for a layer."""


@dataclass(slots=True)
class SlotPool:
    """Buffers for layers, and the thread that fills them."""

    fill: Fill
    """Reads a layer."""
    slots: list[Slot]
    """The buffers."""
    counts: SlotCounts = field(default_factory=SlotCounts)
    """What they have done."""
    keep_early: bool = False
    """Refill the buffer used last instead of the one used longest ago: right for walks in one direction, whose first
    layers are then still there when the next walk begins."""
    _clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "labkit-prefetch"))

    def prefetch(self, layer: int) -> bool:
        """Start to read a layer unless it is here; return whether it is here or on its way.

        It is not where every buffer is held.
        """
        if self._find(layer) is not None:
            return True
        free = [slot for slot in self.slots if not slot.holders and (slot.filling is None or slot.filling.done())]
        if not free:
            return False
        slot = self._victim(free)
        slot.owner, slot.generation, slot.used, slot.fresh = layer, slot.generation + 1, next(self._clock), True
        slot.filling = self._thread.submit(self.fill, layer, slot.memory)
        self.counts.loads += 1
        return True

    @contextmanager
    def hold(self, layer: int) -> Iterator[Slot]:
        """Wait for a layer and keep its buffer from being refilled within the block.

        Raises:
            StaleBuffer: it was refilled all the same.
            RuntimeError: every buffer is held.
        """
        if not self.prefetch(layer):
            raise RuntimeError(f"layer {layer} finds all {len(self.slots)} buffers in use")
        slot = self._find(layer)
        self.counts.hits += not slot.fresh
        slot.fresh = False
        slot.holders += 1
        generation = slot.generation
        try:
            self._wait(slot)
            yield slot
        finally:
            slot.holders -= 1
            slot.used = next(self._clock)
        if (slot.owner, slot.generation) != (layer, generation):
            raise StaleBuffer(f"the buffer of layer {layer} was refilled with layer {slot.owner} while in use")

    def _wait(self, slot: Slot) -> None:
        began = time.perf_counter()
        try:
            slot.filling.result()
        except BaseException:
            slot.owner = None
            raise
        self.counts.stalled_seconds += time.perf_counter() - began

    def _victim(self, free: list[Slot]) -> Slot:
        empty = [slot for slot in free if slot.owner is None]
        if empty or not self.keep_early:
            return min(empty or free, key=lambda slot: slot.used)
        return max(free, key=lambda slot: slot.used)

    def resize(self, n_slots: int, make: Callable[[], torch.Tensor]) -> None:
        """Have a number of buffers, none of them in use; what those that stay hold is kept.

        Args:
            n_slots: how many.
            make: returns memory for one more.
        """
        self.settle()
        self.slots.sort(key=lambda slot: -slot.used)
        del self.slots[n_slots:]
        self.slots += [Slot(make()) for _ in range(n_slots - len(self.slots))]

    def settle(self) -> None:
        """Wait until nothing is being read any more; a layer that could not be read is forgotten."""
        for slot in self.slots:
            if slot.filling is not None and slot.filling.exception() is not None:
                slot.owner, slot.filling = None, None

    @contextmanager
    def reading_nothing(self) -> Iterator[None]:
        """Take whatever a buffer holds for the layer that is asked for; afterwards each holds what it held before."""
        self.settle()
        read, held = self.fill, [slot.owner for slot in self.slots]
        self.fill = lambda layer, memory: None
        try:
            yield
        finally:
            self.settle()
            self.fill = read
            for slot, owner in zip(self.slots, held, strict=True):
                slot.owner = owner

    def _find(self, layer: int) -> Slot | None:
        return next((slot for slot in self.slots if slot.owner == layer), None)

    def close(self) -> None:
        """Stop the thread and let go of the buffers."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.slots.clear()
