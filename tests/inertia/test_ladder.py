"""The ladder's shapes against the published ones, its fit against times made from a known law, its table against
arithmetic by hand, and one tiny rung measured for real."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import numpy as np
import pytest
import scipy.stats
import torch

from labkit import models
from labkit.decoding import ladder
from labkit.decoding.compare import Confounded, ratio
from labkit.decoding.decode import bytes_per_token
from labkit.decoding.ladder import LADDER, Rung
from labkit.reports.size_inertia import params as schema_size_inertia

TINY = (
    *(("hidden_size", 32), ("num_hidden_layers", 2), ("num_attention_heads", 4), ("num_key_value_heads", 2)),
    *(("intermediate_size", 48), ("vocab_size", 101)),
)
QWEN2 = [name for name in LADDER if name.startswith("qwen2") and name != "qwen2.5-7b"]


def tiny_rung(**changes: Any) -> Rung:
    values = {"name": "tiny", "shape": "qwen2.5-0.5b", "overrides": TINY, "dtype": "float32", "new_tokens": 5}
    return Rung(**{**values, "repeats": 2, "length": 8, **changes})


def bare(name: str) -> torch.nn.Module:
    """Build a rung without weights."""
    shape, overrides = LADDER[name]
    return models.build(shape, dtype=torch.bfloat16, seed=0, device="meta", **dict(overrides))


def n_parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in bare(name).parameters())


def test_rungs_are_those_that_parameters_may_name() -> None:
    assert list(LADDER) == list(get_args(schema_size_inertia.RungName))


def test_rungs_grow_from_sixteen_million_to_the_reports_own_smallest_model_and_beyond() -> None:
    counts = [n_parameters(name) for name in LADDER]
    assert counts == sorted(counts)
    assert counts[0] == pytest.approx(16e6, rel=0.05)
    named = dict(zip(LADDER, counts, strict=True))
    assert named["qwen2.5-0.5b"] == 494_032_768
    assert named["phi-2"] == 2_779_683_840
    assert named["qwen2.5-7b"] == 7_615_616_512
    for name, million in (("qwen2-48m", 48), ("qwen2-110m", 110), ("qwen2-250m", 250), ("qwen2-1b", 1066)):
        assert named[name] == pytest.approx(million * 1e6, rel=0.01)


def test_the_ladder_is_one_family_with_grouped_queries_and_tied_embeddings() -> None:
    for name in QWEN2:
        config = bare(name).config
        assert (config.model_type, config.tie_word_embeddings) == ("qwen2", True), name
        assert config.num_key_value_heads < config.num_attention_heads, name


@pytest.mark.parametrize("n_rungs", [5, 6])
def test_a_time_per_layer_can_be_told_from_a_bandwidth_on_the_ladder(n_rungs: int) -> None:
    built = [(name, bare(name)) for name in QWEN2[:n_rungs]]
    sizes = [(name, bytes_per_token(model), model.config.num_hidden_layers) for name, model in built]
    rng = np.random.default_rng(0)
    results = [
        {"name": name, "bytes_per_token": size, "n_layers": depth}
        | {"seconds_per_token": ((1e-3 + 3e-4 * depth + size / 25e9) * rng.lognormal(0, 0.02, 4)).tolist()}
        for name, size, depth in sizes
    ]
    fit = ladder.fit_rungs(results, per_layer=True, n_resamples=200)
    assert fit.per_layer == pytest.approx(3e-4, rel=0.15)
    assert 1 / fit.slope == pytest.approx(25e9, rel=0.1)
    assert sorted(fit.leave_one_size_out) == sorted(QWEN2[:n_rungs])
    plain = ladder.fit_rungs(results, n_resamples=200)
    assert plain.median_error > fit.median_error, "without the term the depths are unexplained"


def test_a_rung_is_measured_in_full_and_its_result_is_plain_json() -> None:
    result = json.loads(json.dumps(ladder.measure_rung(tiny_rung()), allow_nan=False))
    assert np.shape(result["token_seconds"]) == (2, 4)
    assert len(result["copy_bytes_per_s"]) == len(result["seconds_per_token"]) == len(result["train_seconds"]) == 2
    assert result["parameters"] == sum(
        p.numel() for p in models.build("qwen2.5-0.5b", dtype=torch.float32, device="meta", **dict(TINY)).parameters()
    )
    assert result["bytes_per_token"] == result["weight_bytes"] == 4 * result["parameters"]
    assert result["conditions"]["model"] == "tiny"
    assert result["conditions"]["threads"] == torch.get_num_threads() == 1
    assert result["train_conditions"]["adapters"] == "unmerged"
    assert result["train_conditions"]["targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert result["train_conditions"]["trainable"] == 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16))
    assert result["peak_bytes"] > 0


def test_the_same_rung_gives_the_same_tokens_and_another_seed_others() -> None:
    tokens = [ladder.measure_rung(tiny_rung(train=False, seed=seed, repeats=1))["tokens"] for seed in (3, 3, 4)]
    assert tokens[0] == tokens[1] != tokens[2]
    weights = [ladder.build_rung(tiny_rung(seed=seed)).model.embed_tokens.weight for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_two_measured_rungs_have_ratios_and_two_types_of_two_rungs_have_none() -> None:
    small = ladder.measure_rung(tiny_rung())
    deeper = tiny_rung(name="deeper", overrides=(TINY[0], ("num_hidden_layers", 6), *TINY[2:]))
    large = ladder.measure_rung(deeper)
    means = [scipy.stats.gmean(result["seconds_per_token"]) for result in (large, small)]
    assert ratio(large, small, "seconds_per_token", "model").value == pytest.approx(means[0] / means[1])
    steps = [ladder.training_row(result) for result in (large, small)]
    assert ratio(*steps, "seconds_per_step", "model").levels == ("deeper", "tiny")
    half = ladder.measure_rung(dataclasses.replace(deeper, dtype="bfloat16", train=False))
    with pytest.raises(Confounded, match=r"dtype: bfloat16 against float32$"):
        ratio(half, small, "seconds_per_token", "model")


def test_a_rung_without_training_has_no_training_time() -> None:
    result = ladder.measure_rung(tiny_rung(train=False))
    assert result["train_seconds"] == []
    assert np.isnan(ladder.rung_table([result])["train_ms"][0])


def test_a_rung_larger_than_memory_is_refused_with_both_numbers_before_anything_is_allocated() -> None:
    with pytest.raises(models.TooLarge, match=r"needs .*TiB.* free on cpu"):
        ladder.measure_rung(tiny_rung(overrides=(*TINY[:-1], ("vocab_size", 10**11))))


def test_the_table_holds_the_floor_against_the_measured_time() -> None:
    result = {
        "name": "a",
        "parameters": 5,
        "n_layers": 2,
        "bytes_per_token": 4e9,
        "seconds_per_token": [0.2, 0.25, 0.9],
    }
    result |= {"prefill_seconds": [0.3], "copy_bytes_per_s": [3e10, 4e10, 5e10], "train_seconds": [1.0, 3.0]}
    result |= {"build_seconds": 1.0, "peak_bytes": 2**31}
    smaller = result | {"name": "b", "bytes_per_token": 1e9}
    table = ladder.rung_table([result, smaller]).set_index("name")
    assert list(table.index) == ["b", "a"]
    row = table.loc["a"]
    assert row["ms_per_token"] == 250
    assert row["gb_per_s"] == 16
    assert row["roofline_ms"] == 100
    assert row["fraction"] == pytest.approx(0.4)
    assert row["train_ms"] == 2000
    assert row["peak_gib"] == 2


def test_a_rung_by_name_takes_machine_values_and_keeps_its_shape() -> None:
    spec = ladder.rung("qwen2-16m", dtype="float32", threads=2, device="cpu", repeats=3)
    assert (spec.shape, spec.overrides) == LADDER["qwen2-16m"]
    assert (spec.dtype, spec.threads, spec.repeats) == ("float32", 2, 3)
    assert json.loads(json.dumps(dataclasses.asdict(spec)))["name"] == "qwen2-16m"
    assert hash(spec) == hash(ladder.rung("qwen2-16m", dtype="float32", threads=2, repeats=3))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [("qwen2-17m", {}, "no rung 'qwen2-17m'"), ("qwen2-16m", {"shape": "phi-2"}, "shape cannot be set")],
)
def test_unknown_rungs_and_fixed_fields_are_named(name: str, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ladder.rung(name, **changes)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match="dtype is 'int9'"):
        ladder.build_rung(tiny_rung(dtype="int9"))
