"""The study: what runs, that a second run finds everything and so does a rendering on a machine that holds nothing but
the cells, that a learning rate at the edge is followed, divergence counted.
"""

import pytest

from labkit import models
from labkit.base.modes import RENDER
from labkit.reports.predict_phase import confirmed, protocol, results, study, sweeps, tables
from labkit.reports.predict_phase.arms import ARMS, SETTINGS
from labkit.reports.predict_phase.cost import plan_study
from labkit.reports.predict_phase.params import PredictPhase
from labkit.workflow import params
from labkit.workflow.cells import MissingCells

SMALL = {
    "steps": 24,
    "budgets": [0.5, 1.0],
    "arms": ["adamw", "frozen", "rejecting"],
    "learning_rates": [4e-3, 8e-3],
    "held_out_windows": 16,
    "memory_steps": 16,
    "finetune_steps": 0,
    "cost_rounds": None,
}


@pytest.fixture(scope="module")
def cfg():
    return params.resolve("predict_phase", "ci", SMALL)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def both(cfg, output):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUTPUT", str(output))
        return study.run_study(cfg), study.run_study(cfg)


@pytest.fixture
def rendering(monkeypatch, tmp_path):
    """A machine that holds no text and runs nothing."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv(RENDER, "1")


def test_a_second_run_finds_every_cell_and_says_the_same(both, cfg):
    first, second = both
    assert (first.cells.failures, second.cells.failures) == ({}, {})
    assert first.cells.cached == 0
    own = (second.scratch.results, second.originals, second.oracles, second.noises)
    assert second.cells.cached == sum(map(len, own)) + 1 == len(second.cells.used)
    assert first.scratch.comparison().equals(second.scratch.comparison())


def test_a_rendering_needs_the_cells_and_nothing_else(both, cfg, output, rendering, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_OUTPUT", str(output))
    shown = study.run_study(cfg)
    assert shown.cells.used.keys() == both[1].cells.used.keys()
    assert shown.scratch.comparison().equals(both[0].scratch.comparison())
    assert (shown.originals, shown.oracles, shown.growth) == (both[0].originals, both[0].oracles, both[0].growth)
    assert not (tmp_path / "empty").exists()


def test_a_rendering_without_cells_names_those_that_the_rest_follows_from(cfg, rendering):
    with pytest.raises(MissingCells, match=r"hybrid\.original: original, published init") as caught:
        study.run_study(cfg)
    missing = caught.value.cells.missing
    sweeps_asked = sum(len(own.tuned_arms()) for own in study.make_study(cfg).contests()) * len(cfg.learning_rates)
    labels = [label for _, _, label in missing]
    assert len(labels) == len(set(labels)) <= 2 + sweeps_asked
    assert {name for name, _, _ in missing} == {"hybrid.original", "hybrid.train"}


def test_the_comparison_has_every_arm_budget_and_seed_and_no_tuning_run(both, cfg):
    runs = both[0].scratch.comparison()
    assert len(runs) == len(cfg.arms) * len(cfg.budgets) * len(cfg.seeds)
    assert set(runs["steps"]) == {12, 24}
    assert cfg.tuning_seed not in set(runs["seed"])
    rejecting, plain = (
        runs[runs["arm"] == name].sort_values("steps")["loss"].tolist() for name in ("rejecting", "adamw")
    )
    assert rejecting == plain


def test_its_tables_and_numbers_are_whole(both):
    own = both[0]
    judgements = protocol.judge(own.scratch.comparison())
    assert [found.arm for found in judgements] == ["frozen", "rejecting"]
    original = tables.original_table(own).set_index("initialisation")
    assert original.loc["published", "speed at equal loss"] > 0
    assert original.loc["usual", ["gap, %", "speed at equal loss"]].isna().all(), "no ratio is read off noise"
    assert len(tables.oracle_table(own.oracles)) == 3
    found = results.results(own, judgements)
    assert {key: found[f"phases/{key}"]["value"] for key in ("warmup", "full", "predict", "correct")} == {
        "warmup": 5, "full": 10, "predict": 20, "correct": 15,
    }  # fmt: skip
    built = models.build("gpt2", device="meta", n_embd=1024, n_layer=24, n_head=16)
    assert found["parameters/gpt2_medium"]["value"] == sum(p.numel() for p in built.parameters())
    assert found["parameters/gpt2"]["value"] == 124_439_808
    assert set(results.out_of_reach(own)) == set(results.ORIGINAL), "another model's protocol says nothing of GPT-2's"
    assert not set(found) & set(results.ORIGINAL)


def test_a_rate_is_chosen_and_said_to_lie_inside_only_where_worse_ones_lie_on_both_sides(cfg):
    own = study.make_study(cfg.model_copy(update={"arms": ["adamw", "frozen"]})).scratch
    inf = float("inf")
    for losses, rate, inside in (
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}, 2e-3, True),
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: inf}, 2e-3, True),
        ({1e-3: 3.0, 2e-3: 2.0}, 2e-3, False),
        ({1e-3: 3.0}, 1e-3, False),
        ({2e-3: inf, 1e-3: inf}, 1e-3, False),
    ):
        own.choose({"adamw": losses, "frozen": losses})
        assert (own.best_rate["frozen"], own.interior["frozen"]) == (rate, inside), losses


def test_a_diverged_run_has_a_row_and_a_failed_one_is_left_to_the_failures(cfg):
    own = study.make_study(cfg).scratch
    own.best_rate = dict.fromkeys(cfg.arms, 1e-3)
    first = own.compared_runs()[0]
    counted = {"seconds": 2.0, "real_steps": 12, "probe_forwards": 0, "tokens": 96, "added_bytes": 1}
    own.results[first] = counted | {"loss_nats": 5.7, "phases": {}, "jumps": [], "diverged": True}
    table = own.comparison()
    assert table[["arm", "loss", "seconds", "diverged"]].to_dict("records") == [
        {"arm": first.arm, "loss": 5.7, "seconds": 2.0, "diverged": True}
    ]


def test_a_setting_is_held_against_the_baseline_with_as_many_steps_and_against_shorter_ones(both, cfg):
    table = sweeps.settings_table(both[0]).set_index("setting")
    assert list(table.index) == ["adamw", *SETTINGS["memory"]]
    assert table.loc["adamw", ["loss, %", "time"]].tolist() == [0.0, 1.0]
    assert table.loc["offloaded", "loss, %"] == pytest.approx(table.loc["accumulated", "loss, %"], abs=0.1)
    added = table["memory added, MiB"]
    assert 1 < added["accumulated"] < added["adamw"] < 500


def test_arms_at_other_rates_take_multiples_of_the_tuned_one(cfg):
    own = study.make_study(cfg.model_copy(update={"settings": ["rate"]})).settings
    own.choose({"adamw": {4e-3: 2.0, 8e-3: 1.0, 1.6e-2: 3.0}})
    assert own.best_rate == {
        "adamw": 8e-3,
        "adamw-x1.5": 1.2e-2,
        "adamw-x2": 1.6e-2,
        "adamw-slow": 5e-4,
        "last-update-slow": 5e-4,
    }


def test_every_setting_is_an_arm_of_its_own():
    names = [name for family in SETTINGS.values() for name in family]
    assert len(set(names)) == len(names)
    assert all(ARMS[name].tuned_as == "adamw" for name in names)


def test_batches_are_held_against_the_noise_of_the_gradient(both, cfg):
    table = sweeps.noise_table(both[0])
    assert list(table["arm"]) == study.BY_BATCH[1:]
    assert (table["windows a step"] == cfg.noise_batch_sizes[0]).all()
    assert (table["batch over noise scale"] * table["noise scale, windows"]).round(6).eq(4).all()
    assert (table["speed"] > 0).all()


def test_the_confirmatory_run_is_read_from_what_was_published(both, tmp_path):
    assert confirmed.confirmed_runs(tmp_path) is None
    runs = both[0].scratch.comparison()
    runs.to_csv(tmp_path / "runs.csv", index=False)
    runs.iloc[:0].to_csv(tmp_path / "finetune_runs.csv", index=False)
    (tmp_path / "run.json").write_text('{"provenance": {"git": {"commit": "0123456789"}}}')
    found = confirmed.confirmed_runs(tmp_path)
    assert str(found) == "confirmatory run on cpu-24gb, published at 0123456: 6 from scratch over 1 seeds"
    read, own = (protocol.judge(table) for table in (found.runs["from scratch"], runs))
    assert read == own


def test_runs_of_a_seed_follow_each_other_so_that_arms_share_the_machines_hours(cfg):
    own = study.make_study(cfg.model_copy(update={"seeds": [0, 1]})).scratch
    own.best_rate = dict.fromkeys(cfg.arms, 1e-3)
    runs = own.compared_runs()
    assert [run.seed for run in runs] == [0] * 6 + [1] * 6
    assert [run.arm for run in runs[:3]] == cfg.arms


def test_settings_and_batch_sizes_run_beside_the_comparison_of_their_seed(cfg):
    own = study.make_study(cfg.model_copy(update={"seeds": [0, 1], "side_seeds": [0, 1]}))
    for each in own.contests():
        each.best_rate = dict.fromkeys(each.arms, 1e-3)
    runs = study.by_seed(own.text_contests())
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.arm for run in runs if run.seed == 0} > set(SETTINGS["memory"]) | set(study.BY_BATCH)
    assert {run.task for run in runs} == {cfg.task}
    assert {run.task for run in study.by_seed(own.other_contests())} == {"digits-cnn"}


def test_the_oracle_is_asked_about_the_pretrained_model_where_enough_seeds_are_compared(cfg):
    asked = cfg.model_copy(update={"finetune_steps": 8, "finetune_seeds": [0, 1, 2]})
    assert study.n_adapted_oracles(asked) == study.ORACLE_SEEDS
    assert study.n_adapted_oracles(asked.model_copy(update={"finetune_seeds": [0, 1]})) == 0
    assert study.n_adapted_oracles(asked.model_copy(update={"finetune_steps": 0})) == 0


def test_the_cost_counts_real_steps_and_names_its_rate(cfg):
    cost = plan_study(cfg.model_copy(update={"cnn_steps": 0, "settings": [], "noise_batch_sizes": []}))
    sweep, compared, oracle = 2 * 2 * 24, 3 * (12 + 24), 3 * 5 * 24
    assert cost.tokens == (sweep + compared + oracle) * 16 * 64 + 4 * 50 * 4 * 64
    assert "matrix product measured here" in cost.basis


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budgets": [0.5, 0.4, 1.0]}, "budgets must grow and end with 1"),
        ({"budgets": [0.5]}, "budgets must grow and end with 1"),
        ({"arms": ["muon"]}, "arms must hold the baseline adamw"),
        ({"seeds": [1000]}, "seeds holds tuning_seed 1000"),
        ({"learning_rates": [1e-3, 1e-3]}, "learning_rates must list at least one value, none of them twice"),
    ],
)
def test_a_comparison_that_cannot_be_judged_is_refused_by_name(changed, message):
    values = params.resolve("predict_phase", "ci").model_dump() | changed
    with pytest.raises(ValueError, match=message):
        PredictPhase(**values)
