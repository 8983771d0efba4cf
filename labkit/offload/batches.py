"""What a batch must be: ids [N, T], a mask and labels of the same shape; checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from labkit.offload.head import IGNORED, Batch


def complete(batch: Batch, vocabulary: int, n_logits: int | None = None) -> dict[str, torch.Tensor]:
    """Return a batch of int64 with labels: by default the ids, without the padding.

    Args:
        batch: input_ids [N, T], and tensors of the same shape.
        vocabulary: number of ids that the model knows.
        n_logits: number of tokens that it predicts, if that is another.

    Raises:
        ValueError: no ids, a tensor of another shape or type, or values that are no ids, mask or labels.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        held = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"the batch holds {held or 'nothing'}; input_ids [N, T] are needed")
    for name, value in batch.items():
        _require_tensor(name, value, batch["input_ids"])
    whole = {name: value.long() if _counts(value) else value for name, value in batch.items()}
    _require_within("input_ids", whole["input_ids"], vocabulary)
    mask = whole.get("attention_mask")
    if mask is not None:
        whole["attention_mask"] = mask = _zeros_and_ones(mask)
    labels = whole["input_ids"] if mask is None else whole["input_ids"].masked_fill(mask == 0, IGNORED)
    whole = {"labels": labels, **whole}
    _require_within("labels", whole["labels"][whole["labels"] != IGNORED], n_logits or vocabulary)
    return whole


def _counts(value: torch.Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _require_tensor(name: str, value: object, ids: object) -> None:
    """Raise unless a value is a tensor like the ids, and of integers where it must be.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is of type {type(value).__name__}; it is a tensor [N, T]")
    must_count = name in ("input_ids", "labels")
    if must_count and (not _counts(value) or value.dtype == torch.bool or value.dim() != 2 or not value.numel()):
        raise ValueError(f"{name} are {value.dtype} of shape {tuple(value.shape)}; they are integers [N, T]")
    if isinstance(ids, torch.Tensor) and value.shape != ids.shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, and input_ids {tuple(ids.shape)}")


def _require_within(name: str, values: torch.Tensor, n: int) -> None:
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= n):
        most = f"{name} reach from {int(values.min())} to {int(values.max())}; the vocabulary is {n}"
        raise ValueError(most + (f", and {IGNORED} stands for no label" if name == "labels" else ""))


def _zeros_and_ones(mask: torch.Tensor) -> torch.Tensor:
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask holds other values than 0 and 1; it is 0 at the padding and 1 at the tokens")
    return mask.long()


def n_counted(batch: Batch) -> int:
    """Count the tokens with a label that a next-token loss reaches.

    Raises:
        ValueError: there is none.
    """
    counted = int((batch["labels"][:, 1:] != IGNORED).sum())
    if not counted:
        raise ValueError("no position of the batch has a label; a loss needs at least one")
    return counted
