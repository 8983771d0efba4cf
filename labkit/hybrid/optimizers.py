"""AdamW, Muon and others behind one face, and the schedules that arms complete or leave constant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from labkit.hybrid.inner import AdEMAMix, ScheduleFree
from labkit.hybrid.vectors import GROUPS, group_of


class Together:
    """Several optimizers that step as one: Muon for hidden matrices, AdamW for the rest."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self._optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.state: Mapping[nn.Parameter, dict[str, Any]] = _States(optimizers)

    def step(self) -> None:
        """Step all of them."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)


class _States(Mapping):
    """The state of each parameter, in whichever optimizer holds it."""

    def __init__(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        self._owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}

    def __getitem__(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._owner[parameter].state[parameter]

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)


def make_optimizer(
    model: nn.Module, name: str, rate: float, *, weight_decay: float, beta2: float, total: int = 1
) -> torch.optim.Optimizer | Together:
    """Build AdamW or one of its kin, or Muon for hidden matrices with AdamW for embeddings, norms and biases.

    Muon's update is scaled to the root mean square of AdamW's, so that one rate serves both (Liu et al., 2025).

    Args:
        model: what is trained.
        name: "adamw", "schedule-free", "ademamix" or "muon".
        rate: peak learning rate.
        weight_decay: decoupled decay of matrices.
        beta2: AdamW's second-moment decay.
        total: steps of the schedule, which AdEMAMix's own schedules follow.

    Raises:
        ValueError: another name.
    """
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in trained if p.dim() >= 2]
    rest = [p for _, p in trained if p.dim() < 2]
    if name == "adamw":
        return _adamw(matrices, rest, rate, weight_decay, beta2)
    if name == "schedule-free":
        return ScheduleFree(_groups(matrices, rest, weight_decay), rate, (0.9, beta2))
    if name == "ademamix":
        return AdEMAMix(_groups(matrices, rest, weight_decay), rate, total=total, betas=(0.9, beta2))
    if name != "muon":
        raise ValueError(f"unknown optimizer {name!r}; known: adamw, schedule-free, ademamix, muon")
    hidden = [p for n, p in trained if p.dim() == 2 and GROUPS[group_of(n)] != "embedding"]
    others = [p for p in matrices if not any(p is h for h in hidden)]
    muon = torch.optim.Muon(hidden, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together(muon, _adamw(others, rest, rate, weight_decay, beta2))


def _adamw(
    matrices: list[nn.Parameter], rest: list[nn.Parameter], rate: float, decay: float, beta2: float
) -> torch.optim.AdamW:
    return torch.optim.AdamW(_groups(matrices, rest, decay), lr=rate, betas=(0.9, beta2), fused=True)


def _groups(matrices: list[nn.Parameter], rest: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Schedule:
    """Linear rise to the peak, then down to zero at the last nominal step or on at the peak, whoever counts the steps.

    A constant rate falls linearly only within `fall`, which warmup-stable-decay sets for a while.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | Together, total: int, warmup: int, kind: str = "linear"
    ) -> None:
        """Set the first step's rate; `kind` is "linear", "cosine" or "constant"."""
        if not 0 <= warmup < total:
            raise ValueError(f"warmup of {warmup} steps does not fit into {total}")
        self._optimizer, self._total, self._warmup, self._kind = optimizer, total, warmup, kind
        self.fall: tuple[int, int] | None = None
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.done = -1
        self.step()

    def share(self, step: int) -> float:
        """Return the rate of a step over the peak."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self._kind == "constant":
            return 1.0 if self.fall is None else self._fallen(step, *self.fall)
        left = max(0.0, (self._total - step) / (self._total - self._warmup))
        return left if self._kind == "linear" else 0.5 * (1 - math.cos(math.pi * left))

    def _fallen(self, step: int, start: int, end: int) -> float:
        return min(1.0, max(0.0, (end - step) / (end - start)))

    def step(self) -> None:
        """Go on to the next nominal step."""
        self.done += 1
        self._set()

    def _set(self) -> None:
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self.share(self.done)

    def state_dict(self) -> dict[str, int]:
        """Return how far it is."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back or on to where a state was taken."""
        self.done = state["done"]
        self._set()


def warmup_steps(total: int, fraction: float) -> int:
    """Return the steps of a rise over a fraction of the schedule."""
    return min(total - 1, math.ceil(fraction * total))
