"""The baseline as a run that can be stopped, looked at, jumped, taken back and gone on with."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit import device
from labkit.hybrid.optimizers import Schedule, make_optimizer, warmup_steps
from labkit.hybrid.vectors import Tensors, add, assign, copies
from labkit.reports.predict_phase.tasks import Run, Text, build, losses_of, score


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a race stood."""

    weights: Tensors
    """What is trained."""
    optimizer: dict[str, Any]
    """The optimizer's state."""
    done: int
    """Nominal steps."""
    n_read: int
    """Batches."""


class Race:
    """A plain run of AdamW, step by step."""

    def __init__(self, run: Run) -> None:
        """Build the baseline of a run at its first step."""
        device.set_determinism(run.seed, run.device)
        self._run, self._text = run, Text(run)
        self._model: nn.Module = build(run)
        self.parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(
            self._model, "adamw", run.learning_rate, weight_decay=run.weight_decay, beta2=run.beta2
        )
        self._schedule = Schedule(self._optimizer, run.steps, warmup_steps(run.steps, run.warmup_fraction))
        self._held_out, self._n_read = self._text.held_out(), 0
        self._batches: Iterator[Tensor] = self._text.batches()

    def go(self, nominal: int) -> None:
        """Train until a nominal step of the schedule."""
        while self._schedule.done < nominal:
            self.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self._run.grad_clip)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()

    def backward(self) -> None:
        """Take the gradient of the next batch."""
        self._n_read += 1
        losses_of(self._model, next(self._batches)).mean().backward()

    def drop_gradients(self) -> None:
        """Forget gradients that no step is taken with."""
        self._optimizer.zero_grad()

    def jump(self, drift: Tensors, steps: int) -> None:
        """Move the weights along a direction."""
        add([p.data for p in self.parameters], drift, float(steps))

    def skip(self, steps: int) -> None:
        """Leave out steps of the schedule."""
        for _ in range(steps):
            self._schedule.step()

    def place(self) -> Place:
        """Return where the race stands."""
        return Place(
            weights=copies(self.parameters),
            optimizer=copy.deepcopy(self._optimizer.state_dict()),
            done=self._schedule.done,
            n_read=self._n_read,
        )

    def take_back(self, place: Place) -> None:
        """Go back to where the race stood: the same weights, optimizer, schedule and next batch."""
        assign([p.data for p in self.parameters], place.weights)
        self._optimizer.load_state_dict(copy.deepcopy(place.optimizer))
        self._schedule.load_state_dict({"done": place.done})
        self._batches, self._n_read = itertools.islice(self._text.batches(), place.n_read, None), place.n_read

    def loss(self) -> float:
        """Return the held-out loss in nats per token."""
        return float(score(self._model, self._held_out, self._run.batch_size).mean())

    def losses_along(self, drift: Tensors, lengths: list[int]) -> dict[int, float]:
        """Return the held-out loss after jumps of each length; the weights are as before."""
        here, found = copies(self.parameters), {}
        data: list[Tensor] = [p.data for p in self.parameters]
        for n in lengths:
            self.jump(drift, n)
            found[n] = self.loss()
            assign(data, here)
        return found
