"""Intervals over runs and pairs, against draws from a population whose share is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from labkit.dpo import evaluate


def test_one_run_has_wilsons_plain_interval() -> None:
    right = np.arange(40)[None] < 22
    found = evaluate.repeated_accuracy(right)
    assert (found["low"], found["high"]) == pytest.approx(evaluate.wilson(22, 40))
    assert (found["correct"], found["n"], found["runs"]) == (22, 40, 1)


@pytest.mark.parametrize(("by_run", "by_pair"), [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 2)])
def test_an_interval_over_runs_and_pairs_covers_the_share_of_the_population(by_run: float, by_pair: float) -> None:
    rng = np.random.default_rng(0)
    share = norm.cdf(0.5 / np.sqrt(1 + by_run**2 + by_pair**2))
    covered = as_if_independent = 0
    for _ in range(400):
        runs, pairs = rng.normal(0, by_run, (5, 1)), rng.normal(0, by_pair, (1, 40))
        right = 0.5 + runs + pairs + rng.normal(size=(5, 40)) > 0
        found = evaluate.repeated_accuracy(right)
        covered += found["low"] <= share <= found["high"]
        low, high = evaluate.wilson(int(right.sum()), right.size)
        as_if_independent += low <= share <= high
    assert covered >= 0.92 * 400
    if by_run == 1:
        assert as_if_independent < 0.6 * 400, "200 judgements by 5 runs are not 200 trials"


def test_runs_that_are_all_right_are_as_uncertain_as_their_pairs() -> None:
    found = evaluate.repeated_accuracy(np.ones((3, 40), dtype=bool))
    assert (found["low"], found["high"]) == pytest.approx(evaluate.wilson(40, 40))


@pytest.mark.parametrize("shape", [(0, 40), (3, 1), (1, 0)])
def test_what_has_no_interval_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="runs over"):
        evaluate.repeated_accuracy(np.ones(shape, dtype=bool))
