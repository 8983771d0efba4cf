"""What trained models prefer, three ways: margin against the reference, log-probability by sum, and per token.

A positive margin says that training moved a model towards the chosen text; the model may still find the rejected one
more likely. An arm's cell holds what each text gained, the reference's cell what it started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from labkit.dpo import evaluate
from labkit.dpo.arm import DpoArm
from labkit.reports.size_inertia import balanced

MARGIN, SUM, PER_TOKEN = "margin", "sum", "per token"
WAYS = (MARGIN, SUM, PER_TOKEN)
"""Ways to prefer: reward margin against the reference; log-probability of the text; the same per token."""
SETS = {"held_out": "held-out pairs", "balanced": "word-balanced pairs"}
"""Pairs that arms are judged on, by their name in a cell."""

SHUFFLED = "shuffled labels"
"""What arms with shuffled labels are called."""

Rows = Sequence[Mapping[str, Any]]


def margins(rows: Rows) -> pd.DataFrame:
    """Return the margin of each pair in nats: all that is known without the reference's own log-probabilities."""
    return pd.DataFrame({MARGIN: [row["margin"] for row in rows]}, index=[row["id"] for row in rows])


def differences(rows: Rows, reference: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return by how much each pair's chosen text is preferred, a column for each of `WAYS`, in nats; per token in nats
    per token.

    Args:
        rows: of an arm's cell, with id, margin, and log-probabilities minus the reference's.
        reference: by id the log-probabilities and numbers of tokens that `judged.measure_reference` returns.

    Raises:
        KeyError: the reference did not score a pair.
    """
    known = np.array([reference[row["id"]] for row in rows], dtype=float)
    gained = np.array([[row["logp_chosen"], row["logp_rejected"]] for row in rows], dtype=float)
    own, lengths = known[:, :2] + gained, known[:, 2:]
    per_token = own / lengths
    return margins(rows).assign(**{SUM: own[:, 0] - own[:, 1], PER_TOKEN: per_token[:, 0] - per_token[:, 1]})


def untrained(reference: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return `differences` of the reference itself; its margin to itself says nothing and is not a number."""
    still = [{"id": name, "margin": np.nan, "logp_chosen": 0.0, "logp_rejected": 0.0} for name in reference]
    return differences(still, reference)


def counted(runs: Sequence[pd.DataFrame], way: str) -> dict[str, Any]:
    """Count how often runs prefer the chosen text, with a 95 % interval over runs and pairs.

    Word-balanced pairs of one topic share its facts, so a topic is one trial there, and not each of its pairs.

    Args:
        runs: `differences` of arms that differ by a seed alone, over the same pairs.
        way: one of `WAYS`.

    Returns:
        accuracy, low, high, correct, n (judgements), runs, pairs, and `each`, right pairs of every run as text.
    """
    right = np.array([run[way].to_numpy() > 0 for run in runs])
    groups = pd.Index([balanced.topic_of(name) or name for name in runs[0].index])
    by_group = np.array([pd.Series(one, index=groups).groupby(level=0, sort=False).mean() for one in right])
    found = evaluate.repeated_accuracy(by_group)
    exact = {"accuracy": float(right.mean()), "correct": int(right.sum()), "n": right.size}
    ends = {"low": min(found["low"], exact["accuracy"]), "high": max(found["high"], exact["accuracy"])}
    told = {"runs": len(runs), "pairs": right.shape[1], "each": " ".join(str(n) for n in right.sum(1))}
    return exact | ends | told


def loss(run: pd.DataFrame) -> float:
    """Return the mean of -log sigmoid of the chosen text's log-probability less the rejected one's, in nats.

    It is the loss of direct preference optimisation without reference and inverse temperature: ln 2 where the model
    holds both texts for equally likely, 0.000 where it surely prefers the chosen one.
    """
    return float(np.logaddexp(0, -run[SUM].to_numpy()).mean())


def kind_of(arm: DpoArm) -> str:
    """Return what arms that differ by a seed alone have in common, as a part of a result's key."""
    kinds = {"rate": f"rate-{arm.learning_rate:g}", "fewer pairs": f"pairs-{arm.n_pairs}"}
    return kinds.get(arm.role, arm.role)


def label_of(arm: DpoArm) -> str:
    """Return what arms that differ by a seed alone have in common, in words."""
    labels = {
        "report": f"report's schedule, {arm.steps} steps",
        "rate": f"report's schedule at {arm.learning_rate:g}, {arm.steps} steps",
        "tuned": f"tuned rate, {arm.n_pairs} pairs",
        "fewer pairs": f"tuned rate, {arm.n_pairs} pairs",
        "shuffled": SHUFFLED,
        "template": "template negatives",
    }
    return labels[arm.role]


def table(
    arms: Mapping[DpoArm, Mapping[str, Any]], references: Mapping[str, Mapping[str, Any]], models: Sequence[str]
) -> pd.DataFrame:
    """Count what each kind of arm prefers in each set of pairs, in each way.

    Args:
        arms: finished arms with what their cells hold.
        references: by model what `judged.measure_reference` returned; a model without is shown by its margins alone.
        models: names, in the order of the rows.

    Returns:
        rows with model, arm, kind, pairs_of (of `SETS`), way and what `counted` returns.
    """
    rows: list[dict[str, Any]] = []
    for model in models:
        own = {arm: done for arm, done in arms.items() if arm.model == model and arm.role != "sweep"}
        for name in SETS:
            where = {"model": model, "pairs_of": SETS[name]}
            reference = references.get(model, {}).get(name)
            if reference:
                before = where | {"arm": "untrained", "kind": "untrained"}
                rows += _rows(before, [untrained(reference)], (SUM, PER_TOKEN))
            for label, kind in {label_of(arm): kind_of(arm) for arm in own}.items():
                alike = [done[name] for arm, done in own.items() if label_of(arm) == label and name in done]
                runs = [differences(one, reference) if reference else margins(one) for one in alike]
                rows += _rows(where | {"arm": label, "kind": kind}, runs, WAYS if reference else (MARGIN,))
    return pd.DataFrame(rows, columns=[*_COLUMNS])


_COLUMNS = (
    "model",
    "arm",
    "kind",
    "pairs_of",
    "way",
    "accuracy",
    "low",
    "high",
    "correct",
    "n",
    "runs",
    "pairs",
    "each",
)


def _rows(where: Mapping[str, Any], runs: Sequence[pd.DataFrame], ways: Sequence[str]) -> list[dict[str, Any]]:
    return [{**where, "way": way} | counted(runs, way) for way in ways] if runs else []
