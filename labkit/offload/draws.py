"""Random numbers of a run: each is a function of the seed, the step, the layer and the micro-batch alone.

Whatever draws, a layer's dropout or a router's noise, draws from torch's generators. They are seeded before each layer
meets a micro-batch, and afterwards they are as they were: a run neither follows nor disturbs what else draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Asked:
    """Whether something drew random numbers."""

    drew: bool = False


@contextmanager
def left_alone(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were, whatever draws within the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def drawn_from(seed: int, *place: int, device: torch.device) -> Iterator[Asked]:
    """Draw what a place in a run draws, such as (step, layer, micro-batch), and say afterwards whether it drew.

    It draws the same each time, in whatever order places are visited.
    """
    text = " ".join(map(str, (seed, *place)))
    asked = Asked()
    with left_alone(device):
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)
        before = _state(device)
        yield asked
        asked.drew = not torch.equal(before, _state(device))


def _state(device: torch.device) -> torch.Tensor:
    """Return the state of the generators that a layer can draw from; some draw on the CPU wherever they compute."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return torch.cat(states)
