"""What a number of report 000 would take where its models are not here: both arms, every seed, by hand."""

from __future__ import annotations

import pytest

from labkit.reports.size_inertia import arms, cost, results
from labkit.reports.size_inertia.study import Study
from labkit.workflow import params
from labkit.workflow.cells import Cells

PHI_2, QWEN = 2_779_683_840, 494_032_768
SMOLLM2 = 134_515_008


@pytest.fixture
def measured() -> Study:
    """A study whose only arm took 2 s a step, and whose only rung 1 s for every GB of a token."""
    resolved = params.resolve("size_inertia", "cpu")
    found = Study(resolved, Cells.of("cpu", "size_inertia"))
    found.arms = {arms.report_arm(resolved, "smollm2-135m", 0): {"seconds_per_step": 2.0}}
    found.rungs = {"qwen2-48m": {"bytes_per_token": 10**8, "seconds_per_token": [0.1, 0.1, 0.1]}}
    return found


def test_a_loss_takes_the_reports_steps_with_each_of_three_seeds(measured: Study) -> None:
    price = results.out_of_reach(measured)["final_loss/phi-2"]
    assert price["seconds"] == pytest.approx(3 * 75 * 2.0 * PHI_2 / SMOLLM2)
    assert price["gib"] == pytest.approx((2 * PHI_2 / 2**30) + 1.5 + 0.6), "weights, activations, process"


def test_a_ratio_of_training_times_takes_both_models(measured: Study) -> None:
    told = results.out_of_reach(measured)
    price = told["train_time_ratio/phi-2_over_qwen2.5-0.5b"]
    assert price["seconds"] == pytest.approx(3 * 75 * 2.0 * (PHI_2 + QWEN) / SMOLLM2)
    assert price["gib"] == told["final_loss/phi-2"]["gib"], "one after the other"
    assert "the weights of qwen2.5-0.5b and phi-2" in price["why"]


def test_a_ratio_of_decode_times_takes_both_shapes_their_warm_up_and_their_weights(measured: Study) -> None:
    price = results.out_of_reach(measured)["generation_ratio/cpu/phi-2_over_qwen2.5-0.5b"]
    tokens = measured.params.new_tokens * (3 + 1)
    reading = tokens * 2 * (PHI_2 + QWEN) / 1e9
    assert price["seconds"] == pytest.approx(reading + (PHI_2 + QWEN) / 8e7)


def test_the_memory_of_a_run_is_that_of_its_largest_cell() -> None:
    resolved = params.resolve("size_inertia", "cpu")
    largest = max(cost.training_bytes(resolved, model) for model in resolved.models)
    assert cost.peak_bytes(resolved) == max(largest, 1.1 * QWEN * 2 + 0.6 * 2**30)
