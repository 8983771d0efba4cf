"""Tables and numbers of report 000: kinds of arms, exponents, the word baseline, what is out of reach.

References: laws made up here, and plain counting.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit import claims, params
from labkit.inertia import arms, results, timing_tables, training_tables
from labkit.inertia.study import Study


@pytest.fixture
def empty() -> Study:
    return Study(params.resolve("size_inertia", "cpu"))


def test_the_kind_of_an_arm_is_read_from_its_name(empty: Study) -> None:
    cfg, model = empty.params, empty.params.control_models[0]
    kinds = [training_tables.kind_of(arm) for arm in arms.tuned_arms(cfg, model, 1e-4)]
    assert kinds == ["tuned", "shuffled", "template", "29 pairs", "57 pairs"]
    assert training_tables.kind_of(arms.report_arm(cfg, model, 0)) == "report"
    assert training_tables.kind_of(arms.sweep_arm(cfg, model, 1e-4)) == "sweep 0.0001"


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    size = np.geomspace(1e7, 1e9, 5)
    points = pd.DataFrame({"name": list("abcde"), "bytes": size, "seconds": 1e-3 * size**exponent})
    found = results.size_exponent(points)
    assert found["value"] == pytest.approx(exponent)
    assert found["ci"] == pytest.approx([exponent, exponent])


def test_an_affine_law_has_an_exponent_between_0_and_1_with_a_width() -> None:
    size = np.geomspace(1e7, 1e9, 5)
    points = pd.DataFrame({"name": list("abcde"), "bytes": size, "seconds": 3e-3 + size / 2e10})
    found = results.size_exponent(points)
    assert 0 < found["ci"][0] < found["value"] < found["ci"][1] < 1.2


def test_exact_numbers_need_no_run(empty: Study) -> None:
    found = results.results(empty)
    assert found["parameter_ratio/phi-2_over_qwen2.5-0.5b"]["value"] == pytest.approx(5.6265, abs=1e-4)
    assert found["lora_trainable/phi-2"]["value"] == 7_864_320
    assert found["lora_percent/qwen2.5-0.5b"]["value"] == pytest.approx(0.436, abs=1e-3)
    assert found["dpo/optimizer_steps"]["value"] == 75
    assert not [key for key in found if key.startswith("loss/")], "nothing was trained"


def test_every_result_the_ledger_asks_for_is_measured_or_said_to_be_out_of_reach(empty: Study) -> None:
    told = results.results(empty) | results.out_of_reach(empty)
    asked = {check.key for claim in claims.load("size_inertia") for check in claim.checks}
    only_from_a_run = {"size_exponent/decode", "size_exponent/train"}
    assert asked - set(told) == only_from_a_run


def test_phi_2_with_its_own_names_covers_what_the_reports_list_misses(empty: Study) -> None:
    table = results.coverage_table(empty.params).set_index(["model", "targets"])
    assert table.loc[("phi-2", "q, k, v, o"), "unmatched"] == "o_proj"
    assert table.loc[("phi-2", "q, k, v, dense"), "unmatched"] == ""


def test_words_alone_tell_held_out_pairs_apart_and_shuffled_words_would_not() -> None:
    found = training_tables.word_baseline()
    assert found["n"] == 40
    assert found["low"] > 0.5, "the pairs differ in vocabulary, which the notebook says"
    assert found["low"] < found["accuracy"] < found["high"]


def test_the_reports_times_are_fitted_without_any_run(empty: Study) -> None:
    laws = timing_tables.laws(empty)
    assert [law.series for law in laws] == ["report, cpu", "report, cuda", "report, training step"]
    table = timing_tables.law_table(laws)
    assert table["sizes"].tolist() == [3, 3, 2]
    assert "nothing tests it" in table["note"].iloc[2]
