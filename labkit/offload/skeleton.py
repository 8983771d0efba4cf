"""A model without its weights: its layers found, its adapters real, all that a checkpoint holds traced to it.

What a checkpoint holds are parameters and the buffers that are saved with them, such as a router's bias. Nothing here
knows an architecture by name. The layers are the one list of modules that is as long as the configuration says; which
tensor fills which parameter follows from the names that transformers itself saves under.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation

from labkit.offload.adapting import adapt
from labkit.offload.anatomy import other_media, require_every_layer, text_model
from labkit.offload.headers import COMPUTED, CannotStream, Checkpoint
from labkit.offload.store import Source
from labkit.offload.tracing import named, trace


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Skeleton:
    """A causal LM on the meta device with real adapters and real buffers."""

    model: PreTrainedModel
    """The causal LM; its adapted maps are PEFT's."""
    adapted: PeftModel | None
    """PEFT's wrapper around it, or None without adapters."""
    layers: nn.ModuleList
    """Its decoder layers."""
    sources: tuple[Mapping[str, Source], ...]
    """For each layer, where its frozen parameters and saved buffers lie, by their names within the layer."""
    rest: Mapping[str, Source]
    """Where those outside the layers lie, by their names in the model."""
    device: torch.device
    """Where adapters are and layers are computed."""

    @property
    def table(self) -> str:
        """Name of the input embedding's matrix."""
        return f"{_name_of(self.model, self.model.get_input_embeddings())}.weight"

    @property
    def head(self) -> str:
        """Name of the output matrix."""
        return f"{_name_of(self.model, self.model.get_output_embeddings())}.weight"

    @property
    def beside_head(self) -> list[str]:
        """Names of what else the head has, a bias for one: vectors with a value for each token."""
        prefix = self.head.removesuffix("weight")
        return [name for name in self.rest if name.startswith(prefix) and name != self.head]

    @property
    def kept(self) -> list[str]:
        """Names of what lies outside the layers and is always in memory: norms, learned positions.

        What a model for several media holds for the others, a vision tower for one, is never read.
        """
        streamed, others = {self.table, self.head, *self.beside_head}, other_media(self.model, self.layers)
        return [name for name in self.rest if name not in streamed and not name.startswith(others)]

    @property
    def lowest_trained(self) -> int:
        """The lowest layer with an adapter; the number of layers where there is none."""
        trained = [i for i, layer in enumerate(self.layers) if any(p.requires_grad for p in layer.parameters())]
        return min(trained, default=len(self.layers))

    def adapters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by PEFT's names."""
        owner = self.model if self.adapted is None else self.adapted
        return {name: p for name, p in owner.named_parameters() if p.requires_grad}


def build_skeleton(
    checkpoint: Checkpoint,
    *,
    lora: LoraConfig | None,
    dtype: torch.dtype | None,
    device: torch.device,
    seed: int | None,
) -> Skeleton:
    """Build a model from its configuration, without weights.

    Args:
        checkpoint: where the weights lie.
        lora: PEFT's configuration; adapters are float32 and initialised as PEFT does.
        dtype: type to compute in; None for the stored one.
        device: where adapters are and layers are computed.
        seed: of new adapters; None for zeros that saved ones are to be copied over.

    Raises:
        CannotStream: the layers cannot be found, a parameter has no tensor in the checkpoint, the checkpoint is
            quantized, or the adapters are not ones that get a gradient here.
    """
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    _require_plain_weights(config, checkpoint)
    dtype = dtype or _stored_dtype(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    model.requires_grad_(False).config.use_cache = False
    _give_types(model, dtype)
    layers = find_layers(model)
    sources = trace(model, checkpoint)
    _warn_of_unused(model, checkpoint, sources)
    own = {id(tensor) for _, tensor in _state(layers)}
    rest = {name: sources[name] for name, tensor in _state(model) if id(tensor) not in own and name in sources}
    _require_tables(model, rest)
    by_layer = tuple(
        {name: sources[pre + name] for name, _ in _state(layer) if pre + name in sources}
        for pre, layer in _prefixed(model, layers)
    )
    if lora is not None:
        require_every_layer(model)
    adapted = None if lora is None else adapt(model, layers, lora, seed)
    _move(model, device)
    return Skeleton(model=model, adapted=adapted, layers=layers, sources=by_layer, rest=rest, device=device)


def _require_plain_weights(config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    for own in (config, config.get_text_config()):
        if quantized := getattr(own, "quantization_config", None):
            kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
            raise CannotStream(
                f"{checkpoint.folder} is quantized ({getattr(kind, 'value', kind)}), and only plain weights are "
                "streamed; load it dequantized and save it with save_pretrained"
            )


def _give_types(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give each tensor the type that transformers loads it in: some stay float32 where the others are shorter."""
    if not (plan := model._get_dtype_plan(dtype)):
        return
    pattern, by_group, _ = build_glob_alternation([*plan])
    for name, tensor in _state(model):
        if found := pattern.search(name):
            tensor.data = tensor.data.to(plan[by_group[found.lastgroup]])


def _require_tables(model: PreTrainedModel, rest: Mapping[str, Source]) -> None:
    """Raise unless a model has one matrix of inputs and one of outputs.

    Raises:
        CannotStream: it has not.
    """
    for what, get in (("input embedding", model.get_input_embeddings), ("output", model.get_output_embeddings)):
        try:
            found = f"{_name_of(model, get())}.weight" in rest
        except (AttributeError, NotImplementedError, StopIteration):
            found = False
        if not found:
            raise CannotStream(f"{type(model).__name__} has no one matrix for its {what}; it cannot be streamed")


def _move(model: PreTrainedModel, device: torch.device) -> None:
    """Move what is real, adapters and buffers; a model on the meta device cannot be moved as a whole."""
    for tensor in (*model.buffers(), *(p for p in model.parameters() if p.requires_grad)):
        tensor.data = tensor.data.to(device)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the type that most bytes are stored in, of those that weights are computed with."""
    sizes = dict.fromkeys(COMPUTED.values(), 0)
    for entry in checkpoint.entries.values():
        if entry.dtype in sizes:
            sizes[entry.dtype] += entry.n_bytes
    return max(sizes, key=sizes.__getitem__)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal LM.

    Raises:
        CannotStream: no list of modules is as long as the configuration says, or several are, or it says nothing.
    """
    text = model.config.get_text_config()
    # Where an encoder and a decoder have one configuration, a causal LM is the decoder.
    named = [getattr(text, name, None) for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers")]
    n_layers = next(filter(None, named), None)
    if n_layers is None:
        raise CannotStream(f"the configuration of {type(model).__name__} does not say how many layers it has")
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    found = [m for m in lists if not any(m in other.modules() for other in lists if other is not m)]
    if len(found) > 1:
        found = [m for m in found if any(m is own for own in text_model(model).modules())]
    if len(found) != 1:
        raise CannotStream(
            f"{type(model).__name__} has {len(found)} lists of {n_layers} modules, so its layers cannot be told; "
            "only models that are one stack of decoder layers can be streamed"
        )
    return found[0]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules(remove_duplicate=False) if module is wanted)


def _state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name all that a checkpoint holds of a module: parameters, tied ones under each of their names, and buffers."""
    named = module.state_dict(keep_vars=True).items()
    return ((name, tensor) for name, tensor in named if isinstance(tensor, torch.Tensor))


def _prefixed(model: PreTrainedModel, layers: nn.ModuleList) -> list[tuple[str, nn.Module]]:
    stack = next(name for name, module in model.named_modules() if module is layers)
    return [(f"{stack}.{i}.", layer) for i, layer in enumerate(layers)]


def _warn_of_unused(model: PreTrainedModel, checkpoint: Checkpoint, sources: Mapping[str, Source]) -> None:
    """Name the tensors that the model has no place for, as transformers does, without those it knows to be harmless."""
    used = {(part.file, part.start) for source in sources.values() for part in source.parts}
    keys = ((name, checkpoint.entries[key]) for key, name, _, _ in named(model, checkpoint))
    known = SimpleNamespace(missing_keys=set(), unexpected_keys={n for n, e in keys if (e.file, e.start) not in used})
    model._adjust_missing_and_unexpected_keys(known)
    if known.unexpected_keys:
        warnings.warn(
            f"{checkpoint.folder}: {type(model).__name__} has no place for {len(known.unexpected_keys)} of the tensors "
            f"there, {min(known.unexpected_keys)} for one; it is left out, as from_pretrained does",
            stacklevel=2,
        )


def weights_of(layer: nn.Module, views: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Name views of weights as an adapted layer calls them: PEFT keeps what it wraps under `base_layer`.

    Parameters stay parameters, because adapters of a bare parameter put it where it was as what it was. They share
    nothing, so that setting one counts as a change of that one only.
    """
    own = {re.sub(r"\.base_layer(?=\.)", "", name): (name, tensor) for name, tensor in _state(layer)}
    given = {}
    for stored, view in views.items():
        name, tensor = own[stored]
        is_parameter = isinstance(tensor, nn.Parameter)
        given[name] = nn.Parameter(view.data, requires_grad=False) if is_parameter else view
    return given
