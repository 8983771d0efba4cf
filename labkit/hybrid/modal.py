"""Low-rank modal forecast: the last steps as a linear recurrence in the plane they span (candidate C4).

Dynamic mode decomposition (Schmid 2010; for weights Tano et al., arXiv 2006.14371) through the Gram matrix of recorded
displacements, so that no singular vectors as large as the model are formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.predictors import Predictor, Proposal
from labkit.hybrid.vectors import Tensors, add, assign, copies, dots, empty_like, write_difference

SNAPSHOTS = 5
"""Displacements kept."""
LEAST_EIGENVALUE = 0.5
"""Modes that decay faster are noise."""
_RIDGE = 1e-6


class Modal(Predictor):
    """Keeps displacements over equal strides of real steps and extends their slow, stable modes."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self._stride = max(1, config.full_steps // 4)
        self._last = copies(self.parameters, config.history_device)
        self._ring = [self._buffer() for _ in range(SNAPSHOTS)]
        self._count = 0
        self._since = 0

    def start_block(self) -> None:
        """Begin a block: after a jump the recurrence starts over, since the jump is no step."""
        super().start_block()
        assign(self._last, self.parameters)
        self._since = 0

    def after_step(self, rate: float) -> None:
        """Record the displacement of every stride."""
        super().after_step(rate)
        self._since += 1
        if self._since == self._stride:
            write_difference(self._ring[self._count % SNAPSHOTS], self.parameters, self._last)
            assign(self._last, self.parameters)
            self._count += 1
            self._since = 0

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Sum the forecasts of as many strides as the steps hold; None until the ring is full."""
        if self._count < SNAPSHOTS:
            return None
        order = [self._ring[(self._count + i) % SNAPSHOTS] for i in range(SNAPSHOTS)]
        weights, skill = forecast(self._gram(order), steps / self._stride)
        jump = empty_like(self.parameters)
        for weight, moved in zip(weights * self._rate_ratio(rate), order, strict=True):
            add(jump, moved, float(weight))
        return Proposal(jump, steps, skill)

    def _gram(self, order: Sequence[Tensors]) -> np.ndarray:
        rows = [[float(dots(a, b, self.groups).sum()) for b in order[: i + 1]] for i, a in enumerate(order)]
        lower = np.array([row + [0.0] * (SNAPSHOTS - len(row)) for row in rows])
        return lower + lower.T - np.diag(np.diag(lower))

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {"last": self._last} | {f"ring{i}": moved for i, moved in enumerate(self._ring)}

    def numbers(self) -> dict[str, Any]:
        """Return the rest of its state, as plain JSON."""
        return super().numbers() | {"count": self._count, "since": self._since}

    def load(self, buffers: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `buffers` and `numbers` returned."""
        super().load(buffers, numbers)
        self._count, self._since = numbers["count"], numbers["since"]


def forecast(gram: np.ndarray, strides: float) -> tuple[np.ndarray, float]:
    """Fit u[i+1] = A u[i] in the plane of the displacements and extend it.

    Args:
        gram: inner products of consecutive displacements u[0] .. u[k-1], [k, k].
        strides: how many further displacements to sum; a fraction counts as that part of the last.

    Returns:
        the weight of each displacement in the forecast's sum, [k], and the share of the displacements' energy that the
        recurrence explains, in [0, 1].
    """
    k = len(gram)
    past, future = gram[:-1, :-1], gram[:-1, 1:]
    scale = np.trace(past) / (k - 1) or 1.0
    # Coordinates c with u = U c; the recurrence maps column i of the identity onto the projection of u[i+1].
    recurrence = np.linalg.solve(past + _RIDGE * scale * np.eye(k - 1), future)
    explained = np.trace(recurrence.T @ past @ recurrence)
    skill = float(np.clip(explained / max(np.trace(gram[1:, 1:]), 1e-300), 0.0, 1.0))
    values, vectors = np.linalg.eig(recurrence)
    kept = (np.abs(values) <= 1) & (values.real >= LEAST_EIGENVALUE)
    amplitudes = np.linalg.lstsq(vectors, recurrence[:, -1], rcond=None)[0]
    coordinates = (vectors[:, kept] * (amplitudes * values * _geometric(values, strides))[kept]).sum(1).real
    return np.append(coordinates, 0.0), skill


def _geometric(values: np.ndarray, strides: float) -> np.ndarray:
    """Return 1 + v + v^2 + ... over `strides` terms, the last one in part."""
    whole = int(strides)
    powers = np.array([values**i for i in range(whole + 1)])
    return powers[:whole].sum(0) + (strides - whole) * powers[whole]
