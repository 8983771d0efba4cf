"""ResNet-BK (report 004): residual layers whose only token mixer is the diagonal of a tridiagonal resolvent.

A layer reads LayerNorm(x) through a top-1 mixture of experts, projects the result to one potential per token, takes
the resolvent diagonal G of that potential and adds [Re G, Im G], projected back to the width. Sizes and biases follow
the original code. Three things differ, because with the original ones the model cannot be scored or trained: the mixer
is causal by default, the gradient of the resolvent is exact, and the router learns (the chosen expert is scaled by its
probability under the full softmax; a softmax over the one selected logit is constantly 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.scaling.resolvent import resolvent_diagonal

EXPANSION = 2  # hidden width of an expert, in model widths
TILE = 64  # rows that a 16-bit product on the CPU is rounded up to


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetBKConfig:
    """Shape of a ResNet-BK language model."""

    vocab_size: int
    """Number of tokens in the vocabulary, V."""
    d_model: int
    """Width of the residual stream, d."""
    n_layers: int
    """Number of residual layers, L."""
    context: int
    """Longest sequence, in tokens; one learned position embedding each."""
    n_experts: int = 4
    """Experts per layer, of which every token visits one."""
    dropout: float = 0.0
    """Probability of zeroing a hidden unit of an expert (0.1 in the original)."""
    z_imag: float = 1.0
    """Imaginary part of the spectral parameter z; its real part is 0."""
    causal: bool = True
    """Whether position i is kept from later tokens; False is the published mixer, which reads its own targets."""
    mixing: bool = True
    """Whether the resolvent is added; without it no token hears of another (a control: its parameters lie idle)."""
    potential_start: float = 1.0
    """Factor on the weights of the potential at the start; at 1 a neighbour moves a logit by some 1e-5."""
    potential_clip: float = 3.0
    """The potential is clamped to plus or minus this."""
    balance_coefficient: float = 0.01
    """Weight of the load-balance loss summed over layers (Fedus et al. 2021, section 2.2)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "context", "n_experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; allowed: 0 <= dropout < 1")
        for name in ("z_imag", "potential_clip", "potential_start"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a positive number")
        if not 0.0 <= self.balance_coefficient < math.inf:
            raise ValueError(f"balance_coefficient is {self.balance_coefficient}; allowed: 0 or more")


class ResNetBK(nn.Module):
    """Language model: ids [B, T] -> logits [B, T, V] (report 004)."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.apply(_initialise)
        for block in self.blocks:
            block.mixer.scale_residual_outputs(1 / math.sqrt(2 * config.n_layers))
            block.mixer.scale_potential(config.potential_start)

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
        x = self.token_embedding(ids) + self.position_embedding.weight[:length]
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def auxiliary_loss(self) -> Tensor:
        """Return the weighted load-balance loss of the last forward pass, summed over layers: coefficient * L at best.

        Raises:
            RuntimeError: no forward pass has been made.
        """
        losses = [routing.balance_loss() for routing in self._last_routings()]
        return self.config.balance_coefficient * torch.stack(losses).sum()

    def expert_usage(self) -> Tensor:
        """Return the share of tokens each expert received in the last forward pass, [L, E]; rows sum to 1.

        Raises:
            RuntimeError: no forward pass has been made.
        """
        return torch.stack([routing.usage for routing in self._last_routings()])

    def _last_routings(self) -> list[Routing]:
        routings = [block.mixer.experts.routing for block in self.blocks]
        if None in routings:
            raise RuntimeError("no forward pass has been made: there is no routing to report")
        return routings


class Block(nn.Module):
    """x + Mixer(LayerNorm(x))."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.mixer = ResolventMixer(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        return x + self.mixer(self.norm(x))


class ResolventMixer(nn.Module):
    """f + s (W_o [Re G, Im G] + b_o), with f = experts(x) and G the resolvent diagonal of clamp(w f + b)."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.z = complex(0.0, config.z_imag)
        self.causal, self.mixing = config.causal, config.mixing
        self.clip = config.potential_clip
        self.experts = MixtureOfExperts(config)
        self.to_potential = nn.Linear(config.d_model, 1)
        self.from_resolvent = nn.Linear(2, config.d_model)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]."""
        features = self.experts(x)
        if not self.mixing:
            return features
        # One number a token is too thin a product for 16 bits to pay, and the recursion needs 32 of them.
        with torch.autocast(x.device.type, enabled=False):
            features = features.to(self.to_potential.weight.dtype)
            potential = self.to_potential(features).squeeze(-1).clamp(-self.clip, self.clip)
            wide = torch.promote_types(potential.dtype, torch.float32)
            resolvent = torch.view_as_real(resolvent_diagonal(potential.to(wide), self.z, self.causal))
            return features + self.scale * self.from_resolvent(resolvent.to(potential.dtype))

    def scale_potential(self, factor: float) -> None:
        """Spread the potential wider, so that tokens hear of one another from the first step on."""
        with torch.no_grad():
            self.to_potential.weight.mul_(factor)

    def scale_residual_outputs(self, factor: float) -> None:
        """Shrink what each expert adds to the residual stream, so that depth does not grow it (Radford et al. 2019)."""
        with torch.no_grad():
            for expert in self.experts.experts:
                expert[-1].weight.mul_(factor)


class MixtureOfExperts(nn.Module):
    """Top-1 mixture of two-layer ReLU experts; a token costs one expert, whatever their number."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        d, hidden = config.d_model, EXPANSION * config.d_model
        self.router = nn.Linear(d, config.n_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, d))
            for _ in range(config.n_experts)
        )
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, d] to [B, T, d]: tokens are sorted by expert once, and each expert sees one contiguous piece."""
        tokens = x.flatten(0, 1)
        narrow = _narrow_type(x.device.type)
        with torch.autocast(x.device.type, enabled=False):  # the router is kept wide (Fedus et al. 2021, section 2.4)
            probabilities = self.router(tokens.to(self.router.weight.dtype)).softmax(-1)
        gate, chosen = probabilities.max(-1)
        counts = chosen.bincount(minlength=len(self.experts))
        self.routing = Routing(probabilities, counts)
        order, sizes = chosen.argsort(), counts.tolist()
        if narrow is not None and x.device.type == "cpu":
            order, sizes = _in_whole_tiles(order, sizes)
        places = torch.arange(len(order), device=order.device)
        inverse = order.new_empty(len(tokens) + 1).scatter_(0, order, places)[: len(tokens)]
        pieces = _Permute.apply(tokens if narrow is None else tokens.to(narrow), order, inverse).split(sizes)
        outputs = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        # Products of a 16-bit and a 32-bit tensor go entry by entry: widen first.
        return (_Permute.apply(outputs.to(gate.dtype), inverse, order) * gate.unsqueeze(-1)).view_as(x)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last routing out of copies: it belongs to a graph, which cannot be copied."""
        return self.__dict__ | {"routing": None}


@dataclass(frozen=True, slots=True)
class Routing:
    """Where one forward pass of one layer sent its tokens."""

    probabilities: Tensor
    """Softmax of the router, [tokens, E]; part of the graph."""
    counts: Tensor
    """Tokens per expert, [E]."""

    @property
    def usage(self) -> Tensor:
        """Share of tokens per expert, [E]."""
        return self.counts / self.counts.sum()

    def balance_loss(self) -> Tensor:
        """Return E * sum_e usage_e * mean probability_e: 1 if balanced, E if collapsed (Fedus et al. 2021, eq. 4)."""
        return len(self.counts) * (self.usage * self.probabilities.mean(0)).sum()


def _narrow_type(device: str) -> torch.dtype | None:
    """Return the type that autocast narrows products to; None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _in_whole_tiles(order: Tensor, sizes: list[int]) -> tuple[Tensor, list[int]]:
    """Round each expert's piece up to whole tiles; an entry n, one past the n tokens, stands for a row of zeros.

    oneDNN writes a kernel for each new number of rows, which takes longer than a small product itself.
    """
    whole = [-(-size // TILE) * TILE for size in sizes]
    padded = order.new_full((sum(whole),), len(order))
    for piece, place in zip(order.split(sizes), padded.split(whole), strict=True):
        place[: len(piece)] = piece
    return padded, whole


class _Permute(torch.autograd.Function):
    """Rows in a given order; the gradient is another gather, where index_select would scatter row by row."""

    @staticmethod
    def forward(ctx, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _gather(rows, order)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gather(upstream, inverse), None, None


def _gather(rows: Tensor, places: Tensor) -> Tensor:
    """Select rows; where more are asked for than there are, the place after the last one holds zeros."""
    rows = F.pad(rows, (0, 0, 0, 1)) if len(places) > len(rows) else rows
    return rows.index_select(0, places)


def _initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02^2) and zero the biases (Radford et al. 2018), so that the first loss is near ln V."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
