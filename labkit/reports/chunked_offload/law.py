"""The law of the gain: what reading alone and computing alone say that a larger batch gains, beside what it gained.

A pass reads L seconds and computes C(B) seconds, both measured apart. Where a layer is read while another is computed,
a step takes max(L, C(B)); where one waits for the other, L + C(B). The gain of a batch is the time of a sample alone
over that of a sample in the batch,

    gain(B) = B t(1) / t(B),

so the law predicts it from the halves alone. The engine reads ahead: the first form is the one that is put to the test,
the second stands beside it as what an engine that waits would gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit.stats import mean_ci
from labkit.workflow.measured import Number, number

_KEYS = ["repeat", "slowdown", "batch"]


def at_own_speed(timed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was timed without the rows in which the disk was slowed."""
    kept = {name: [row for row in timed[name] if row.get("slowdown", 1) == 1] for name in ("rows", "ablations")}
    return {**timed, **kept}


def points(timed: Mapping[str, Any]) -> pd.DataFrame:
    """Return predicted and measured gains, one row for each round, slowdown and batch size above 1.

    Args:
        timed: what `rounds.measure_rounds` or `speed.measure_speed` returned; batch sizes without halves are left out.

    Returns:
        repeat, slowdown, batch, reading and computing (s), measured, predicted, predicted_added.
    """
    halves = _halves(timed)
    steps = _frame(timed["rows"])[[*_KEYS, "seconds"]]
    both = steps.merge(halves, on=_KEYS).sort_values(_KEYS)
    both["overlapped"] = both[["reading", "computing"]].max(axis=1)
    both["added"] = both["reading"] + both["computing"]
    alone = both[both["batch"] == 1].drop(columns="batch")
    pairs = both[both["batch"] > 1].merge(alone, on=["repeat", "slowdown"], suffixes=("", "_alone"))
    of = {"measured": "seconds", "predicted": "overlapped", "predicted_added": "added"}
    gains = {name: pairs["batch"] * pairs[f"{time}_alone"] / pairs[time] for name, time in of.items()}
    return pairs[[*_KEYS, "reading", "computing"]].assign(**gains).reset_index(drop=True)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([{"slowdown": 1} | row for row in rows])


def _halves(timed: Mapping[str, Any]) -> pd.DataFrame:
    """Return reading and computing alone for every round, slowdown and batch size that was timed.

    Where the disk is slowed reading is timed with batch 1 only, and computing at the disk's own speed only.
    """
    apart = _frame(timed["ablations"]).rename(columns={"read_seconds": "reading", "compute_seconds": "computing"})
    computed = apart[apart["slowdown"] == 1][["repeat", "batch", "computing"]]
    read = apart[["repeat", "slowdown", "batch", "reading"]]
    own = read[read["slowdown"] == 1]
    slowed = read[read["slowdown"] > 1].drop(columns="batch").merge(own[["repeat", "batch"]], on="repeat")
    return pd.concat([own, slowed]).merge(computed, on=["repeat", "batch"])


def slope(found: pd.DataFrame, column: str = "predicted") -> Number:
    """Return the slope through the origin of measured over predicted gains; Student's interval over the rounds.

    Args:
        found: of `points`, or some of its rows.
        column: which prediction.
    """
    each = [_through_origin(part[column], part["measured"]) for _, part in found.groupby("repeat")]
    note = f"{len(found)} gains in {len(each)} rounds, slowdowns {_listed(found['slowdown'])}"
    if len(each) < 2:
        return number(each[0], "", note=note)
    mean = mean_ci(each)
    return number(mean.estimate, "", [mean.low, mean.high], n_seeds=len(each), note=note)


def _through_origin(x: pd.Series, y: pd.Series) -> float:
    return float(np.dot(x, y) / np.dot(x, x))


def _listed(values: pd.Series) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))


def results(timed: Mapping[str, Any]) -> dict[str, Number]:
    """Return the slope over everything that was timed, and that of each slowdown: 2 is the positive control."""
    found = points(timed)
    if found.empty:
        return {}
    parts: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
        f"gain_slope/slowdown_{n}": lambda rows, n=n: rows["slowdown"] == n for n in sorted(set(found["slowdown"]))
    }
    return {"gain_slope": slope(found)} | {key: slope(found[of(found)]) for key, of in parts.items()}


def table(timed: Mapping[str, Any]) -> pd.DataFrame:
    """Set the slopes of both forms of the law side by side, by slowdown and together."""
    found, rows = points(timed), []
    for name, part in [*((f"{n}", own) for n, own in found.groupby("slowdown")), ("all", found)]:
        forms = {"reads ahead": slope(part), "waits": slope(part, "predicted_added")}
        told = {f"slope, {form}": _with_ends(one) for form, one in forms.items()}
        rows.append({"reading takes, times": name, "gains": len(part), **told})
    return pd.DataFrame(rows)


def _with_ends(one: Number) -> str:
    ends = f" [{one['ci'][0]:.3f}, {one['ci'][1]:.3f}]" if one["ci"] else ""
    return f"{one['value']:.3f}{ends}"
