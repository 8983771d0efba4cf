"""How long a sequence may be: a table of positions ends somewhere, and models find that out after much reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def too_long(model: nn.Module, n_tokens: int, why: object) -> ValueError:
    """Return what is raised where a model does not take so many tokens."""
    return ValueError(f"{type(model).__name__} does not take sequences of {n_tokens} tokens: {why}")


class WithinTables(TorchFunctionMode):
    """Look up only rows that a table has.

    The processor raises IndexError by itself; on a GPU a row that is not there ends every later call of the process.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is F.embedding:
            rows, table = args[0], args[1]
            if rows.numel() and int(rows.max()) >= len(table):
                raise IndexError(f"row {int(rows.max())} of a table of {len(table)} was asked for")
        return function(*args, **(kwargs or {}))


def require_rows(layer: nn.Module, n_positions: int | None, called_with: Mapping[str, Any]) -> None:
    """Raise IndexError where a layer looks positions up in a table of its own (GPT-J, CodeGen) and it ends before them.

    Args:
        layer: one of them; all have the same.
        n_positions: what the configuration says; a buffer of two axes with so many rows is such a table.
        called_with: keyword arguments of the layer.
    """
    positions = called_with.get("position_ids")
    if positions is None or not any(b.dim() == 2 and len(b) == n_positions for b in layer.buffers()):
        return
    if int(positions.max()) >= n_positions:
        raise IndexError(f"row {int(positions.max())} of a table of {n_positions} was asked for")


def longest_row(batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the sample of a batch with the most tokens, [1, T] each, and whether it has no padding."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask", torch.ones_like(ids))
    at = int(mask.sum(1).argmax())
    return {name: value[at : at + 1].clone() for name, value in batch.items()}, bool(mask[at].all())


def continued(batch: Mapping[str, torch.Tensor], more: int) -> dict[str, torch.Tensor]:
    """Return prompts as they are when so many tokens have been added, [N, T + more] each."""
    return {name: F.pad(value, (0, more), value=1) for name, value in batch.items()}
