"""The whole run of report 000 on tiny models: every cell has a result, a rerun computes nothing, a killed run resumes,
a report is shown from its record without its models.

References: an uninterrupted run, compared number by number, and the files of the store.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from labkit import models
from labkit.base import paths
from labkit.base.modes import RENDER
from labkit.dpo import preferences
from labkit.dpo.arm import train_arm
from labkit.progress import Progress
from labkit.reports.size_inertia import (
    arms,
    fidelity,
    matrix,
    preferred,
    results,
    routing_tables,
    study,
    training_tables,
)
from labkit.reports.size_inertia.params import SizeInertia
from labkit.reports.size_inertia.study import Study, run_study
from labkit.routing import economics
from labkit.workflow import params
from labkit.workflow.cells import Cells, MissingCells

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "vocab_size": 400}
SCOPE = {"ladder": ["qwen2-16m"], "quantized": ["qwen2-16m"], "new_tokens": 3, "prompt_tokens": 4, "answer_tokens": 3}
SCOPE |= {
    "weights_dtype": "float32",
    "report_steps": 2,
    "tuned_steps": 3,
    "sweep_steps": 2,
    "learning_rates": [1e-3, 1e-2],
}
SCOPE |= {"held_out_pairs": 6, "questions": 9, "dataset_sizes": [16, 115], "bootstrap": 200, "workers": 1}
SCOPE |= {"shuffles": [0, 1], "fidelity_tokens": 512}
SCOPE |= {"factorial_widths": [64], "factorial_depths": [1, 2], "generated_questions": 4}
SCOPE |= {"models": list(models.OFFLINE_PAIR), "control_models": ["smollm2-135m"]}
SCOPE |= {"tiers": ["smollm2-135m", "gemma-3-270m+notes"]}
FEWER = {"models": ["smollm2-135m"], "shuffles": [0], "learning_rates": [1e-3], "dataset_sizes": [115]}
FEWER |= {"tiers": [], "generated_questions": 0, "balanced_pairs": 0, "factorial_widths": [], "factorial_depths": []}

N_NEW = len(
    ["reference", "reference", "words of the balanced pairs", "tier", "tier", "tiers decided", "w64-l1", "w64-l2"]
)
"""Cells beside arms, adapters, rungs, loads and questions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models under the names of the offline pair, which a folder of the user's own replaces."""
    own = Tokenizer(BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [text for pair in preferences.load("train") for text in (pair.prompt, pair.chosen)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(texts, BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet))
    target = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(models.OFFLINE_PAIR):
        end = own.token_to_id("<end>")
        model = models.build("qwen2.5-0.5b", seed=seed, **TINY, eos_token_id=end)
        model.save_pretrained(target / name)
        PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(target / name)
    return target


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SizeInertia:
    monkeypatch.setenv("LABKIT_MODELS", str(folder))
    return params.resolve("size_inertia", "ci", SCOPE)


def numbers(done: Study) -> str:
    """Every loss and margin of every arm, as text."""
    kept = {arm.name: [done.arms[arm]["curve"], done.arms[arm]["held_out"]] for arm in done.arms}
    for curve, _ in kept.values():
        for row in curve:
            row.pop("seconds")
    return json.dumps(kept, sort_keys=True)


def test_every_cell_has_a_result_and_a_rerun_computes_nothing(small: SizeInertia) -> None:
    first = run_study(small)
    assert first.cells.failures == {}
    assert first.cells.cached == 0
    assert set(first.rungs) == {"qwen2-16m"}
    assert set(first.answers) == set(first.loads) == set(models.OFFLINE_PAIR)
    names = {arm.name.removeprefix("smollm2-135m ") for arm in first.arms if arm.model == "smollm2-135m"}
    fixed = {"report s0", "tuned s0", "shuffle 0", "shuffle 1", "template", "16 pairs"}
    assert names >= fixed | {"sweep 0.001", "sweep 0.01"}
    assert all(name.startswith("sweep") for name in names - fixed)
    cells = {path: path.stat().st_mtime_ns for path in (paths.runs("ci", "size_inertia") / "cells").iterdir()}
    again = run_study(small)
    assert again.cells.cached == len(cells) == len(first.arms) + len(first.coverage) + 1 + 3 + 2 + 2 + 2 + 1 + 1 + N_NEW
    assert numbers(again) == numbers(first)
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
    swept = training_tables.sweep_table(first)
    assert swept["chosen"].str.startswith("chosen").sum() == 2
    held = training_tables.held_out_table(first)
    assert set(held.loc[held["model"] != "words alone", "pairs"]) == {6}
    assert held.loc[held["arm"] == "shuffled labels", "n"].tolist() == [12]
    kept = fidelity.fidelity_table(first.fidelity.values()).set_index("weights")
    assert 0 < kept.loc["int8", "same likeliest token"] <= 1
    assert kept.loc["int8", "perplexity after"] == pytest.approx(kept.loc["int8", "perplexity before"], rel=0.05)
    metered = economics.meter_table(first.answers)
    assert metered["model"].tolist() == list(models.OFFLINE_PAIR)
    assert (held["low"] < held["accuracy"] + 1e-12).all()
    found = results.results(first)
    assert found["dpo/optimizer_steps"]["value"] == 75
    assert "loss/phi-2/step_75" in results.out_of_reach(first)
    assert {"law/decode/per_layer", "loss_difference/step_75"}.isdisjoint(found), "one round, two steps"
    judged = training_tables.judged_table(first)
    assert set(judged["way"]) == set(preferred.WAYS)
    assert set(judged["pairs_of"]) == set(preferred.SETS.values())
    assert {len(rows) for rows in first.tier_rows.values()} == {4}
    assert len(routing_tables.generated_accuracy(first)) > 0
    assert routing_tables.generated_policy_table(first)["policy"].tolist()[-1] == "oracle"
    assert len(training_tables.moved_and_preferred(judged)) > 0
    untrained = judged[(judged["arm"] == "untrained") & (judged["pairs_of"] == "held-out pairs")]
    assert (untrained["pairs"] == 40).all()


def test_a_run_killed_within_an_arm_resumes_and_ends_with_the_same_numbers(
    small: SizeInertia, output_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {**SCOPE, **FEWER, "report_steps": 30}
    code = (
        "from labkit.workflow import params; from labkit.reports.size_inertia.study import run_study; "
        f"run_study(params.resolve('size_inertia', 'ci', {longer!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"LABKIT_OUTPUT": str(output_folder)})
    work = output_folder / "runs" / "ci" / "size_inertia" / "arms"
    deadline = time.monotonic() + 240
    while not list(work.glob("*/checkpoint-1*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed in the middle of an arm"
    wanted = params.resolve("size_inertia", "ci", longer)
    resumed = run_study(wanted)
    assert resumed.cells.cached > 0
    assert any(done["resumed_from_step"] > 0 for done in resumed.arms.values())
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    assert numbers(run_study(wanted)) == numbers(resumed)


def test_a_shape_larger_than_memory_is_a_failure_with_its_numbers(
    small: SizeInertia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.shapes.machine, "available_memory_bytes", lambda: 2**20)
    done = run_study(params.resolve("size_inertia", "ci", {**SCOPE, **FEWER}))
    assert "needs 59.5 MiB for its weights and 1.0 MiB are free" in done.cells.failures["rung qwen2-16m"]
    assert set(done.arms) != set(), "what fits still runs"


@pytest.mark.filterwarnings("ignore")
def test_a_learning_rate_at_which_training_diverges_is_a_failure_and_was_tried(small: SizeInertia) -> None:
    wanted = {**SCOPE, **FEWER, "learning_rates": [1e-3, 1e30]}
    done = run_study(params.resolve("size_inertia", "ci", wanted))
    losses = done.sweeps["smollm2-135m"]
    assert losses[1e30] == math.inf
    assert max(losses) == 1e30
    assert done.best_rate["smollm2-135m"] <= 1e-3
    assert list(done.cells.failures) == ["arm smollm2-135m sweep 1e+30"]
    assert "FloatingPointError" in done.cells.failures["arm smollm2-135m sweep 1e+30"]
    table = training_tables.sweep_table(done).set_index("learning rate")
    assert table.loc[1e30, "validation loss"] == math.inf


@pytest.mark.parametrize(
    ("losses", "tried"),
    [([0.6, 0.5, None], [1e-3, 1e-2, 1e-1]), ([0.6, 0.5, 0.4], [1e-3, 1e-2, 1e-1, 1.0]), ([None, None, None], [])],
    ids=["diverged at the top", "best at the top", "nothing on record"],
)
def test_a_rate_that_diverged_bounds_the_sweep(
    losses: list[float | None], tried: list[float], small: SizeInertia, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = params.resolve("size_inertia", "ci", {**SCOPE, **FEWER, "learning_rates": [1e-3, 1e-2, 1e-1]})
    cells = Cells.of("ci", "size_inertia", Progress(1, "sweep"))
    recorded = {1e-3: losses[0], 1e-2: losses[1], 1e-1: losses[2], 1.0: 0.9} if any(losses) else {}
    for rate, loss in recorded.items():
        arm = arms.sweep_arm(wanted, "smollm2-135m", rate)
        if loss is None:
            cells.fail(train_arm, arm, arm.name, FloatingPointError("the DPO loss is nan at step 2"))
        else:
            cells.keep(train_arm, arm, arm.name, {"validation": {"loss": loss}})
    monkeypatch.setenv(RENDER, "1")
    again = Study(wanted, Cells.of("ci", "size_inertia", Progress(1, "sweep")))
    found = study._Walk(again)._sweep("smollm2-135m")
    assert [*found] == pytest.approx(tried)
    assert bool(again.cells.missing) == (not tried)
    assert all(math.isinf(found[rate]) == (loss is None) for rate, loss in recorded.items() if rate in found)


def nothing_is_loaded(*args: Any, **options: Any) -> None:
    raise AssertionError("a model or a tokenizer is loaded")


def test_what_is_on_record_is_shown_without_models_and_what_is_not_is_named(
    small: SizeInertia, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = run_study(small)
    monkeypatch.setenv(RENDER, "1")
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", nothing_is_loaded)
        patch.setattr(PreTrainedTokenizerBase, "from_pretrained", nothing_is_loaded)
        shown = run_study(small)
    assert numbers(shown) == numbers(computed)
    assert shown.cells.used.keys() == computed.cells.used.keys()
    answers = matrix.frame(row for answered in shown.answers.values() for row in answered["rows"])
    curves = [routing_tables.frontier(routing_tables.replays(answers, done)[0])[0] for done in (shown, computed)]
    assert curves[0].equals(curves[1]), "deciding is not timed again"
    for path in (paths.runs("ci", "size_inertia") / "cells").iterdir():
        if '"inertia.arm"' in path.read_text():
            path.unlink()
    with pytest.raises(MissingCells, match=r"inertia\.arm: arm smollm2-135m sweep 0\.001") as refused:
        run_study(small)
    assert {name for name, _, _ in refused.value.cells.missing} == {"inertia.arm"}
    assert not any("tuned" in label for _, _, label in refused.value.cells.missing), "their learning rate is unknown"


def test_an_arms_name_and_role_are_no_part_of_its_cell_and_all_else_is() -> None:
    arm = arms.sweep_arm(params.resolve("size_inertia", "cpu"), "smollm2-135m", 1e-4)
    renamed = dataclasses.replace(arm, name="other", role="tuned")
    assert train_arm.identity(arm) == train_arm.identity(renamed)
    assert train_arm.identity(arm)["data"].keys() == {
        "weights smollm2-135m",
        *(f"file inertia/data/{name}" for split in preferences.SPLITS.values() for name in split),
    }
    fields = {field.name for field in dataclasses.fields(arm)} - {"name", "role"}
    assert train_arm.identity(arm)["spec"].keys() == fields


def test_the_rate_is_chosen_by_the_pairs_that_were_not_trained_on() -> None:
    cfg = params.resolve("size_inertia", "cpu")
    arm = arms.sweep_arm(cfg, cfg.models[0], 1e-4)
    assert (arm.n_pairs, arm.validate_on_rest, arm.learning_rate) == (92, True, 1e-4)


def test_the_reports_arm_keeps_its_schedule_when_it_is_cut_short() -> None:
    cfg = params.resolve("size_inertia", "cpu")
    arm = arms.report_arm(cfg, cfg.models[0], 0)
    assert (arm.schedule_steps, arm.warmup_steps, arm.learning_rate) == (75, 50, 5e-5)
    assert arm.steps == cfg.report_steps < 75
    assert dataclasses.replace(arm, steps=75).planned_steps == 75


def test_every_cell_of_a_profile_is_described_before_it_runs() -> None:
    cfg = params.resolve("size_inertia", "cpu")
    assert [spec.name for spec in study.rungs(cfg)] == cfg.ladder
    assert {spec.weights for spec in study.quantized_rungs(cfg)} == {"bfloat16", "int8", "int4"}
    assert [spec.n_questions for spec in study.question_specs(cfg)] == [cfg.questions] * 2
