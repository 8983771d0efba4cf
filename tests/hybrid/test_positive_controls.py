"""Positive controls of protocol 003, on recorded runs of tuned AdamW: what was planted must be read with its size.

The arms are AdamW's own runs under other names, so nothing but what is planted tells them from it. Each arm has the
losses of the next seed: the scatter between arms is that between seeds, as in a comparison.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from labkit.base import paths
from labkit.reports.predict_phase import protocol

RECORDED = paths.root() / "figures" / "cpu-24gb" / "predict_phase" / "runs.csv"
LEFT_OUT = 4 / 3
"""Speed of a way to train that leaves one step in four out of the count."""


@pytest.fixture(scope="module")
def adamw() -> pd.DataFrame:
    runs = pd.read_csv(RECORDED)
    own = runs[runs["arm"] == protocol.BASELINE].copy()
    # Seconds of one machine's hour are no part of a control: all arms take the same time a step.
    return own.assign(seconds=own["steps"] * own["seconds"].sum() / own["steps"].sum())


def next_seeds(runs: pd.DataFrame, shift: int) -> pd.Series:
    seeds = sorted(runs["seed"].unique())
    return runs["seed"].map({seed: seeds[(i + shift) % len(seeds)] for i, seed in enumerate(seeds)})


def counting_less(adamw: pd.DataFrame, arm: str, shift: int = 1) -> pd.DataFrame:
    """The baseline's runs as an arm that is counted three quarters of the time."""
    return adamw.assign(arm=arm, seed=next_seeds(adamw, shift), seconds=adamw["seconds"] / LEFT_OUT)


def planted(adamw: pd.DataFrame, arm: str, *, speed: float, jumps: int = 0, shift: int = 1) -> pd.DataFrame:
    """An arm that ends each but the longest budget where the baseline ends after `speed` times as many seconds."""
    parts = []
    for _, own in adamw.groupby("seed"):
        line = own.sort_values("seconds")
        later = np.interp(np.log(speed * line["seconds"]), np.log(line["seconds"]), line["loss"])
        parts.append(line.assign(loss=later).iloc[:-1])
    runs = pd.concat(parts)
    return runs.assign(arm=arm, seed=next_seeds(runs, shift), jumps=jumps)


def judged(*runs: pd.DataFrame) -> dict[str, protocol.Judgement]:
    return {own.arm: own for own in protocol.judge(pd.concat(runs, ignore_index=True))}


@pytest.mark.parametrize("shift", [1, 2])
def test_one_step_in_four_left_out_of_the_count_reads_one_and_a_third(adamw: pd.DataFrame, shift: int) -> None:
    found = judged(adamw, counting_less(adamw, "muon", shift))["muon"]
    assert found.n_seeds == 5
    assert found.reach.interval.contains(LEFT_OUT)
    assert found.reach.interval.low > 1


@pytest.mark.parametrize("speed", [0.75, 1.0, LEFT_OUT])
def test_what_is_planted_in_the_losses_is_read_with_its_size(adamw: pd.DataFrame, speed: float) -> None:
    shorter = planted(adamw, protocol.BASELINE, speed=1.0, shift=0)
    found = judged(shorter, planted(adamw, "muon", speed=speed))["muon"]
    assert found.reach.interval.contains(speed)
    assert ("faster at equal loss" in found.claims) is (speed > 1)


@pytest.mark.parametrize("control", ["frozen", "random"])
def test_a_control_that_reads_above_one_takes_the_credit_from_prediction(adamw: pd.DataFrame, control: str) -> None:
    base = planted(adamw, protocol.BASELINE, speed=1.0, shift=0)
    arm = planted(adamw, "block-trend", speed=LEFT_OUT, jumps=5)
    still = {name: planted(adamw, name, speed=1.0, shift=2) for name in ("frozen", "random")}
    assert "due to prediction" in judged(base, arm, *still.values())["block-trend"].claims
    leaking = still | {control: planted(adamw, control, speed=LEFT_OUT, shift=2)}
    found = judged(base, arm, *leaking.values())
    assert found[control].reach.interval.low > 1
    assert "due to prediction" not in found["block-trend"].claims


def test_a_gain_without_jumps_is_no_gain_of_jumps(adamw: pd.DataFrame) -> None:
    base = planted(adamw, protocol.BASELINE, speed=1.0, shift=0)
    found = judged(base, planted(adamw, "block-trend", speed=LEFT_OUT, jumps=0))["block-trend"]
    assert found.reach.interval.low > 1
    assert found.claims == ("not exercised: 0 jumps were kept",)
