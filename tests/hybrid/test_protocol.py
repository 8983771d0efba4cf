"""The protocol on made-up runs whose answer is known: loss as a power of time, arms a known factor faster or not. The
interval against Student's over a loop that forms each seed's frontiers with pandas; how often it covers the truth.
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from labkit.reports.predict_phase import protocol
from labkit.reports.predict_phase import speed as equal_loss

BUDGETS = (0.2, 0.4, 0.6, 0.8, 1.0)


def runs(**speeds):
    """Losses 3 + time^-0.3 with a common shift for each seed; an arm that is s times faster is so at every loss."""
    rows = []
    for arm, speed in {"adamw": 1.0, **speeds}.items():
        for seed in range(8):
            rng = np.random.default_rng((seed, len(arm)))
            for budget in BUDGETS:
                seconds = 100 * budget
                loss = 3 + (speed * seconds) ** -0.3 + 0.01 * np.sin(seed) + 0.0005 * rng.standard_normal()
                rows.append(
                    {
                        "arm": arm,
                        "steps": round(100 * budget),
                        "seed": seed,
                        "seconds": seconds,
                        "loss": loss,
                        "jumps": 3,
                    }
                )
    return pd.DataFrame(rows)


def found(table, arm):
    return next(own for own in protocol.judge(table) if own.arm == arm)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.3, 2.0])
def test_the_speed_of_an_arm_is_found_at_equal_loss(speed):
    own = found(runs(muon=speed), "muon")
    assert own.reach.ratio == pytest.approx(speed, rel=0.03)
    assert not own.reach.bound
    # Straight lines between the budgets of a curved law are off by less than a hundredth.
    assert 0.99 * own.reach.interval.low < speed < 1.01 * own.reach.interval.high
    assert own.loss_change == pytest.approx(((100 * speed) ** -0.3 - 100**-0.3) / (3 + 100**-0.3), abs=2e-4)


def test_an_arm_better_than_the_baseline_at_its_shortest_budget_has_a_bound():
    own = found(runs(muon=9.0), "muon")
    assert (own.reach.bound, own.reach.ratio) == ("at least", pytest.approx(5.0))
    assert own.claims == ("faster at equal loss", "at least 1.5x at equal loss")


def test_an_arm_worse_at_its_longest_budget_than_the_baseline_at_its_shortest_has_a_bound():
    own = found(runs(muon=0.1), "muon")
    assert (own.reach.bound, own.reach.ratio) == ("at most", pytest.approx(0.2))
    assert own.claims == ()


def test_what_may_be_said_follows_from_the_intervals():
    said = {speed: found(runs(muon=speed), "muon").claims for speed in (0.7, 1.0, 1.3, 2.0)}
    assert said[0.7] == ()
    assert said[1.0] == ("no loss of quality within 0.3% at equal time",)
    assert said[1.3] == ("faster at equal loss",)
    assert said[2.0] == ("faster at equal loss", "at least 1.5x at equal loss")


def test_prediction_is_credited_only_beyond_its_own_optimizer_and_while_controls_fail():
    names = {"muon": 2.0, "muon-block-trend": 2.6, "random": 0.8}
    assert "due to prediction" in found(runs(**names), "muon-block-trend").claims
    assert "due to prediction" not in found(runs(**names | {"muon-block-trend": 2.0}), "muon-block-trend").claims
    assert "due to prediction" not in found(runs(**names | {"random": 1.3}), "muon-block-trend").claims
    assert "due to prediction" not in found(runs(**names), "muon").claims


def ragged():
    """Losses that rise again, times out of order, ties: what frontiers have to put right."""
    table = runs(muon=1.3)
    table.loc[(table["arm"] == "muon") & (table["steps"] == 80), "loss"] += 0.05
    table.loc[(table["arm"] == "adamw") & (table["steps"] == 60), "seconds"] = 75.0
    table.loc[(table["arm"] == "adamw") & (table["steps"] == 40) & (table["seed"] > 3), "seconds"] = 78.0
    return table


@pytest.mark.parametrize("table", [runs(muon=1.3), runs(muon=0.7), ragged()], ids=["faster", "slower", "ragged"])
def test_the_interval_is_students_over_a_loop_of_seeds(table):
    parts = [table[table["seed"] == seed] for seed in range(8)]
    logs = [
        math.log(equal_loss.speed(*(equal_loss.frontier(part, name) for name in ("muon", "adamw")))[0])
        for part in parts
    ]
    slowly = scipy_stats.t.interval(0.95, 7, np.mean(logs), scipy_stats.sem(logs))
    found = equal_loss.reach(table, "muon").interval
    assert [found.low, found.estimate, found.high] == pytest.approx(np.exp([slowly[0], np.mean(logs), slowly[1]]))
    assert found.low < found.high


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_interval_covers_the_true_speed_at_the_seeds_it_is_used_with(n_seeds):
    """Seeds differ in how fast they are by a fifth, in their level of loss, and every loss has noise of its own."""
    rng, covered = np.random.default_rng(1), 0
    budgets = 100 * np.array(BUDGETS)
    for _ in range(500):
        rows = []
        for seed in range(n_seeds):
            own, level = 1.5 * rng.lognormal(0, 0.2), 0.05 * rng.standard_normal()
            for arm, speed in (("adamw", 1.0), ("muon", own)):
                loss = 3 + level + (speed * budgets) ** -0.3 + 0.001 * rng.standard_normal(len(budgets))
                rows += [
                    {"arm": arm, "steps": int(s), "seed": seed, "seconds": s, "loss": x, "jumps": 0}
                    for s, x in zip(budgets, loss, strict=True)
                ]
        found = equal_loss.reach(pd.DataFrame(rows), "muon")
        covered += found.interval is not None and found.interval.contains(1.5)
    assert covered / 500 >= 0.92


def test_an_arm_that_kept_no_jump_says_nothing_and_twins_leave_the_tests():
    table = runs(**{"muon": 1.3, "muon-block-trend": 1.3, "block-trend": 1.0})
    twins = table["arm"] == "muon-block-trend"
    table.loc[twins, "loss"] = table.loc[table["arm"] == "muon", "loss"].to_numpy()
    table.loc[twins, "jumps"] = 0
    alone = found(table[~twins], "block-trend")
    own = found(table, "muon-block-trend")
    assert (own.acted, own.same_as, own.claims) == (0, "muon", ("not exercised: 0 jumps were kept",))
    assert math.isnan(own.p_value)
    assert found(table, "block-trend").p_value == alone.p_value, "a twin does not make the others' tests stricter"
    shown = protocol.table(protocol.judge(table)).set_index("arm")["may be said"]
    assert shown["muon-block-trend"] == "the losses are those of muon; not exercised: 0 jumps were kept"


def test_what_the_last_bits_of_the_seconds_are_does_not_show():
    table = runs(muon=1.3)
    blurred = table.assign(seconds=np.nextafter(table["seconds"], np.inf))
    assert protocol.judge(table) == protocol.judge(blurred)


def test_an_arm_without_a_pair_has_no_speed():
    table = runs(muon=1.3)
    assert str(equal_loss.reach(table[table["arm"] == "adamw"], "muon")) == "nan"


def test_few_seeds_allow_no_claim():
    table = runs(muon=9.0)
    own = found(table[table["seed"] < 2], "muon")
    assert own.claims == ()


def test_a_seed_with_a_missing_run_is_left_out_on_both_sides():
    table = runs(muon=1.3)
    table.loc[(table["seed"] == 7), "loss"] += 5.0
    partial = table[~((table["arm"] == "muon") & (table["seed"] == 7) & (table["steps"] == 100))]
    own = found(partial, "muon")
    assert own.n_seeds == 7
    assert own.reach.ratio == pytest.approx(1.3, rel=0.03)
    apart = table[(table["arm"] == "adamw") == (table["seed"] < 4)]
    assert protocol.judge(apart) == [], "no seed is shared, so there is nothing to compare"


def test_losses_between_and_beyond_budgets():
    line = equal_loss.frontier(runs(), "adamw")
    seconds, bound = equal_loss.time_to(line, float(line["loss"].iloc[2]))
    assert (seconds, bound) == (pytest.approx(60.0), "")
    assert equal_loss.time_to(line, 9.0) == (20.0, "at least")
    with pytest.raises(ValueError, match=r"never reaches 1\.0"):
        equal_loss.time_to(line, 1.0)
    assert equal_loss.loss_at(line, 1e6) == line["loss"].iloc[-1]


def test_a_worse_longer_budget_does_not_make_the_arm_worse():
    table = runs(muon=1.3)
    table.loc[(table["arm"] == "muon") & (table["steps"] == 80), "loss"] = 99.0
    assert found(table, "muon").reach.ratio == pytest.approx(1.3, rel=0.05)


def test_holms_correction_by_hand():
    assert protocol.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_equivalence_needs_the_whole_interval_within_the_margin():
    rng = np.random.default_rng(0)
    assert protocol.is_equivalent(0.0005 + 0.0005 * rng.standard_normal(8))
    assert not protocol.is_equivalent(0.0005 + 0.01 * rng.standard_normal(8))
    assert not protocol.is_equivalent(0.006 + 0.0005 * rng.standard_normal(8))


def test_a_comparison_without_its_baseline_is_refused():
    table = runs(muon=2.0)
    with pytest.raises(ValueError, match="no run of adamw"):
        protocol.judge(table[table["arm"] == "muon"])
