"""The comparison arm: a GPT-2-style causal transformer without biases (Radford et al. 2019; nanoGPT's parameter count).

Block: x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)), with a tanh-GELU MLP of four widths. A block holds
12 d^2 + 2 d parameters and the final norm d. The head is its own matrix by default, as in ResNet-BK, so that both
architectures split into embedding, body and head alike; `tied=True` shares it with the token embedding as GPT-2 does.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

EXPANSION = 4  # hidden width of the MLP, in model widths
EMBEDDING_SCALE = 0.1  # standard deviation of a token embedding at the start; a position is of the same size
HEAD_SCALE = 0.02  # small, so that the first loss is near ln V
HEAD_WIDTH = 32  # default width of an attention head


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a GPT-2-style language model."""

    vocab_size: int
    """Number of tokens in the vocabulary, V."""
    d_model: int
    """Width of the residual stream, d."""
    n_layers: int
    """Number of blocks, L."""
    context: int
    """Longest sequence, in tokens; one learned position embedding each."""
    n_heads: int | None = None
    """Attention heads; None means one per 32 units of width, at least one."""
    dropout: float = 0.0
    """Probability of zeroing an attention weight or a unit that enters the residual stream."""
    tied: bool = False
    """Whether the head is the token embedding, as in GPT-2."""
    attention: Literal["sdpa", "math"] = "sdpa"
    """Kernel: PyTorch's choice of fused kernel, or the explicit softmax(QK^T)V."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.heads < 1 or self.d_model % self.heads:
            raise ValueError(f"n_heads is {self.heads}; allowed: a divisor of d_model = {self.d_model}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; allowed: 0 <= dropout < 1")
        if self.attention not in ("sdpa", "math"):
            raise ValueError(f"attention is {self.attention!r}; allowed: 'sdpa', 'math'")

    @property
    def heads(self) -> int:
        """Number of attention heads, with the default resolved."""
        return max(1, self.d_model // HEAD_WIDTH) if self.n_heads is None else self.n_heads


class Transformer(nn.Module):
    """Language model: ids [B, T] -> logits [B, T, V]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model, bias=False)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self.apply(_initialise)
        self._start_embeddings_and_head()
        for block in self.blocks:
            block.scale_residual_outputs(1 / math.sqrt(2 * config.n_layers))

    def _start_embeddings_and_head(self) -> None:
        """Give token and position the same size, so that attention sees both at once, and start near uniform logits."""
        with torch.no_grad():
            self.position_embedding.weight.copy_(EMBEDDING_SCALE * _sinusoids(*self.position_embedding.weight.shape))
        nn.init.normal_(self.token_embedding.weight, std=EMBEDDING_SCALE)
        nn.init.normal_(self.head.weight, std=HEAD_SCALE)

    def forward(self, ids: Tensor) -> Tensor:
        """Return next-token logits.

        Raises:
            ValueError: the sequence is longer than the context.
        """
        return self.head(self.hidden(ids))

    def hidden(self, ids: Tensor) -> Tensor:
        """Return what the head reads, [B, T, d]: the residual stream after the final norm."""
        length = ids.shape[1]
        if length > self.config.context:
            raise ValueError(f"sequence of {length} tokens exceeds the context of {self.config.context}")
        x = self.dropout(self.token_embedding(ids) + self.position_embedding.weight[:length])
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, bias=False)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.d_model, bias=False)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    def scale_residual_outputs(self, factor: float) -> None:
        """Shrink the two projections that enter the residual stream (Radford et al. 2019, section 2.3)."""
        with torch.no_grad():
            self.attention.out.weight.mul_(factor)
            self.mlp.down.weight.mul_(factor)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position i attends to positions up to i."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads = config.heads
        self.kernel = config.attention
        self.dropout_rate = config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout_rate if self.training else 0.0
        with sdpa_kernel(SDPBackend.MATH) if self.kernel == "math" else nullcontext(), _wide_on_cpu(x.device.type):
            query, key, value = (part.to(_attention_type(part)) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


def _attention_type(part: Tensor) -> torch.dtype:
    """Return the type of attention: the CPU's fused kernel takes twice as long in bfloat16 as in float32."""
    return torch.float32 if part.device.type == "cpu" and part.dtype == torch.bfloat16 else part.dtype


def _wide_on_cpu(device: str) -> AbstractContextManager[None]:
    """Keep autocast from narrowing what was just widened."""
    return torch.autocast(device, enabled=False) if device == "cpu" else nullcontext()


class MLP(nn.Module):
    """Linear, tanh-approximated GELU, Linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, EXPANSION * config.d_model, bias=False)
        self.down = nn.Linear(EXPANSION * config.d_model, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


def _initialise(module: nn.Module) -> None:
    """Draw matrices from N(0, 1/fan_in): the 0.02 of GPT-2 suits widths near 1,000 and slows small models down."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)


def _sinusoids(length: int, width: int) -> Tensor:
    """Return positions as sines and cosines, [length, width], to start from (Vaswani et al. 2017, section 3.5).

    Their wavelengths end near the context instead of at 10,000, so that a narrow model still tells neighbours apart.
    """
    rates = torch.exp(-math.log(8 * length) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
