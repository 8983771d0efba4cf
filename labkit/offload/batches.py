"""What a batch must be: ids [N, T], a mask and labels of the same shape; checked before any weight is read."""

from __future__ import annotations

import torch

from labkit.offload.head import IGNORED, Batch


def complete(batch: Batch, vocabulary: int) -> dict[str, torch.Tensor]:
    """Return a batch with labels: by default the ids, without the padding.

    Raises:
        ValueError: no ids, ids outside the vocabulary, or a mask or labels of another shape.
    """
    if "input_ids" not in batch:
        raise ValueError(f"the batch holds {', '.join(batch) or 'nothing'}; input_ids [N, T] are needed")
    ids = batch["input_ids"]
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
        raise ValueError(f"input_ids are {ids.dtype} of shape {tuple(ids.shape)}; they are integers [N, T]")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"input_ids reach from {int(ids.min())} to {int(ids.max())}; the vocabulary is {vocabulary}")
    for name, value in batch.items():
        if value.shape != ids.shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, and input_ids {tuple(ids.shape)}")
    mask = batch.get("attention_mask")
    labels = ids if mask is None else ids.masked_fill(mask == 0, IGNORED)
    return {"labels": labels, **batch}


def n_counted(batch: Batch) -> int:
    """Count the tokens with a label that a next-token loss reaches.

    Raises:
        ValueError: there is none.
    """
    counted = int((batch["labels"][:, 1:] != IGNORED).sum())
    if not counted:
        raise ValueError("no position of the batch has a label; a loss needs at least one")
    return counted
