"""Train one cell of the grid and score it.

A cell is a pure function of its `Cell`: the same values give the same weights, batches and scores on the same machine
and number of threads. Targets are the inputs shifted by one within the same window, so a batch of any size predicts
next tokens and nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labkit import corpora, device
from labkit.cell import cell, data
from labkit.scaling.counts import parameter_counts, training_flops
from labkit.scaling.data import block_sums, load_tokens, second_halves, token_nats
from labkit.scaling.optim import adamw, next_token_loss
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.schedule import batches, n_steps, rate_at
from labkit.scaling.transformer import Transformer, TransformerConfig

ModelConfig = ResNetBKConfig | TransformerConfig

_TURN = threading.Lock()
_LOOK_STEPS = 50
"""Steps after which a training is given up if its loss is not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One model of the grid, with everything its result depends on."""

    mixer: str
    """`resnet-bk`, `transformer`, or a control: `published` reads later tokens, `no-mixer` no others."""
    d_model: int
    """Width."""
    n_layers: int
    """Depth."""
    seed: int
    """Seed of the initialisation, the dropout and the order of the data."""
    learning_rate: float
    """Peak rate."""
    corpus: str
    """Text, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens per sequence."""
    batch_size: int
    """Sequences per step."""
    epochs: float
    """Passes over the training split."""
    n_experts: int
    """Experts per ResNet-BK layer."""
    balance_loss: float
    """Weight of the router's balance loss."""
    weight_decay: float
    """Decoupled decay on matrices."""
    beta2: float
    """AdamW's second-moment decay."""
    warmup_fraction: float
    """Share of the steps with a rising rate."""
    final_rate_fraction: float
    """Last rate over peak rate."""
    grad_clip: float
    """Largest global gradient norm."""
    dropout: float
    """Dropout inside the blocks."""
    device: str
    """Where it runs."""
    dtype: str
    """Compute type of matrix products."""
    threads: int
    """CPU threads."""
    steps: int = 0
    """Optimizer steps; 0 takes as many as `epochs` ask for."""
    scorings: int = 1
    """Times it is scored while it trains, evenly spread; the last one is at the end."""
    potential_start: float = 1.0
    """Factor on the weights of ResNet-BK's potential at the start."""

    @property
    def name(self) -> str:
        """Short name for people."""
        return f"{self.mixer} d{self.d_model} l{self.n_layers} seed {self.seed} lr {self.learning_rate:g}"

    def config(self) -> ModelConfig:
        """Return the model's shape."""
        return model_config(self, self.balance_loss)


def model_config(spec: Any, balance_loss: float = 0.0) -> ModelConfig:
    """Return the shape of the model that a spec describes: a `Cell`, or what has the same fields of that name.

    The mixer `published` is the report's own ResNet-BK, which reads later tokens; `no-mixer` reads none but its own.
    """
    names = ("vocab_size", "d_model", "n_layers", "context", "dropout")
    shape = {name: getattr(spec, name) for name in names}
    if spec.mixer == "transformer":
        return TransformerConfig(**shape)
    routing = {"n_experts": spec.n_experts, "balance_coefficient": balance_loss}
    start = {"potential_start": getattr(spec, "potential_start", 1.0)}
    return ResNetBKConfig(
        **shape, **routing, **start, causal=spec.mixer != "published", mixing=spec.mixer != "no-mixer"
    )


def build(config: ModelConfig) -> torch.nn.Module:
    """Make the model of a config, randomly initialised from torch's global seed."""
    return Transformer(config) if isinstance(config, TransformerConfig) else ResNetBK(config)


def steps_of(spec: Cell, n_train_tokens: int) -> int:
    """Return the optimizer steps of a cell on a training split."""
    return spec.steps or n_steps(n_train_tokens, spec.epochs, spec.batch_size, spec.context)


def in_turn(work: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Let the threads of a process do such work one after another.

    Torch's random state and number of threads belong to the process, so two cells at once would draw from one stream.
    """

    @functools.wraps(work)
    def alone(spec: Any) -> dict[str, Any]:
        with _TURN:
            return work(spec)

    return alone


@cell(
    "scaling.train",
    version=2,
    data=lambda spec: data.corpus(spec.corpus),
    packages=("tokenizers",),
    timing=("seconds", "peak_bytes"),
    later=("steps", "scorings", "potential_start"),
)
@in_turn
def train_cell(spec: Cell) -> dict[str, Any]:
    """Train a cell's model with its completed schedule and score it on the validation split.

    Returns:
        plain JSON: validation nats by block and by position, those of the second halves of windows with and without the
        first ones before them, training curve, counts, seconds, memory, data-order hash; for several scorings also
        `scorings`: step, loss and nats by block of each.

    Raises:
        FloatingPointError: the training or validation loss is not finite; the message names the step.
    """
    device.set_threads(spec.threads)
    device.set_determinism(spec.seed, spec.device)
    _, tokens = load_tokens(spec.corpus, spec.vocab_size)
    config = model_config(spec, spec.balance_loss)
    steps = steps_of(spec, len(tokens.train))
    with device.peak_memory(spec.device) as memory:
        model = build(config).to(spec.device)
        curve, seconds, order, scored = _fit(model, tokens, spec, steps)
    score = functools.partial(token_nats, model, tokens.validation, spec.context, device=spec.device)
    nats = score()
    if not np.isfinite(nats).all():
        raise FloatingPointError(f"the validation loss is {nats.mean()} after the last step, {steps - 1}")
    counts = parameter_counts(config)
    tail = curve[-max(1, len(curve) // 10) :]
    return {
        "block_nats": block_sums(nats).tolist(),
        "position_nats": _by_position(nats, spec.context).tolist(),
        "late_block_nats": block_sums(second_halves(nats, spec.context)).tolist(),
        "late_alone_block_nats": block_sums(score(second_half=True)).tolist(),
        "loss_nats": float(nats.mean()),
        "train_loss_nats": float(np.mean(tail)),
        "curve": [float(x) for x in _thin(curve)],
        "n_total": counts.total,
        "n_non_embedding": counts.non_embedding,
        "n_active": counts.active,
        "n_matmul": counts.matmul,
        "n_counted": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens_seen": steps * spec.batch_size * spec.context,
        "train_tokens": len(tokens.train),
        "flops": steps * training_flops(config, spec.batch_size, spec.context),
        "seconds": seconds,
        "peak_bytes": memory.bytes,
        "order_sha256": order,
    } | ({"scorings": scored} if scored else {})


def _fit(
    model: torch.nn.Module, tokens: corpora.Tokens, spec: Cell, steps: int
) -> tuple[list[float], float, str, list[dict[str, Any]]]:
    """Run the optimizer; return the loss of each step, the seconds, the hash of the data order and earlier scores.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    optimizer = adamw(model, spec.learning_rate, spec.weight_decay, (0.9, spec.beta2))
    stream, scored, idle = tokens.train, [], 0.0
    at = {round(steps * (i + 1) / spec.scorings) for i in range(spec.scorings)} if spec.scorings > 1 else set()
    ids = torch.as_tensor(stream.astype(np.int64), device=spec.device)
    offsets = torch.arange(spec.context + 1, device=spec.device)
    order = hashlib.sha256()
    losses: list[torch.Tensor] = []
    model.train()
    start = time.perf_counter()
    for step, starts in enumerate(batches(stream, steps, spec.batch_size, spec.context, spec.seed)):
        order.update(starts.tobytes())
        windows = ids[torch.as_tensor(starts, device=spec.device)[:, None] + offsets]
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, spec.learning_rate, spec.warmup_fraction, spec.final_rate_fraction)
        losses.append(train_step(model, optimizer, windows, spec))
        # A loss that is not finite never recovers. Looking at every step would have an accelerator wait at each.
        if len(losses) % _LOOK_STEPS == 0 and not torch.isfinite(losses[-1]):
            break
        if step + 1 in at:
            paused = time.perf_counter()
            scored.append({"step": step + 1} | _score(model, tokens.validation, spec))
            idle += time.perf_counter() - paused
    if spec.device == "cuda":
        torch.cuda.synchronize()
    seconds, curve = time.perf_counter() - start - idle, torch.stack(losses).tolist()
    for step, loss in enumerate(curve):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} at step {step}")
    return curve, seconds, order.hexdigest(), scored


def _score(model: torch.nn.Module, stream: np.ndarray, spec: Cell) -> dict[str, Any]:
    nats = token_nats(model, stream, spec.context, device=spec.device)
    return {"loss_nats": float(nats.mean()), "block_nats": block_sums(nats).tolist()}


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, windows: torch.Tensor, spec: Cell
) -> torch.Tensor:
    """Take one optimizer step on windows [B, T + 1]; return the cross-entropy before it, without the balance loss."""
    with torch.autocast(spec.device, torch.bfloat16, enabled=spec.dtype == "bfloat16"):
        loss = next_token_loss(model, windows[:, :-1], windows[:, 1:])
    objective = loss + model.auxiliary_loss() if hasattr(model, "auxiliary_loss") else loss
    optimizer.zero_grad(set_to_none=True)
    objective.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
    optimizer.step()
    return loss.detach()


def _by_position(nats: np.ndarray, context: int) -> np.ndarray:
    """Mean nats at each position of the whole windows: [n] -> [context]."""
    whole = len(nats) // context * context
    return nats[:whole].reshape(-1, context).mean(0)


def _thin(curve: list[float], points: int = 60) -> np.ndarray:
    """Average a curve down to at most `points` values."""
    return np.array([part.mean() for part in np.array_split(np.asarray(curve), min(points, len(curve)))])
