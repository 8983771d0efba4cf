"""Buffers that layers take turns in: counts on paper, and schedules that go wrong on purpose."""

from __future__ import annotations

import threading

import pytest
import torch

from labkit.offload.slots import Slot, SlotPool, StaleBuffer


def pool(n_slots: int, fill=None) -> SlotPool:
    def write(layer: int, memory: torch.Tensor) -> None:
        memory.fill_(layer)

    return SlotPool(fill or write, [Slot(torch.zeros(4, dtype=torch.uint8)) for _ in range(n_slots)])


def walk(own: SlotPool, n_layers: int) -> None:
    """Walk up and down once, reading one layer ahead."""
    for order in (range(n_layers), range(n_layers - 1, -1, -1)):
        layers = list(order)
        for i, after in zip(layers, [*layers[1:], None], strict=True):
            with own.hold(i) as slot:
                if after is not None:
                    own.prefetch(after)
                assert slot.memory.tolist() == [i] * 4


@pytest.mark.parametrize("n_layers", [2, 3, 6, 11])
@pytest.mark.parametrize("n_slots", [2, 3, 5])
def test_k_buffers_save_k_loads_at_each_turn(n_layers: int, n_slots: int) -> None:
    own = pool(n_slots)
    saved = min(n_slots, n_layers)
    before = 0
    for step in range(3):
        walk(own, n_layers)
        loads, before = own.counts.loads - before, own.counts.loads
        assert loads == 2 * n_layers - saved - (saved if step else 0)
    own.close()


def test_a_layer_in_use_is_never_refilled() -> None:
    own = pool(2)
    with own.hold(0), own.hold(1):
        assert not own.prefetch(2)
        with pytest.raises(RuntimeError, match="layer 2 finds all 2 buffers in use"), own.hold(2):
            pass
    assert own.prefetch(2)


def refill_in_use(own: SlotPool) -> None:
    with own.hold(0) as slot:
        slot.holders = 0
        assert own.prefetch(5)
        slot.holders = 1


def test_a_buffer_refilled_too_early_is_noticed() -> None:
    with pytest.raises(StaleBuffer, match="the buffer of layer 0 was refilled with layer 5 while in use"):
        refill_in_use(pool(1))


def test_an_error_of_the_reader_reaches_whoever_waits_and_a_later_try_reads_again() -> None:
    tries = []

    def fill(layer: int, memory: torch.Tensor) -> None:
        tries.append(layer)
        if len(tries) == 1:
            raise OSError("the disk says no")

    own = pool(2, fill)
    own.prefetch(3)
    with pytest.raises(OSError, match="the disk says no"), own.hold(3):
        pass
    with own.hold(3):
        assert tries == [3, 3]


def test_reading_goes_on_while_a_layer_is_used() -> None:
    started, go = threading.Event(), threading.Event()

    def fill(layer: int, memory: torch.Tensor) -> None:
        if layer == 1:
            started.set()
            assert go.wait(10)

    own = pool(2, fill)
    with own.hold(0):
        own.prefetch(1)
        assert started.wait(10), "the second layer is read while the first is held"
        go.set()
    with own.hold(1):
        pass
    assert own.counts.stalled_seconds < 5
