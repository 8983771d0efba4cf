"""The factorial of shapes: width and depth vary independently, rounds are shuffled, a known law comes back whole.

References: times made here from coefficients that are known.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from labkit.decoding import ladder
from labkit.decoding.ladder import Rung
from labkit.models import build
from labkit.reports.size_inertia import factorial, results
from labkit.workflow import params

CFG = params.resolve("size_inertia", "cpu-24gb")
T0, PER_LAYER, BYTES_PER_S = 1.5e-3, 0.4e-3, 9e9


def made(spec: Rung, per_layer: float = PER_LAYER, noise: float = 0.02, power: float | None = None) -> dict[str, Any]:
    """What a rung's cell holds, with times of a known law and as much noise as a busy machine has."""
    values = dict(spec.overrides)
    n_bytes = 2 * factorial.parameters(values["hidden_size"], values["num_hidden_layers"])
    rng = np.random.default_rng([spec.seed, values["hidden_size"], values["num_hidden_layers"]])
    seconds = T0 + per_layer * values["num_hidden_layers"] + n_bytes / BYTES_PER_S
    seconds = seconds if power is None else 1e-10 * n_bytes**power
    times = (seconds * np.exp(noise * rng.standard_normal(spec.repeats))).tolist()
    counts = {"n_layers": values["num_hidden_layers"], "bytes_per_token": n_bytes}
    own = {"rung": dataclasses.asdict(spec) | {"overrides": [list(pair) for pair in spec.overrides]}}
    return {"name": spec.name, **counts, **own, "seconds_per_token": times, "train_seconds": [9 * t for t in times]}


def timed(**options: Any) -> dict[Rung, dict[str, Any]]:
    return {spec: made(spec, **options) for spec in factorial.rungs(CFG)}


def test_twelve_shapes_are_timed_in_both_types_in_rounds_of_a_random_order() -> None:
    asked = factorial.rungs(CFG)
    assert len(asked) == len(set(asked)) == 12 * 2 * CFG.factorial_rounds
    assert CFG.factorial_rounds * factorial.REPEATS == 10
    turns = [[spec.name for spec in asked if spec.seed == turn and spec.dtype == "bfloat16"] for turn in range(3)]
    assert len({tuple(turn) for turn in turns}) == 3
    assert len({frozenset(turn) for turn in turns}) == 1
    values = [dict(spec.overrides) for spec in asked[:12]]
    pairs = {(one["hidden_size"], one["num_hidden_layers"]) for one in values}
    assert pairs == {(w, d) for w in CFG.factorial_widths for d in CFG.factorial_depths}


def test_a_shape_has_about_the_parameters_that_its_cost_is_planned_with() -> None:
    model = build(factorial.SHAPE, device="meta", **dict(factorial.shape(512, 12)))
    n = sum(p.numel() for p in model.parameters())
    assert factorial.parameters(512, 12) == pytest.approx(n, rel=0.05)
    with pytest.raises(ValueError, match="no multiple of 64"):
        factorial.shape(100, 4)


def test_a_law_with_a_known_term_per_layer_comes_back_with_it() -> None:
    found = factorial.results_of(timed(), "bfloat16")
    for name, known in (("overhead", 1e3 * T0), ("per_layer", 1e3 * PER_LAYER), ("bandwidth", BYTES_PER_S / 1e9)):
        low, high = found[f"law/decode/{name}"]["ci"]
        assert low <= known <= high, name
        assert found[f"law/decode/{name}"]["n_seeds"] == CFG.factorial_rounds
    assert found["law/decode/per_layer"]["value"] == pytest.approx(1e3 * PER_LAYER, rel=0.1)
    law = factorial.fit(factorial.of_dtype(timed(), "bfloat16"), "seconds_per_token", n_resamples=100)
    assert law.per_layer == pytest.approx(PER_LAYER, rel=0.1)
    assert set(law.leave_one_size_out) == {spec.name for spec in factorial.rungs(CFG)}
    assert max(abs(error) for error in law.leave_one_size_out.values()) < 0.1


def test_a_law_without_the_term_gets_none() -> None:
    found = factorial.results_of(timed(per_layer=0.0), "bfloat16")
    assert found["law/decode/per_layer"]["ci"][0] < 0.05 * PER_LAYER * 1e3
    assert found["law/decode/per_layer"]["value"] < 0.1 * PER_LAYER * 1e3


def test_the_exponent_of_a_power_of_the_bytes_is_found_over_the_factorial() -> None:
    points = ladder.points(factorial.of_dtype(timed(power=0.7), "bfloat16"))
    found = results.size_exponent(points)
    assert found["ci"][0] <= 0.7 <= found["ci"][1] < 1


def test_a_round_in_which_a_shape_failed_enters_no_interval() -> None:
    whole = timed()
    lost = next(spec for spec in whole if spec.dtype == "bfloat16" and spec.seed == 2)
    found = factorial.by_round(
        {spec: done for spec, done in whole.items() if spec != lost}, "bfloat16", "train_seconds"
    )
    assert found["round"].tolist() == [0, 1, 3, 4]
    assert len(factorial.table(whole)) == 24
