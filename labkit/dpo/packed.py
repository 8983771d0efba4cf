"""Log-probabilities of preference pairs with less arithmetic than two padded sequences through a full head.

A pair is one row, [prompt | chosen | rejected]: the prompt is computed once, and the rejected text does not see the
chosen one. The vocabulary is only visited where a completion token is predicted, and the gradient through it is formed
on the way forward, because each position hands out one number and takes back one factor. Both are exact: outputs and
gradients equal those of trl's own forward up to rounding.

Letters: B pairs, T tokens of the longest sequence, L tokens of the longest row, N completion tokens, D width, V words.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

IGNORED = -100
_TILE_VALUES = 2**26
"""Logits held at once, in the type of the weights."""
_CACHED_VALUES = 2**19
"""Logits worked on at once in float32: 2 MiB, so that the passes over them stay in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packed:
    """Pairs as rows, and where each completion token's prediction comes from and goes to."""

    ids_BL: Tensor
    """Tokens: prompt, chosen, rejected, padding."""
    positions_BL: Tensor
    """Positions; those of the rejected text start again after the prompt."""
    mask_B1LL: Tensor
    """True where a query (row of the matrix) sees a key (column)."""
    source_N: Tensor
    """Index into the flattened rows of the hidden state that predicts a token."""
    target_N: Tensor
    """Index into a flattened [2B, T - 1] of that token."""


def pack_pairs(ids_2BT: Tensor, attention_2BT: Tensor, labels_2BT: Tensor) -> Packed:
    """Turn a batch of B chosen and then B rejected sequences into B rows.

    Args:
        ids_2BT: tokens, padded on the right, row i and row B + i with the same prompt.
        attention_2BT: 1 where there is a token.
        labels_2BT: tokens, `IGNORED` except in completions.
    """
    n_pairs, width = ids_2BT.shape[0] // 2, ids_2BT.shape[1] - 1
    prompts = (labels_2BT != IGNORED).int().argmax(1).tolist()
    lengths = attention_2BT.sum(1).tolist()
    rows, positions, sources, targets = [], [], [], []
    longest = max(lengths[i] + lengths[n_pairs + i] - prompts[i] for i in range(n_pairs))
    for i in range(n_pairs):
        prompt, chosen, rejected = prompts[i], lengths[i], lengths[n_pairs + i]
        assert prompts[n_pairs + i] == prompt, "a pair's sequences have different prompts"
        row = torch.cat([ids_2BT[i, :chosen], ids_2BT[n_pairs + i, prompt:rejected]])
        rows.append(F.pad(row, (0, longest - len(row))))
        place = torch.cat([torch.arange(chosen), torch.arange(prompt, rejected)])
        positions.append(F.pad(place, (0, longest - len(place))))
        first = i * longest
        sources += [torch.arange(first + prompt - 1, first + chosen - 1), torch.tensor([first + prompt - 1])]
        sources.append(torch.arange(first + chosen, first + chosen + rejected - prompt - 1))
        targets.append(torch.arange(i * width + prompt - 1, i * width + chosen - 1))
        start = (n_pairs + i) * width
        targets.append(torch.arange(start + prompt - 1, start + rejected - 1))
    where = ids_2BT.device
    return Packed(
        ids_BL=torch.stack(rows),
        positions_BL=torch.stack(positions).to(where),
        mask_B1LL=_mask(prompts[:n_pairs], lengths[:n_pairs], longest).to(where),
        source_N=torch.cat(sources).to(where),
        target_N=torch.cat(targets).to(where),
    )


def _mask(prompts: list[int], chosen: list[int], longest: int) -> Tensor:
    """Causal, and the rejected text sees the prompt and itself but not the chosen text."""
    mask = torch.ones(longest, longest, dtype=torch.bool).tril().repeat(len(prompts), 1, 1, 1)
    for i, (prompt, end) in enumerate(zip(prompts, chosen, strict=True)):
        mask[i, 0, end:, prompt:end] = False
    return mask


class TokenLogProbs(torch.autograd.Function):
    """Log-probabilities of target tokens from hidden states through a frozen head, a tile of rows at a time.

    d log p_t / d hidden = (1 - p_t) W_t - sum over j != t of p_j W_j, formed in the forward pass; keeping the target
    out of the sum avoids a cancellation when p_t is near 1.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [N] and whether the target is the likeliest token [N], without gradient."""
        wants_gradient = ctx.needs_input_grad[0]
        n, n_words = len(hidden_ND), len(weight_VD)
        log_probs_N = hidden_ND.new_empty(n, dtype=torch.float32)
        top_N = hidden_ND.new_empty(n, dtype=torch.bool)
        slope_ND = hidden_ND.new_empty(hidden_ND.shape, dtype=torch.float32) if wants_gradient else None
        rows = max(1, _TILE_VALUES // n_words)
        tile = hidden_ND.new_empty(min(rows, n), n_words)
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            target = target_N[part]
            logits = torch.mm(hidden_ND[part], weight_VD.t(), out=tile[: len(target)])
            if bias_V is not None:
                logits += bias_V
            log_probs_N[part], top_N[part], total = _normalise(logits, target[:, None], wants_gradient)
            if slope_ND is not None:
                rest = 1 - log_probs_N[part, None].exp()
                slope_ND[part] = rest * weight_VD[target].float() - (logits @ weight_VD).float() / total
        ctx.slope_ND, ctx.dtype = slope_ND, hidden_ND.dtype
        ctx.mark_non_differentiable(top_N)
        return log_probs_N, top_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the slope formed before."""
        return (ctx.slope_ND * gradient_N[:, None]).to(ctx.dtype), None, None, None


def _normalise(logits: Tensor, target: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the targets, whether they are likeliest, and the sums of exponentials.

    With `keep`, the logits are replaced by exp(logit - highest), 0 at the target.
    """
    found = []
    rows = max(1, _CACHED_VALUES // logits.shape[1])
    wide = logits.new_empty(min(rows, len(logits)), logits.shape[1], dtype=torch.float32)
    for start in range(0, len(logits), rows):
        narrow, own = logits[start : start + rows], target[start : start + rows]
        values = wide[: len(narrow)].copy_(narrow)
        highest = values.amax(-1, keepdim=True)
        chosen = values.gather(1, own)
        total = values.sub_(highest).exp_().sum(-1, keepdim=True)
        found.append((chosen - highest - total.log(), chosen == highest, total))
        if keep:
            narrow.copy_(values.scatter_(1, own, 0))
    log_probs, top, total = (torch.cat(column) for column in zip(*found, strict=True))
    return log_probs[:, 0], top[:, 0], total


def use_packed_pairs(model: PreTrainedModel) -> None:
    """Let trl's loss compute a model's log-probabilities from packed pairs.

    Replaces the forward that `DPOTrainer` installs; calls without `fused_lm_head=True` are untouched. Entropy and mean
    logits, which trl only logs, come back as NaN: not computed.

    Raises:
        ValueError: the head transforms its logits, has trainable weights, or attention has a window, in a way that
            this forward does not know.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if model.device.type == "cpu":
        # On a processor torch's fused attention with a mask takes longer than plain products at these lengths.
        model.set_attn_implementation("eager")
    for name in ("final_logit_softcapping", "logit_scale", "lm_head_multiplier", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{config.model_type} sets {name}={getattr(config, name)}, which packed pairs lack")
    if head.weight.requires_grad:
        raise ValueError(f"the head of {config.model_type} is trainable; packed pairs need a frozen one")
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        # PEFT hands on every argument of a causal LM, those that are None included.
        return pair_log_probs(self, **{name: value for name, value in kwargs.items() if value is not None})

    model.forward = types.MethodType(forward, model)


def pair_log_probs(
    model: PreTrainedModel, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, use_cache: bool = False
) -> FusedCausalLMOutput:
    """Return the log-probability of every completion token, [2B, T - 1], zero elsewhere, as trl's forward does."""
    assert not use_cache
    packed = pack_pairs(input_ids, attention_mask, labels)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and packed.positions_BL.max() >= window:
        raise ValueError(f"a sequence is longer than the attention window of {window}; lower max_length to {window}")
    mask = torch.zeros(packed.mask_B1LL.shape, dtype=model.dtype, device=input_ids.device)
    mask.masked_fill_(~packed.mask_B1LL, torch.finfo(model.dtype).min)
    hidden_BLD = model.base_model(
        input_ids=packed.ids_BL, attention_mask=mask, position_ids=packed.positions_BL, use_cache=False
    ).last_hidden_state
    head = model.get_output_embeddings()
    token_N = input_ids[:, 1:].reshape(-1)[packed.target_N]
    hidden_ND = hidden_BLD.flatten(0, 1)[packed.source_N]
    log_probs_N, top_N = TokenLogProbs.apply(hidden_ND, head.weight, head.bias, token_N)
    n_places, shape = labels[:, 1:].numel(), labels[:, 1:].shape
    log_probs = log_probs_N.new_zeros(n_places).index_copy(0, packed.target_N, log_probs_N).view(shape)
    is_top1 = top_N.new_zeros(n_places).index_copy(0, packed.target_N, top_N).view(shape)
    not_computed = torch.full_like(log_probs, torch.nan)
    return FusedCausalLMOutput(log_probs=log_probs, entropy=not_computed, mean_logits=not_computed, is_top1=is_top1)
