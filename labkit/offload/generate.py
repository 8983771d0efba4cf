"""Greedy decoding with a streamed model: a token of every sample for each pass over the weights.

Passes all go up, so buffers keep the lowest layers from one pass to the next; where all layers have a buffer, nothing
is read after the first pass. What a model remembers between passes its layers keep in a cache of transformers'. A model
that hands its state on in another way, or keeps none, is given all tokens in every pass: reading is what takes time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from labkit.offload.lengths import continued
from labkit.offload.passes import Passes, Work

CACHES = ("past_key_values", "cache_params")
"""Names under which bodies take a cache that their layers fill in place."""


def generate(
    passes: Passes, batch: Mapping[str, torch.Tensor], max_new_tokens: int, ends: Sequence[int] = ()
) -> torch.Tensor:
    """Continue prompts with the likeliest tokens, [N, T] -> [N, T + new].

    Args:
        passes: the model.
        batch: input_ids and attention_mask [N, T], padded on the left.
        max_new_tokens: tokens to add at most.
        ends: tokens that end a sample; what follows is the first of them.
    """
    ids, mask = (batch[name].to(passes.device) for name in ("input_ids", "attention_mask"))
    ended, fresh, memory = torch.zeros(len(ids), dtype=torch.bool, device=ids.device), ids, _memory(passes)
    stop = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    with _one_way(passes), torch.no_grad():
        for _ in range(max_new_tokens):
            token = _next(passes, fresh, mask, memory).to(ids.dtype)
            token = token.masked_fill(ended, ends[0] if ends else 0)
            ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            fresh = token[:, None] if memory else ids
            ended = ended | torch.isin(token, stop)
            if bool(ended.all()):
                break
    return ids.cpu()


def end_tokens(eos_token_id: int | Sequence[int] | None, vocabulary: int) -> tuple[int, ...]:
    """Return the tokens that end a sample.

    Raises:
        ValueError: something else than token ids.
    """
    given = () if eos_token_id is None else eos_token_id
    found = tuple(given) if isinstance(given, list | tuple) else (given,)
    bad = [one for one in found if isinstance(one, bool) or not isinstance(one, Integral) or not 0 <= one < vocabulary]
    if bad:
        raise ValueError(f"eos_token_id is {eos_token_id!r}; it is a token below {vocabulary}, a list of them, or None")
    return tuple(map(int, found))


def require_prompts(batch: Mapping[str, torch.Tensor], max_new_tokens: int) -> None:
    """Refuse prompts that cannot be continued.

    Raises:
        ValueError: padding on the right, where the next token would follow it, or no token to add.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it is a whole number, at least 1")
    if rows := (batch["attention_mask"][:, -1] == 0).nonzero().flatten().tolist():
        raise ValueError(f"sample {rows[0]} ends with padding; prompts are padded on the left")


def require_positions(passes: Passes, batch: Mapping[str, torch.Tensor], max_new_tokens: int) -> None:
    """Refuse prompts that the model has no positions left for.

    Raises:
        ValueError: they and what is to follow are too long.
    """
    # The last token is returned and goes through the model no more.
    whole = continued(batch, max_new_tokens - 1)
    beside = _beside(passes.skeleton.model, whole["input_ids"], whole["attention_mask"], {})
    passes.body.require_length(whole | {name: v for name, v in beside.items() if isinstance(v, torch.Tensor)})


def _memory(passes: Passes) -> dict[str, DynamicCache]:
    """Return an empty cache under the name that the body takes it by; nothing where it takes none of this kind."""
    model = passes.skeleton.model
    taken = inspect.signature(model.base_model.forward).parameters
    name = next((name for name in CACHES if name in taken), None)
    if name is None or not (isinstance(model, GenerationMixin) and model._supports_default_dynamic_cache()):
        return {}
    return {name: DynamicCache(config=model.config)}


def _next(passes: Passes, fresh: torch.Tensor, mask: torch.Tensor, memory: Mapping[str, DynamicCache]) -> torch.Tensor:
    """Run the tokens that have not been seen, [N, t], and return the likeliest next one of each sample, [N]."""
    calls = passes.body.open({"input_ids": fresh}, **_beside(passes.skeleton.model, fresh, mask, memory))
    work = Work(batches=[{"input_ids": fresh}], calls=[calls], hidden=[calls.hidden], step=0)
    passes.up(work, keep=False)
    return passes.likeliest(work)


def _beside(
    model: PreTrainedModel, fresh: torch.Tensor, mask: torch.Tensor, memory: Mapping[str, DynamicCache]
) -> dict[str, Any]:
    """Return what the body is given beside some tokens, as transformers' generation gives it."""
    beside = {"attention_mask": mask, "use_cache": bool(memory), **memory}
    if "cache_params" in memory and fresh.shape[1] < mask.shape[1]:
        # A state has no columns to mask: padding was before it.
        beside["attention_mask"] = None
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:
        # Padding on the left has no positions.
        beside["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
    return beside


@contextmanager
def _one_way(passes: Passes) -> Iterator[None]:
    """Run passes that all go up."""
    passes.pool.keep_early = True
    try:
        yield
    finally:
        passes.pool.keep_early = False
