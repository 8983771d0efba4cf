"""Who converges faster: the last loss of the report's schedule at several peak rates, and what its verdict needs.

Each model is read at the rate with its own lowest last loss, averaged over seeds, since one rate for two sizes compares
tuning and not size. The rates go on beyond the declared ones while the best lies at their edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit import models
from labkit.dpo.arm import DpoArm
from labkit.reports.size_inertia import arms, preferred
from labkit.stats import mean_ci
from labkit.training.sweep import best_rate
from labkit.workflow.measured import Number, number

_LAST = 5

Done = Mapping[DpoArm, Mapping[str, Any]]
Losses = dict[str, dict[float, dict[int, float]]]


def last_loss(done: Mapping[str, Any]) -> float:
    """Return the mean training loss of an arm's last five steps, in nats."""
    return float(np.mean([row["loss"] for row in done["curve"][-_LAST:]]))


def last_losses(done: Done, rates: Mapping[str, Mapping[float, float]]) -> Losses:
    """Return the last loss of the report's whole schedule, by model, peak rate and seed.

    Args:
        done: finished arms.
        rates: by model the rates tried, with what was chosen by; one at which a seed diverged is no candidate.
    """
    out: Losses = {}
    for arm, result in done.items():
        whole = arm.schedule_steps == arm.steps == arms.REPORT_STEPS and arm.role in ("report", "rate")
        if whole and math.isfinite(rates.get(arm.model, {}).get(arm.learning_rate, math.inf)):
            out.setdefault(arm.model, {}).setdefault(arm.learning_rate, {})[arm.seed] = last_loss(result)
    return out


def mean_loss(seeds: Mapping[int, Mapping[str, Any] | None]) -> float:
    """Return the last loss of one rate averaged over seeds; infinite where training diverged with one of them."""
    return float(np.mean([last_loss(done) if done else math.inf for done in seeds.values()]))


def at_edge(tried: Mapping[float, float]) -> bool:
    """Say whether the best of the rates tried is the lowest or the highest of them, or the only one."""
    best = best_rate(tried)
    return best is None or best in (min(tried), max(tried))


def void(rates: Mapping[str, Mapping[float, float]]) -> list[str]:
    """Say for each model whose best rate lies at the edge that nothing can be concluded; nothing if all lie inside."""
    return [
        f"the best rate of {model} ({best_rate(tried) or math.nan:g}) lies at the edge of the {len(tried)} tried"
        for model, tried in rates.items()
        if at_edge(tried)
    ]


def pair_of(losses: Losses) -> tuple[str, str] | None:
    """Return the smaller and the larger of two models; None where there are not two."""
    if len(losses) != 2:
        return None
    small, large = sorted(losses, key=lambda name: models.shape_of(name).parameters)
    return small, large


def results(done: Done, rates: Mapping[str, Mapping[float, float]]) -> dict[str, Number]:
    """Return the last loss of the larger model less that of the smaller, each at its best rate, over seeds.

    A single seed has no interval. Nothing is returned where the protocol voids it.
    """
    losses = last_losses(done, rates)
    both = pair_of(losses)
    if both is None or void({name: rates[name] for name in both}):
        return {}
    small, large = (losses[name][best_rate(rates[name])] for name in both)
    differences = [large[seed] - small[seed] for seed in sorted(set(small) & set(large))]
    return {f"loss_difference/step_{arms.REPORT_STEPS}": over_seeds(differences, "nats")} if differences else {}


def preference_loss(
    done: Done, rates: Mapping[str, Mapping[float, float]], references: Mapping[str, Mapping[str, Any]]
) -> dict[str, Number]:
    """Return the loss of preference itself on held-out pairs (`preferred.loss`), of the smaller model at its best rate.

    Only where the report's whole schedule ran, for two models.
    """
    losses = last_losses(done, rates)
    both = pair_of(losses)
    if both is None or both[0] not in references:
        return {}
    reference, rate = references[both[0]]["held_out"], best_rate(rates[both[0]])
    own = [
        preferred.loss(preferred.differences(result["held_out"], reference))
        for arm, result in done.items()
        if arm.model == both[0] and arm.learning_rate == rate and arm.role in ("report", "rate")
    ]
    return {"preference_loss/smaller": over_seeds(own, "nats")} if own else {}


def table(done: Done, rates: Mapping[str, Mapping[float, float]]) -> pd.DataFrame:
    """Lay out the last loss by model and peak rate, over seeds, with the best rate of each model marked."""
    rows = []
    for model, by_rate in last_losses(done, rates).items():
        for rate, seeds in sorted(by_rate.items()):
            mark = "" if rate != best_rate(rates[model]) else "best, at the edge" if at_edge(rates[model]) else "best"
            found = over_seeds(list(seeds.values()), "nats")
            ends = found["ci"] or [math.nan, math.nan]
            row = {"model": model, "peak rate": rate, "seeds": len(seeds), "last loss": found["value"]}
            rows.append(row | {"low": ends[0], "high": ends[1], "best": mark})
    return pd.DataFrame(rows, columns=["model", "peak rate", "seeds", "last loss", "low", "high", "best"])


def over_seeds(values: list[float], unit: str) -> Number:
    """Return the mean over seeds, with Student's 95 % interval where there are at least two."""
    if len(values) < 2:
        return number(values[0], unit)
    found = mean_ci(values)
    return number(found.estimate, unit, [found.low, found.high], n_seeds=len(values))
