"""Greedy decoding with a streamed model: a token of every sample for each pass over the weights.

Passes all go up, so buffers keep the lowest layers from one pass to the next; where all layers have a buffer, nothing
is read after the first pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from labkit.offload.passes import Passes, Work


def generate(
    passes: Passes, batch: Mapping[str, torch.Tensor], max_new_tokens: int, eos_token_id: int | None
) -> torch.Tensor:
    """Continue prompts with the likeliest tokens, [N, T] -> [N, T + new].

    Args:
        passes: the model.
        batch: input_ids and attention_mask [N, T], padded on the left.
        max_new_tokens: tokens to add at most.
        eos_token_id: token that ends a sample; it is repeated to the end of the others.
    """
    ids, mask = (batch[name].to(passes.device) for name in ("input_ids", "attention_mask"))
    cache = DynamicCache(config=passes.skeleton.model.config)
    ended, fresh = torch.zeros(len(ids), dtype=torch.bool, device=ids.device), ids
    with _one_way(passes), torch.no_grad():
        for _ in range(max_new_tokens):
            token = _next(passes, fresh, mask, cache)
            token = token.masked_fill(ended, eos_token_id or 0)
            ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, torch.ones_like(token)[:, None]], 1)
            fresh = token[:, None]
            if eos_token_id is not None and bool((ended := ended | (token == eos_token_id)).all()):
                break
    return ids.cpu()


def _next(passes: Passes, fresh: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Run the tokens that the cache has not seen, [N, t], and return the likeliest next one of each sample, [N]."""
    more = {"past_key_values": cache, "use_cache": True}
    if "position_ids" in inspect.signature(passes.skeleton.model.base_model.forward).parameters:
        # Padding on the left has no positions.
        more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
    calls = passes.body.open({"input_ids": fresh, "attention_mask": mask}, **more)
    work = Work(batches=[{"input_ids": fresh}], calls=[calls], hidden=[calls.hidden], step=0)
    passes.up(work, keep=False)
    return passes.likeliest(work)


@contextmanager
def _one_way(passes: Passes) -> Iterator[None]:
    passes.pool.keep_early = True
    try:
        yield
    finally:
        passes.pool.keep_early = False
