"""The baseline as a run that can be stopped, looked at, jumped and gone on with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit import device
from labkit.hybrid.optimizers import Schedule, make_optimizer, warmup_steps
from labkit.hybrid.tasks import Run, Text, build, losses_of, score
from labkit.hybrid.vectors import Tensors, add, assign, copies


class Race:
    """A plain run that can be stopped, jumped and gone on with."""

    def __init__(self, run: Run) -> None:
        """Build the baseline of a run at its first step."""
        device.set_determinism(run.seed, run.device)
        self._run, self._text = run, Text(run)
        self._model: nn.Module = build(run)
        self.parameters = list(self._model.parameters())
        self._optimizer = make_optimizer(
            self._model, "adamw", run.learning_rate, weight_decay=run.weight_decay, beta2=run.beta2
        )
        self._schedule = Schedule(self._optimizer, run.steps, warmup_steps(run.steps, run.warmup_fraction))
        self._batches, self._held_out = self._text.batches(), self._text.held_out()

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
        losses_of(self._model, next(self._batches)).mean().backward()

    def drop_gradients(self) -> None:
        """Forget gradients that no step is taken with."""
        self._optimizer.zero_grad()

    def skip(self, steps: int) -> None:
        """Leave out steps of the schedule."""
        for _ in range(steps):
            self._schedule.step()

    def loss(self) -> float:
        """Return the held-out loss in nats per token."""
        return float(score(self._model, self._held_out, self._run.batch_size).mean())

    def losses_along(self, drift: Tensors, lengths: list[int]) -> dict[int, float]:
        """Return the held-out loss after jumps of each length; the weights are as before."""
        here, found = copies(self.parameters), {}
        data: list[Tensor] = [p.data for p in self.parameters]
        for n in lengths:
            add(data, drift, float(n))
            found[n] = self.loss()
            assign(data, here)
        return found
