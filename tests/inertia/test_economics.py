"""Checks the energy economics against sums worked out by hand, and the report's rule against its code's own branches.

The matrix has joules that are seconds times a known power, so prices and costs per right answer follow by arithmetic.

Run: pytest tests/inertia/test_economics.py
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from labkit.device.energy import Energy, above_idle
from labkit.routing.economics import energy_sentence, energy_table, meter_table, published_atp, with_estimate

WATTS = {"small": 10.0, "large": 40.0}


def matrix(**columns: object) -> pd.DataFrame:
    """Forty queries: the small model takes 1 s at 10 W and answers half, the large one 3 s at 40 W and 3 of 4."""
    rows = []
    for model, seconds, quality in (("small", 1.0, [1, 0, 1, 0]), ("large", 3.0, [1, 1, 1, 0])):
        for i in range(40):
            row = {"model": model, "query": i, "category": "any", "prompt": "Any", "quality": float(quality[i % 4])}
            rows.append(row | {"seconds": seconds, "joules": seconds * WATTS[model], "energy_state": "measured"})
    return pd.DataFrame(rows).assign(**columns)


def quick(rows: pd.DataFrame) -> pd.DataFrame:
    return energy_table(rows, bootstrap=300).set_index("model")


@pytest.mark.parametrize(
    ("answer", "model", "atp"),
    [
        ("Four is the answer, surely.", "bitnet", 0.1),
        ("Four is the answer???", "bitnet", 0.1),
        ("4", "bitnet", 0.7),
        ("[Error: no model here]", "bitnet", 0.9),
        ("[Timeout]", "bitnet", 0.9),
        ("Four is the answer, surely.", "qwen", 0.6),
        ("Is four the answer?", "qwen", 0.3),
        ("Is four the answer? Is it?", "qwen", 0.3),
        ("What is four? What is two? What is is?", "qwen", 0.1),
        ("4? 5? 6?", "qwen", 0.9),
    ],
)
def test_the_reports_energy_is_a_constant_of_the_model_and_the_question_marks(
    answer: str, model: str, atp: float
) -> None:
    assert published_atp("What is 2+2?", answer, model) == atp


def test_the_reports_energy_ignores_prompt_and_length() -> None:
    long = "A long and laborious answer. " * 500
    for model in ("bitnet", "qwen"):
        values = {published_atp(prompt, text, model) for prompt in ("1?", "Why? " * 99) for text in (long, long[:30])}
        assert len(values) == 1
    with pytest.raises(ValueError, match="'phi-2'"):
        published_atp("", "", "phi-2")


def test_measured_joules_per_query_per_right_answer_and_price() -> None:
    table = quick(matrix())
    assert table["joules_per_query"].tolist() == [10.0, 120.0]
    assert table["joules_per_right_answer"].tolist() == pytest.approx([10 / 0.5, 120 / 0.75])
    assert table["relative_price"].tolist() == [1.0, 12.0]
    assert set(table["energy_state"]) == {"measured"}
    assert set(table["price_basis"]) == {"joules, measured"}
    assert table.loc["small", "joules_per_right_answer_low"] < 20 < table.loc["small", "joules_per_right_answer_high"]
    assert energy_sentence(table.reset_index()).endswith("with small (joules, measured).")


def test_intervals_of_the_price_come_from_the_same_queries_for_both_models() -> None:
    # Both models take twice as long on half of the queries, so that their ratio does not vary at all.
    rows = matrix()
    rows["joules"] *= 1 + rows["query"] % 2
    table = quick(rows)
    assert table.loc["large", "joules_per_query_low"] < table.loc["large", "joules_per_query"]
    assert table.loc["large", ["relative_price_low", "relative_price_high"]].tolist() == pytest.approx([12.0, 12.0])


def test_without_joules_the_table_says_why_and_prices_in_seconds_by_name() -> None:
    table = quick(matrix(joules=None, energy_state="unavailable", energy_reason="no RAPL counter"))
    assert table["joules_per_query"].isna().all()
    assert table["joules_per_right_answer"].isna().all()
    assert table["relative_price"].tolist() == [1.0, 3.0]
    assert table["seconds_per_right_answer"].tolist() == pytest.approx([2.0, 4.0])
    assert set(table["price_basis"]) == {"seconds, measured; no price in energy"}
    assert set(table["why"]) == {"40 of 40 rows are unavailable: no RAPL counter"}
    sentence = energy_sentence(table.reset_index())
    assert "in seconds; joules are unavailable (40 of 40 rows are unavailable: no RAPL counter)" in sentence


@pytest.mark.parametrize("state", ["unavailable", "measured"])
def test_one_row_without_joules_makes_its_models_energy_unavailable(state: str) -> None:
    rows = matrix()
    rows.loc[50, ["joules", "energy_state"]] = [0.0 if state == "measured" else math.nan, state]
    table = quick(rows)
    assert table["energy_state"].tolist() == ["measured", "unavailable"]
    assert table.loc["small", "joules_per_query"] == 10.0
    assert math.isnan(table.loc["large", "joules_per_query"])
    assert table.loc["large", "why"] == "1 of 40 rows are unavailable"
    assert table.loc["large", "relative_price"] == 3.0


def test_estimates_fill_only_what_was_not_measured_and_are_called_estimates() -> None:
    rows = matrix()
    rows.loc[rows["model"] == "large", ["joules", "energy_state"]] = [math.nan, "unavailable"]
    filled = with_estimate(rows, 30.0, "30 W stated for this board")
    table = quick(filled)
    assert table["energy_state"].tolist() == ["measured", "estimated"]
    assert table["joules_per_query"].tolist() == [10.0, 90.0]
    assert "30 W stated for this board" in table.loc["large", "why"]
    # One side measured and the other estimated are no price together.
    assert table.loc["large", "price_basis"].startswith("seconds")
    assert rows["joules"].isna().sum() == 40


def test_a_price_of_estimates_is_labelled_and_equals_that_in_seconds() -> None:
    blank = matrix(joules=None, energy_state="unavailable")
    table = quick(with_estimate(blank, 30.0, "stated"))
    assert set(table["price_basis"]) == {"joules, estimated"}
    assert table.loc["large", "relative_price"] == pytest.approx(3.0)
    with pytest.raises(ValueError, match="watts is 0"):
        with_estimate(blank, 0.0, "stated")


def test_a_model_without_a_right_answer_has_no_joules_per_right_answer() -> None:
    rows = matrix()
    rows.loc[rows["model"] == "small", "quality"] = 0.0
    table = quick(rows)
    assert math.isnan(table.loc["small", "joules_per_right_answer"])
    assert table.loc["small", "joules_per_query"] == 10.0


def test_rows_without_energy_columns_are_unavailable() -> None:
    table = quick(matrix().drop(columns=["joules", "energy_state"]))
    assert set(table["energy_state"]) == {"unavailable"}
    assert "no column" in table.loc["small", "why"]


def test_results_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = matrix()
    rows["joules"] *= np.random.default_rng(0).lognormal(0, 0.3, len(rows))
    pd.testing.assert_frame_equal(quick(rows), quick(rows.sample(frac=1, random_state=1)))


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="'guessed'"):
        quick(matrix(energy_state="guessed"))
    with pytest.raises(ValueError, match="bootstrap is 5"):
        energy_table(matrix(), bootstrap=5)


def test_a_sensors_joules_stand_beside_those_above_idle_and_its_watts() -> None:
    block = Energy(state="measured", joules=300.0, seconds=10.0, sensor="rapl", n_updates=100, resolution_joules=0.1)
    idle = Energy(state="measured", joules=50.0, seconds=5.0, sensor="rapl", n_updates=30, resolution_joules=0.1)
    nothing = Energy(state="unavailable", reason="no sensor")
    answers = {
        "small": {"energy": block, "idle": idle, "above_idle": above_idle(block, idle)},
        "large": {"energy": nothing, "idle": nothing, "above_idle": above_idle(nothing, nothing)},
    }
    plain = {model: {name: energy.as_dict() for name, energy in own.items()} for model, own in answers.items()}
    table = meter_table(plain).set_index("model")
    assert table.loc["small"].tolist() == ["300 (measured)", "200 (measured)", "10 (measured)"]
    assert set(table.loc["large"]) == {"unavailable"}
