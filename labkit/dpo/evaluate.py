"""Score preference pairs: summed log-probabilities, margins against the reference, accuracies with intervals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats

from labkit.base.files import read_json, write_atomically

if TYPE_CHECKING:
    from labkit.dpo.trainer import PreferenceTrainer

Row = Mapping[str, Any]


def wilson(k: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of k successes in n trials."""
    interval = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy(differences: Iterable[float]) -> dict[str, Any]:
    """Count how often chosen is above rejected, with its interval; a tie is no success.

    Raises:
        ValueError: no pairs.
    """
    values = list(differences)
    if not values:
        raise ValueError("an accuracy needs at least one pair; got none")
    correct = sum(bool(value > 0) for value in values)
    low, high = wilson(correct, len(values))
    return {"accuracy": correct / len(values), "low": low, "high": high, "correct": correct, "n": len(values)}


def repeated_accuracy(right: np.ndarray) -> dict[str, Any]:
    """Count right judgements of several runs over the same pairs, with a 95 % interval over runs and pairs both.

    A hard pair is missed by every run, and a run that went astray errs on every pair, so k runs over n pairs are fewer
    than k n trials. Wilson's interval is taken at the effective number of trials (Korn and Graubard 1998): from the
    variance of a mean over two crossed random effects, widened by Student's factor for as few runs as there are
    (Satterthwaite's degrees of freedom).

    Args:
        right: [runs, pairs] of bool.

    Returns:
        accuracy, low, high, correct, n (judgements), and runs. One run has Wilson's plain interval.

    Raises:
        ValueError: no run, or fewer than two pairs for several runs.
    """
    right = np.asarray(right, dtype=float)
    if not right.size or (len(right) > 1 and right.shape[1] < 2):
        raise ValueError(f"{right.shape[0]} runs over {right.shape[1]} pairs have no interval; give at least two pairs")
    share, (runs, pairs) = float(right.mean()), right.shape
    counted = {"accuracy": share, "correct": int(right.sum()), "n": right.size, "runs": runs}
    n = pairs if runs == 1 else _effective_trials(right)
    low, high = _wilson_share(share, n)
    return counted | {"low": low, "high": high}


def _effective_trials(right: np.ndarray) -> float:
    """Return how many independent trials would leave the mean of [runs, pairs] as uncertain as it is."""
    runs, pairs = right.shape
    share = right.mean()
    by_run = right.mean(1).var(ddof=1) / runs
    by_pair = right.mean(0).var(ddof=1) / pairs
    left = right - right.mean(1, keepdims=True) - right.mean(0) + share
    # Both hold what is neither the run's nor the pair's doing; it counts once.
    variance = max(by_run + by_pair - (left**2).sum() / (runs - 1) / (pairs - 1) / right.size, by_run, by_pair)
    if variance == 0:
        return float(pairs)
    freedom = (by_run + by_pair) ** 2 / (by_run**2 / (runs - 1) + by_pair**2 / (pairs - 1))
    widening = (stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)) ** 2
    return float(min(share * (1 - share) / (variance * widening), right.size))


def _wilson_share(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n trials, which need not be whole."""
    z2 = stats.norm.ppf(0.975) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def pair_logps(trainer: PreferenceTrainer, rows: Sequence[Row], *, adapter: bool) -> np.ndarray:
    """Return log-probabilities summed over chosen and rejected completions, [n, 2] in nats.

    Pairs are scored one at a time, so that a pair's rounding depends on nothing but itself.

    Args:
        trainer: holds the model and makes batches.
        rows: tokenised pairs, with prompt_ids, chosen_ids, rejected_ids.
        adapter: False scores the reference, the model without its adapter.
    """
    # Unwrapped: ranks score on their own, and distributed wrappers would wait for each other.
    model = trainer.accelerator.unwrap_model(trainer.model)
    was_training = model.training
    model.eval()
    scores = []
    with torch.no_grad(), contextlib.nullcontext() if adapter else model.disable_adapter():
        for row in rows:
            batch = trainer.data_collator([{key: row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}])
            batch = {key: value.to(trainer.accelerator.device) for key, value in batch.items()}
            mask = batch.pop("completion_mask")
            labels = batch["input_ids"].masked_fill(mask == 0, -100)
            scores.append(model(**batch, labels=labels, fused_lm_head=True).log_probs.sum(1).tolist())
    model.train(was_training)
    return np.array(scores, dtype=float).reshape(-1, 2)


def reference_logps(
    trainer: PreferenceTrainer, rows: Sequence[Row], folder: Path, conditions: Mapping[str, Any]
) -> np.ndarray:
    """Return the reference's log-probabilities, [n, 2], from a file or else computed and added to it.

    Args:
        trainer: holds the model.
        rows: tokenised pairs.
        folder: where the file lies; several arms may share it.
        conditions: plain JSON on which the numbers depend besides the tokens.
    """
    path = folder / f"reference-{_digest(conditions)}.json"
    known = read_json(path, remedy="delete it, and it is computed again") if path.exists() else {}
    keys = [_digest([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]) for row in rows]
    missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
    if missing:
        scores = pair_logps(trainer, list(missing.values()), adapter=False)
        known |= {key: score.tolist() for key, score in zip(missing, scores, strict=True)}
        write_atomically(path, json.dumps(known).encode())
    return np.array([known[key] for key in keys], dtype=float).reshape(-1, 2)


def margins(policy: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """Return reward margins in nats, [n, 2] and [n, 2] -> [n]: beta times how much more chosen gained than rejected."""
    gained = policy - reference
    return beta * (gained[:, 0] - gained[:, 1])


def scored_pairs(pairs: Sequence[Any], policy: np.ndarray, reference: np.ndarray, beta: float) -> list[dict[str, Any]]:
    """Return one plain row per pair: its name, its margin, and both log-probabilities minus the reference's."""
    gained = policy - reference
    return [
        {
            "id": pair.id,
            "category": pair.category,
            "margin": float(margin),
            "logp_chosen": float(own[0]),
            "logp_rejected": float(own[1]),
        }
        for pair, own, margin in zip(pairs, gained, margins(policy, reference, beta), strict=True)
    ]


def summary(policy: np.ndarray, reference: np.ndarray, beta: float) -> dict[str, Any]:
    """Return mean DPO loss, mean margin and accuracy of pairs."""
    values = margins(policy, reference, beta)
    return {"loss": float(np.logaddexp(0, -values).mean()), "margin": float(values.mean())} | accuracy(values)


def reference_preference(rows: Sequence[Row], reference: np.ndarray) -> dict[str, Any]:
    """Return how often the reference itself prefers the chosen text: by log-probability per token, and by its sum.

    The sum favours short texts; the mean per token does not.
    """
    lengths = np.array([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows])
    mean = reference / lengths
    return accuracy(mean[:, 0] - mean[:, 1]) | {"by_sum": accuracy(reference[:, 0] - reference[:, 1])}


def require_finite(scores: np.ndarray, what: str) -> None:
    """Stop on a log-probability that is not finite.

    Raises:
        FloatingPointError: names what was scored.
    """
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise FloatingPointError(f"{what}: the log-probabilities of pair {bad} are {scores[bad].tolist()}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
