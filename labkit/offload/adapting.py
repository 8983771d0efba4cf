"""New adapters and saved ones: which LoRA configurations can be streamed, and what their parameters start from.

PEFT wraps a model that has no weights here. What it draws from a generator it draws as it does for a resident model;
what it would compute from weights is refused, and so is all that would be trained outside the layers' linear maps.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from labkit.models.wrapping import with_adapters
from labkit.offload.headers import CannotStream

_MATRICES = ("lora_A", "lora_B")
_TRAINED = (*_MATRICES, "lora_magnitude_vector")
_DRAWN = "True, False, 'gaussian' or 'orthogonal'"
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "mica")
"""Initialisations, by how their names begin, that read the weights when an adapter is made and when it is loaded."""
_SPOILERS = {"modules_to_save": None, "trainable_token_indices": None, "bias": "none"}
"""Settings that make PEFT train more than adapters, with the value at which they do not."""


def adapt(model: PreTrainedModel, layers: nn.ModuleList, lora: LoraConfig, seed: int | None) -> PeftModel:
    """Wrap the maps that a configuration names, and give the adapters memory: PEFT leaves them without.

    Args:
        model: on the meta device.
        layers: its decoder layers.
        lora: PEFT's configuration; it is left as it is.
        seed: of new adapters; None for zeros that saved ones are to be copied over.

    Raises:
        CannotStream: another kind of adapter, an initialisation that needs the weights, or parameters to be trained
            that a streamed model has no gradient for; the message names them.
        ValueError: PEFT refuses the configuration.
    """
    _require_plain(lora)
    _require_start(lora, new=seed is not None)
    with torch.device("meta"):
        adapted = with_adapters(model, copy.deepcopy(lora))
    _require_gradients(adapted, layers, lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                _give_memory(module)
                if seed is not None:
                    _initialise(module, lora.init_lora_weights)
    return adapted


def _require_plain(lora: LoraConfig) -> None:
    """Refuse what is not LoRA, and LoRA that computes with more than its matrices and magnitudes beside a map."""
    kind = getattr(lora, "peft_type", type(lora).__name__)
    if kind != PeftType.LORA:
        raise CannotStream(
            f"adapters of the kind {getattr(kind, 'value', kind)} cannot be streamed; peft.LoraConfig's can"
        )
    variants = [one.name for one in dataclasses.fields(lora) if one.metadata.get("is_lora_variant")]
    if found := [name for name in (*variants, "layer_replication") if name != "use_dora" and getattr(lora, name)]:
        raise CannotStream(
            f"LoRA with {', '.join(found)} cannot be streamed: it needs more than a map's own matrices and the "
            "checkpoint's layers as they are; leave it out"
        )


def _require_start(lora: LoraConfig, *, new: bool) -> None:
    """Refuse adapters that start from what is not drawn, and saved ones that go with other weights than are stored."""
    start = lora.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise CannotStream(
            f"init_lora_weights is {start!r}, with which PEFT computes adapters from the weights and mostly changes "
            f"these; new adapters start from {_DRAWN} here, and saved ones are converted by PEFT's save_pretrained "
            "with path_initial_model_for_weight_conversion"
        )
    if new and not (start in (True, False, None, "orthogonal") or str(start).lower() == "gaussian"):
        raise CannotStream(
            f"init_lora_weights is {start!r}, and new adapters start from {_DRAWN} here, not from data or gradients"
        )


def _require_gradients(adapted: PeftModel, layers: nn.ModuleList, lora: LoraConfig) -> None:
    """Refuse to train what is no adapter of a map within the layers: only those get a gradient."""
    maps = [module for module in layers.modules() if isinstance(module, LoraLayer)]
    own = {id(p) for module in maps for kind in _TRAINED for p in getattr(module, kind).parameters()}
    lost = [name for name, p in adapted.named_parameters() if p.requires_grad and id(p) not in own]
    if lost:
        causes = [f"{name}={value!r}" for name, value in _spoiling(lora).items()]
        listed = ", ".join(name.removeprefix("base_model.model.") for name in lost[:8])
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        raise CannotStream(
            f"LoRA would train {listed}{more}, for which a streamed model has no gradient: it has one for the adapters "
            f"of linear maps within its layers; leave {' and '.join(causes) or 'these targets'} out"
        )


def _spoiling(lora: LoraConfig) -> Mapping[str, object]:
    return {name: getattr(lora, name) for name, harmless in _SPOILERS.items() if getattr(lora, name) != harmless}


def _give_memory(module: LoraLayer) -> None:
    for kind in _TRAINED:
        for own in getattr(module, kind).values():
            own.to_empty(device="cpu").float()
            for parameter in own.parameters():
                parameter.data.zero_()


def _initialise(module: LoraLayer, start: bool | str | None) -> None:
    """Draw what adapters start from."""
    for name in module.lora_A:
        if start is True:
            module.reset_lora_parameters(name, start)
            continue
        # As PEFT does after the same seed: every map is drawn like torch's own before it is drawn over.
        for kind in _MATRICES:
            getattr(module, kind)[name].reset_parameters()
        if start == "orthogonal":
            module.orthogonal_init(name)
        elif start:
            module.reset_lora_parameters(name, start)
        _round(module, name)


def _round(module: LoraLayer, name: str) -> None:
    """Round to the type of the map, as PEFT does before it holds adapters in float32."""
    dtype = next(parameter.dtype for parameter in module.get_base_layer().parameters())
    for kind in _MATRICES:
        for parameter in getattr(module, kind)[name].parameters():
            parameter.data = parameter.data.to(dtype).float()


def start_magnitudes(map_: LoraLayer, weight: torch.Tensor) -> None:
    """Give DoRA's magnitudes of a map the lengths that the rows of its weight start with, adapter included.

    Args:
        map_: with its new adapters.
        weight: its frozen weight, as it is stored.
    """
    for name, own in map_.lora_magnitude_vector.items():
        added = (map_.lora_B[name].weight @ map_.lora_A[name].weight).detach().to(weight)
        lengths = own.get_weight_norm(weight, added, map_.scaling[name])
        own.weight.data = lengths.to(own.weight)
