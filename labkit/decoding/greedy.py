"""What a model remembers from one token to the next, and the greedy tokens of transformers to hold a loop against.

Most models keep keys and values, and take them as `past_key_values`. Mamba keeps a state that it takes as
`cache_params`, RWKV one that it returns as `state`, and OpenAI-GPT keeps nothing and is given all tokens again. A model
that is called with a name it does not know drops it without a word and forgets everything: its times would be those of
another computation. Which memory is a model's own, transformers' code for generation knows, and is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.utils import ALL_CACHE_NAMES

COMPARED_TOKENS = 16
"""Tokens that are held against those of transformers' `generate`, at most."""
_ROUNDING = 8.0
"""Spacings of the model's type, at its largest logit, within which two tokens are equally likely."""

Step = Callable[[torch.Tensor], torch.Tensor]
"""Takes the tokens that have not been seen, [1, t], and returns logits of which the last ones count, [1, .., V]."""


def base_of(model: nn.Module) -> nn.Module:
    """Return the model inside an adapter wrapper, whose forward hides the arguments of the model's own."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Say whether a model is called with a cache of keys and values, and with nothing else that depends on it."""
    own = type(base_of(model)).prepare_inputs_for_generation
    return memory_of(model) == DynamicCache.__name__ and own is GenerationMixin.prepare_inputs_for_generation


def memory_of(model: nn.Module) -> str:
    """Name what a model remembers by: `DynamicCache`, the argument that another memory is handed on as, or `none`."""
    base = base_of(model)
    known = [name for name in ALL_CACHE_NAMES if name in inspect.signature(base.forward).parameters]
    usual = isinstance(base, GenerationMixin) and base._supports_default_dynamic_cache()
    return DynamicCache.__name__ if usual and "past_key_values" in known else known[0] if known else "none"


def stepper(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int, *, as_generate: bool = False) -> Step:
    """Return what runs a model over the next tokens of one sequence, with its own memory, empty at first.

    Args:
        model: any causal language model, with adapters or without.
        prompt: the first tokens, [1, T]; they are not run yet.
        new_tokens: how many more there will be.
        as_generate: give it all that `generate` gives it, also where keys and values should be enough.

    Raises:
        ValueError: transformers cannot generate with such a model.
    """
    if not as_generate and keeps_keys_and_values(model):
        return _with_keys_and_values(model)
    if not isinstance(base_of(model), GenerationMixin):
        raise ValueError(f"{type(base_of(model)).__name__} is no model that transformers generates text with")
    return _as_generate_does(base_of(model), prompt, new_tokens)


def _with_keys_and_values(model: PreTrainedModel) -> Step:
    takes = inspect.signature(base_of(model).forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    cache = DynamicCache(config=model.config)
    return lambda fresh: model(input_ids=fresh, past_key_values=cache, use_cache=True, **last_only).logits


def _as_generate_does(base: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> Step:
    """Give each step what `generate` gives it, and hand on what comes back under whatever name."""
    handed_on, ids = _first_arguments(base, prompt, new_tokens), prompt[:, :0]

    def step(fresh: torch.Tensor) -> torch.Tensor:
        nonlocal handed_on, ids
        first, ids = not ids.shape[1], torch.cat([ids, fresh], 1)
        n_new = None if first else fresh.shape[1]
        inputs = base.prepare_inputs_for_generation(
            ids, next_sequence_length=n_new, is_first_iteration=first, **handed_on
        )
        out = base(**inputs, return_dict=True)
        handed_on = base._update_model_kwargs_for_generation(out, handed_on)
        return out.logits

    return step


def _first_arguments(base: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> dict[str, Any]:
    """Have `generate` prepare its loop, a cache of the model's own among it, and stop where that would begin."""
    prepared: dict[str, Any] = {}

    def note(_: Any, input_ids: torch.Tensor, *, generation_config: Any, **arguments: Any) -> torch.Tensor:
        own = ("logits_processor", "stopping_criteria", "synced_gpus", "streamer")
        prepared.update({name: value for name, value in arguments.items() if name not in own})
        return input_ids

    with _plain_greedy(base, new_tokens) as asked:
        base.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=asked, custom_generate=note)
    return prepared


@contextmanager
def _plain_greedy(model: nn.Module, new_tokens: int) -> Iterator[GenerationConfig]:
    """Yield what asks for exactly so many greedy tokens, with the model's own wishes (penalties, an end) set aside."""
    base = base_of(model)
    wishes, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        base.generation_config = wishes


@dataclass(frozen=True, slots=True)
class Generated:
    """What transformers' own greedy `generate` makes of a prompt."""

    tokens: tuple[int, ...]
    """The tokens."""
    logits: tuple[torch.Tensor, ...]
    """What each was chosen by, [1, V]."""


@torch.inference_mode()
def generated(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> Generated:
    """Continue a prompt [1, T] by exactly so many greedy tokens, as transformers does."""
    with _plain_greedy(model, new_tokens) as asked:
        out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=asked)
    return Generated(tuple(out.sequences[0, prompt.shape[1] :].tolist()), out.logits)


def difference(model: PreTrainedModel, expected: Generated, tokens: tuple[int, ...]) -> str:
    """Say where tokens differ from those of `generate`; nothing where they do not.

    Two tokens whose logits differ by rounding alone are equally right; behind the first such pair nothing can be
    compared.
    """
    pairs = zip(tokens, expected.tokens, expected.logits, strict=True)
    for i, (made, right, logits) in enumerate(pairs):
        if made != right:
            rounding = _ROUNDING * torch.finfo(model.dtype).eps * float(logits.abs().max())
            is_tie = float(logits[0, right] - logits[0, made]) <= rounding
            return "" if is_tie else f"token {i} is {made} in this loop and {right} in transformers' generate"
    return ""
