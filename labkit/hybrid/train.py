"""Train one arm at one budget with one seed, from scratch on real text, and score it on held-out text.

A run is a pure function of its `Run`. All arms of a seed start from the same weights and read the same batches in the
same order; a hybrid reads fewer of them, since its predicted steps read none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit import corpora, device, models
from labkit.hybrid.arms import ARMS, hybrid_config
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.gate import Losses, untouched
from labkit.hybrid.optimizers import Schedule, make_optimizer, warmup_steps
from labkit.hybrid.vectors import copies

TASKS: dict[str, dict[str, int]] = {
    "text-0.1m": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "text-1m": {"n_embd": 128, "n_layer": 4, "n_head": 4},
    "text-10m": {"n_embd": 320, "n_layer": 7, "n_head": 5},
    "gpt2": {},
}
"""GPT-2-shaped models by name: what differs from GPT-2 small; vocabulary and context come with the run."""
LOGIT = 0.8
"""Standard deviation of the logits at the start."""
PROBE_PART = 4
"""A probe's batch is so many times smaller than a step's: what counts are differences on the same windows."""
DRAWN = 0.02
"""That of every matrix as `models.build` draws it."""
BLOCKS = 64
"""Parts of the held-out text that losses are summed over."""
TAIL = 0.05
"""Horizon of the tail average, as a share of the schedule."""
_CURVE_POINTS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run, with everything its result depends on."""

    task: str
    """Key of TASKS."""
    arm: str
    """Key of `arms.ARMS`."""
    learning_rate: float
    """Peak rate."""
    steps: int
    """Nominal steps of the schedule, which is completed."""
    seed: int
    """Of the weights and of the order of batches."""
    corpus: str
    """Text, by name."""
    vocab_size: int
    """Tokens of the BPE."""
    context: int
    """Tokens of a window."""
    batch_size: int
    """Windows of a step."""
    held_out_windows: int
    """Windows scored before and after."""
    weight_decay: float
    """Decoupled decay of matrices."""
    beta2: float
    """AdamW's second-moment decay."""
    warmup_fraction: float
    """Share of the schedule in which the rate rises."""
    grad_clip: float
    """Largest norm of the gradient."""
    device: str
    """Device."""
    dtype: str
    """Compute type of matrix products."""
    threads: int
    """CPU threads."""

    @property
    def name(self) -> str:
        """Short name for people."""
        return f"{self.arm}, rate {self.learning_rate:g}, {self.steps} steps, seed {self.seed}"

    def inputs(self) -> dict[str, Any]:
        """Return the values as plain JSON."""
        return asdict(self)


class Text:
    """Windows of a run's text: training ones in the order of the seed, probes from a generator of their own."""

    def __init__(self, run: Run) -> None:
        tokens = corpora.tokenize(corpora.load(run.corpus), run.vocab_size)
        self._run = run
        self._train = torch.as_tensor(tokens.train.astype(np.int64), device=run.device)
        self._validation = torch.as_tensor(tokens.validation.astype(np.int64), device=run.device)
        self._offsets = torch.arange(run.context + 1, device=run.device)
        self._probes = np.random.default_rng((run.seed, 1))

    def batches(self) -> Iterator[Tensor]:
        """Yield training windows [B, T + 1], each pass over the text from a new phase and in a new order."""
        rng, run = np.random.default_rng((self._run.seed, 0)), self._run
        queue = np.empty(0, np.int64)
        while True:
            while len(queue) < run.batch_size:
                starts = np.arange(rng.integers(run.context), len(self._train) - run.context, run.context)
                queue = np.concatenate([queue, rng.permutation(starts)])
            yield self._windows(self._train, queue[: run.batch_size])
            queue = queue[run.batch_size :]

    def probe_batch(self) -> Tensor:
        """Draw training windows that the order of batches knows nothing of, [B / PROBE_PART, T + 1]."""
        last = len(self._train) - self._run.context
        n = max(1, self._run.batch_size // PROBE_PART)
        return self._windows(self._train, self._probes.integers(0, last, n))

    def held_out(self) -> Tensor:
        """Return the windows that are scored, without overlap, [n, T + 1].

        Raises:
            ValueError: the text holds fewer.
        """
        starts = np.arange(0, len(self._validation) - self._run.context, self._run.context)
        wanted = self._run.held_out_windows
        if len(starts) < wanted:
            raise ValueError(f"{self._run.corpus}'s validation text holds {len(starts)} windows, not {wanted}")
        return self._windows(self._validation, starts[:wanted])

    def _windows(self, stream: Tensor, starts: np.ndarray) -> Tensor:
        return stream[torch.as_tensor(starts, device=stream.device)[:, None] + self._offsets]


def build(run: Run) -> nn.Module:
    """Build the run's model without dropout; its first loss is ln V within half a nat.

    Maps are N(0, 1/inputs), those into the residual stream smaller by the root of their number (GPT-2's rule) and
    embeddings, which are the head too, N(0, LOGIT^2/width). 0.02 everywhere suits GPT-2's width of 768; at 64 it leaves
    AdamW at the unigram loss.
    """
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = TASKS[run.task] | off | {"vocab_size": run.vocab_size, "n_positions": run.context}
    model = models.build("gpt2", seed=run.seed, device=run.device, **shape)
    into_residual = (2 * model.config.n_layer) ** -0.5
    for name, parameter in model.named_parameters():
        if "wte" in name or "wpe" in name:
            parameter.data.mul_(LOGIT * model.config.n_embd**-0.5 / DRAWN)
        elif parameter.dim() == 2:
            share = into_residual if "c_proj" in name else 1.0
            parameter.data.mul_(share * len(parameter) ** -0.5 / DRAWN)
    return model.train()


def losses_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the loss of every position in nats, [B, T]."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    return functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="none").view(len(windows), -1)


def train(run: Run) -> dict[str, Any]:
    """Train and score.

    Returns:
        plain JSON: held-out nats per token by block before and after, seconds of training (probes included, scoring
        not), real steps and forward passes of probes, tokens, phases, decisions, peak memory.

    Raises:
        FloatingPointError: the held-out loss is not finite; a caller counts it as a run that learned nothing.
    """
    device.set_threads(run.threads)
    device.set_determinism(run.seed, run.device)
    text, model = Text(run), build(run)
    held_out = text.held_out()
    before = score(model, held_out, run.batch_size)
    with device.peak_memory(run.device) as memory:
        found = _fit(run, model, text)
    after = score(model, held_out, run.batch_size)
    if not np.isfinite(after).all():
        raise FloatingPointError(f"{run.name}: the held-out loss is {after.mean()}")
    return found | {
        "initial_nats": before.tolist(),
        "block_nats": after.tolist(),
        "loss_nats": float(after.mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": memory.bytes,
    }


def _fit(run: Run, model: nn.Module, text: Text) -> dict[str, Any]:
    """Run the loop of an arm; the model is left with what the arm reads out."""
    arm = ARMS[run.arm]
    optimizer = make_optimizer(model, arm.optimizer, run.learning_rate, weight_decay=run.weight_decay, beta2=run.beta2)
    schedule = Schedule(optimizer, run.steps, warmup_steps(run.steps, run.warmup_fraction))
    config, probe = hybrid_config(arm, run.steps, run.seed), Probe(run, model, text)
    hybrid = config and Hybrid(model, optimizer, config, total_steps=run.steps, scheduler=schedule, probe=probe.draw)
    tail = TailAverage(model, run.steps) if arm.tail_average else None
    losses, started = [], time.perf_counter()
    for step, windows in enumerate(text.batches()):
        if hybrid.over if hybrid else step == run.steps:
            break
        losses.append(_step(run, model, optimizer, schedule, hybrid, windows))
        if tail:
            tail.observe(step)
    _synchronize(run.device)
    seconds = time.perf_counter() - started
    if tail:
        tail.read_out()
    return _account(run, losses, seconds, probe.n_forwards, hybrid)


def _step(
    run: Run, model: nn.Module, optimizer: Any, schedule: Schedule, hybrid: Hybrid | None, windows: Tensor
) -> float:
    if hybrid:
        hybrid.step_begin()
    with _autocast(run):
        loss = losses_of(model, windows).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.grad_clip)
    if hybrid:
        hybrid.gradients_ready(float(norm))
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    value = float(loss.detach())
    if hybrid:
        hybrid.step_end(value)
    return value


def _autocast(run: Run) -> torch.autocast:
    return torch.autocast(run.device, torch.bfloat16, enabled=run.dtype == "bfloat16")


def _synchronize(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


class Probe:
    """Draws fresh training batches and measures their losses, forward only; counts the passes."""

    def __init__(self, run: Run, model: nn.Module, text: Text) -> None:
        self._run, self._model, self._text = run, model, text
        self.n_forwards = 0

    def draw(self, n: int) -> Losses:
        """Draw n batches; what is returned measures their windows at the present weights, in one pass."""
        windows = torch.cat([self._text.probe_batch() for _ in range(n)])

        def losses() -> list[float]:
            self.n_forwards += 1
            with untouched(self._model), _autocast(self._run):
                return losses_of(self._model, windows).mean(1).tolist()

        return losses


class TailAverage:
    """Exponential average of the weights over the end of the schedule."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._parameters, self._steps = list(model.parameters()), steps
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


@torch.no_grad()
def score(model: nn.Module, windows: Tensor, batch_size: int) -> np.ndarray:
    """Return mean nats per token of consecutive blocks of windows, [BLOCKS or fewer]."""
    model.eval()
    nats = torch.cat([losses_of(model, part).mean(1) for part in windows.split(batch_size)])
    model.train()
    parts = np.array_split(nats.double().cpu().numpy(), min(BLOCKS, len(nats)))
    return np.array([part.mean() for part in parts])


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
    """Keep what was measured: JSON has no NaN."""
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _thin(curve: list[float]) -> list[float]:
    """Average a curve down to a few points."""
    return [float(part.mean()) for part in np.array_split(np.asarray(curve), min(_CURVE_POINTS, len(curve)))]
