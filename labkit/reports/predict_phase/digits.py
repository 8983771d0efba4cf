"""The small convolutional network of the report's earlier validation, on handwritten digits that need no download.

The original drew random images and labels and printed a random number for the accuracy (its losses stay at ln 10); here
the digits of scikit-learn are real: 1,797 of 8 x 8 pixels (Alpaydin and Kaynak 1998), a fifth held out. A sample is one
row: its 64 pixels, then its label.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.hybrid.gate import probe_size

SIDE = 8
CLASSES = 10
_BRIGHTEST = 16.0
_HELD_OUT = 5
"""One sample in so many is held out."""


class Cnn(nn.Module):
    """Two convolutions and a hidden layer, about 50 thousand parameters, as the report states."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Linear(64 * (SIDE // 2) ** 2, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits, [B, 65] -> [B, 10]."""
        images = rows[:, :-1].view(-1, 1, SIDE, SIDE) / _BRIGHTEST
        return self.head(self.convolutions(images).flatten(1))


def build_cnn(seed: int, device: str) -> nn.Module:
    """Build the network from a seed."""
    torch.manual_seed(seed)
    return Cnn().to(device).train()


@functools.cache
def _rows() -> tuple[np.ndarray, np.ndarray]:
    """Return training and held-out rows, in an order that no run changes."""
    from sklearn.datasets import load_digits  # here, because nothing else needs it and it takes a second

    digits = load_digits()
    rows = np.column_stack([digits.data, digits.target]).astype(np.float32)
    rows = np.random.default_rng(0).permutation(rows)
    n = len(rows) // _HELD_OUT
    return rows[n:], rows[:n]


class Digits:
    """Batches of digits: training ones in the order of the seed, probes from a generator of their own."""

    def __init__(self, batch_size: int, seed: int, device: str) -> None:
        self._batch_size, self._seed = batch_size, seed
        self._train, self._held_out = (torch.as_tensor(part, device=device) for part in _rows())
        self._probes = np.random.default_rng((seed, 1))

    def batches(self) -> Iterator[Tensor]:
        """Yield training batches [B, 65], each pass over the digits in a new order."""
        rng, queue = np.random.default_rng((self._seed, 0)), np.empty(0, np.int64)
        while True:
            while len(queue) < self._batch_size:
                queue = np.concatenate([queue, rng.permutation(len(self._train))])
            yield self._train[torch.as_tensor(queue[: self._batch_size])]
            queue = queue[self._batch_size :]

    def probe_batch(self) -> Tensor:
        """Draw training digits that the order of batches knows nothing of."""
        drawn = self._probes.integers(0, len(self._train), probe_size(self._batch_size))
        return self._train[torch.as_tensor(drawn)]

    def held_out(self) -> Tensor:
        """Return all held-out digits, [359, 65]."""
        return self._held_out


def digit_losses(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the loss of every sample in nats, [B, 1]."""
    return functional.cross_entropy(model(rows), rows[:, -1].long(), reduction="none")[:, None]


@torch.no_grad()
def accuracy(model: nn.Module, rows: Tensor) -> float:
    """Return the share of digits that are recognised."""
    model.eval()
    found = (model(rows).argmax(1) == rows[:, -1]).float().mean().item()
    model.train()
    return found
