"""Ratios between measurements: every condition in turn must be able to refuse one, the values are checked by hand, and
the report's own rows are checked against the numbers it prints and against models built without weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labkit import models
from labkit.decoding.compare import Confounded, confounders, ratio
from labkit.decoding.decode import bytes_per_token
from labkit.reports.size_inertia import published

CONDITIONS = {
    "model": "small",
    "parameters": 10,
    "weight_bytes": 20,
    "bytes_per_token": 20,
    "n_layers": 2,
    "dtype": "bfloat16",
    "device": "cpu",
    "threads": 2,
    "torch": "2.13.0",
    "attention": "sdpa",
    "adapters": "none",
    "sampler": "greedy",
    "new_tokens": 100,
    "cache": "DynamicCache",
}
LARGE = {"model": "large", "parameters": 50, "weight_bytes": 100, "bytes_per_token": 100, "n_layers": 4}
CONFOUNDERS = {
    "dtype": "float32",
    "device": "cuda",
    "threads": 1,
    "torch": "2.2.2",
    "adapters": "unmerged",
    "sampler": "temperature 0.7",
    "new_tokens": 57,
    "cache": "StaticCache",
}


def row(seconds: object, **changed: object) -> dict[str, object]:
    return {"conditions": CONDITIONS | changed, "seconds_per_token": seconds}


def test_ratio_of_geometric_means_with_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    slow, fast = 8 * rng.lognormal(0, 0.05, 40), 2 * rng.lognormal(0, 0.05, 40)
    found = ratio(row(slow.tolist(), **LARGE), row(fast.tolist()), "seconds_per_token", "model")
    assert found.value == pytest.approx(np.exp(np.log(slow).mean() - np.log(fast).mean()))
    assert found.interval is not None
    assert found.interval.contains(4.0)
    assert found.interval.high - found.interval.low < 0.5
    assert found.levels == ("large", "small")


def test_single_numbers_have_a_ratio_and_no_interval() -> None:
    found = ratio(row(3.0, **LARGE), row(2.0), "seconds_per_token", "model")
    assert found.value == pytest.approx(1.5)
    assert found.interval is None
    assert str(found) == "seconds_per_token, model large over small: 1.5"


@pytest.mark.parametrize("name", CONFOUNDERS)
def test_each_other_condition_alone_refuses_the_ratio_and_is_named_with_both_values(name: str) -> None:
    other = row(2.0, **{name: CONFOUNDERS[name]})
    with pytest.raises(Confounded, match=rf"{name}: {CONDITIONS[name]} against {CONFOUNDERS[name]}"):
        ratio(row(3.0, **LARGE), other, "seconds_per_token", "model")


def test_all_differing_conditions_are_listed() -> None:
    found = confounders(row(3.0, **LARGE), row(2.0, **CONFOUNDERS), "model")
    assert [text.split(":")[0] for text in found] == [name for name in CONDITIONS if name in CONFOUNDERS]


def test_what_follows_from_a_factor_confounds_nothing_but_does_under_another_factor() -> None:
    assert confounders(row(3.0, **LARGE), row(2.0), "model") == ()
    assert len(confounders(row(3.0, **LARGE), row(2.0), "dtype")) == 3
    assert confounders(row(1.0, dtype="float32", weight_bytes=40, bytes_per_token=40), row(1.0), "dtype") == ()


def test_a_condition_that_only_one_row_recorded_counts_as_different() -> None:
    unrecorded = row(2.0)
    del unrecorded["conditions"]["threads"]
    with pytest.raises(Confounded, match="threads: 2 against not recorded"):
        ratio(row(3.0, **LARGE), unrecorded, "seconds_per_token", "model")


@pytest.mark.parametrize(
    ("a", "b", "quantity", "factor", "message"),
    [
        (row(1.0), row(2.0), "seconds_per_token", "model", "small in both rows"),
        (row(1.0), row(2.0), "joules", "model", "no 'joules'|small in both"),
        (row(1.0, **LARGE), row(2.0), "joules", "model", "no 'joules'"),
        (row(1.0, **LARGE), row(-2.0), "seconds_per_token", "model", "positive finite"),
        (row([], **LARGE), row(2.0), "seconds_per_token", "model", "positive finite"),
        (row(1.0), row(2.0), "seconds_per_token", "colour", "no row records 'colour'"),
        ({"seconds_per_token": 1.0}, row(2.0), "seconds_per_token", "model", "has no conditions"),
    ],
)
def test_unusable_rows_are_named(a: dict, b: dict, quantity: str, factor: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio(a, b, quantity, factor)


def published_row(model: str, device: str, *, full_length: bool) -> dict[str, object]:
    return published.timing(model, device).row(full_length=full_length)


def test_the_reports_inference_ratio_is_refused_as_printed_and_stands_at_full_length() -> None:
    printed = [published_row(name, "cpu", full_length=False) for name in ("phi-2", "qwen2.5-0.5b")]
    assert printed[0]["seconds_per_prompt"] / printed[1]["seconds_per_prompt"] == pytest.approx(3.42, abs=0.005)
    with pytest.raises(Confounded, match="1 of 3 prompts stopped early"):
        ratio(*printed, "seconds_per_prompt", "model")
    full = [published_row(name, "cpu", full_length=True) for name in ("phi-2", "qwen2.5-0.5b")]
    assert ratio(*full, "seconds_per_prompt", "model").value == pytest.approx(3.92, abs=0.005)


def test_the_reports_speed_up_of_the_gpu_is_refused_with_type_and_version() -> None:
    found = confounders(
        published_row("qwen2.5-7b", "cpu", full_length=True),
        published_row("qwen2.5-7b", "cuda", full_length=True),
        "device",
    )
    assert found == ("dtype: float32 against float16", "torch: 2.2.2 against 2.9.0")


def test_the_reports_largest_model_has_no_adapters_and_the_smallest_has() -> None:
    found = confounders(
        published_row("qwen2.5-7b", "cpu", full_length=True),
        published_row("qwen2.5-0.5b", "cpu", full_length=True),
        "model",
    )
    assert found == ("adapters: none against unmerged",)


@pytest.mark.parametrize("timing", published.TIMINGS, ids=lambda found: f"{found.model} {found.device}")
def test_printed_means_are_those_of_the_stored_prompts(timing: published.Timing) -> None:
    if timing.seconds:
        assert np.mean(timing.seconds) == pytest.approx(timing.reported, abs=0.011)
    assert timing.ended_early == tuple(value < 40 if timing.model == "phi-2" else value < 7 for value in timing.seconds)


@pytest.mark.parametrize("name", published.MODELS)
def test_parameters_and_bytes_read_are_those_of_the_published_shapes(name: str) -> None:
    built = models.build(name, dtype=torch.float16, seed=0, device="meta")
    assert published.MODELS[name].parameters == models.SHAPES[name].parameters
    assert published.MODELS[name].bytes_read(2) == bytes_per_token(built)
    assert published.MODELS[name].n_layers == built.config.num_hidden_layers


def test_true_sizes_differ_from_the_ratios_that_the_report_prints() -> None:
    small, middle, large = published.MODELS.values()
    assert middle.reported_parameters / small.reported_parameters == pytest.approx(5.46, abs=0.01)
    assert middle.parameters / small.parameters == pytest.approx(5.63, abs=0.005)
    assert large.parameters / small.parameters == pytest.approx(15.4, abs=0.05)


def test_the_reports_times_follow_the_affine_law_on_both_devices() -> None:
    fits = published.fits()
    assert 1 / fits["cpu"].slope == pytest.approx(25.1e9, rel=0.01)
    assert 1 / fits["cuda"].slope == pytest.approx(134.6e9, rel=0.01)
    assert fits["cpu"].ci["slope"][0] == 0, "three sizes do not fix a bandwidth"
    training = fits["training"]
    assert training.exact
    assert training.ci == {}
    assert training.intercept == pytest.approx(0.64, abs=0.005)
    seconds = [published.TRAINING_SECONDS[name] / 75 for name in published.TRAINING_SECONDS]
    assert seconds == pytest.approx([1.05, 2.85], abs=0.005)


def test_full_tables_have_a_row_per_measurement_and_say_what_is_refused() -> None:
    assert len(published.timing_table()) == 6
    table = published.ratio_table().set_index("ratio")
    assert (table["printed refused for"] != "").all()
    assert (table["full length refused for"] == "").sum() == 1
    assert table["as printed"].round(2).tolist() == [3.42, 8.26, 8.17, 10.93, 10.37]


def test_the_last_losses_are_what_a_separable_task_prints_at_their_margins() -> None:
    table = published.saturation_table().set_index("model")
    for name, margin in published.FINAL_MARGINS.items():
        assert table.loc[name, "saturation"] == pytest.approx(-math.log(1 / (1 + math.exp(-margin))))
    assert f"{table.loc['qwen2.5-0.5b', 'saturation']:.4f}" == "0.0000"
    assert table.loc["phi-2", "saturation"] == pytest.approx(0.0019, abs=5e-5)


def test_curves_start_near_ln_2_and_have_the_points_that_the_report_prints() -> None:
    curves = published.loss_curves().set_index(["series", "step"])["loss"]
    printed = {"qwen2.5-0.5b": (0.692, 0.258, 0.002, 0.000), "phi-2": (0.693, 0.470, 0.039, 0.003)}
    for name, losses in printed.items():
        assert [curves[f"{name}, report", step] for step in (5, 30, 50, 75)] == pytest.approx(losses, abs=0.0005001)
        assert curves[f"{name}, report", 5] == pytest.approx(math.log(2), abs=0.002)


def test_a_row_that_the_report_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="no time of 'gpt2'"):
        published.timing("gpt2", "cpu")
