"""Shapes that are streamed with random weights: phi-4 itself, and narrower and shallower ones of the same make."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from labkit import models

TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The four linear maps of a layer of this make, as the report lists them; q, k and v are one, gate and up another."""
_SPECIAL = {"vocab_size": 32_064, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPES: dict[str, dict[str, Any]] = {
    # For goldens: its head is read in three pieces, the last one smaller.
    "phi3-tiny": _SPECIAL
    | {"vocab_size": 700, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
    "phi3-30m": _SPECIAL
    | {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 16}
    | {"num_attention_heads": 4, "num_key_value_heads": 1},
    "phi3-1b": _SPECIAL
    | {"hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 16}
    | {"num_attention_heads": 16, "num_key_value_heads": 4},
    "phi3-2.5b": _SPECIAL
    | {"hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 44}
    | {"num_attention_heads": 16, "num_key_value_heads": 4},
    "phi-4": {},
}


def overrides(name: str) -> dict[str, Any]:
    """Return what a shape replaces in phi-4's configuration.

    Raises:
        ValueError: unknown shape.
    """
    if name not in _SHAPES:
        raise ValueError(f"unknown shape {name!r}; known: {', '.join(_SHAPES)}")
    return _SHAPES[name]


def n_layers(name: str) -> int:
    """Return a shape's number of layers."""
    return int(overrides(name).get("num_hidden_layers", 40))


def n_parameters(name: str, **more: Any) -> int:
    """Count a shape's parameters, by building it without weights."""
    return sum(p.numel() for p in models.build("phi-4", device="meta", **overrides(name) | more).parameters())


def trained_layers(name: str, ends: int) -> list[int]:
    """Return the first and the last layers of a shape, as many of each as `ends` says."""
    return ends_of(n_layers(name), ends)


def ends_of(layers: int, ends: int) -> list[int]:
    """Return the first and the last of so many layers.

    Raises:
        ValueError: the two ends overlap.
    """
    if 2 * ends > layers:
        raise ValueError(f"trained_ends is {ends}, and a model of {layers} layers has no two ends of that many")
    return [*range(ends), *range(layers - ends, layers)]


def linear_maps(config: PretrainedConfig) -> set[str]:
    """Name the linear maps of a configuration's layers, by building the model without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
