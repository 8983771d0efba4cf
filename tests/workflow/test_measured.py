"""Measured numbers as results.json holds them: the same from processors that round differently, counts to the digit."""

from __future__ import annotations

import json
import math

from labkit.base.units import settled
from labkit.workflow.measured import number


def test_digits_that_depend_on_the_processor_are_left_out() -> None:
    third = 1 / 3
    assert settled(math.nextafter(third, 1)) == settled(third) == 0.33333333
    assert settled(1234567890.5) == 1234567900
    assert settled(0.0) == 0


def test_counts_stay_as_they_are() -> None:
    assert settled(14_659_507_201) == 14_659_507_201
    assert number(14_659_507_201, "parameters")["value"] == 14_659_507_201


def test_a_number_has_its_interval_and_what_it_rests_on() -> None:
    found = number(2 / 3, "", [1 / 3, 1], n_seeds=3, note="three rounds")
    assert json.loads(json.dumps(found)) == {
        **{"value": 0.66666667, "ci": [0.33333333, 1.0]},
        **{"unit": "", "n_seeds": 3, "note": "three rounds"},
    }
    assert number([1, 2 / 3], "seconds") == {
        "value": [1, 0.66666667],
        "ci": None,
        "unit": "seconds",
        "n_seeds": 1,
        "note": "",
    }
