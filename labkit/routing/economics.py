"""What a query costs in joules and in price, and which of these numbers are measured, estimated or unavailable.

Report 000 prices queries in "ATP" and says that small models use less of it. Its code reads no power sensor: what it
calls energy is a constant per model, or per number of question marks in the answer (`published_atp`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit.device.energy import estimate
from labkit.routing.answer_table import Array, answer_table
from labkit.stats import Interval

STATES = ("measured", "estimated", "unavailable", "not requested")
"""States of an energy, best first; a model's is the worst of its rows'."""
_LEVEL = 0.95


def published_atp(prompt: str, answer: str, model: str) -> float:
    """Return the report's "energy" of an answer, as its two plugins compute it.

    The source is dp-web4/HRM, sage/irp/plugins/bitnet_irp.py and qwen_alive_irp.py, method `energy`. Neither looks at
    the prompt, the time, the tokens or the power.

    Args:
        prompt: the question; has no influence.
        answer: the model's text.
        model: `bitnet` or `qwen`.

    Returns:
        for bitnet 0.1, or 0.7 below 10 characters, or 0.9 after an error; for qwen 0.9 below 10 characters, else 0.1
        with at least 3 question marks, 0.3 with 1 or 2, 0.6 with none.

    Raises:
        ValueError: the report has no rule for the model.
    """
    if model == "bitnet":
        if answer.startswith(("[Error", "[Timeout")):
            return 0.9
        return 0.7 if len(answer) < 10 else 0.1
    if model == "qwen":
        if len(answer) < 10:
            return 0.9
        questions = answer.count("?")
        return 0.1 if questions >= 3 else 0.3 if questions >= 1 else 0.6
    raise ValueError(f"model is {model!r}; the report has a rule for 'bitnet' and for 'qwen'")


def with_estimate(matrix: pd.DataFrame, watts: float, model: str) -> pd.DataFrame:
    """Fill in estimated joules where none were measured, from a power that somebody stated.

    Args:
        matrix: rows with seconds, joules and energy_state; measured rows stay as they are.
        watts: stated power, as from `labkit.device.energy.stated_watts`.
        model: where the watts come from, in words.

    Returns:
        a copy whose filled rows have the state `estimated`, and the model in `energy_reason`.

    Raises:
        ValueError: watts or a row's seconds is not positive, or the model is empty.
    """
    filled = matrix.copy()
    if "energy_reason" not in filled:
        filled["energy_reason"] = ""
    filled["joules"] = filled["joules"].astype(float)
    for at in filled.index[filled["energy_state"] != "measured"]:
        energy = estimate(float(filled.at[at, "seconds"]), watts, model)
        filled.loc[at, ["joules", "energy_state", "energy_reason"]] = [energy.joules, energy.state, energy.model]
    return filled


def energy_table(matrix: pd.DataFrame, *, right: float = 0.5, bootstrap: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Lay out joules per query and per right answer and the relative price, with 95 % intervals over queries.

    A model's joules count only where every row of it has some. The price is relative to the cheapest model: in joules
    if all models have them in one state, otherwise in seconds, and `price_basis` says which.

    Args:
        matrix: rows as in `answer_table`, with joules (may be missing), energy_state and optionally energy_reason.
        right: quality from which on an answer counts as right.
        bootstrap: resamples of the queries, at least 100.
        seed: the same seed gives the same intervals.

    Returns:
        a row per model, cheapest first: model, energy_state, why; joules_per_query, joules_per_right_answer,
        seconds_per_query, seconds_per_right_answer and relative_price, each with _low and _high; price_basis. What is
        unavailable is NaN, and so is an interval's end where over 2.5 % of the resamples have no right answer.

    Raises:
        ValueError: the matrix is incomplete or has an unknown energy_state, or too few resamples.
    """
    if bootstrap < 100:
        raise ValueError(f"bootstrap is {bootstrap}; an interval needs at least 100 resamples")
    answers = answer_table(matrix)
    n = len(answers.queries)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap)
    weights = np.vstack([np.ones(n), drawn])
    rights = weights @ (answers.quality >= right)
    seconds = weights @ answers.cost
    states = {model: _state(matrix[matrix["model"] == model], model) for model in answers.models}
    joules = _joules(matrix, answers.models, answers.queries, states)
    shared = {state for state, _ in states.values()}
    in_joules = len(shared) == 1 and shared <= {"measured", "estimated"}
    spent = weights @ joules if in_joules else seconds
    basis = f"joules, {shared.pop()}" if in_joules else "seconds, measured; no price in energy"
    rows = []
    for i, model in enumerate(answers.models):
        state, why = states[model]
        used = weights @ joules[:, i]
        rows.append(
            {"model": model, "energy_state": state, "why": why}
            | _columns("joules_per_query", used / n)
            | _columns("joules_per_right_answer", _per(used, rights[:, i]))
            | _columns("seconds_per_query", seconds[:, i] / n)
            | _columns("seconds_per_right_answer", _per(seconds[:, i], rights[:, i]))
            | _columns("relative_price", spent[:, i] / spent[:, 0])
            | {"price_basis": basis}
        )
    return pd.DataFrame(rows)


def meter_table(answers: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out what the sensor counted while each model answered, and what is left of it above idling.

    A sensor counts the whole chip or board, so the first number holds power that is drawn whether or not a model runs.
    Where there are no joules the state stands alone; `energy_sentence` has the reason.

    Args:
        answers: what `matrix.answer_questions` returned, by model.
    """
    return pd.DataFrame(
        [
            {
                "model": model,
                "joules of all answers": _joules_or_state(answered["energy"]),
                "joules above idle": _joules_or_state(answered["above_idle"]),
                "idle watts": _joules_or_state(answered["idle"], per_second=True),
            }
            for model, answered in answers.items()
        ]
    )


def _joules_or_state(energy: Mapping[str, Any], *, per_second: bool = False) -> str:
    if energy["joules"] is None:
        return energy["state"]
    value = energy["joules"] / energy["seconds"] if per_second else energy["joules"]
    return f"{value:.3g} ({energy['state']}{', coarse' if energy['coarse'] else ''})"


def energy_sentence(table: pd.DataFrame) -> str:
    """Say what the energy table shows, and which kind of number it is."""
    cheap, dear = table.iloc[0], table.iloc[-1]
    price = Interval(
        estimate=dear["relative_price"], low=dear["relative_price_low"], high=dear["relative_price_high"], level=_LEVEL
    )
    sentence = f"A query costs {price} times as much with {dear['model']} as with {cheap['model']}"
    if dear["price_basis"].startswith("joules"):
        return f"{sentence} ({dear['price_basis']})."
    reasons = "; ".join(dict.fromkeys(row["why"] for _, row in table.iterrows() if row["why"]))
    return f"{sentence} in seconds; joules are unavailable ({reasons}), so this is no energy price."


def _state(rows: pd.DataFrame, model: str) -> tuple[str, str]:
    """Return the worst state of a model's rows, and why it is not better."""
    if "energy_state" not in rows or "joules" not in rows:
        return "unavailable", "the rows have no column energy_state or joules"
    unknown = sorted(set(rows["energy_state"]) - set(STATES))
    if unknown:
        raise ValueError(f"energy_state of {model} is {unknown[0]!r}; it must be one of {', '.join(STATES)}")
    # A row that claims joules and has none is worth no more than one that says so.
    bare = rows["energy_state"].isin(STATES[:2]) & ~(rows["joules"].astype(float) > 0)
    states = rows["energy_state"].where(~bare, "unavailable")
    worst = max(states, key=STATES.index)
    if worst == "measured":
        return worst, ""
    of_worst = rows[states == worst]
    given = [str(text) for text in of_worst.get("energy_reason", pd.Series(dtype=object)).dropna().unique() if text]
    why = f"{len(of_worst)} of {len(rows)} rows are {worst}"
    return worst, f"{why}: {'; '.join(given)}" if given else why


def _joules(
    matrix: pd.DataFrame, models: tuple[str, ...], queries: tuple[str, ...], states: dict[str, tuple[str, str]]
) -> Array:
    """Joules of every answer [n, m]; NaN for a model of which some row has none."""
    joules = np.full((len(queries), len(models)), np.nan)
    for i, model in enumerate(models):
        if states[model][0] in STATES[:2]:
            rows = matrix[matrix["model"] == model]
            by_query = pd.Series(rows["joules"].to_numpy(float), index=rows["query"].astype(str))
            joules[:, i] = by_query.loc[list(queries)]
    return joules


def _per(total: Array, rights: Array) -> Array:
    """Divide by the number of right answers; infinite where there is none, NaN where the total is unknown."""
    return np.where(rights > 0, total / np.maximum(rights, 1), np.where(np.isnan(total), np.nan, np.inf))


def _columns(name: str, values: Array) -> dict[str, Any]:
    """Take the first value as the estimate and percentiles of the others; what is not finite becomes NaN."""
    low, high = np.quantile(values[1:], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="inverted_cdf")
    finite = [float(x) if math.isfinite(x) else math.nan for x in (values[0], low, high)]
    return dict(zip((name, f"{name}_low", f"{name}_high"), finite, strict=True))
