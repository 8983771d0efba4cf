"""Tables of the routing section: accuracies, policies with their intervals, the frontier, energy in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from labkit.device.energy import stated_watts
from labkit.dpo.evaluate import wilson
from labkit.reports.size_inertia import tiers
from labkit.reports.size_inertia.matrix import to_matrix
from labkit.reports.size_inertia.study import Study
from labkit.routing import deciding, economics
from labkit.routing import replays as routing
from labkit.routing.answer_table import answer_table
from labkit.routing.replays import CannotRoute, Replay

CURVE_POLICY = routing.RandomShare().name
"""The policy whose curve is the line to beat."""


def accuracy_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Count right answers of each model, in all and by category, with Wilson's 95 % interval and mean seconds."""
    whole = answers.assign(category="all")
    rows = []
    for (category, model), part in pd.concat([whole, answers]).groupby(["category", "model"], sort=False):
        right, n = round(part["quality"].sum()), len(part)
        low, high = wilson(right, n)
        row = {"category": category, "model": model, "right": right, "of": n, "share": right / n}
        rows.append(row | {"low": low, "high": high, "seconds per query": part["seconds"].mean()})
    return pd.DataFrame(rows)


def yes_no_sentence(answers: pd.DataFrame) -> str:
    """Say how much of the oracle is owed to questions that a guess answers half of the time."""
    closed = answers["prompt"].str.contains("yes or no", case=False)
    if closed.all() or not closed.any():
        return f"{'Every' if closed.any() else 'No'} question asks for yes or no."
    yes = answers["answer"].str.match("yes", case=False)[closed].groupby(answers["model"], sort=False).sum()
    counts = ", ".join(f"{model} {n} times" for model, n in yes.items())
    by_query = to_matrix(answers[~closed])
    return (
        f"{closed.sum() // answers['model'].nunique()} questions ask for yes or no, and a guess answers half of those: "
        f"yes is said by {counts}. On the other {len(by_query)} the oracle is right {by_query.max(axis=1).sum():.0f} "
        f"times, the best single model {by_query.sum().max():.0f} times."
    )


def replays(answers: pd.DataFrame, study: Study) -> tuple[list[Replay], list[str]]:
    """Replay every policy that the matrix can feed, with what the study's policies decided.

    Returns:
        the replays, and a line with the reason for each policy that cannot be replayed.
    """
    return _replayed(answers, study.decided, study)


def _replayed(answers: pd.DataFrame, decided: Mapping[str, Any], study: Study) -> tuple[list[Replay], list[str]]:
    table, found, refused = answer_table(answers), [], []
    for policy in routing.ALL:
        try:
            known = deciding.with_decisions(policy, decided)
            found.append(routing.replay(table, known, bootstrap=study.params.bootstrap))
        except CannotRoute as error:
            refused.append(f"{policy.name}: {error}")
    return found, refused


def generated_replays(study: Study) -> tuple[list[Replay], list[str]]:
    """Replay every policy on the tiers' answers to the generated questions, as `replays` does; none without tiers."""
    if not study.tier_rows:
        return [], []
    return _replayed(tiers.frame(study.tier_rows), study.tier_decided, study)


def generated_accuracy(study: Study) -> pd.DataFrame:
    """Count right answers of each tier to the generated questions, as `accuracy_table` does."""
    return accuracy_table(tiers.frame(study.tier_rows)) if study.tier_rows else pd.DataFrame()


def generated_sentence(study: Study) -> str:
    """Say what routing between the tiers gains on the generated questions, and what the protocol voids."""
    if not study.tier_rows:
        return "No generated questions are asked on this profile."
    close = tiers.void(tiers.frame(study.tier_rows))
    void = f" Void: {'; '.join(close)}." if close else ""
    return routing.verdict(generated_replays(study)[0]) + void


def generated_policy_table(study: Study) -> pd.DataFrame:
    """Lay out the policies on the generated questions as `policy_table` does."""
    return policy_table(generated_replays(study)[0])


def policy_table(found: Sequence[Replay]) -> pd.DataFrame:
    """Lay out quality, cost and gain over a random split for each policy."""
    rows = []
    for one in found:
        row = {"policy": one.policy, "right": str(one.quality), f"{one.unit} per query": str(one.cost)}
        row |= {"APGR": str(one.apgr or "undefined"), "APGR minus random": str(one.minus_random or "undefined")}
        for share in routing.SHARES:
            row[f"CPT {share} %"] = str(one.cpt[share] or "")
        rows.append(row | {"quality minus random at equal cost": str(one.at_equal_cost or ""), "helps": one.helps})
    return pd.DataFrame(rows)


def frontier(found: Sequence[Replay]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what the frontier figure draws: the policies' operating points, and the line of random splits."""
    rows = [
        {"policy": one.policy, "quality": one.quality.estimate, "cost": one.cost.estimate}
        | {"quality_low": one.quality.low, "quality_high": one.quality.high}
        | {"cost_low": one.cost.low, "cost_high": one.cost.high}
        for one in found
        if one.policy != CURVE_POLICY
    ]
    line = next(one.curve for one in found if one.policy == CURVE_POLICY)
    return pd.DataFrame(rows), line[["cost", "quality"]]


def priced(answers: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Add to each row why it has no joules, and fill them in where somebody stated the watts (LABKIT_CPU_WATTS)."""
    reasons = {model: answered["energy"]["reason"] for model, answered in study.answers.items()}
    rows = answers.assign(energy_reason=answers["model"].map(reasons))
    watts = stated_watts(study.params.device)
    return rows if watts is None else economics.with_estimate(rows, watts, f"{watts:g} W stated by the user")
