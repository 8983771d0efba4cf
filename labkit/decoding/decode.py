"""Time what a causal language model takes per decoded token, per prompt and per training step.

Prefill and every decoding step are timed apart, exactly as many tokens are made as asked for whatever the model says
(an end-of-text token ends nothing), and the loop is greedy: what is measured is the model, not its answer. A model
remembers in its own way (`greedy`), and its first tokens are held against transformers' before anything is timed. Raw
samples are kept, with the conditions they hold under; `compare.ratio` refuses to divide those whose conditions differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from labkit.decoding.greedy import COMPARED_TOKENS, base_of, difference, generated, memory_of, stepper
from labkit.models import weight_bytes

TIMES = ("prefill_seconds", "token_seconds", "seconds_per_token")
"""Fields of `DecodeTiming.as_dict` that no two runs share."""
VERSIONS = ("torch", "transformers")
"""Fields of `conditions` that belong to what is installed: goldens hold with other versions, too."""

__all__ = [
    "TIMES",
    "VERSIONS",
    "DecodeTiming",
    "adapter_state",
    "bytes_per_token",
    "conditions",
    "decode_once",
    "measure_decode",
    "measure_train_step",
    "random_prompt",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTiming:
    """Raw times of repeated greedy decoding, and everything they hold under."""

    prefill_seconds: tuple[float, ...]
    """Seconds from the prompt to the first new token, one per repeat."""
    token_seconds: tuple[tuple[float, ...], ...]
    """Seconds of each later token, [repeats][new_tokens - 1]."""
    tokens: tuple[int, ...]
    """The tokens made; the same in every repeat."""
    conditions: dict[str, Any]
    """Model, type, threads, device, versions, tokens, adapters, sampler, cache."""

    @property
    def seconds_per_token(self) -> tuple[float, ...]:
        """Median over the tokens of each repeat; one delayed step moves nothing."""
        return tuple(float(np.median(steps)) for steps in self.token_seconds)

    def __repr__(self) -> str:
        held = self.conditions
        kind = f"{held['model']}, {held['dtype']} on {held['device']}, {held['threads']} threads"
        each = f"{1e3 * np.median(self.seconds_per_token):.4g} ms a token"
        prefill = f"prefill of {held['prompt_tokens']} tokens {1e3 * np.median(self.prefill_seconds):.4g} ms"
        spread = f"{1e3 * min(self.seconds_per_token):.4g} to {1e3 * max(self.seconds_per_token):.4g}"
        repeats = f"{len(self.prefill_seconds)} repeats of {len(self.tokens)} tokens"
        return f"<DecodeTiming {kind}: {each} ({spread}; median of {repeats}), {prefill}>"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON, with the samples under the names that `compare.ratio` takes."""
        return {
            "prefill_seconds": list(self.prefill_seconds),
            "token_seconds": [list(steps) for steps in self.token_seconds],
            "seconds_per_token": list(self.seconds_per_token),
            "tokens": list(self.tokens),
            "conditions": dict(self.conditions),
        }


def measure_decode(
    model: PreTrainedModel,
    *,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    warmup: int = 1,
    seed: int = 0,
    adapters: str | None = None,
    between: Callable[[], object] | None = None,
) -> DecodeTiming:
    """Decode greedily at batch 1 from a random prompt and time prefill and every step.

    Args:
        model: any causal language model, with adapters or without; put into evaluation mode.
        prompt_tokens: length of the prompt, at least 1.
        new_tokens: tokens made in each repeat, exactly; at least 2, the first one being the prefill's.
        repeats: timed repeats.
        warmup: repeats before them that are not kept.
        seed: seed of the prompt's tokens.
        adapters: `merged` for a model whose adapters were merged away, which leaves no trace; by default looked up.
        between: called before each timed repeat, such as a measurement of the memory's bandwidth.

    Raises:
        ValueError: a count below its least value, or a prompt that with its answer is longer than the model allows.
        RuntimeError: two repeats made different tokens, or other ones than transformers' greedy `generate` does.
    """
    _check_counts(model, prompt_tokens, new_tokens, repeats, warmup)
    model.eval()
    prompt = random_prompt(model, prompt_tokens, seed)
    as_generate = _must_call_as_generate(model, prompt, min(new_tokens, COMPARED_TOKENS))
    for _ in range(warmup):
        decode_once(model, prompt, new_tokens, as_generate=as_generate)
    runs = []
    for _ in range(repeats):
        if between is not None:
            between()
        runs.append(decode_once(model, prompt, new_tokens, as_generate=as_generate))
    made = {tokens for _, _, tokens in runs}
    if len(made) != 1:
        raise RuntimeError("greedy decoding made different tokens in different repeats; its times do not compare")
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "warmup": warmup}
    return DecodeTiming(
        prefill_seconds=tuple(prefill for prefill, _, _ in runs),
        token_seconds=tuple(steps for _, steps, _ in runs),
        tokens=made.pop(),
        conditions=conditions(model) | counts | ({} if adapters is None else {"adapters": adapters}),
    )


def _must_call_as_generate(model: PreTrainedModel, prompt: torch.Tensor, n_tokens: int) -> bool:
    """Hold the loop against transformers' own; return whether keys and values alone are too little for equal tokens.

    RoBERTa is such a case: `generate` tells it positions that it would not count by itself.
    """
    expected = generated(model, prompt, n_tokens)
    found = []
    for as_generate in (False, True):
        _, _, tokens = decode_once(model, prompt, n_tokens, as_generate=as_generate)
        found.append(difference(model, expected, tokens))
        if not found[-1]:
            return as_generate
    raise RuntimeError(
        f"{found[-1]}: what {type(base_of(model)).__name__} remembers is not handed on; its times would mean nothing"
    )


def _check_counts(model: PreTrainedModel, prompt_tokens: int, new_tokens: int, repeats: int, warmup: int) -> None:
    if prompt_tokens < 1 or new_tokens < 2 or repeats < 1 or warmup < 0:
        raise ValueError(
            f"prompt_tokens is {prompt_tokens} (least 1), new_tokens {new_tokens} (2), repeats {repeats} (1), "
            f"warmup {warmup} (0)"
        )
    most = getattr(_text(model), "max_position_embeddings", None)
    if most is not None and prompt_tokens + new_tokens > most:
        raise ValueError(f"{prompt_tokens} + {new_tokens} tokens are more than the model's {most} positions")


def random_prompt(model: PreTrainedModel, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """Draw a prompt, [1, n_tokens], uniformly from the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(_text(model).vocab_size, (1, n_tokens), generator=generator).to(model.device)


def _text(model: PreTrainedModel) -> Any:
    """Return the configuration of the language model, also where it stands beside one that sees."""
    return model.config.get_text_config(decoder=True)


@torch.inference_mode()
def decode_once(
    model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int, *, as_generate: bool = False
) -> tuple[float, tuple[float, ...], tuple[int, ...]]:
    """Decode once; return seconds of the prefill, of each later token [new_tokens - 1], and the tokens [new_tokens]."""
    step = stepper(model, prompt, new_tokens, as_generate=as_generate)
    wait = torch.cuda.synchronize if prompt.device.type == "cuda" else _no_wait
    inputs, made, marks = prompt, [], [_now(wait)]
    for _ in range(new_tokens):
        inputs = step(inputs)[:, -1].argmax(-1, keepdim=True)
        made.append(inputs)
        marks.append(_now(wait))
    seconds = np.diff(marks).tolist()
    return seconds[0], tuple(seconds[1:]), tuple(torch.cat(made, -1).squeeze(0).tolist())


def _now(wait: Callable[[], object]) -> float:
    wait()
    return time.perf_counter()


def _no_wait() -> None:
    """Let the processor go on: its work is done when the call returns."""


def measure_train_step(
    model: PreTrainedModel,
    *,
    batch: int,
    length: int,
    repeats: int,
    warmup: int = 1,
    seed: int = 0,
    learning_rate: float = 1e-4,
    losses: list[float] | None = None,
) -> list[float]:
    """Time whole optimizer steps (forward, backward, AdamW) on the parameters that are trainable.

    Args:
        model: a causal language model with adapters, or with all parameters trainable; left in training mode.
        batch: sequences of a step.
        length: tokens of each, drawn at random; labels are the same tokens.
        repeats: timed steps.
        warmup: steps before them that are not kept; the first one also allocates AdamW's state.
        seed: seed of the tokens.
        learning_rate: AdamW's learning rate.
        losses: gets the loss of every step, those of the warm-up included.

    Returns:
        seconds of each timed step.

    Raises:
        ValueError: nothing is trainable, or a count below 1.
        FloatingPointError: the loss is not finite.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable or min(batch, length - 1, repeats) < 1:
        raise ValueError(f"batch {batch}, length {length}, repeats {repeats}, {len(trainable)} trainable tensors")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(_text(model).vocab_size, (batch, length), generator=generator).to(model.device)
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate)
    wait = torch.cuda.synchronize if ids.device.type == "cuda" else _no_wait
    model.train()
    seconds = []
    for _ in range(warmup + repeats):
        start = _now(wait)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(_now(wait) - start)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of a timed training step is {loss.item()}")
        if losses is not None:
            losses.append(loss.item())
    return seconds[warmup:]


def conditions(model: PreTrainedModel) -> dict[str, Any]:
    """Return what a time of this model holds under, as plain JSON; lengths of prompt and answer are the caller's."""
    config = model.config
    return {
        "model": config.name_or_path or config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weight_bytes(model),
        "bytes_per_token": bytes_per_token(model),
        "n_layers": int(_text(model).num_hidden_layers),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": transformers_version,
        "attention": str(config._attn_implementation),
        "adapters": adapter_state(model),
        "sampler": "greedy",
        "batch": 1,
        "cache": memory_of(model),
        "compiled": False,
    }


def bytes_per_token(model: nn.Module) -> int:
    """Return the bytes of weights that one decoding step reads.

    Every distinct parameter is read whole, but for tables that only embedding layers own: of them a step reads a row.
    An embedding that the output layer shares is therefore counted, once. Of a model that sees, too, only the language
    model is read: pictures are through by then.
    """
    model = _language_model(model)
    looked_up: dict[int, nn.Parameter] = {}
    multiplied: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                looked_up[id(parameter)] = parameter
            else:
                multiplied.add(id(parameter))
    tables = nn.ParameterList(p for key, p in looked_up.items() if key not in multiplied)
    return weight_bytes(model) - weight_bytes(tables)


def _language_model(model: nn.Module) -> nn.Module:
    """Return what one decoding step runs through: all of it, but for a model with a configuration for text within."""
    base = base_of(model)
    config = getattr(base, "config", None)
    if config is None or config.get_text_config(decoder=True) is config:
        return model
    return nn.ModuleList([base.get_decoder(), base.get_output_embeddings()])


def adapter_state(model: nn.Module) -> str:
    """Say whether low-rank adapters are `none`, `merged` into the weights, or `unmerged` and computed at every token.

    A model from which merged adapters were unloaded has `none`: nothing in it tells.
    """
    layers = [module for module in model.modules() if hasattr(module, "merged_adapters")]
    if not layers:
        return "none"
    return "merged" if all(layer.merged_adapters or layer.disable_adapters for layer in layers) else "unmerged"
