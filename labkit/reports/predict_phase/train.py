"""Train one arm at one budget with one seed on real text, and score it on held-out text.

All arms of a seed start from the same weights and read the same batches in the
same order; a hybrid reads fewer of them, since its predicted steps read none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit import device
from labkit.cell import cell
from labkit.device import memory
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.gate import Losses, probe_size, untouched
from labkit.hybrid.optimizers import Schedule, make_optimizer, warmup_steps
from labkit.hybrid.readouts import Readouts
from labkit.hybrid.vectors import copies
from labkit.reports.predict_phase.arms import ARMS, hybrid_config
from labkit.reports.predict_phase.digits import Digits, accuracy
from labkit.reports.predict_phase.frontier import Follower, read_steps
from labkit.reports.predict_phase.tasks import CNN, PACKAGES, Run, Text, build, data_of, losses_of, revisions, score

TAIL = 0.05
"""Horizon of the tail average, as a share of the schedule."""
_CURVE_POINTS = 80


@cell(
    "hybrid.train",
    version=1,
    data=revisions,
    packages=(*PACKAGES, "scikit-learn"),
    timing=("seconds", "phase_seconds", "added_bytes"),
    timed=True,
)
def train(run: Run) -> dict[str, Any]:
    """Train and score.

    Returns:
        plain JSON: held-out nats per token by block before and after, seconds of training (probes included, scoring
        not), real steps and forward passes of probes, tokens, phases, decisions, and the bytes that training added to
        the weights at its peak. A run that diverged is no less a run: it learned nothing, so it has the loss it started
        from, and says so. An arm that is read within one run has `frontier`, too: nats by step and read-out.
    """
    device.set_threads(run.threads)
    device.set_determinism(run.seed, run.device)
    data, model = data_of(run), build(run)
    held_out = data.held_out()
    before = _initial_nats(run, model, held_out)
    memory.release()
    with device.peak_memory(run.device) as peak:
        if ARMS[run.arm].reads:
            found = _follow(run, model, data, lambda: float(score(model, held_out, run.batch_size).mean()))
        else:
            found = _fit(run, model, data)
    after = score(model, held_out, run.batch_size)
    diverged = not np.isfinite(after).all()
    after = before if diverged else after
    for read in found.get("frontier", {}).values():
        read |= {name: float(before.mean()) for name, nats in read.items() if not math.isfinite(nats)}
    shares = {"accuracy": accuracy(model, held_out)} if run.task == CNN else {}
    return (
        found
        | shares
        | {
            "diverged": diverged,
            "initial_nats": before.tolist(),
            "block_nats": after.tolist(),
            "loss_nats": float(after.mean()),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "added_bytes": peak.bytes - peak.start_bytes,
        }
    )


_STARTS: dict[Run, np.ndarray] = {}


def _initial_nats(run: Run, model: nn.Module, held_out: Tensor) -> np.ndarray:
    """Return the losses of the weights that all arms of a seed start from; they are scored once."""
    start = replace(run, arm="", learning_rate=0.0, steps=0)
    if start not in _STARTS:
        _STARTS[start] = score(model, held_out, run.batch_size)
    return _STARTS[start]


def _fit(run: Run, model: nn.Module, data: Text | Digits) -> dict[str, Any]:
    """Run the loop of an arm; the model is left with what the arm reads out."""
    arm = ARMS[run.arm]
    optimizer, schedule = optimizer_of(run, model)
    config, probe = hybrid_config(arm, run.steps, run.seed, probe_size(run.batch_size)), Probe(run, model, data)
    hybrid = config and Hybrid(model, optimizer, config, total_steps=run.steps, scheduler=schedule, probe=probe.draw)
    tail = TailAverage(model, run.steps) if arm.tail_average else None
    losses, started = [], time.perf_counter()
    for step, windows in enumerate(data.batches()):
        if hybrid.over if hybrid else step == run.steps:
            break
        losses.append(take_step(run, model, optimizer, schedule, hybrid, windows))
        if tail:
            tail.observe(step)
    _synchronize(run.device)
    seconds = time.perf_counter() - started
    if tail:
        tail.read_out()
    return _account(run, losses, seconds, probe.n_forwards, hybrid)


def optimizer_of(run: Run, model: nn.Module) -> tuple[Any, Schedule]:
    """Build what takes the real steps of a run's arm, and its schedule."""
    arm, rate = ARMS[run.arm], run.learning_rate
    decays = {"weight_decay": run.weight_decay, "beta2": run.beta2}
    optimizer = make_optimizer(model, arm.optimizer, rate, **decays, total=run.steps)
    return optimizer, Schedule(optimizer, run.steps, warmup_steps(run.steps, run.warmup_fraction), arm.schedule)


def readouts_of(run: Run, parameters: list[nn.Parameter], optimizer: Any, names: Sequence[str]) -> Readouts:
    """Return read-outs of a run, by name."""
    return Readouts(names, parameters, read_steps(run.steps), getattr(optimizer, "averages", None))


def _follow(run: Run, model: nn.Module, data: Text | Digits, scored: Callable[[], float]) -> dict[str, Any]:
    """Run an arm that is read at several steps; the model is left with the last of them."""
    arm, (optimizer, schedule) = ARMS[run.arm], optimizer_of(run, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = Follower(
        parameters, optimizer, schedule, lambda w: take_step(run, model, optimizer, schedule, None, w), scored
    )
    if arm.decays:
        own.decay(data.batches(), run.steps)
    else:
        own.go(data.batches(), run.steps, readouts_of(run, parameters, optimizer, arm.reads))
    found = _account(run, own.losses, own.seconds, 0, None)
    tokens = own.n_steps * run.batch_size * run.context
    counted = {"real_steps": own.n_steps, "tokens": tokens, "phases": {"full": own.n_steps}}
    return found | counted | {"frontier": own.frontier}


def take_step(
    run: Run, model: nn.Module, optimizer: Any, schedule: Schedule, hybrid: Hybrid | None, windows: Tensor
) -> float:
    """Take one real step with all its bookkeeping, and return its loss."""
    if hybrid:
        hybrid.step_begin()
    value = _accumulate(run, model, windows)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.grad_clip)
    if hybrid:
        hybrid.gradients_ready(float(norm))
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    if hybrid:
        hybrid.step_end(value)
    return value


def _accumulate(run: Run, model: nn.Module, windows: Tensor) -> float:
    """Take the gradient of a step's mean loss, in as many parts as the arm has; return the loss."""
    total = torch.zeros((), device=windows.device)
    for part in windows.split(math.ceil(len(windows) / ARMS[run.arm].micro_batches)):
        with _autocast(run):
            loss = losses_of(model, part).mean() * (len(part) / len(windows))
        loss.backward()
        total += loss.detach()
    return float(total)


def _autocast(run: Run) -> torch.autocast:
    return torch.autocast(run.device, torch.bfloat16, enabled=(ARMS[run.arm].dtype or run.dtype) == "bfloat16")


def _synchronize(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


class Probe:
    """Draws fresh training batches and measures their losses, forward only; counts the passes."""

    def __init__(self, run: Run, model: nn.Module, data: Text | Digits) -> None:
        self._run, self._model, self._data = run, model, data
        self.n_forwards = 0

    def draw(self, n: int) -> Losses:
        """Draw n batches; what is returned measures their windows at the present weights, in one pass."""
        windows = torch.cat([self._data.probe_batch() for _ in range(n)])

        def losses() -> list[float]:
            self.n_forwards += 1
            with untouched(self._model), _autocast(self._run):
                return losses_of(self._model, windows).mean(1).tolist()

        return losses


class TailAverage:
    """Exponential average of the weights over the end of the schedule."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._parameters, self._steps = [p for p in model.parameters() if p.requires_grad], steps
        self._mean: list[Tensor] | None = None

    def observe(self, step: int) -> None:
        """Take in the weights after a step of the last tenth and a half of the schedule."""
        if step < 0.85 * self._steps:
            return
        if self._mean is None:
            self._mean = copies(self._parameters)
        weight = 1 / max(1.0, TAIL * self._steps)
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._parameters], weight)

    def read_out(self) -> None:
        """Put the average into the model."""
        for parameter, mean in zip(self._parameters, self._mean, strict=True):
            parameter.data.copy_(mean)


def _account(run: Run, losses: list[float], seconds: float, n_forwards: int, hybrid: Hybrid | None) -> dict[str, Any]:
    """Say what a run cost and did, by kind of step."""
    tokens = run.batch_size * run.context
    counted = {
        "seconds": seconds,
        "real_steps": len(losses),
        "probe_forwards": n_forwards,
        "tokens": len(losses) * tokens,
        "curve": _thin(losses),
        "phases": {"full": len(losses)},
        "phase_seconds": {"full": seconds},
        "jumps": [],
    }
    if hybrid is None:
        return counted
    table = hybrid.history.table()
    decisions = table[table["phase"] == "predict"].drop(columns=["phase", "loss"])
    spent = table.groupby("phase")["seconds"].sum()
    return counted | {
        "phases": hybrid.history.phase_steps(),
        "phase_seconds": {str(phase): float(value) for phase, value in spent.items()},
        "jumps": [_plain(row) for row in decisions.to_dict("records")],
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Keep what was measured: JSON has neither NaN nor infinity."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _thin(curve: list[float]) -> list[float]:
    """Average a curve down to a few points, as far as it is finite."""
    parts = np.array_split(np.asarray(curve), min(_CURVE_POINTS, len(curve)))
    return [float(part.mean()) for part in parts if np.isfinite(part).all()]
