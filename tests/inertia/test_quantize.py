"""Quantized rungs against bytes counted by hand, against the error that rounding to a grid allows, and against the rung
as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from labkit.decoding import ladder, quantize
from labkit.decoding.ladder import Rung
from labkit.decoding.quantize import QuantizedRung

HIDDEN, LAYERS, FEED_FORWARD, VOCABULARY = 128, 2, 256, 384
SHAPE = (
    *(("hidden_size", HIDDEN), ("num_hidden_layers", LAYERS), ("num_attention_heads", 4), ("num_key_value_heads", 2)),
    *(("intermediate_size", FEED_FORWARD), ("vocab_size", VOCABULARY)),
)
MAPS = [(HIDDEN, HIDDEN), (HIDDEN // 2, HIDDEN), (HIDDEN // 2, HIDDEN), (HIDDEN, HIDDEN)]
MAPS += [(FEED_FORWARD, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)]
MAPS = MAPS * LAYERS + [(VOCABULARY, HIDDEN)]
"""Rows and columns of every linear map, the output layer last."""


def spec(weights: str, **changes: Any) -> QuantizedRung:
    values = {"name": "small", "shape": "qwen2.5-0.5b", "overrides": SHAPE, "new_tokens": 4, "repeats": 2}
    return QuantizedRung(rung=Rung(**{**values, "train": False, **changes}), weights=weights)


@pytest.fixture(scope="module")
def baseline() -> dict[str, Any]:
    return quantize.measure_quantized(spec("bfloat16"))


@pytest.fixture(scope="module")
def int8() -> dict[str, Any]:
    return quantize.measure_quantized(spec("int8"))


def test_int8_weights_take_a_byte_each_and_a_scale_a_row(baseline: dict[str, Any], int8: dict[str, Any]) -> None:
    saved = sum(rows * columns for rows, columns in MAPS)
    scales = sum((4 + 1) * rows for rows, _ in MAPS)  # a float32 scale and an int8 zero point
    assert int8["agreement"]["quantized"] == len(MAPS)
    assert int8["bytes_per_token"] == baseline["bytes_per_token"] - saved + scales
    table = 2 * VOCABULARY * HIDDEN
    assert int8["weight_bytes"] == int8["bytes_per_token"] + table, "the embedding stays as a table to look up in"
    assert int8["bytes_per_token"] < 0.55 * baseline["bytes_per_token"]


def test_int8_logits_move_by_rounding_and_no_more(int8: dict[str, Any]) -> None:
    agreement = int8["agreement"]
    assert 0 < agreement["mean_abs"] < 0.1 * agreement["logit_std"]
    assert agreement["mean_abs"] <= agreement["max_abs"] < agreement["logit_std"]
    assert agreement["top1"] > 0.7


def test_the_rungs_own_type_is_left_as_it_is(baseline: dict[str, Any]) -> None:
    assert baseline["agreement"]["max_abs"] == 0
    assert baseline["agreement"]["top1"] == 1
    assert baseline["agreement"]["quantized"] == 0
    assert baseline["weight_bytes"] == 2 * baseline["parameters"]


def test_results_are_plain_json_with_conditions_that_name_the_weights(
    baseline: dict[str, Any], int8: dict[str, Any]
) -> None:
    plain = json.loads(json.dumps(int8, allow_nan=False))
    assert plain["supported"]
    assert plain["conditions"]["weights"] == "int8"
    assert plain["conditions"]["parameters"] == plain["parameters"] == baseline["parameters"]
    assert len(plain["seconds_per_token"]) == 2


def test_int4_shrinks_further_or_says_why_it_cannot(int8: dict[str, Any]) -> None:
    found = quantize.measure_quantized(spec("int4"))
    if not found["supported"]:
        assert "int4" in found["why"]
        assert "seconds_per_token" not in found
        return
    assert found["bytes_per_token"] < 0.65 * int8["bytes_per_token"]
    assert found["agreement"]["mean_abs"] > int8["agreement"]["mean_abs"]


@pytest.mark.parametrize(("hidden", "feed_forward", "group"), [(128, 256, 128), (192, 256, 64), (96, 256, 32)])
def test_int4_groups_are_the_largest_that_divide_every_row(hidden: int, feed_forward: int, group: int) -> None:
    maps = torch.nn.Sequential(torch.nn.Linear(hidden, 8), torch.nn.Linear(feed_forward, 8))
    assert quantize.group_size(maps) == group


def test_maps_that_int4_groups_do_not_divide_are_unsupported_with_the_reason() -> None:
    narrow = (*(("hidden_size", 48), ("num_attention_heads", 4)), *SHAPE[1:2], *SHAPE[3:])
    found = quantize.measure_quantized(spec("int4", overrides=narrow))
    assert not found["supported"]
    assert "int4 weights" in found["why"]
    assert "seconds_per_token" not in found
    json.dumps(found, allow_nan=False)


def test_unknown_weight_types_are_refused() -> None:
    with pytest.raises(ValueError, match="weights is 'int3'"):
        quantize.measure_quantized(spec("int3"))


def test_quantizing_keeps_the_tokens_that_a_dequantized_copy_makes() -> None:
    rung = spec("int8").rung
    quantized, rounded = ladder.build_rung(rung), ladder.build_rung(rung)
    quantize.quantize(quantized, "int8")
    with torch.no_grad():
        for name, module in rounded.named_modules():
            if isinstance(module, torch.nn.Linear):
                if name == "lm_head":
                    module.weight = torch.nn.Parameter(module.weight.clone())
                scale = module.weight.float().abs().amax(1, keepdim=True) / 127.5
                module.weight.copy_((module.weight.float() / scale).round().clamp(-128, 127) * scale)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        ours, expected = quantized(input_ids=ids).logits, rounded(input_ids=ids).logits
    assert (ours - expected).float().abs().mean() < 0.03 * expected.float().std()


def test_the_table_divides_the_larger_rungs_time_by_the_smaller_ones(baseline: dict[str, Any]) -> None:
    def rung(name: str, weights: str, parameters: int, seconds: list[float]) -> dict[str, Any]:
        own = {"model": name, "weights": weights, "parameters": parameters, "n_layers": parameters}
        changed = {"conditions": baseline["conditions"] | own, "seconds_per_token": seconds}
        return baseline | {"name": name, "weights": weights, "parameters": parameters} | changed

    results = [rung("a", "bfloat16", 1, [1.0, 1.0, 2.0]), rung("b", "bfloat16", 5, [4.0, 4.0, 4.0])]
    results += [rung("a", "int8", 1, [2.0, 2.0]), rung("b", "int8", 5, [3.0, 3.0])]
    results += [{"name": "a", "weights": "int4", "supported": False, "why": "no kernel"}]
    table = quantize.quantization_table(results)
    wanted = {"bfloat16": 4.0 / 2 ** (1 / 3), "int8": 1.5}  # of geometric means
    assert table.groupby("weights")["ratio"].first().to_dict() == pytest.approx(wanted)
    assert table["ratio_low"].le(table["ratio"]).all()
    assert set(table.columns) >= {"weights", "name", "ms_per_token", "gib", "ratio"}
