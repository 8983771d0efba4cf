"""Sums and products over lists of tensors, one for each trained parameter, by group of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Tensors = list[Tensor]

GROUPS = ("embedding", "attention", "mlp", "other")
"""Kinds of parameters that share a gain: single tensors are too small to tell drift from noise."""
_KINDS = {
    "embedding": ("wte", "wpe", "embed", "lm_head"),
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("mlp", "feed_forward", "c_fc", "gate_proj", "up_proj", "down_proj"),
}


def group_of(name: str) -> int:
    """Return the group of a parameter, as a place in GROUPS, from its name."""
    found = [kind for kind, marks in _KINDS.items() if any(mark in name for mark in marks)]
    return GROUPS.index(found[0]) if found else len(GROUPS) - 1


def gradients(parameters: Sequence[nn.Parameter]) -> Tensors:
    """Return the gradient of every parameter, zeros where a step did not use it."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def copies(tensors: Sequence[Tensor], device: str | None = None) -> Tensors:
    """Copy tensors, in their own type, beside themselves or on another device."""
    return [tensor.detach().to(device or tensor.device, copy=True) for tensor in tensors]


def empty_like(tensors: Sequence[Tensor], dtype: torch.dtype | None = None, device: str | None = None) -> Tensors:
    """Return zeros of the same shapes."""
    return [torch.zeros_like(t, dtype=dtype or t.dtype, device=device or t.device) for t in tensors]


@torch.no_grad()
def assign(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into targets, across devices and types."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


@torch.no_grad()
def write_difference(targets: Sequence[Tensor], now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Write now - before into targets, rounded once, to the type of the targets."""
    for target, new, old in zip(targets, now, before, strict=True):
        target.copy_(new.detach() - old.to(new.device))


@torch.no_grad()
def add(targets: Sequence[Tensor], directions: Sequence[Tensor], scale: float | Sequence[float] = 1.0) -> None:
    """Add scaled directions to targets in place; one scale, or one for each tensor."""
    scales = [scale] * len(targets) if isinstance(scale, float | int) else scale
    for target, direction, factor in zip(targets, directions, scales, strict=True):
        target.add_(direction.to(target.device, target.dtype), alpha=float(factor))


def dots(left: Sequence[Tensor], right: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Return the inner product of each group, float64 on the processor, [groups]."""
    sums = torch.zeros(len(GROUPS), dtype=torch.float64)
    for a, b, group in zip(left, right, groups, strict=True):
        product = a.detach().float().flatten() @ b.detach().to(a.device).float().flatten()
        sums[group] += product.double().cpu()
    return sums


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the length of all tensors together."""
    return float(sum(float(t.detach().float().square().sum()) for t in tensors) ** 0.5)
