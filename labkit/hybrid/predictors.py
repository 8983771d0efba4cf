"""Directions to jump along, recorded from real steps: block trend, last update, coasting, and two controls.

A predictor sees the weights at the start of a block of real steps and after each of them, and proposes one tensor for
each parameter. It holds a fixed number of buffers from its first block on, however long the run. Blocks are cut in two
halves in time to tell drift from noise, not in odd and even steps: a momentum optimizer makes neighbouring steps alike,
so those would agree on noise too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.vectors import (
    GROUPS,
    Tensors,
    add,
    assign,
    copies,
    dots,
    empty_like,
    gradients,
    group_of,
    norm,
    write_difference,
)

TREND_MEMORY = 0.7
"""Decay of the trend from block to block: about three blocks."""
TRUST_RATE = 0.3
"""How far one judged jump moves the trust in a group."""
MOST_TRUST = 1.5
TINY = 1e-12
"""What a denominator is at least."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A jump that may be made."""

    jump: Tensors
    """One tensor for each parameter, to be added to it."""
    steps: int
    """Nominal steps it stands for."""
    confidence: float
    """How well the predictor forecast the block just finished, in [0, 1]; 1 where a predictor does not say."""


class Predictor:
    """A way to jump; this one proposes nothing and is what the others build on."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        """Look at the parameters that will be trained; buffers are made here and never grow."""
        self.config = config
        self.parameters = list(parameters)
        self.groups = [group_of(name) for name in names]
        self.block_steps = 0
        self._rates: list[float] = []

    def _buffer(self, dtype: torch.dtype | None = None) -> Tensors:
        history = getattr(torch, self.config.history_dtype)
        return empty_like(self.parameters, dtype or history, self.config.history_device)

    def start_block(self) -> None:
        """Begin a block of real steps at the present weights."""
        self.block_steps, self._rates = 0, []

    def before_step(self, last: bool) -> None:
        """See the weights before a real step; `last` if it ends its phase."""

    def after_step(self, rate: float) -> None:
        """See the weights after a real step that was taken at this learning rate."""
        self.block_steps += 1
        self._rates.append(rate)

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Say how the next steps would move the weights, at this learning rate; None if it cannot tell."""
        raise NotImplementedError

    def judge(self, jump: Tensors, steps: int) -> None:
        """Learn from what the real steps since the start of the block did along the jump of `steps` before it."""

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {}

    def numbers(self) -> dict[str, Any]:
        """Return the rest of its state, as plain JSON."""
        return {"block_steps": self.block_steps, "rates": list(self._rates)}

    def load(self, buffers: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `buffers` and `numbers` returned."""
        for name, own in self.buffers().items():
            assign(own, buffers[name])
        self.block_steps, self._rates = numbers["block_steps"], list(numbers["rates"])

    def _rate_ratio(self, rate: float) -> float:
        mean = sum(self._rates) / len(self._rates) if self._rates else 0.0
        return rate / mean if mean > 0 else 1.0


class BlockTrend(Predictor):
    """The drift of the last blocks, each group shrunk by how much of it repeats (notes on report 003, candidate C2)."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self._start = copies(self.parameters, config.history_device)
        self._first = self._buffer()
        self._trend = self._buffer()
        self._blocks = 0
        self._trust = torch.ones(len(GROUPS), dtype=torch.float64)

    def start_block(self) -> None:
        """Begin a block of real steps at the present weights."""
        super().start_block()
        assign(self._start, self.parameters)

    def after_step(self, rate: float) -> None:
        """See the weights after a real step; the middle of the block is recorded as it passes."""
        super().after_step(rate)
        if self.block_steps == self._half():
            write_difference(self._first, self.parameters, self._start)

    def _half(self) -> int:
        return max(1, self.config.full_steps // 2)

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Extrapolate the trend; None in a block with no second half."""
        if self.block_steps <= self._half() and not self._blocks:
            return None
        whole = self._buffer()
        write_difference(whole, self.parameters, self._start)
        signal, skill = self._reliability(whole)
        coherence = self._coherence(whole) if self._blocks else signal
        self._update(whole)
        gain = self.gains(signal, coherence) * steps * self._rate_ratio(rate)
        jump = [trend.to(p.device, p.dtype) * float(gain[g]) for trend, p, g in self._with_groups()]
        weights = dots(whole, whole, self.groups)
        agreement = float((weights * coherence).sum() / weights.sum().clamp_min(TINY))
        return Proposal(jump, steps, max(0.0, skill * agreement) ** 0.5)

    def gains(self, signal: Tensor, coherence: Tensor) -> Tensor:
        """Return how much of the trend each group keeps, [groups]."""
        return signal * coherence * self._trust

    def _reliability(self, whole: Tensors) -> tuple[Tensor, float]:
        """Return per group the share of the block's displacement that its halves agree on, and the backtest's skill."""
        if self.block_steps <= self._half():
            return self._coherence(whole), max(0.0, float(self._coherence(whole).mean()))
        second = self._buffer()
        write_difference(second, whole, self._first)
        both = dots(self._first, second, self.groups)
        energy = 0.5 * (dots(self._first, self._first, self.groups) + dots(second, second, self.groups))
        signal = (both / energy.clamp_min(TINY)).clamp(0, 1)
        # The first half, shrunk by itself, forecasts the second: skill is the variance it explains.
        return signal, float((signal * energy).sum() / energy.sum().clamp_min(TINY))

    def _coherence(self, whole: Tensors) -> Tensor:
        length = dots(whole, whole, self.groups).sqrt() * dots(self._trend, self._trend, self.groups).sqrt()
        return (dots(whole, self._trend, self.groups) / length.clamp_min(TINY)).clamp(0, 1)

    def _update(self, whole: Tensors) -> None:
        """Fold the block's mean step into the trend; the first one is taken whole."""
        share = 1.0 if not self._blocks else 1 - TREND_MEMORY
        for trend, moved in zip(self._trend, whole, strict=True):
            trend.mul_(1 - share).add_(moved, alpha=share / self.block_steps)
        self._blocks += 1

    def _with_groups(self) -> zip[tuple[Tensor, nn.Parameter, int]]:
        return zip(self._trend, self.parameters, self.groups, strict=True)

    def judge(self, jump: Tensors, steps: int) -> None:
        """Move the trust in a group towards the pace at which real steps went on along the jump, over the jump's."""
        after = self._buffer()
        write_difference(after, self.parameters, self._start)
        along = dots(after, jump, self.groups) / dots(jump, jump, self.groups).clamp_min(TINY)
        pace = (along * steps / self.block_steps).clamp(0, MOST_TRUST)
        self._trust = self._trust + TRUST_RATE * (pace - self._trust)

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {"start": self._start, "first": self._first, "trend": self._trend}

    def numbers(self) -> dict[str, Any]:
        """Return the rest of its state, as plain JSON."""
        return super().numbers() | {"blocks": self._blocks, "trust": self._trust.tolist()}

    def load(self, buffers: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `buffers` and `numbers` returned."""
        super().load(buffers, numbers)
        self._blocks = numbers["blocks"]
        self._trust = torch.tensor(numbers["trust"], dtype=torch.float64)


class LastUpdate(Predictor):
    """The last step again (Fast Forward, Rahamim et al., EMNLP 2024: for adapters; how often, a line search finds)."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self._before = copies(self.parameters, config.history_device)

    def before_step(self, last: bool) -> None:
        """Keep the weights before the step that ends a phase."""
        if last:
            assign(self._before, self.parameters)

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Repeat the last step."""
        jump = empty_like(self.parameters)
        write_difference(jump, self.parameters, self._before)
        scale = float(steps) * self._rate_ratio(rate)
        return Proposal([change.mul_(scale) for change in jump], steps, 1.0)

    def buffers(self) -> dict[str, Tensors]:
        """Return its tensors by name, which a checkpoint keeps."""
        return {"before": self._before}


class Coasting(Predictor):
    """AdamW's or momentum SGD's own step with its momentum for the gradient, many times (candidate C5)."""

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Repeat the step that the momentum alone would take.

        Raises:
            ValueError: the optimizer keeps no momentum.
        """
        jump = []
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for parameter in self.parameters:
            direction = _momentum_step(optimizer.state[parameter], groups[id(parameter)])
            jump.append(direction.mul(-steps * groups[id(parameter)]["lr"]))
        return Proposal(jump, steps, 1.0)


def _momentum_step(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    if "exp_avg_sq" in state:
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        mean = state["exp_avg"] / (1 - beta1**step)
        return mean / ((state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"])
    if isinstance(momentum := state.get("momentum_buffer"), Tensor):
        return momentum
    raise ValueError(
        "the coasting predictor needs an optimizer that keeps momentum (exp_avg and exp_avg_sq, or momentum_buffer); "
        f"found {', '.join(state) or 'no state'}"
    )


class Frozen(Predictor):
    """No change at all: what the original's Predict phase did to its weights (src/burn_integration.rs)."""

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Propose to stay."""
        return Proposal(empty_like(self.parameters), steps, 1.0)


class RandomDirection(BlockTrend):
    """A random direction as long, in each group, as the block trend: what any movement of that size would do."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self._drawn = 0

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Draw a direction from a generator of its own."""
        like = super().propose(steps, rate, optimizer)
        if like is None:
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self._drawn)
        self._drawn += 1
        jump = [_random_like(change, generator) for change in like.jump]
        return Proposal(jump, steps, like.confidence)

    def numbers(self) -> dict[str, Any]:
        """Return the rest of its state, as plain JSON."""
        return super().numbers() | {"drawn": self._drawn}

    def load(self, buffers: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `buffers` and `numbers` returned."""
        super().load(buffers, numbers)
        self._drawn = numbers["drawn"]


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return drawn * (norm([tensor]) / max(norm([drawn]), TINY))


class Recorder:
    """The mean of a phase's last gradients, in one buffer; the first real one after a jump is held against it."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        self._parameters = list(parameters)
        self.mean = empty_like(parameters, getattr(torch, config.history_dtype), config.history_device)
        self.count = 0

    def restart(self) -> None:
        """Begin a new mean."""
        self.count = 0

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the present gradients."""
        self.count += 1
        torch._foreach_mul_(self.mean, 1 - 1 / self.count)
        add(self.mean, gradients(self._parameters), 1 / self.count)
