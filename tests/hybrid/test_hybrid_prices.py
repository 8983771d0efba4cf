"""The report's own protocol: its ratios over seeds, and what it would take on GPT-2 small, by hand."""

import math

import pytest

from labkit.reports.predict_phase import original, results, study
from labkit.workflow import params


@pytest.fixture
def small_protocol():
    """The protocol on a million parameters: 3, 2 and 1 s with one initialisation, twice that with the other."""
    found = study.make_study(params.resolve("predict_phase", "ci"))
    arms = {"baseline": [1.0, 2.0], "hybrid": [1.0, 1.0], "memory_optimized": [0.5, 0.5]}
    for factor, name in enumerate(original.INITIALISATIONS, start=1):
        own = {arm: {"seconds": [factor * one for one in seconds]} for arm, seconds in arms.items()}
        found.originals[name] = [own | {"parameters": 10**6}]
    return found


def test_a_price_counts_three_arms_with_seeds_enough_for_an_interval_and_the_other_initialisation(small_protocol):
    told = results.out_of_reach(small_protocol)
    assert set(told) == set(results.ORIGINAL)
    assert told["time_ratio/original"]["seconds"] == pytest.approx((3 + 2 + 1) * (3 * 1 + 2) * 124.439808)


def test_a_protocol_that_has_not_run_has_a_price_without_a_time(small_protocol):
    small_protocol.originals = {}
    assert "seconds" not in results.out_of_reach(small_protocol)["time_ratio/original"]


def run_of(full, forward, losses):
    """A run whose steps take `full` seconds and passes `forward`; the hybrid stops after 15 of 50 updates."""
    cut = losses[:15] + [losses[14]] * 35
    hybrid = {"loss": cut, "seconds": [full] * 15 + [forward] * 35, "updates": 15, "batch_size": 4}
    baseline = {"loss": losses, "seconds": [full] * 50, "updates": 50, "batch_size": 4}
    return {"baseline": baseline, "hybrid": hybrid, "memory_optimized": hybrid, "parameters": 10**6}


@pytest.fixture
def gpt2():
    """A study of GPT-2 small that has run nothing yet."""
    return study.make_study(params.resolve("predict_phase", "cpu-24gb"))


def test_ratios_are_geometric_means_over_seeds_with_an_interval(gpt2):
    falling = [100.0 - i for i in range(50)]
    gpt2.originals["published"] = [run_of(full, 1.0, falling) for full in (2.0, 3.0, 4.5)]
    own = results.original_results(gpt2)["full_over_forward"]
    half = 4.302653 * math.log(1.5) / math.sqrt(3)
    assert own["value"] == pytest.approx(3.0, rel=1e-4)
    assert own["ci"] == pytest.approx([3.0 * math.exp(-half), 3.0 * math.exp(half)], rel=1e-4)
    assert own["n_seeds"] == 3
    assert results.out_of_reach(gpt2) == {}


def test_one_seed_has_no_interval(gpt2):
    gpt2.originals["published"] = [run_of(2.0, 1.0, [100.0 - i for i in range(50)])]
    assert results.original_results(gpt2)["time_ratio/original"]["ci"] is None


def test_what_is_read_off_a_curve_that_only_wavers_is_void(gpt2):
    gpt2.originals["published"] = [run_of(2.0, 1.0, [10.0, 9.9] * 25)] * 3
    void = {key for key in results.ORIGINAL if key.startswith(("equal_loss", "loss_gap"))}
    assert results.original_results(gpt2).keys() == results.ORIGINAL.keys() - void
    assert results.out_of_reach(gpt2).keys() == void
