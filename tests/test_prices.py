"""The time that cells take side by side, worked out by hand."""

from __future__ import annotations

import pytest

from labkit.workflow.cost import side_by_side


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [
        ([6.0], 2, 6.0),  # one cell is done by one worker
        ([6.0, 6.0], 2, 6.0),
        ([6.0, 6.0, 6.0], 2, 9.0),
        ([6.0, 6.0, 6.0], 1, 18.0),  # timed cells run alone
        ([10.0, 1.0, 1.0], 2, 10.0),  # never less than the longest
    ],
)
def test_cells_side_by_side_take_an_even_share_or_the_longest_of_them(
    seconds: list[float], workers: int, expected: float
) -> None:
    assert side_by_side(iter(seconds), workers) == pytest.approx(expected)
