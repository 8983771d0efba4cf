"""Exact parameter and FLOP counts of both architectures, from the configuration alone, and a counter to check them.

Counts that differ by convention are the usual reason why two scaling exponents disagree (Pearce and Song 2024; Porian
et al. 2024), so each has a name here. One multiply-accumulate is 2 FLOPs. Only matrix products are counted: norms,
softmax, lookups, the optimiser and the O(T) resolvent recursion are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from labkit.scaling import resnet_bk, transformer
from labkit.scaling.resnet_bk import ResNetBKConfig
from labkit.scaling.transformer import TransformerConfig

ModelConfig = ResNetBKConfig | TransformerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCounts:
    """How many parameters a model has, under each convention in use."""

    total: int
    """Every parameter; a tied head counts once (Hoffmann et al. 2022)."""
    embedding: int
    """Token and position embedding."""
    head: int
    """Output projection with its bias; 0 when it is tied to the token embedding."""
    non_embedding: int
    """Layers and final norm: total without embedding and head (Kaplan et al. 2020)."""
    active: int
    """Of `non_embedding`, what one token uses: all but the experts it is not sent to, with their biases."""
    matmul: int
    """Entries of the matrices one token is multiplied by, head included, lookups not: 2 FLOPs each per token."""


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of the model a configuration describes, without building it.

    ResNet-BK has N = 2Vd + V + Td + 2d + L(16 d^2 + 22 d + 6) with four experts (report 004, original code), the
    transformer N = Vd + Td + d + L(12 d^2 + 2 d), plus Vd for an untied head.
    """
    d, vocabulary = config.d_model, config.vocab_size
    if isinstance(config, ResNetBKConfig):
        layer, idle, matrices = _resnet_bk_layer(d, config.n_experts)
        final_norm, head = 2 * d, vocabulary * d + vocabulary
    else:
        layer, idle, matrices = _transformer_block(d)
        final_norm, head = d, 0 if config.tied else vocabulary * d
    embedding = (vocabulary + config.context) * d
    non_embedding = config.n_layers * layer + final_norm
    return ParameterCounts(
        total=embedding + non_embedding + head,
        embedding=embedding,
        head=head,
        non_embedding=non_embedding,
        active=non_embedding - config.n_layers * idle,
        matmul=config.n_layers * matrices + vocabulary * d,
    )


def _resnet_bk_layer(d: int, n_experts: int) -> tuple[int, int, int]:
    """Return (parameters, parameters of the experts a token skips, matrix entries it is multiplied by)."""
    expert_matrices = 2 * resnet_bk.EXPANSION * d**2
    expert = expert_matrices + resnet_bk.EXPANSION * d + d
    router, to_potential, from_resolvent, scale, norm = n_experts * (d + 1), d + 1, 3 * d, 1, 2 * d
    layer = n_experts * expert + router + to_potential + from_resolvent + scale + norm
    return layer, (n_experts - 1) * expert, expert_matrices + n_experts * d + d + 2 * d


def _transformer_block(d: int) -> tuple[int, int, int]:
    """Return (parameters, 0 skipped, matrix entries): qkv and output, the MLP, two norms."""
    matrices = 4 * d**2 + 2 * transformer.EXPANSION * d**2
    return matrices + 2 * d, 0, matrices


def forward_flops(
    config: ModelConfig, batch: int, length: int, *, attention: Literal["full", "causal"] = "full"
) -> int:
    """Return the matrix-product FLOPs of one forward pass over ids [batch, length].

    Args:
        config: the model.
        batch: sequences.
        length: tokens per sequence.
        attention: "full" counts scores and values over all T^2 pairs, 4 L d T^2 a sequence, as counters and the PaLM
            convention do; "causal" counts the T (T + 1) / 2 pairs a causal model needs. ResNet-BK has neither.

    Raises:
        ValueError: batch or length is not positive, or the length exceeds the context.
    """
    if batch < 1 or not 1 <= length <= config.context:
        raise ValueError(f"ids are {batch} x {length}; allowed: 1 or more x 1 to {config.context}, the context")
    flops = 2 * parameter_counts(config).matmul * batch * length
    if isinstance(config, TransformerConfig):
        pairs = length**2 if attention == "full" else length * (length + 1) // 2
        flops += 4 * config.n_layers * config.d_model * batch * pairs
    return flops


def training_flops(
    config: ModelConfig, batch: int, length: int, *, attention: Literal["full", "causal"] = "full"
) -> int:
    """Return the model FLOPs of one training step: 3 forward passes, since a backward pass has two products for each.

    A kernel that recomputes (flash attention, activation checkpointing) executes more; that is not counted.
    """
    return 3 * forward_flops(config, batch, length, attention=attention)


def palm_training_flops(config: TransformerConfig, batch: int, length: int) -> int:
    """Return (6 N + 12 L d T) per token, N being all parameters but the lookups (Chowdhery et al. 2022, appendix B)."""
    n = parameter_counts(config).non_embedding + config.vocab_size * config.d_model
    return (6 * n + 12 * config.n_layers * config.d_model * length) * batch * length


def published_forward_flops(config: ResNetBKConfig, batch: int, length: int) -> int:
    """Return what the original ResNet-BK counter calls forward FLOPs (report 004, flops_counter.py).

    Beside matrix products it counts d per embedded token, 5 d per norm, 34 per site of the resolvent and 3 E + 2 d of
    activations; it leaves out the projection to the potential.
    """
    d, experts = config.d_model, config.n_experts
    norm = 5 * d
    mixture = 2 * d * experts + 3 * experts + 8 * d**2 + 2 * d
    layer = norm + 34 + mixture + 4 * d
    return (d + config.n_layers * layer + norm + 2 * d * config.vocab_size) * batch * length


def counted_flops(model: nn.Module, ids: Tensor) -> int:
    """Run one forward pass and return the FLOPs that PyTorch's counter sees.

    The counter has no formula for the fused attention of the CPU and would count it as 0 (pytorch#195460), so one is
    given here.
    """
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        model(ids)
    return counter.get_total_flops()


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """Return the FLOPs of QK^T and of its product with V, over all pairs: shapes [B, h, T, d / h]."""
    batch, n_heads, n_queries, width = query
    return 2 * math.prod((batch, n_heads, n_queries, key[-2])) * (width + value[-1])
