"""Products of the experts of a mixture, on tensors that have shapes and no memory.

torch knows the shape of such a product only for the types and strides that one GPU kernel takes; on a processor it
multiplies others too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class GroupedShapes(TorchDispatchMode):
    """Answers grouped products within the block with an empty tensor of their shape."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, or make up what it would return."""
        if function is torch.ops.aten._grouped_mm.default:
            return _product(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _product(
    left: torch.Tensor,
    right: torch.Tensor,
    ends: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return an empty product of [S, K] or [E, M, K] and [E, K, N] or [K, N], whose groups end at `ends` [E]."""
    rows, columns = left.shape[-2], right.shape[-1]
    if left.dim() == right.dim() == 2:
        shape = (ends.shape[0], rows, columns)
    elif left.dim() == right.dim() == 3:
        shape = (left.shape[0], rows, columns)
    else:
        shape = (rows, columns)
    return left.new_empty(shape, dtype=out_dtype or left.dtype)
