"""One optimizer step on gradients that come from elsewhere than `backward`."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def require_adapters(optimizer: torch.optim.Optimizer, adapters: Mapping[str, torch.nn.Parameter]) -> None:
    """Raise unless an optimizer holds some of a model's adapters.

    Raises:
        ValueError: it holds none, so that a step would change nothing.
    """
    ours = {id(p) for p in adapters.values()}
    if not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds none of this model's adapters; make it over model.adapters().values()")


def apply(
    adapters: Mapping[str, torch.nn.Parameter],
    gradients: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None,
) -> dict[str, float]:
    """Give the gradients to the adapters, clip them, and step.

    Args:
        adapters: by name.
        gradients: by the same names.
        optimizer: over the adapters.
        max_grad_norm: norm to clip the whole gradient to; None to leave it.

    Returns:
        the norm of each gradient before it was clipped.
    """
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    for name, gradient in gradients.items():
        adapters[name].grad = gradient
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(adapters.values(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norms
