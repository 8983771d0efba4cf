"""The report's own protocol: random tokens, 50 steps, a Predict phase that changes nothing.

Inputs and targets are drawn independently, so no model can do better than ln V nats; and after the first 15 steps the
original updates no weight: in Predict its deltas reach no parameter, in Correct it computes no gradient (src/lib.rs,
src/burn_integration.rs at 6f22e82). Its hybrid is therefore a run cut off after 15 updates that goes on to measure its
loss, which is what runs here, once with the published initialisation and once with a usual one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit import device, models
from labkit.cell import cell
from labkit.hybrid.config import MEMORY_OPTIMIZED_BATCH, UPDATES
from labkit.hybrid.vectors import assign, copies
from labkit.reports.predict_phase.tasks import TASKS

INITIALISATIONS = ("published", "usual")
"""Embeddings N(0, 1) and linear maps as Burn draws them, or every matrix N(0, 0.02^2)."""
ARMS = ("baseline", "hybrid", "memory_optimized")
"""What a run of the protocol trains, from the same weights."""
LEARNED = 0.02
"""Share of its first loss that a baseline must lose for a ratio of two curves to mean something."""
LEAST_SEEDS = 3
"""Runs from which an interval says something."""
_TAIL = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginalSpec:
    """One run of the report's protocol."""

    task: str
    """Model: a key of TASKS."""
    vocab_size: int
    """Tokens that inputs and targets are drawn from."""
    initialisation: str
    """One of INITIALISATIONS."""
    steps: int
    """Steps of the run."""
    batch_size: int
    """Samples of a step."""
    context: int
    """Tokens of a sample."""
    learning_rate: float
    """Adam's rate, without warmup or decay."""
    seed: int
    """Of weights and tokens."""
    device: str
    """Device."""
    threads: int
    """Threads."""


@cell("hybrid.original", version=1, packages=("transformers",), timing=("seconds",), timed=True)
def measure_original(spec: OriginalSpec) -> dict[str, Any]:
    """Train the baseline, and the hybrid as it was.

    Returns:
        baseline, hybrid and memory_optimized: the loss of every step and its seconds; kinds of step and their medians;
        parameters.
    """
    device.set_threads(spec.threads)
    device.set_determinism(spec.seed, spec.device)
    model = build(spec)
    start = copies(list(model.parameters()))
    arms = {}
    plans = {
        "baseline": (spec.steps, spec.batch_size),
        "hybrid": (UPDATES, spec.batch_size),
        "memory_optimized": (UPDATES, MEMORY_OPTIMIZED_BATCH),
    }
    for name, (updates, batch_size) in plans.items():
        assign([p.data for p in model.parameters()], start)
        arms[name] = _run(spec, model, updates, batch_size)
    return arms | {"parameters": sum(p.numel() for p in model.parameters())}


def build(spec: OriginalSpec) -> nn.Module:
    """Build the model with the wanted initialisation, dropout off."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = TASKS[spec.task] | off | {"vocab_size": spec.vocab_size}
    model = models.build("gpt2", seed=spec.seed, device=spec.device, **shape).train()
    if spec.initialisation == "published":
        _initialise_as_published(model, spec.seed)
    return model


@torch.no_grad()
def _initialise_as_published(model: nn.Module, seed: int) -> None:
    """Draw embeddings from N(0, 1) and maps uniformly within one over the root of their inputs: Burn's defaults."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "wte" in name or "wpe" in name:
            parameter.normal_(0.0, 1.0, generator=generator)
        elif parameter.dim() == 2:
            bound = len(parameter) ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)


def _run(spec: OriginalSpec, model: nn.Module, updates: int, batch_size: int) -> dict[str, Any]:
    """Take `updates` real steps and go on with forward passes; each step draws new tokens."""
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate, eps=1e-8)
    generator = torch.Generator().manual_seed(spec.seed)
    losses, seconds = [], []
    for step in range(spec.steps):
        ids, targets = torch.randint(spec.vocab_size, (2, batch_size, spec.context), generator=generator)
        work = _update if step < updates else _forward
        took, loss = _timed(lambda: work(model, optimizer, ids.to(spec.device), targets.to(spec.device)))  # noqa: B023
        losses.append(loss)
        seconds.append(took)
    return {"loss": losses, "seconds": seconds, "updates": updates, "batch_size": batch_size}


def _timed(work: Callable[[], Tensor]) -> tuple[float, float]:
    began = time.perf_counter()
    loss = float(work())
    return time.perf_counter() - began, loss


def _loss(model: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> Tensor:
    loss = _loss(model, ids, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@torch.no_grad()
def _forward(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, targets: Tensor) -> Tensor:
    return _loss(model, ids, targets)


def summary(result: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of a run: time for as many steps, speed at equal loss, the gap in loss, a step over a pass.

    The time of an arm is built from the median seconds of its kinds of step, so that no first step and no pause of the
    machine decides. Losses are means of the last five steps.
    """
    base, hybrid, optimized = (result[name] for name in ("baseline", "hybrid", "memory_optimized"))
    full, time_of = _median(base, updates=True), {name: _total(result[name]) for name in result if name != "parameters"}
    final = {name: statistics.fmean(result[name]["loss"][-_TAIL:]) for name in time_of}
    found = {
        "full_over_forward": full / _median(hybrid, updates=False),
        "loss_gap_percent/original": 100 * (final["hybrid"] / final["baseline"] - 1),
    }
    for name, arm in (("original", hybrid), ("memory_optimized", optimized)):
        own = "hybrid" if arm is hybrid else "memory_optimized"
        found[f"time_ratio/{name}"] = time_of["baseline"] / time_of[own]
        found[f"equal_loss_speed/{name}"] = steps_to(base["loss"], final[own]) * full / time_of[own]
    return found | {f"final_loss/{name}": value for name, value in final.items()}


def learned(result: dict[str, Any]) -> bool:
    """Say whether the baseline lost so much that what is read off its curve is more than noise around a floor."""
    losses = result["baseline"]["loss"]
    return statistics.fmean(losses[-_TAIL:]) < (1 - LEARNED) * losses[0]


def _median(arm: dict[str, Any], *, updates: bool) -> float:
    own = arm["seconds"][: arm["updates"]] if updates else arm["seconds"][arm["updates"] :]
    return statistics.median(own)


def _total(arm: dict[str, Any]) -> float:
    n_forward = len(arm["loss"]) - arm["updates"]
    forward = n_forward * _median(arm, updates=False) if n_forward else 0.0
    return arm["updates"] * _median(arm, updates=True) + forward


def steps_to(losses: list[float], loss: float) -> int:
    """Return the steps after which a curve's mean over five steps is at a loss; all of them if it never is."""
    for step in range(_TAIL, len(losses) + 1):
        if statistics.fmean(losses[step - _TAIL : step]) <= loss:
            return step
    return len(losses)
