"""What the report's own protocol would take on GPT-2 small, scaled from a smaller model by hand."""

import pytest

from labkit import params
from labkit.hybrid import original, results, study


@pytest.fixture
def small_protocol():
    """The protocol on a million parameters: 3, 2 and 1 s with one initialisation, twice that with the other."""
    found = study.make_study(params.resolve("predict_phase", "cpu"))
    arms = {"baseline": [1.0, 2.0], "hybrid": [1.0, 1.0], "memory_optimized": [0.5, 0.5]}
    for factor, name in enumerate(original.INITIALISATIONS, start=1):
        own = {arm: {"seconds": [factor * one for one in seconds]} for arm, seconds in arms.items()}
        found.originals[name] = own | {"parameters": 10**6}
    return found


def test_a_price_counts_three_arms_with_both_initialisations(small_protocol):
    told = results.out_of_reach(small_protocol)
    assert set(told) == set(results.ORIGINAL)
    assert told["time_ratio/original"]["seconds"] == pytest.approx((3 + 2 + 1) * (1 + 2) * 124.439808)


def test_a_protocol_that_has_not_run_has_a_price_without_a_time(small_protocol):
    small_protocol.originals = {}
    assert "seconds" not in results.out_of_reach(small_protocol)["time_ratio/original"]
