"""A model's own forward code around its layers: what each layer is called with, and what happens after the last.

The layers are replaced by recorders that hand the hidden states on unchanged and note their arguments, so that masks,
positions and scales are those the model itself makes. For the head the last recorder hands on the true hidden states
instead, and the model's own code makes logits of them.

A model may change what it is given in place, and remember things between calls, such as the longest sequence so far.
It is given copies, and found as it was after every call: what comes out depends on what goes in alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from labkit.offload.anatomy import as_found, body_of, holder_of
from labkit.offload.draws import left_alone
from labkit.offload.grouped import GroupedShapes
from labkit.offload.headers import CannotStream
from labkit.offload.lengths import WithinTables, longest_row, require_rows, too_long
from labkit.offload.shared import Shared
from labkit.offload.stand_ins import Form, Log, Recorder, RowEmbedding, Rows, alike, ramp, without_cache

_ASKED = 4
"""Tokens that the body is asked with when it is taken apart; it takes as many."""


@dataclass(slots=True)
class Calls:
    """What the layers were called with for one micro-batch."""

    hidden: torch.Tensor
    """What goes into the first layer, [b, T, d]."""
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Arguments of each layer after the hidden states."""
    shared: Shared = field(default_factory=Shared)
    """What layers leave for later ones."""


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
        self._name, self._body = body_of(model, layers)
        self._owner, self._slot = holder_of(model, layers)
        self._width = model.get_input_embeddings().weight.shape[-1]
        self._device = next((weight.device for weight in self._kept.values()), torch.device("cpu"))
        self._embedding = RowEmbedding(model.get_input_embeddings(), rows, self._device)
        inside = {id(module) for module in layers.modules()}
        self._around = [module for module in model.modules() if id(module) not in inside]
        self._values = {id(b): b.clone() for module in self._around for b in module._buffers.values() if b is not None}
        self._form: Form | None = None
        self._by_ids = self._spoils = False
        self._longest = 0

    def require_length(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Refuse sequences that the model has no positions for; nothing is read and no random number drawn.

        Args:
            batch: as in `open`, with any number of samples; position_ids may stand beside.

        Raises:
            ValueError: they are too long.
        """
        n_tokens = batch["input_ids"].shape[1]
        if n_tokens <= self._longest:
            return
        row, whole = longest_row({name: value.to(self._device) for name, value in batch.items()})
        blank = self._blank_embedding(row["input_ids"])
        try:
            with self.at_rest(), torch.no_grad(), WithinTables(), self._recording() as log, self._embedding_by(blank):
                self._run_body(row)
            n_positions = getattr(self._model.config, "max_position_embeddings", None)
            require_rows(self._layers[0], n_positions, log.arguments[0][1])
        except (IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or n_tokens <= _ASKED:
                raise
            raise too_long(self._model, n_tokens, error) from error
        if whole:
            self._longest = n_tokens

    def open(self, batch: Mapping[str, torch.Tensor], **more: Any) -> Calls:
        """Run everything before the layers on a micro-batch.

        Args:
            batch: input_ids [b, T], and attention_mask [b, T] if there is padding.
            more: further arguments of the body's forward, such as a cache.

        Raises:
            CannotStream: the layers do not hand their hidden states straight on.
        """
        given = {name: value.clone() for name, value in batch.items()}
        with torch.no_grad(), self._recording() as log, self._embedding_by(self._embedding):
            self._run_body(given | more)
        self._require_each_once(log)
        return Calls(log.first, log.arguments, Shared.of(log.arguments))

    def _require_each_once(self, log: Log) -> None:
        n_called, n_layers = len(log.arguments), len(self._layers)
        if n_called != n_layers:
            why = "" if n_called > n_layers else "; layers left out at random cannot be streamed"
            raise CannotStream(f"{type(self._model).__name__} called {n_called} of its {n_layers} layers{why}")

    def _run_body(self, inputs: dict[str, Any]) -> Any:
        prefix = f"{self._name}."
        kept = {name.removeprefix(prefix): value for name, value in self._kept.items() if name.startswith(prefix)}
        return functional_call(self._body, kept, (), without_cache(self._body) | inputs, tie_weights=False)

    def logits(
        self, batch: Mapping[str, torch.Tensor], hidden: torch.Tensor, head: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Run everything after the layers, [b, T, d] -> logits [b, T, V].

        Args:
            batch: as in `open`; ids and labels do not count.
            hidden: what the last layer returned.
            head: weights outside the layers that are not kept, by name.
        """
        inputs = {name: value.clone() for name, value in batch.items() if name not in ("input_ids", "labels")}
        inject = hidden.clone() if self._spoils else hidden
        with self._recording(inject), self._embedding_by(self._blank_embedding(hidden)):
            inputs |= self._blank(hidden) | without_cache(self._model)
            return functional_call(self._model, {**self._kept, **head}, (), inputs, tie_weights=False).logits

    def _blank(self, hidden: torch.Tensor, size: float = 0.0) -> dict[str, torch.Tensor]:
        """Return something to put before the layers when only what comes after them counts, of the embedding's width.

        It is not the hidden states: a body may change in place what it is given, or expect another width.
        """
        shape = hidden.shape[-3:-1]
        if self._by_ids:
            return {"input_ids": torch.zeros(shape, dtype=torch.long, device=hidden.device)}
        embeds = torch.zeros(*shape, self._width, dtype=self._model.dtype, device=hidden.device)
        return {"inputs_embeds": embeds + size * ramp(embeds) if size else embeds}

    def _blank_embedding(self, like: torch.Tensor, size: float = 0.0) -> RowEmbedding:
        """Return an embedding that is the same for every id, zero by default, and reads nothing."""

        def rows(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            row = like.new_zeros(1, self._width, dtype=self._model.dtype)
            return row + size * ramp(row) if size else row, torch.zeros_like(ids)

        return RowEmbedding(self._model.get_input_embeddings(), rows, like.device)

    @contextmanager
    def _recording(self, inject: torch.Tensor | None = None, between: float = 0.0) -> Iterator[Log]:
        """Have recorders in place of the layers, and find the modules around them as they were."""
        if self._form is None:
            self._ask()
        log = Log(len(self._layers), self._form, inject, between)
        stand_ins = nn.ModuleList(Recorder(layer, log) for layer in self._layers)
        setattr(self._owner, self._slot, stand_ins)
        try:
            with as_found(self._around, self._values):
                yield log
        finally:
            setattr(self._owner, self._slot, self._layers)

    def _ask(self) -> None:
        """Find out once how the body and its layers behave.

        Raises:
            CannotStream: not so that they can be taken apart.
        """
        self._form = Form()
        try:
            with self.at_rest(), torch.no_grad():
                self._form, hidden = self._ask_layer()
                self._ask_end(hidden)
        except BaseException:
            self._form = None
            raise

    def _ask_layer(self) -> tuple[Form, torch.Tensor]:
        """Ask the first layer in which form it answers: called as the body calls it, but on the meta device.

        The hidden states that it was given, of four tokens, are returned as well.
        """
        ids = torch.zeros(1, _ASKED, dtype=torch.long, device=self._device)
        with self._recording() as log, self._embedding_by(self._embedding):
            try:
                self._run_body({"input_ids": ids})
            except Exception:
                # A body that unpacks a tuple fails after the first layer on what it was given here instead.
                if not log.arguments:
                    raise
        args, kwargs = tree_map(_to_meta, log.arguments[0])
        layer, hidden = copy.deepcopy(self._layers[0]).to("meta"), _to_meta(log.first)
        # Adapters change no form, and those of bare parameters cannot be asked on the meta device.
        for adapted in filter(lambda module: isinstance(module, BaseTunerLayer), layer.modules()):
            adapted.enable_adapters(False)
        before = hidden._version
        try:
            form = Form.of(layer(hidden, *args, **kwargs))
        except (NotImplementedError, RuntimeError) as error:
            name = type(layer).__name__
            raise CannotStream(f"what {name} takes depends on values, not on shapes alone: {error}") from error
        if hidden._version != before:
            raise CannotStream(f"{type(layer).__name__} changes in place what it is given; it cannot be run again")
        return form, log.first

    def _ask_end(self, like: torch.Tensor) -> None:
        """Ask what comes after the layers, and whether hidden states are all that goes from one layer to the next.

        Raises:
            CannotStream: they are not, or the body does not run on what stands in for the layers.
        """
        name = type(self._model).__name__
        for self._by_ids in (False, True):
            try:
                out, called = self._run_end(like)
                break
            except CannotStream:
                raise
            except Exception as error:
                if self._by_ids:
                    raise CannotStream(f"{name} does not run with stand-ins for its layers: {error}") from error
        between, other = self._run_end(like, between=1.0)
        if not alike(called, other):
            raise CannotStream(f"{name} calls a layer with something computed from what layers below it returned")
        if not alike([out, out], [between, self._run_end(like, before=1.0)[0]]):
            raise CannotStream(f"{name} uses more after its layers than the hidden states that the last one returned")

    def _run_end(
        self, like: torch.Tensor, *, before: float = 0.0, between: float = 0.0
    ) -> tuple[torch.Tensor, list[Any]]:
        """Run the body with hidden states in place of the last layer's; return what it makes of them, and its calls.

        Args:
            like: hidden states; a copy of them is put in.
            before: size of what goes into the first layer; it should not count.
            between: size of what each layer adds; it should not count either.
        """
        hidden = like.clone()
        with self._recording(hidden, between) as log, self._embedding_by(self._blank_embedding(hidden, before)):
            out = self._run_body(self._blank(hidden, before))
        self._require_each_once(log)
        self._spoils = hidden._version > 0
        out = out if isinstance(out, torch.Tensor) else out[0]
        if out.shape[-2] != hidden.shape[-2]:
            raise CannotStream(
                f"{type(self._model).__name__} gives its layers hidden states that are not [samples, tokens, width]"
            )
        return out, log.arguments

    @contextmanager
    def _embedding_by(self, embedding: nn.Module) -> Iterator[None]:
        own = self._model.get_input_embeddings()
        self._model.set_input_embeddings(embedding)
        try:
            yield
        finally:
            self._model.set_input_embeddings(own)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Ask for shapes alone: nothing around the layers drops, draws, or follows the length of a sequence."""
        everything = [*self._around, *self._layers.modules()]
        with left_alone(torch.device("cpu")), GroupedShapes(), as_found(everything, self._values):
            for module in self._around:
                module.training = False
                if kinds := getattr(module, "rope_type", None):
                    module.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
            yield


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def run_layer(
    layer: nn.Module, weights: Mapping[str, torch.Tensor], hidden: torch.Tensor, arguments: tuple[tuple, dict[str, Any]]
) -> torch.Tensor:
    """Run one layer with weights that lie elsewhere, [b, T, d] -> [b, T, d].

    Raises:
        CannotStream: it changed its arguments in place, which it or another layer is given again.
    """
    args, kwargs = arguments
    given = [*_tensors(args), *_tensors(kwargs.values())]
    before = [tensor._version for tensor in given]
    out = functional_call(layer, dict(weights), (hidden, *args), kwargs)
    if [tensor._version for tensor in given] != before:
        raise CannotStream(f"{type(layer).__name__} changes in place what all layers are given; it cannot be run again")
    return out[0] if isinstance(out, (tuple, list)) else out


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments and in their tuples; a cache, which layers may well change, is none."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
