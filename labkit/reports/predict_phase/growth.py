"""Memory against predicted steps: ours, and the report's leak made on purpose.

The report's run grew by 288 MB with each step that called no backward pass: the graph of the loss was kept. The leak
here keeps it too, in plain sight; ours holds a fixed number of buffers.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from labkit import device
from labkit.cell import cell
from labkit.hybrid.config import HybridConfig
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.optimizers import Schedule, make_optimizer
from labkit.reports.predict_phase.tasks import PACKAGES, Run, Text, build, losses_of, revisions
from labkit.reports.predict_phase.train import Probe

CONFIG = HybridConfig(
    warmup_steps=4,
    full_steps=4,
    predict_steps=4,
    correct_steps=2,
    max_gain=1.0,
    max_consecutive=5,
    predict_until=1.0,
    confidence_threshold=0.0,
    gate="always",
)
"""As many predicted steps for each real one as the phases allow: memory is followed, not quality."""

Point = tuple[int, float, int]
"""Predicted steps so far, loss, bytes held."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthSpec:
    """What is followed."""

    run: Run
    """Model, text and batch; its number of steps is not used."""
    predicted_steps: int
    """Predicted steps of the run."""


@cell(
    "hybrid.growth",
    version=1,
    data=lambda spec: revisions(spec.run),
    packages=PACKAGES,
    timing=("bytes",),
)
def measure_growth(spec: GrowthSpec) -> dict[str, Any]:
    """Follow memory through a hybrid run, and through as many forward passes whose graphs are kept.

    Returns:
        ours and leak: predicted steps so far, the loss there and the bytes held.
    """
    device.set_threads(spec.run.threads)
    device.set_determinism(spec.run.seed, spec.run.device)
    gc.collect()
    gc.freeze()  # the collector then looks at what is new only, and asking for memory stays cheap
    return {"ours": _columns(_ours(spec)), "leak": _columns(_leak(spec))}


def _ours(spec: GrowthSpec) -> list[Point]:
    run, text, model = spec.run, Text(spec.run), build(spec.run)
    optimizer = make_optimizer(model, "adamw", run.learning_rate, weight_decay=run.weight_decay, beta2=run.beta2)
    total = 4 * spec.predicted_steps
    schedule, probe = Schedule(optimizer, total, 4), Probe(run, model, text)
    hybrid = Hybrid(model, optimizer, CONFIG, total_steps=total, scheduler=schedule, probe=probe.draw)
    points: list[Point] = []
    predicted = 0
    for windows in text.batches():
        hybrid.step_begin()
        loss = losses_of(model, windows).mean()
        loss.backward()
        hybrid.gradients_ready()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        hybrid.step_end(value := float(loss.detach()))
        del loss
        before, predicted = predicted, hybrid.history.phase_steps()["predict"]
        if predicted > before:
            points.append((predicted, value, _held(run.device)))
        if predicted >= spec.predicted_steps or hybrid.over:
            return points
    raise AssertionError("batches do not end")


def _leak(spec: GrowthSpec) -> list[Point]:
    run, text, model = spec.run, Text(spec.run), build(spec.run)
    kept, points = [], []
    for step, windows in enumerate(text.batches(), start=1):
        kept.append(losses_of(model, windows).mean())
        points.append((step, float(kept[-1].detach()), _held(run.device)))
        if step >= spec.predicted_steps // 10:
            return points
    raise AssertionError("batches do not end")


def _held(where: str) -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if where == "cuda" else psutil.Process().memory_info().rss


def _columns(points: list[Point]) -> dict[str, Any]:
    return dict(zip(("steps", "losses", "bytes"), map(list, zip(*points, strict=True)), strict=True))
