"""Tables and numbers of report 000: kinds of arms, exponents, the word baseline, what is out of reach.

References: laws made up here, and plain counting.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from labkit.dpo import arm as dpo
from labkit.dpo import evaluate, preferences
from labkit.ledger import claims
from labkit.reports.size_inertia import (
    arms,
    cost,
    coverage,
    factorial,
    results,
    routing_tables,
    study,
    surface,
    tiers,
    timing_tables,
    training_tables,
)
from labkit.reports.size_inertia.coverage import CoverageSpec
from labkit.reports.size_inertia.study import Study
from labkit.workflow import params
from labkit.workflow.cells import Cells


@pytest.fixture(scope="module")
def counted() -> dict[CoverageSpec, dict[str, Any]]:
    specs = coverage.coverage_specs(params.resolve("size_inertia", "cpu"))
    return {spec: coverage.measure_coverage(spec) for spec in specs}


@pytest.fixture
def empty(counted: dict[CoverageSpec, dict[str, Any]]) -> Study:
    """A study in which nothing was trained or timed."""
    cells = Cells.of("cpu", "size_inertia")
    return Study(params.resolve("size_inertia", "cpu"), cells, coverage=counted)


def test_a_tuned_arm_is_held_against_several_shuffles_template_negatives_and_fewer_pairs(empty: Study) -> None:
    cfg, model = empty.params, empty.params.control_models[0]
    own = arms.tuned_arms(cfg, model, 1e-4)
    assert [(arm.role, arm.variant, arm.label_seed, arm.n_pairs) for arm in own] == [
        ("tuned", "original", 0, 115),
        *(("shuffled", "shuffled", seed, 115) for seed in cfg.shuffles),
        ("template", "template", 0, 115),
        ("fewer pairs", "original", 0, 29),
        ("fewer pairs", "original", 0, 57),
    ]
    assert len({arm.name for arm in own}) == len(own)
    assert len({dpo.split_of(arm).train for arm in own if arm.role == "shuffled"}) == len(cfg.shuffles) > 1
    assert arms.report_arm(cfg, model, 0).role == "report"
    assert arms.sweep_arm(cfg, model, 1e-4).role == "sweep"
    listed = len(cfg.seeds) * (1 + len(cfg.report_rates)) + len(cfg.learning_rates) + len(own) - len(cfg.seeds)
    assert cost.n_arms(cfg, model) == listed


@pytest.mark.parametrize("profile", ["ci", "cpu", "cpu-24gb"])
def test_cells_are_counted_as_they_are_asked_for(profile: str) -> None:
    cfg = params.resolve("size_inertia", profile)
    asked = [coverage.coverage_specs, study.rungs, study.quantized_rungs, study.fidelity_specs, study.loads]
    asked += [study.question_specs, study.reference_specs, factorial.rungs]
    n_asked = sum(len(specs(cfg)) for specs in asked) + sum(len(tiers.specs(cfg, tier)) for tier in cfg.tiers)
    n_arms = sum(cost.n_arms(cfg, model) for model in cfg.models)
    once = 2 + bool(cfg.tiers) + bool(cfg.balanced_pairs)  # decisions, words and lengths; the same for the new ones
    assert cost.n_cells(cfg) == n_asked + n_arms + once


def done(margins: list[float], loss: float = 0.1) -> dict[str, Any]:
    """What a finished arm holds that the tables read."""
    summary = evaluate.accuracy(margins) | {"margin": float(np.mean(margins))}
    return {
        "held_out": [{"margin": margin} for margin in margins],
        "held_out_summary": summary,
        "reference": evaluate.accuracy([1.0, -1.0]),
        "curve": [{"loss": loss}],
    }


def test_shuffles_are_one_row_over_all_of_them_and_stand_against_the_true_labels(empty: Study) -> None:
    cfg, model = empty.params, empty.params.control_models[0]
    tuned, *controls = arms.tuned_arms(cfg, model, 1e-4)
    right = {0: 4, 1: 1, 2: 3}
    for arm in (tuned, *controls):
        n = right[arm.label_seed] if arm.role == "shuffled" else 4
        empty.arms[arm] = done([1.0] * n + [-1.0] * (4 - n))
    held = training_tables.held_out_table(empty).set_index("arm")
    row = held.loc["shuffled labels"]
    assert (row["correct"], row["n"], row["runs"], row["each"]) == (8, 12, 3, "4 1 3")
    assert held.index.tolist().count("shuffled labels") == 1
    assert held.loc["untrained", "correct"] == 1
    said = training_tables.against_shuffles(held.reset_index())
    assert said == [
        f"{model}: 1 of 3 shuffles of the labels did as well as the true ones "
        "(p = 0.5; with 3 shuffles it cannot be below 0.25)."
    ]
    lines = training_tables.conclusions(held.reset_index())
    assert any("shuffled labels: 8 of 12 over 3 runs (4 1 3 of 4 each)" in line for line in lines)
    assert not any("changed nothing" in line for line in lines)
    empty.arms = {arms.report_arm(cfg, model, 0): done([0.0] * 4)}
    lines = training_tables.conclusions(training_tables.held_out_table(empty))
    assert any("report's schedule" in line and "changed nothing" in line for line in lines)


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


def test_shapes_are_counted_as_they_are_published(counted: dict[CoverageSpec, dict[str, Any]]) -> None:
    for spec, found in counted.items():
        assert found["total"] == found["published"], spec.model


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
    only_from_a_run = {
        "size_exponent/decode",
        "size_exponent/train",
        "loss_difference/step_75",
        "preference_loss/smaller",
        "routing_gain/keyword_rule",
    }
    assert asked - set(told) == only_from_a_run


def test_phi_2_with_its_own_names_covers_what_the_reports_list_misses(empty: Study) -> None:
    table = results.coverage_table(empty.coverage).set_index(["model", "targets"])
    assert table.loc[("phi-2", "q, k, v, o"), "unmatched"] == "o_proj"
    assert table.loc[("phi-2", "q, k, v, dense"), "unmatched"] == ""


@pytest.fixture(scope="module")
def looked_at() -> dict[str, Any]:
    return surface.measure_surface(surface.SurfaceSpec())


def test_words_alone_tell_held_out_pairs_apart(empty: Study, looked_at: dict[str, Any]) -> None:
    empty.surface = looked_at
    row = training_tables.held_out_table(empty).iloc[-1]
    assert (row["arm"], row["n"], row["runs"]) == ("bag of words, 115 pairs", 40, 1)
    assert row["low"] > 0.5, "the pairs differ in vocabulary, which the notebook says"
    assert row["low"] < row["accuracy"] < row["high"]
    scores = looked_at["words"]["scores"]
    assert row["correct"] == sum(score > 0 for score in scores)


def test_swapped_labels_swap_the_scores_of_words(looked_at: dict[str, Any]) -> None:
    train, held_out = preferences.load("train"), preferences.load("held-out")
    swapped = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in train]
    scores = surface.word_scores(swapped, held_out)
    assert scores == pytest.approx([-score for score in looked_at["words"]["scores"]], abs=1e-3)


def test_the_table_of_pairs_has_what_lengths_alone_give_away(empty: Study, looked_at: dict[str, Any]) -> None:
    empty.surface = looked_at
    table = training_tables.pairs_table(empty).set_index("category")
    assert table["length_only_accuracy"].to_dict() == looked_at["lengths"]
    assert table["n"].to_dict() == {"factual": 50, "behavioural": 39, "self": 26, "all": 115}


def test_the_reports_times_are_fitted_without_any_run(empty: Study) -> None:
    laws = timing_tables.laws(empty)
    assert [law.series for law in laws] == ["report, cpu", "report, cuda", "report, training step"]
    table = timing_tables.law_table(laws)
    assert table["sizes"].tolist() == [3, 3, 2]
    assert "nothing tests it" in table["note"].iloc[2]


def test_what_a_guess_is_worth_is_taken_out_of_the_oracle() -> None:
    closed, opened = "Is ice cold? Answer yes or no.", "What is 2 + 2?"
    rows = [("a", "q1", closed, "Yes.", 1), ("a", "q2", opened, "4", 1), ("a", "q3", opened + "?", "5", 0)]
    rows += [("b", "q1", closed, "no", 0), ("b", "q2", opened, "3", 0), ("b", "q3", opened + "?", "4", 1)]
    answers = pd.DataFrame(rows, columns=["model", "query", "prompt", "answer", "quality"])
    said = routing_tables.yes_no_sentence(answers)
    assert "1 questions ask for yes or no" in said
    assert "a 1 times, b 0 times" in said
    assert "On the other 2 the oracle is right 2 times, the best single model 1 times." in said
    assert routing_tables.yes_no_sentence(answers[answers["query"] != "q1"]) == "No question asks for yes or no."
