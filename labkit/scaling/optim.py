"""What a training step of report 004 needs beside the model: a loss and an optimiser, alike for both architectures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_LOGITS = 2**19  # logits held at a time, 2 MiB in float32: about one core's second-level cache
MIN_ROWS = 64  # fewer tokens at a time would starve the matrix products


def adamw(
    model: nn.Module, lr: float, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """Build fused AdamW that decays matrices only: norms, biases and scalars are left alone.

    Args:
        model: the module to train; parameters without `requires_grad` are left out.
        lr: peak learning rate, the one a schedule multiplies.
        weight_decay: decoupled decay per step, in units of the learning rate (Loshchilov and Hutter 2019).
        betas: decay of the first and second moment.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def next_token_loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of model(ids) against targets in nats, without ever holding all logits.

    Equals `F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())` and its gradient up to rounding. The logits of
    a few tokens at a time are turned into their gradient while they are in cache, so that peak memory does not grow
    with batch * T * V. For training: it computes the gradient even where none is asked for.

    Args:
        model: a language model with `hidden(ids)` [B, T, d] and a linear `head`.
        ids: [B, T].
        targets: [B, T], the token that follows each id.
    """
    device = ids.device.type
    hidden = model.hidden(ids).flatten(0, 1)
    if not torch.is_autocast_enabled(device):
        return _LinearCrossEntropy.apply(hidden, model.head.weight, model.head.bias, targets.flatten())
    if device != "cpu":  # an accelerator keeps all logits anyway, and launches fewer kernels for it
        return F.cross_entropy(model.head(hidden), targets.flatten())
    narrow = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        hidden, weight = hidden.to(narrow), model.head.weight.to(narrow)
        return _LinearCrossEntropy.apply(hidden, weight, model.head.bias, targets.flatten())


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden @ weight.T + bias, chunk by chunk, with the gradient taken on the way.

    Hidden and weight may be of 16 bits: products then are, logits and sums over tokens are of 32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        rows = max(MIN_ROWS, CHUNK_LOGITS // len(weight))
        narrow, wide = hidden.dtype, torch.promote_types(hidden.dtype, torch.float32)
        hidden_grad, weight_grad = torch.empty_like(hidden), torch.zeros_like(weight, dtype=wide)
        bias_grad = None if bias is None else torch.zeros_like(bias)
        nats = hidden.new_zeros((), dtype=wide)
        chunks = (tensor.split(rows) for tensor in (hidden, hidden_grad, targets.unsqueeze(-1)))
        for x, x_grad, target in zip(*chunks, strict=True):
            logits = F.linear(x, weight, bias) if narrow == wide else _widened(F.linear(x, weight), bias)
            normaliser = logits.logsumexp(-1, keepdim=True)
            nats += (normaliser - logits.gather(-1, target)).sum()
            error = logits.sub_(normaliser).exp_()  # softmax, and minus the one-hot target the gradient of the sum
            error.scatter_add_(-1, target, error.new_full(target.shape, -1.0))
            if bias_grad is not None:
                bias_grad += error.sum(0)
            error = error.to(narrow)
            torch.mm(error, weight, out=x_grad)
            weight_grad = weight_grad.addmm_(error.T, x) if narrow == wide else weight_grad.add_((error.T @ x).to(wide))
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.n_targets = len(targets)
        return nats / ctx.n_targets

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("next_token_loss is differentiable once: call backward without create_graph=True")
        scale = upstream / ctx.n_targets
        # A 16-bit weight wants a gradient of its own type; autograd turns it into that of the parameter.
        return *(None if gradient is None else gradient * scale for gradient in ctx.saved_tensors), None


def _widened(logits: Tensor, bias: Tensor | None) -> Tensor:
    logits = logits.float()
    return logits if bias is None else logits.add_(bias)
