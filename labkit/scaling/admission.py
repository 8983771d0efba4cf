"""Gates a model must pass before its loss may enter a fit: whether the measurement is valid, not how good it is.

Each gate is cheap, knows nothing of the architecture and catches a failure that has happened: a head or vocabulary slip
(initial loss), targets that do not belong to their inputs (overfit), a mixer that reads ahead (causality), a mixer that
mixes nothing (context use), a wrong count of parameters or FLOPs. Skill, such as a loss below that of a table of pairs,
is told beside a run and refuses none: to fit only what came out well flattens or steepens every law.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkit.scaling.counts import counted_flops, forward_flops, parameter_counts
from labkit.scaling.data import paired_gain

_OVERFIT_STEPS = 300
_OVERFIT_NATS = 0.1
_OVERFIT_RATES = (1e-2, 1e-3)
_OVERFIT_SHAPE = (4, 32)
_ROWS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Gate:
    """One check and what it saw."""

    name: str
    """Short name of the property."""
    passed: bool
    """Whether it holds."""
    detail: str
    """The measured figure and the bound."""


@dataclass(frozen=True, slots=True)
class Admission:
    """All gates of one model or run."""

    gates: tuple[Gate, ...] = field(default_factory=tuple)
    """In the order they were tried."""
    skill: tuple[Gate, ...] = ()
    """What a run has learned, held against simple predictors; it refuses nothing."""

    @property
    def ok(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    def why_not(self) -> str:
        """Name the failed gates with their figures; empty if none failed."""
        return "; ".join(f"{gate.name}: {gate.detail}" for gate in self.gates if not gate.passed)

    def not_shown(self) -> str:
        """Name what the run has not been shown to have learned; empty if all of it was."""
        return "; ".join(f"not shown: {gate.name}" for gate in self.skill if not gate.passed)


def admit(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> Admission:
    """Check a freshly initialised language model; it is left as it was, and so is torch's random state.

    Args:
        model: ids [B, T] -> logits [B, T, V].
        ids: tokens to try it on, [B, T] with T >= 8; real text or random.
        vocab_size: V.

    Raises:
        ValueError: `ids` is too short or holds an id outside the vocabulary.
    """
    if ids.ndim != 2 or ids.shape[1] < 8 or int(ids.max()) >= vocab_size or int(ids.min()) < 0:
        raise ValueError(f"ids must be [B, T >= 8] with values in [0, {vocab_size}), got {tuple(ids.shape)}")
    with _untouched_rng():
        fitted, overfit = _overfit(model, ids)
        gates = [_initial_loss(model, ids, vocab_size), overfit]
        gates += [_causality(fitted, ids, vocab_size), _context_use(fitted, ids, vocab_size)]
        if hasattr(model, "config"):
            gates += [_parameter_count(model), _flops(model, ids)]
    return Admission(tuple(gates))


def leakage(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int, prefix: int) -> np.ndarray:
    """Return how much the logits at each position move when every token from `prefix` on is replaced.

    Returns:
        largest absolute change per position, shape [T]; a causal model has exactly zero before `prefix`.
    """
    changed = ids.clone()
    changed[:, prefix:] = _replaced(ids, vocab_size)[:, prefix:]
    with _untouched_rng(), torch.no_grad():
        before = _seeded(model, ids)
        after = _seeded(model, changed)
    return (before - after).abs().amax((0, 2)).double().cpu().numpy()


def prefix_leakage(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> np.ndarray:
    """Return how much the logits before position i move when every token from i on is replaced, for i = 1 to T - 1.

    Returns:
        largest absolute change by i, shape [T - 1]; the rows of `ids` take turns.
    """
    positions = torch.arange(ids.shape[1], device=ids.device)
    moved = []
    for starts in positions[1:].split(_ROWS_AT_A_TIME):
        rows, later = ids[starts % len(ids)], positions >= starts[:, None]
        changed = torch.where(later, _replaced(rows, vocab_size), rows)
        with _untouched_rng(), torch.no_grad():
            change = (_seeded(model, rows) - _seeded(model, changed)).abs().amax(-1)
        moved.append(change.masked_fill(later, 0.0).amax(-1))
    return torch.cat(moved).double().cpu().numpy()


def row_leakage(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> float:
    """Return how much the logits of a batch move when the rows above and below it are replaced; separate rows: 0."""
    rows = slice(len(ids), 2 * len(ids))
    with _untouched_rng(), torch.no_grad():
        before, after = (
            _seeded(model, torch.cat([(ids + shift) % vocab_size, ids, (ids + shift) % vocab_size]))[rows]
            for shift in (1, 2)
        )
    return (before - after).abs().max().item()


def admit_run(
    result: Mapping[str, Any], floors: Mapping[str, np.ndarray], order_sha256: str, declared_tokens: int
) -> Admission:
    """Check a trained cell: what it was trained on and whether its numbers are whole; and tell what it has learned.

    Args:
        result: what `train_cell` returned.
        floors: nats per block of each n-gram model on the same tokens.
        order_sha256: data order of the other cells with this seed.
        declared_tokens: tokens the parameters ask for.
    """
    gap = result["loss_nats"] - result["train_loss_nats"]
    counted, formula, seen = result["n_counted"], result["n_total"], result["tokens_seen"]
    same = result["order_sha256"] == order_sha256 and seen == declared_tokens
    finite = bool(np.isfinite(result["block_nats"]).all() and np.isfinite(result["position_nats"]).all())
    gates = (
        Gate("losses finite", finite, "every block and every position of the validation text"),
        Gate("gap recorded", math.isfinite(gap), f"validation minus training loss {gap:+.3f} nats"),
        Gate("parameters trained", counted == formula, f"{counted:,} counted, {formula:,} by formula"),
        Gate("data order", same, f"{seen:,} of {declared_tokens:,} tokens, order hash compared"),
    )
    return Admission(gates, _skill(result, floors))


def _skill(result: Mapping[str, Any], floors: Mapping[str, np.ndarray]) -> tuple[Gate, ...]:
    blocks = np.asarray(result["block_nats"])
    beaten = (_saves(f"beats {name}", floors[name], blocks) for name in ("unigram", "bigram", "kneser_ney"))
    late, alone = np.asarray(result["late_block_nats"]), np.asarray(result["late_alone_block_nats"])
    return (*beaten, _saves("context helps", alone, late))


def _saves(name: str, worse: np.ndarray, better: np.ndarray) -> Gate:
    """Compare two predictions of the same tokens, block by block."""
    gain, error = paired_gain(worse, better)
    return Gate(name, gain > 2 * error, f"saves {gain:,.0f} nats, standard error {error:,.0f}")


def _initial_loss(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> Gate:
    with torch.no_grad():
        loss = _loss(_copy(model), ids).item()
    uniform = math.log(vocab_size)
    return Gate("initial loss", abs(loss / uniform - 1) < 0.05, f"{loss:.3f} nats, ln V = {uniform:.3f}")


def _overfit(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.nn.Module, Gate]:
    """Memorise one small batch; return the fitted copy, in which a leak hidden by a zero initialisation would show."""
    rows, length = min(ids.shape[0], _OVERFIT_SHAPE[0]), min(ids.shape[1], _OVERFIT_SHAPE[1])
    for rate in _OVERFIT_RATES:
        fitted = _without_dropout(_copy(model)).train()
        loss, steps = _memorise(fitted, ids[:rows, :length], rate)
        if loss < _OVERFIT_NATS:
            break
    detail = f"{loss:.3f} nats after {steps} steps at rate {rate:g}, needs < {_OVERFIT_NATS}"
    return fitted, Gate("overfits one batch", loss < _OVERFIT_NATS, detail)


def _memorise(model: torch.nn.Module, batch: torch.Tensor, rate: float) -> tuple[float, int]:
    objective = _loss(model, batch)
    if not objective.requires_grad:
        return objective.item(), 0
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(_OVERFIT_STEPS):
        if objective.item() < _OVERFIT_NATS:
            return objective.item(), step
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        objective = _loss(model, batch)
    return objective.item(), _OVERFIT_STEPS


def _causality(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> Gate:
    """Every prefix and the other rows, training and evaluation mode, two attention backends, two types."""
    moves: list[tuple[float, str]] = []
    for label, variant, backend, tolerance in _variants(model):
        with backend():
            later, rows = prefix_leakage(variant, ids, vocab_size), row_leakage(variant, ids, vocab_size)
        moves.append((float(later.max()) / tolerance, f"{label}, tokens from {later.argmax() + 1} on replaced"))
        moves.append((rows / tolerance, f"{label}, other rows replaced"))
    worst, where = max(moves, key=lambda move: math.inf if math.isnan(move[0]) else move[0])
    held = worst <= 1
    detail = "later tokens and other rows move no logit" if held else f"logits move {worst:.3g} tolerances: {where}"
    return Gate("causality", held, detail)


def _variants(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, Callable, float]]:
    for training in (False, True):
        mode = "training mode" if training else "evaluation mode"
        exact = _without_dropout(_copy(model)).double().train(training)
        yield f"{mode}, float64", exact, nullcontext, 1e-8
        yield f"{mode}, float64, math attention", exact, lambda: sdpa_kernel(SDPBackend.MATH), 1e-8
        yield f"{mode}, own type", _without_dropout(_copy(model)).train(training), nullcontext, 1e-2


def _context_use(model: torch.nn.Module, ids: torch.Tensor, vocab_size: int) -> Gate:
    """Replace the first half of each window's tokens but keep the rest: the first kept positions must notice."""
    exact = _without_dropout(_copy(model)).double().eval()
    half = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, :half] = (changed[:, :half] + 1) % vocab_size
    with torch.no_grad():
        moved = (exact(ids) - exact(changed)).abs().amax((0, 2))[half:]
    reach = int((moved > 1e-6).sum())
    detail = f"a changed past moves the logits of {reach} of the {len(moved)} next positions"
    return Gate("context use", reach > 0, detail)


def _parameter_count(model: torch.nn.Module) -> Gate:
    formula, counted = parameter_counts(model.config).total, sum(p.numel() for p in model.parameters())
    return Gate("parameter count", formula == counted, f"{counted:,} counted, {formula:,} by formula")


def _flops(model: torch.nn.Module, ids: torch.Tensor) -> Gate:
    formula, counted = forward_flops(model.config, *ids.shape), counted_flops(_copy(model), ids)
    return Gate("FLOPs", abs(counted / formula - 1) < 0.01, f"{counted:,} counted, {formula:,} by formula")


def _loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _replaced(ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return ids [B, T] with another token at every position, the shift differing from one to the next."""
    return (ids + 1 + torch.arange(ids.shape[1], device=ids.device) % (vocab_size - 1)) % vocab_size


def _seeded(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return model(ids)


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model)


def _without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Switch dropout off in place: in training mode its mask may follow the batch, which is noise, not a leak."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


@contextmanager
def _untouched_rng() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
