"""What stands in for a model's layers and its embedding while its own code around them runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from labkit.offload.headers import CannotStream

Rows = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Returns rows of the input embedding [n, d], and for ids [b, T] at which of them each one's row is, [b, T]."""


def _all_of(tensor: torch.Tensor, whole: torch.Tensor) -> bool:
    """Say whether a tensor is another one or a view of all of it."""
    alike = tensor.shape == whole.shape and tensor.stride() == whole.stride()
    same = tensor.untyped_storage()._cdata == whole.untyped_storage()._cdata
    return tensor is whole or (alike and same and tensor.storage_offset() == whole.storage_offset())


def ramp(like: torch.Tensor) -> torch.Tensor:
    """Return values from 0 to 1 in the shape of a tensor: no norm takes them for nothing."""
    return torch.linspace(0, 1, like.numel(), device=like.device).view(like.shape).to(like.dtype)


def alike(one: Any, other: Any) -> bool:
    """Say whether two trees hold equal tensors."""
    pairs = [pair for pair in zip(tree_leaves(one), tree_leaves(other), strict=True) if torch.is_tensor(pair[0])]
    return all(torch.equal(a, b) or (a.is_floating_point() and bool(_same(a, b).all())) for a, b in pairs)


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compare value by value; what is no number is like what is no number."""
    return (a == b) | (a.isnan() & b.isnan())


class _Beside:
    """Stands in for what a layer returns beside its hidden states."""


@dataclass(frozen=True, slots=True)
class Form:
    """In which form layers return their hidden states."""

    kind: type[tuple] | type[list] | None = None
    """What they are the first of; None where they are returned alone."""
    beside: tuple[bool, ...] = ()
    """Whether there is something at each of the other places."""

    @classmethod
    def of(cls, returned: Any) -> Form:
        """Return the form of what a layer returned.

        Raises:
            CannotStream: it is no tensor, and no tuple or list that begins with one.
        """
        if isinstance(returned, torch.Tensor):
            return cls()
        if isinstance(returned, (tuple, list)) and returned and isinstance(returned[0], torch.Tensor):
            kind = tuple if isinstance(returned, tuple) else list
            return cls(kind, tuple(value is not None for value in returned[1:]))
        raise CannotStream(f"layers that return {type(returned).__name__} instead of hidden states cannot be streamed")

    def of_hidden(self, hidden: torch.Tensor) -> Any:
        """Return hidden states in this form."""
        if self.kind is None:
            return hidden
        return self.kind([hidden, *(_Beside() if there else None for there in self.beside)])


@dataclass(slots=True)
class Log:
    """What the body did with its layers."""

    n_layers: int
    """How many there are."""
    form: Form
    """How they return hidden states."""
    inject: torch.Tensor | None = None
    """What the last one returns, if the body is run for what comes after it."""
    between: float = 0.0
    """Size of what each of them adds to the hidden states: 0, or else to see what depends on it."""
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    """What each was called with after the hidden states."""
    first: torch.Tensor | None = None
    """What went into the first one."""
    _last: torch.Tensor | None = None
    _version: int = 0

    def note(self, layer: nn.Module, hidden: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Note a call, and return what stands in for the layer's answer.

        Raises:
            CannotStream: what comes between two layers is more than the hidden states.
        """
        self._require_untouched(layer, hidden)
        if any(isinstance(leaf, _Beside) for leaf in tree_leaves((args, kwargs))):
            raise CannotStream(
                f"layer {len(self.arguments)} ({type(layer).__name__}) is given what the layer below returned beside "
                "its hidden states; only hidden states are kept between layers"
            )
        if self.first is None and self.inject is None:
            # A copy: the body may go on to change its own in place.
            self.first = hidden.clone()
        self.arguments.append((args, kwargs))
        if self.between:
            hidden = hidden + self.between * ramp(hidden)
        if self.inject is not None and len(self.arguments) == self.n_layers:
            hidden = self.inject
        self._last, self._version = hidden, hidden._version
        return self.form.of_hidden(hidden)

    def _require_untouched(self, layer: nn.Module, hidden: torch.Tensor) -> None:
        if self._last is not None and not (_all_of(hidden, self._last) and hidden._version == self._version):
            raise CannotStream(
                f"the model changes its hidden states between layers {len(self.arguments) - 1} and "
                f"{len(self.arguments)} ({type(layer).__name__}), outside of them; it cannot be streamed layer by layer"
            )


class Recorder(nn.Module):
    """Stands in for a layer."""

    def __init__(self, layer: nn.Module, log: Log) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_log", log)

    def __getattr__(self, name: str) -> Any:
        """Answer as the layer: models ask for things such as the kind of attention they need a mask for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Hand the hidden states on."""
        return self._log.note(self._layer, hidden_states, args, kwargs)


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Return what tells a module to keep no cache; a model from before there were any takes no such argument."""
    taken = inspect.signature(module.forward).parameters
    some = "use_cache" in taken or any(own.kind is inspect.Parameter.VAR_KEYWORD for own in taken.values())
    return {"use_cache": False} if some else {}


@dataclass(frozen=True, slots=True)
class _Table:
    """Stands in for the matrix of an embedding, of which models ask width, type, device, or the row of the padding."""

    rows: Rows
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, key: int | tuple[int | slice, ...]) -> torch.Tensor:
        row, *rest = key if isinstance(key, tuple) else (key,)
        if not isinstance(row, int):
            raise TypeError(f"an embedding that is read by rows has no {row!r}")
        rows, places = self.rows(torch.tensor([[row]], device=self.device))
        return rows[places[0, 0]][tuple(rest)]


class RowEmbedding(nn.Module):
    """Stands in for an embedding of which only the rows in use are in memory."""

    def __init__(self, embedding: nn.Embedding, rows: Rows, device: torch.device) -> None:
        super().__init__()
        self._own = copy.copy(embedding)
        self._own.padding_idx = None
        self._rows = rows
        self.weight = _Table(rows, embedding.weight.shape, embedding.weight.dtype, device)

    def __getattr__(self, name: str) -> Any:
        """Answer as the embedding where a model asks for its scale, for one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_own"), name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids, [b, T] -> [b, T, d], by the embedding's own code."""
        rows, places = self._rows(ids)
        return functional_call(self._own, {"weight": rows}, (places,))
