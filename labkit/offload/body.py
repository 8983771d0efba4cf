"""A model's own forward code around its layers: what each layer is called with, and what happens after the last.

The layers are replaced by recorders that hand the hidden states on unchanged and note their arguments, so that masks,
positions and scales are those the model itself makes. For the head the last recorder hands on the true hidden states
instead, and the model's own code makes logits of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from labkit.offload.grouped import GroupedShapes
from labkit.offload.skeleton import CannotStream

Rows = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Returns rows of the input embedding [n, d], and for ids [b, T] at which of them each one's row is, [b, T]."""


@dataclass(slots=True)
class Calls:
    """What the layers were called with for one micro-batch."""

    hidden: torch.Tensor
    """What goes into the first layer, [b, T, d]."""
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Arguments of each layer after the hidden states."""


class _Recorder(nn.Module):
    """Stands in for a layer."""

    def __init__(self, layer: nn.Module, log: _Log) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_log", log)

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers for things such as the kind of attention they need a mask for.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._log.note(self._layer, hidden_states, args, kwargs)


@dataclass(slots=True)
class _Log:
    n_layers: int
    tuples: bool
    inject: torch.Tensor | None = None
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    first: torch.Tensor | None = None
    last: torch.Tensor | None = None

    def note(self, layer: nn.Module, hidden: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.last is not None and hidden is not self.last:
            raise CannotStream(
                f"the model changes its hidden states between layers {len(self.arguments) - 1} and "
                f"{len(self.arguments)} ({type(layer).__name__}), outside of them; it cannot be streamed layer by layer"
            )
        self.first = hidden if self.first is None else self.first
        self.arguments.append((args, kwargs))
        if self.inject is not None and len(self.arguments) == self.n_layers:
            hidden = self.inject
        self.last = hidden
        return (hidden,) if self.tuples else hidden


class _RowEmbedding(nn.Module):
    """Stands in for an embedding of which only the rows in use are in memory."""

    def __init__(self, embedding: nn.Embedding, rows: Rows) -> None:
        super().__init__()
        self._own = copy.copy(embedding)
        self._own.padding_idx = None
        self._rows = rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows, places = self._rows(ids)
        return functional_call(self._own, {"weight": rows}, (places,))


class Body:
    """The forward code of a causal LM without its layers."""

    def __init__(
        self, model: PreTrainedModel, layers: nn.ModuleList, rows: Rows, kept: Mapping[str, torch.Tensor]
    ) -> None:
        """Take a model apart.

        Args:
            model: on the meta device.
            layers: its decoder layers.
            rows: reads rows of its input embedding.
            kept: weights outside the layers that are always in memory, by their names in the model.
        """
        self._model, self._layers, self._kept = model, layers, dict(kept)
        self._owner, self._slot = _holder(model, layers)
        self._embedding = _RowEmbedding(model.get_input_embeddings(), rows)
        self._tuples: bool | None = None

    def open(self, batch: Mapping[str, torch.Tensor], **more: Any) -> Calls:
        """Run everything before the layers on a micro-batch.

        Args:
            batch: input_ids [b, T], and attention_mask [b, T] if there is padding.
            more: further arguments of the body's forward, such as a cache.

        Raises:
            CannotStream: the layers do not hand their hidden states straight on.
        """
        with torch.no_grad(), self._recording() as log, self._rows_only():
            self._run_body({**batch, "use_cache": False, **more})
        if (n_called := len(log.arguments)) != len(self._layers):
            raise CannotStream(f"{type(self._model).__name__} called {n_called} of its {len(self._layers)} layers")
        return Calls(log.first, log.arguments)

    def _run_body(self, inputs: Mapping[str, Any]) -> None:
        prefix = f"{self._model.base_model_prefix}."
        kept = {name.removeprefix(prefix): value for name, value in self._kept.items() if name.startswith(prefix)}
        functional_call(self._model.base_model, kept, (), dict(inputs), tie_weights=False)

    def logits(
        self, batch: Mapping[str, torch.Tensor], hidden: torch.Tensor, head: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Run everything after the layers, [b, T, d] -> logits [b, T, V].

        Args:
            batch: as in `open`; of the ids only their shape counts.
            hidden: what the last layer returned.
            head: weights outside the layers that are not kept, by name.
        """
        inputs = {name: value for name, value in batch.items() if name == "attention_mask"}
        inputs |= {"inputs_embeds": hidden.detach(), "use_cache": False}
        with self._recording(hidden), self._rows_only():
            return functional_call(self._model, {**self._kept, **head}, (), inputs, tie_weights=False).logits

    @contextmanager
    def _recording(self, inject: torch.Tensor | None = None) -> Iterator[_Log]:
        if self._tuples is None:
            self._tuples = False
            self._tuples = self._returns_tuples()
        log = _Log(len(self._layers), self._tuples, inject)
        stand_ins = nn.ModuleList(_Recorder(layer, log) for layer in self._layers)
        setattr(self._owner, self._slot, stand_ins)
        try:
            yield log
        finally:
            setattr(self._owner, self._slot, self._layers)

    def _returns_tuples(self) -> bool:
        """Ask the first layer whether it returns a tuple: called as the body calls it, but on the meta device."""
        with torch.no_grad(), self._recording() as log, self._rows_only():
            try:
                self._run_body({"input_ids": torch.zeros(1, 4, dtype=torch.long), "use_cache": False})
            except Exception:
                # A body that unpacks a tuple fails after the first layer on what it was given here instead.
                if not log.arguments:
                    raise
        args, kwargs = tree_map(_to_meta, log.arguments[0])
        layer = copy.deepcopy(self._layers[0]).to("meta")
        # Adapters change no form, and those of bare parameters cannot be asked on the meta device.
        for adapted in filter(lambda module: isinstance(module, BaseTunerLayer), layer.modules()):
            adapted.enable_adapters(False)
        with GroupedShapes():
            return isinstance(layer(_to_meta(log.first), *args, **kwargs), tuple)

    @contextmanager
    def _rows_only(self) -> Iterator[None]:
        own = self._model.get_input_embeddings()
        self._model.set_input_embeddings(self._embedding)
        try:
            yield
        finally:
            self._model.set_input_embeddings(own)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _holder(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[nn.Module, str]:
    return next(
        (module, name) for module in model.modules() for name, child in module.named_children() if child is layers
    )


def run_layer(
    layer: nn.Module, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor, arguments: tuple[tuple, dict[str, Any]]
) -> torch.Tensor:
    """Run one layer with weights that lie elsewhere, [b, T, d] -> [b, T, d]."""
    args, kwargs = arguments
    out = functional_call(layer, dict(weights), (hidden, *args), kwargs)
    return out[0] if isinstance(out, tuple) else out
