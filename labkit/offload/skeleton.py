"""A model without its weights: its layers found, its adapters real, every frozen parameter traced to the checkpoint.

Nothing here knows an architecture by name. The layers are the one list of modules that is as long as the configuration
says; which tensor fills which parameter follows from the names that transformers itself saves under.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from labkit.offload.headers import Checkpoint, Entry


class CannotStream(ValueError):
    """A model that this engine cannot take apart; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Skeleton:
    """A causal LM on the meta device with real adapters and real buffers."""

    model: PreTrainedModel
    """The causal LM; its adapted maps are PEFT's."""
    adapted: PeftModel | None
    """PEFT's wrapper around it, or None without adapters."""
    layers: nn.ModuleList
    """Its decoder layers."""
    sources: tuple[Mapping[str, Entry], ...]
    """For each layer, where its frozen parameters lie, by their names within the layer."""
    rest: Mapping[str, Entry]
    """Where the parameters outside the layers lie, by their names in the model."""
    device: torch.device
    """Where adapters are and layers are computed."""

    @property
    def has_dropout(self) -> bool:
        """Whether the frozen model itself draws random numbers while training."""
        values = self.model.config.get_text_config().to_dict()
        return any(("drop" in name or "pdrop" in name) and value for name, value in values.items())

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
        """Names of what lies outside the layers and is always in memory: norms, learned positions."""
        streamed = {self.table, self.head, *self.beside_head}
        return [name for name in self.rest if name not in streamed]

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
    checkpoint: Checkpoint, *, lora: LoraConfig | None, dtype: torch.dtype | None, device: torch.device, seed: int
) -> Skeleton:
    """Build a model from its configuration, without weights.

    Args:
        checkpoint: where the weights lie.
        lora: PEFT's configuration; adapters are float32 and initialised as PEFT does.
        dtype: type to compute in; None for the stored one.
        device: where adapters are and layers are computed.
        seed: of the adapters.

    Raises:
        CannotStream: the layers cannot be found, or a parameter has no tensor in the checkpoint.
    """
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    dtype = dtype or _stored_dtype(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    model.requires_grad_(False).config.use_cache = False
    layers = find_layers(model)
    sources = _sources(model, checkpoint)
    own = {id(p) for p in layers.parameters()}
    rest = {name: sources[name] for name, p in _parameters(model) if id(p) not in own}
    by_layer = tuple({n: sources[pre + n] for n, _ in _parameters(layer)} for pre, layer in _prefixed(model, layers))
    adapted = None if lora is None else _adapt(model, lora, seed)
    _move(model, device)
    return Skeleton(model=model, adapted=adapted, layers=layers, sources=by_layer, rest=rest, device=device)


def _move(model: PreTrainedModel, device: torch.device) -> None:
    """Move what is real, adapters and buffers; a model on the meta device cannot be moved as a whole."""
    for tensor in (*model.buffers(), *(p for p in model.parameters() if p.requires_grad)):
        tensor.data = tensor.data.to(device)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the floating type that most bytes are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for entry in checkpoint.entries.values():
        if entry.dtype.is_floating_point:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.n_bytes
    return max(sizes, key=sizes.__getitem__)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal LM.

    Raises:
        CannotStream: no list of modules is as long as the configuration says, or several are.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    found = [m for m in lists if not any(m in other.modules() for other in lists if other is not m)]
    if len(found) != 1:
        raise CannotStream(
            f"{type(model).__name__} has {len(found)} lists of {n_layers} modules, so its layers cannot be told; "
            "only models that are one stack of decoder layers can be streamed"
        )
    return found[0]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules(remove_duplicate=False) if module is wanted)


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name every parameter under each of its names, tied ones too."""
    return module.named_parameters(remove_duplicate=False)


def _prefixed(model: PreTrainedModel, layers: nn.ModuleList) -> list[tuple[str, nn.Module]]:
    stack = next(name for name, module in model.named_modules() if module is layers)
    return [(f"{stack}.{i}.", layer) for i, layer in enumerate(layers)]


def _sources(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Entry]:
    """Trace every parameter to a tensor of the checkpoint: its own name, or that of one it is tied to."""
    names: dict[int, list[str]] = {}
    for name, parameter in _parameters(model):
        names.setdefault(id(parameter), []).append(name)
    stored = _renamed(model, checkpoint)
    found, missing = {}, []
    for name, parameter in _parameters(model):
        spelled = [s for n in (name, *names[id(parameter)]) for s in _spellings(n, model.base_model_prefix)]
        entry = next((stored[s] for s in spelled if s in stored), None)
        if entry is None or entry.shape != tuple(parameter.shape):
            missing.append(name)
        else:
            found[name] = entry
    if missing:
        raise CannotStream(
            f"{checkpoint.folder}: {len(missing)} parameters of {type(model).__name__} have no tensor of their name "
            f"and shape there, {missing[0]} for one; save the model again with save_pretrained"
        )
    return found


def _renamed(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Entry]:
    """Name tensors as transformers does when it loads them; those it would compute from others are left out."""
    steps = get_model_conversion_mapping(model)
    stored = {}
    for key, entry in checkpoint.entries.items():
        name, computed = key, False
        for step in steps:
            renamed, matched = step.rename_source_key(name)
            computed |= matched is not None and not isinstance(step, WeightRenaming)
            name = renamed
        if not computed:
            stored[name] = entry
    return stored


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """Return how a parameter may be called: checkpoints of a bare body leave its prefix out."""
    return (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")


def _adapt(model: PreTrainedModel, lora: LoraConfig, seed: int) -> PeftModel:
    """Wrap the maps that a configuration names, and give the adapters memory: PEFT leaves them without."""
    with torch.device("meta"):
        adapted = get_peft_model(model, copy.deepcopy(lora))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                _give_memory(module, lora)
    return adapted


def _give_memory(module: LoraLayer, lora: LoraConfig) -> None:
    for kind in ("lora_A", "lora_B"):
        for name, own in getattr(module, kind).items():
            getattr(module, kind)[name] = own.to_empty(device="cpu").float()
    for name in module.lora_A:
        module.reset_lora_parameters(name, lora.init_lora_weights)


def weights_of(layer: nn.Module, views: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Name views of weights as an adapted layer calls them: PEFT keeps a frozen map under `base_layer`."""
    names = {name.replace(".base_layer.", "."): name for name, _ in _parameters(layer)}
    return {names[name]: view for name, view in views.items()}
