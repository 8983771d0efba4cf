"""Numbers, tables and figures of report 001 from hand-made timings whose answers are known on paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from labkit.ledger import claims
from labkit.ledger.audit import read_ledger
from labkit.offload import shapes
from labkit.reports.chunked_offload import cost, law, plots, results, tables
from labkit.reports.chunked_offload.learning import LearnSpec, differences
from labkit.reports.chunked_offload.study import Study, full_spec, learn_specs, speed_spec
from labkit.workflow import params
from labkit.workflow.cells import Cells

PARTS = dict.fromkeys(tables.PARTS, 10 << 20)
SHARED, EACH = 2.0, 0.125


def timed(batches: tuple[int, ...] = (1, 8, 32, 64, 128), repeats: int = 3) -> dict[str, Any]:
    """Steps that take SHARED + EACH B seconds exactly, each round a tenth slower than the one before."""
    rows = [
        {"batch": n, "repeat": r, "seconds": 1.1**r * (SHARED + EACH * n), "stalled_seconds": 0.0, "loads": 10}
        | {"bytes_read": 10**9, "row_bytes_read": 10, "disk_bytes": 10**9, "peak_bytes": 3 << 30, "loss": 1.0}
        | {"grad_norm": 1.0}
        for r in range(repeats)
        for n in batches
    ]
    plan = {"parts": PARTS, "peak_bytes": 70 << 20, "micro_batch": 1, "bytes_read": 10**9}
    halves = [{"batch": n, "repeat": 0, "read_seconds": 1.9, "compute_seconds": 0.12 * n} for n in (1, 32)]
    return {
        "rows": rows,
        "ablations": halves,
        "plans": {str(n): plan | {"peak_bytes": n << 20} for n in batches},
        "limits": {"limit_bytes": 4 << 30, "base_bytes": 1, "cgroup": True, "cgroup_peak_bytes": 1 << 30},
        "weights": {"shape": "phi3-1b", "parameters": 10**9, "bytes": 2 * 10**9},
        "why_not_cold": "",
    }


def learned(seed: int = 0) -> dict[str, Any]:
    name = "base_model.model.model.layers.3.self_attn.q_proj.lora_{}.default.weight"
    arm = {
        "loss": [4.0, 3.0],
        "grad_norms": [{name.format("A"): 3.0, name.format("B"): 4.0}] * 2,
        "held_out_before": [4.0, 5.0, 6.0],
        "held_out_after": [3.9, 4.8, 5.7],
        "peak_bytes": 400 << 20,
        "limits": {"base_bytes": 300 << 20},
    }
    return {"streamed": arm, "resident": arm | {"loss": [4.0, 3.0003]}, "weights": {"bytes": 500 << 20}}


def empty(hardware: str = "cpu") -> Study:
    return Study(params.resolve("chunked_offload", hardware), Cells.of(hardware, "chunked_offload"))


def study(hardware: str = "cpu") -> Study:
    found = empty(hardware)
    found.speed = timed(tuple(found.params.batch_sizes))
    found.learning = {arm: learned() for arm in learn_specs(found.params)}
    scores = {"whole": [3.0, 4.0], "truncated": [11.0, 12.0]}
    types = [{"dtype": "float32", "loss": 1.0, "grad_norm": 1.0, "difference": 0.0, "not_finite": ""}]
    found.checks = {"types": types, "scores": scores}
    return found


def test_a_gain_is_the_ratio_of_seconds_a_sample_and_slow_rounds_cancel() -> None:
    for n in (8, 32, 128):
        found = results.speedup(timed(), n)
        assert found["value"] == pytest.approx((SHARED + EACH) / (SHARED / n + EACH))
        assert found["ci"] == pytest.approx([found["value"]] * 2)
        both = (1 + 1.1 + 1.21) * (SHARED + EACH + SHARED + EACH * n)
        assert found["seconds"] == pytest.approx(both), "both arms, three rounds"


def test_the_law_finds_what_is_shared_and_what_each_sample_takes() -> None:
    law = results.amortisation(timed(repeats=1))
    assert (law.intercept, law.slope) == pytest.approx((SHARED, EACH))
    assert "can gain 17.0x at most" in tables.law_sentence(timed(repeats=1))


def test_the_share_of_the_bound_takes_the_slower_half() -> None:
    assert results.roofline_share(timed(repeats=1), 1)["value"] == pytest.approx(1.9 / (SHARED + EACH))
    assert results.roofline_share(timed(repeats=1), 32)["value"] == pytest.approx(0.12 * 32 / (SHARED + 32 * EACH))


@pytest.mark.parametrize("hardware", ["ci", "cpu", "cpu-24gb"])
def test_every_key_of_the_ledger_is_measured_or_said_to_be_out_of_reach(hardware: str) -> None:
    ledger = read_ledger(claims.ledgers("chunked_offload")[0])
    keys = {check.key for row in ledger.claims for check in row.checks}
    found = study(hardware)
    assert keys == {*results.results(found), *results.out_of_reach(found)} & keys
    assert not {*results.results(found)} & {*results.out_of_reach(found)}


def test_a_range_is_claimed_only_where_its_ends_were_run() -> None:
    assert "speedup_range" not in results.results(study("cpu"))
    ends = results.results(study("cpu-24gb"))["speedup_range"]["value"]
    assert ends == pytest.approx([(SHARED + EACH) / (SHARED / n + EACH) for n in (32, 128)])


def test_seconds_of_another_shape_are_no_seconds_of_phi_4() -> None:
    assert not [key for key in results.results(study("cpu")) if "seconds_per" in key or "peak_memory" in key]
    whole = study("cpu-24gb")
    whole.full = timed((32,))
    assert results.results(whole)["peak_memory/phi-4"]["value"] == 3.0


def test_the_counts_are_those_of_the_shape_matrix_by_matrix() -> None:
    found = results.property_results(params.resolve("chunked_offload", "cpu"))
    layer = 5120 * (7680 + 5120) + 5120 * 3 * 17920 + 2 * 5120
    assert found["parameters/phi-4"]["value"] == 40 * layer + 2 * 100_352 * 5120 + 5120
    assert found["parameters/phi-4-without-gqa"]["value"] - found["parameters/phi-4"]["value"] == 40 * 5120 * 7680
    maps = (5120 + 7680) + (5120 + 5120) + (5120 + 35_840) + (17_920 + 5120)
    assert found["trainable/phi-4"]["value"] == 8 * 8 * maps == 5_570_560
    table = tables.counts_table()
    assert table["whole"].tolist() == [14_659_507_200, 16_232_371_200]


def test_the_ends_of_a_stack_do_not_overlap() -> None:
    assert shapes.trained_layers("phi-4", 4) == [0, 1, 2, 3, 36, 37, 38, 39]
    with pytest.raises(ValueError, match="trained_ends is 5, and a model of 8 layers"):
        shapes.ends_of(8, 5)
    with pytest.raises(ValueError, match="unknown shape 'phi5'"):
        shapes.overrides("phi5")


def test_arms_are_as_far_apart_as_their_worst_step() -> None:
    assert differences(learned()) == pytest.approx({"loss": 0.0003 / 3.0003, "grad_norm": 0.0, "held_out": 0.0})


def test_the_learning_table_judges_held_out_windows() -> None:
    row = tables.learning_table(study()).iloc[0]
    assert row["held-out change"].startswith("-0.2000 [")
    assert row["above an empty process, MiB"] == 100
    norms = tables.grad_norms(study())
    assert norms[norms["arm"] == "batch 1"][["layer", "map", "matrix", "norm"]].to_numpy().tolist() == [
        [3, "q_proj", "lora_A", 3.0],
        [3, "q_proj", "lora_B", 4.0],
    ]


def test_the_peak_stands_at_the_largest_plan_alone() -> None:
    table = tables.memory_table(study())
    assert table[table["part"] == "measured peak"]["step"].tolist() == ["phi3-1b, batch 32"]


def drawings() -> list[tuple[Figure, pd.DataFrame]]:
    found = study()
    line, bounds = results.amortisation(found.speed), tables.bounds(found.speed)
    return [
        plots.amortisation_panel(tables.amortisation_points(found.speed), line, bounds),
        plots.law_panel(law.points(found.speed)),
        plots.roofline_panel(tables.roofline_table(found.speed)),
        plots.memory_panel(tables.memory_table(found)),
        plots.learning_panel(tables.curves(found)),
        plots.grad_norms_panel(tables.grad_norms(found)),
    ]


def test_every_figure_draws_the_rows_it_returns() -> None:
    for figure, rows in drawings():
        assert len(rows)
        assert all(axes.get_xlabel() for axes in figure.axes)
    _, seconds = drawings()[0]
    here = seconds[seconds["series"] == "here"]["seconds_per_sample"]
    assert np.isfinite(here).all()
    assert len(here) == len(timed((1, 8, 32))["rows"])


def test_the_bounds_stand_at_every_batch_size_that_was_halved_with_the_spread_of_the_rounds() -> None:
    found = timed(repeats=1)
    found["ablations"] += [{"batch": 32, "repeat": 1, "read_seconds": 3.2, "compute_seconds": 6.4}]
    rows = tables.bounds(found).set_index(["series", "batch"])
    assert len(rows) == 4
    assert rows.loc[("computing alone", 32)].tolist() == pytest.approx([0.16, 0.12, 0.2])
    assert rows.loc[("reading alone", 1)].tolist() == pytest.approx([1.9, 1.9, 1.9])


def test_held_out_losses_are_published_before_and_after_with_the_seeds_of_a_window_averaged() -> None:
    found = empty("cpu-24gb")
    arms = learn_specs(found.params)
    assert [(arm.batch_size, arm.steps, arm.seed) for arm in arms] == [(8, 200, seed) for seed in (0, 1, 2)]
    found.learning = {arm: learned() for arm in arms}
    found.learning[arms[0]]["streamed"]["held_out_after"] = [3.6, 4.8, 5.7]
    numbers = results.held_out_results(found)
    assert numbers["held_out_nats/before/batch_8"]["value"] == pytest.approx(5.0)
    assert numbers["held_out_nats/change/batch_8"]["value"] == pytest.approx((-0.2 - 0.2 - 0.3) / 3)
    assert numbers["held_out_nats/change/batch_8"]["n_seeds"] == 3, "windows, not windows times seeds"
    table = tables.held_out_table(found).set_index("training")
    assert table["change, nats"].to_dict() == pytest.approx({"streamed": -0.7 / 3, "resident": -0.2})
    assert (table["change, low"] < table["change, nats"]).all()


def test_the_price_of_a_gain_counts_batch_1_every_round_the_first_step_and_the_weights() -> None:
    found = empty("cpu")
    found.speed = timed((1, 8, 32), repeats=1)
    alone, many = SHARED + EACH, SHARED + 64 * EACH
    making = shapes.n_parameters("phi3-1b") / 1.2e8
    priced = results.out_of_reach(found)
    assert priced["speedup/batch_64"]["seconds"] == pytest.approx(3 * (alone + many) + alone + making)
    both = SHARED + 128 * EACH + SHARED + 32 * EACH
    assert priced["speedup_range"]["seconds"] == pytest.approx(3 * (alone + many + both) + alone + making)


def test_the_price_of_the_whole_shape_counts_its_first_step_two_more_and_their_halves() -> None:
    found = empty("cpu")
    found.speed = timed((1, 8, 32), repeats=1)
    one = 14.6595072 * (SHARED + 32 * EACH)
    price = results.out_of_reach(found)["peak_memory/phi-4"]["seconds"]
    assert price == pytest.approx(5 * one + 14_659_507_200 / 1.2e8)


def test_what_is_not_measured_is_said() -> None:
    assert tables.truncated_sentence(empty()) == "not measured"
    assert results.speed_results(empty()) == {}
    assert "needs" not in results.out_of_reach(empty())["peak_memory/phi-4"]["why"]
    assert "3.50 nats a token on the held-out windows" in tables.truncated_sentence(study())


def test_sentences_name_what_was_enforced() -> None:
    assert "0.5 times the limit of 4.00 GiB" in tables.limits_sentence(timed())
    without = timed()
    without["limits"] |= {"cgroup": False}
    assert "RLIMIT_DATA (no cgroup may be made here)" in tables.limits_sentence(without)


def test_a_profile_says_what_runs() -> None:
    cpu, large = (params.resolve("chunked_offload", name) for name in ("cpu", "cpu-24gb"))
    assert (full_spec(cpu), full_spec(large).shape) == (None, "phi-4")
    assert speed_spec(cpu).ablated == (1, 32)
    assert [arm.batch_size for arm in learn_specs(cpu)] == cpu.learn_batch_sizes
    assert all(isinstance(arm, LearnSpec) for arm in learn_specs(large))


def test_a_plan_counts_the_steps_at_every_speed_of_the_disk() -> None:
    large = params.resolve("chunked_offload", "cpu-24gb")
    assert cost.computed_samples(large) == 8 * (2 * 169 + 169) + 1
    assert cost.read_passes(large) == 8 * (2 * 4 + 2 * 2) + 1
    assert cost.read_passes(params.resolve("chunked_offload", "cpu")) == 3 * 4 + 1


def test_a_plan_counts_its_tokens_and_its_disk() -> None:
    found = cost.plan_study(params.resolve("chunked_offload", "cpu-24gb"))
    assert found.disk_bytes == 2 * 14_659_507_200
    assert found.peak_bytes == 4 << 30
    assert math.isfinite(found.seconds)
    small = cost.passes(params.resolve("chunked_offload", "cpu"))
    assert small[0] == (shapes.n_parameters("phi3-1b"), 16 * (3 * (1 + 8 + 32 + 1 + 32) + 1))
