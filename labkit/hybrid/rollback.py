"""A copy of everything a jump could spoil, put back bit by bit: weights, optimizer, schedule, scaler, generators."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labkit.hybrid.vectors import assign, empty_like


class Snapshot:
    """One slot for the state of a run; taking it again overwrites it, so its memory does not grow."""

    def __init__(self, parameters: Sequence[nn.Parameter], device: str | None = None) -> None:
        self._parameters = list(parameters)
        self._weights = empty_like(parameters, device=device)
        self._device = device
        self._optimizer: dict[int, dict[str, Any]] = {}
        self._rest: dict[str, Any] = {}

    def take_weights(self) -> None:
        """Copy the weights alone: enough while only a probe is under way."""
        assign(self._weights, self._parameters)

    def restore_weights(self) -> None:
        """Put the weights back."""
        assign([p.data for p in self._parameters], self._weights)

    def take(self, optimizer: torch.optim.Optimizer, scheduler: Any = None, scaler: Any = None) -> None:
        """Copy everything."""
        self.take_weights()
        for i, parameter in enumerate(self._parameters):
            slot = self._optimizer.setdefault(i, {})
            for name, value in optimizer.state[parameter].items():
                slot[name] = self._kept(slot.get(name), value)
        self._rest = {
            "scheduler": None if scheduler is None else copy.deepcopy(scheduler.state_dict()),
            "rates": [group["lr"] for group in optimizer.param_groups],
            "scaler": None if scaler is None else copy.deepcopy(scaler.state_dict()),
            "random": _generators(),
        }

    def _kept(self, slot: Tensor | None, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        if slot is None:
            return value.detach().to(self._device or value.device, copy=True)
        return slot.copy_(value)

    def restore(self, optimizer: torch.optim.Optimizer, scheduler: Any = None, scaler: Any = None) -> None:
        """Put everything back."""
        self.restore_weights()
        for i, parameter in enumerate(self._parameters):
            own = optimizer.state[parameter]
            for name, value in self._optimizer.get(i, {}).items():
                if isinstance(value, Tensor):
                    own[name].copy_(value)
                else:
                    own[name] = copy.deepcopy(value)
        if scheduler is not None:
            scheduler.load_state_dict(self._rest["scheduler"])
        for group, rate in zip(optimizer.param_groups, self._rest["rates"], strict=True):
            group["lr"] = rate
        if scaler is not None:
            scaler.load_state_dict(self._rest["scaler"])
        _set_generators(self._rest["random"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the copied tensors by name."""
        found = {f"snapshot.weights.{i}": tensor for i, tensor in enumerate(self._weights)}
        for i, slot in self._optimizer.items():
            found |= {f"snapshot.{name}.of.{i}": value for name, value in slot.items() if isinstance(value, Tensor)}
        return found | {f"snapshot.random.{name}": state for name, state in self._rest["random"].items()}

    def numbers(self) -> dict[str, Any]:
        """Return the rest of the copy, as plain JSON."""
        plain = {
            str(i): {name: value for name, value in slot.items() if not isinstance(value, Tensor)}
            for i, slot in self._optimizer.items()
        }
        return {"optimizer": plain} | {name: self._rest[name] for name in ("scheduler", "rates", "scaler")}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Take up a copy that `tensors` and `numbers` returned; the optimizer says on which device its state lies."""
        self._optimizer = {int(i): dict(slot) for i, slot in numbers["optimizer"].items()}
        random = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            name, _, number = rest.partition(".of.")
            if kind != "snapshot":
                continue
            if rest.startswith("weights."):
                self._weights[int(rest.partition(".")[2])].copy_(tensor)
            elif rest.startswith("random."):
                random[rest.partition(".")[2]] = tensor
            else:
                held = optimizer.state[self._parameters[int(number)]][name]
                self._optimizer[int(number)][name] = tensor.to(self._device or held.device, held.dtype)
        self._rest = {name: numbers[name] for name in ("scheduler", "rates", "scaler")} | {"random": random}


def _generators() -> Mapping[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
