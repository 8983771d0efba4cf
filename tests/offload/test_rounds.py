"""Rounds that test the law of the gain: their order, the slowed disk, the law on timings known on paper, when they are
void. The references are timings made from the law itself, and a disk that was slowed without the steps noticing.
"""

from __future__ import annotations

import copy
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.offload import ablation, shapes
from labkit.offload.isolated import IN_PLACE
from labkit.offload.random_weights import write_random_checkpoint
from labkit.reports.chunked_offload import goldens, law, results, rounds, speed, tables
from labkit.reports.chunked_offload.rounds import RoundsSpec, measure_rounds
from labkit.reports.chunked_offload.study import Study
from labkit.reports.chunked_offload.void import why_void
from labkit.workflow import params
from labkit.workflow.cells import Cells

READING, EACH = 4.0, 0.5
"""Seconds of reading alone, and of computing alone for each sample: batch 8 computes exactly as long as it reads."""
BATCHES, SLOWDOWNS = (1, 8, 32), (1, 2, 4)
(SPEC,) = goldens.GOLDENS[measure_rounds]


def timed(n_rounds: int = 8, told: int = 1) -> dict[str, Any]:
    """Rounds of an engine that reads ahead perfectly; `told` is how much of a slowdown reaches its steps."""
    rows, halves = [], []
    for r in range(n_rounds):
        slower = 1 + 0.1 * r
        for n in BATCHES:
            name = {"batch": n, "repeat": r}
            for q in SLOWDOWNS:
                seconds = slower * max(READING * (q if told else 1), EACH * n)
                rows.append({**name, "slowdown": q, "seconds": seconds, "disk_bytes": 1000, "row_bytes_read": 10})
                if q == 1 or n == 1:
                    own = {
                        "read_seconds": slower * READING * q,
                        "compute_seconds": slower * EACH * n if q == 1 else None,
                    }
                    halves.append({**name, "slowdown": q, **own})
    return {
        "rows": rows,
        "ablations": halves,
        "copies": [{"repeat": r, "before": 10.0, "after": 10.5} for r in range(n_rounds)],
        "plans": {str(n): {"bytes_read": 940, "spilled_bytes": 50} for n in BATCHES},
        "limits": {"cgroup": True},
        "weights": {"shape": "phi3-30m", "parameters": 10**9, "bytes": 2 * 10**9},
    }


def study(found: dict[str, Any]) -> Study:
    resolved = params.resolve("chunked_offload", "ci")
    own = Study(resolved, Cells.of("ci", "chunked_offload"))
    own.rounds, own.speed = found, law.at_own_speed(found)
    return own


def test_each_round_runs_everything_once_in_an_order_of_its_own() -> None:
    spec = RoundsSpec(steps=replace(SPEC.steps, batch_sizes=(1, 8, 32, 64, 128)), slowdowns=SLOWDOWNS)
    orders = [tuple(rounds.order(spec, r)) for r in range(8)]
    assert all(sorted(one) == [(n, q) for n in (1, 8, 32, 64, 128) for q in SLOWDOWNS] for one in orders)
    assert len(set(orders)) == 8
    assert rounds.order(spec, 3) == list(orders[3]), "seeded"


def test_rounds_time_both_halves_at_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_PLACE, "1")
    found = measure_rounds(SPEC)
    n_rounds, sizes = SPEC.steps.repeats, SPEC.steps.batch_sizes
    assert len(found["rows"]) == n_rounds * len(sizes) * len(SPEC.slowdowns)
    both = [half for half in found["ablations"] if half["compute_seconds"] is not None]
    assert sorted((half["repeat"], half["batch"]) for half in both) == [(r, n) for r in range(n_rounds) for n in sizes]
    slowed = [half for half in found["ablations"] if half["slowdown"] > 1]
    assert [half["batch"] for half in slowed] == [1] * n_rounds
    assert all(row["bytes_read"] == found["plans"][str(row["batch"])]["bytes_read"] for row in found["rows"])
    assert all(copies["before"] > 0 < copies["after"] for copies in found["copies"])
    points = law.points(found)
    assert len(points) == n_rounds * (len(sizes) - 1) * len(SPEC.slowdowns)


def test_a_slowed_reader_takes_so_many_times_as_long_and_reads_the_same(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "m", "phi-4", dtype=torch.float32, **shapes.overrides("phi3-tiny"))
    model = speed.opened(SPEC.steps, str(tmp_path / "m"))
    batch = speed.batch_of(SPEC.steps, model, 2)
    model.gradients(batch)
    pool, spent = model.passes.pool, []
    read = pool.fill

    def watched(unit: int, memory: Any) -> None:
        began = time.perf_counter()
        read(unit, memory)
        spent.append(time.perf_counter() - began)

    pool.fill = watched
    before = model.passes.store.reader.n_bytes
    with ablation.reading_slowed(model, 20):
        seconds = ablation.without_computing(model, batch)
    slowed_bytes = model.passes.store.reader.n_bytes - before
    assert seconds >= 20 * sum(spent)
    assert pool.fill is watched, "and afterwards it is as it was"
    ablation.without_computing(model, batch)
    assert model.passes.store.reader.n_bytes - before == 2 * slowed_bytes
    model.close()


def test_gains_that_follow_the_law_have_slope_1_at_every_speed_of_the_disk() -> None:
    found = law.results(timed())
    assert set(found) == {"gain_slope", *(f"gain_slope/slowdown_{q}" for q in SLOWDOWNS)}
    for one in found.values():
        assert (one["value"], one["n_seeds"]) == (pytest.approx(1.0), 8)
        assert one["ci"] == pytest.approx([1.0, 1.0])


def test_predicted_gains_are_those_worked_out_by_hand() -> None:
    points = law.points(timed(1)).set_index(["slowdown", "batch"])
    # 8 x max(4, 0.5) / max(4, 4), 32 x 4 / 16; at half the speed 8 x 8 / 8, 32 x 8 / 16; at a quarter 32 x 16 / 16.
    assert points["predicted"].to_dict() == pytest.approx(
        {(1, 8): 8.0, (1, 32): 8.0, (2, 8): 8.0, (2, 32): 16.0, (4, 8): 8.0, (4, 32): 32.0}
    )
    assert points.loc[(1, 32), "predicted_added"] == pytest.approx(32 * 4.5 / 20)


def test_a_disk_whose_slowing_the_steps_do_not_notice_is_found_out() -> None:
    """The positive control can fail: predicted 8, 16 (or 8, 32) stand against 8, 8."""
    found = law.results(timed(told=0))
    assert found["gain_slope/slowdown_1"]["value"] == pytest.approx(1.0)
    assert found["gain_slope/slowdown_2"]["value"] == pytest.approx((8 * 8 + 16 * 8) / (8 * 8 + 16 * 16))
    assert found["gain_slope/slowdown_4"]["value"] == pytest.approx((8 * 8 + 32 * 8) / (8 * 8 + 32 * 32))
    assert found["gain_slope"]["ci"][1] < 0.9


def test_an_engine_that_waits_for_its_reads_is_told_from_one_that_reads_ahead() -> None:
    found = timed()
    for row in found["rows"]:
        slower = 1 + 0.1 * row["repeat"]
        row["seconds"] = slower * (READING * row["slowdown"] + EACH * row["batch"])
    points = law.points(found)
    assert law.slope(points, "predicted_added")["value"] == pytest.approx(1.0)
    assert law.slope(points)["value"] < 0.9
    assert law.table(found)["slope, waits"].tolist() == ["1.000 [1.000, 1.000]"] * 4


def test_rounds_that_kept_to_the_protocol_are_judged() -> None:
    assert why_void(timed()) == []
    assert results.law_results(study(timed()))["gain_slope"]["value"] == pytest.approx(1.0)
    assert tables.gain_sentence(study(timed())).startswith("measured gains are 1.000 [1.000, 1.000] times those")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found["rows"][5].update(disk_bytes=989), r"1 of 72 steps .* -1\.1%: the cache was not cold"),
        (lambda found: found["rows"][5].update(disk_bytes=1011), r"1 of 72 steps .* \+1\.1%"),
        (lambda found: found["plans"]["8"].update(spilled_bytes=0), r"24 of 72 steps .* batch 8 \+5\.3%"),
        (lambda found: found["copies"][2].update(after=7.9), r"round 3 was disturbed: .* -21% off"),
        (lambda found: found["copies"][7].update(after=12.1), r"round 8 was disturbed: .* \+21% off"),
        (lambda found: found["limits"].update(cgroup=False), "no memory cgroup held the limit"),
    ],
)
def test_each_void_condition_takes_every_number_of_the_rounds_and_says_why(change: Any, said: str) -> None:
    found = copy.deepcopy(timed())
    change(found)
    (why,) = why_void(found)
    assert re.search(said, why)
    own = study(found)
    assert not results.law_results(own)
    assert not results.speed_results(own)
    told = results.out_of_reach(own)
    for key in ("speedup/batch_8", "speedup/batch_32", "gain_slope", "gain_slope/slowdown_2"):
        assert told[key]["why"] == f"the rounds are void: {why}"
        assert math.isfinite(told[key]["seconds"])
    assert tables.gain_sentence(own).startswith("void, so that no number of these rounds is judged")


@pytest.mark.parametrize(("name", "value"), [("disk_bytes", 990), ("disk_bytes", 1010)])
def test_a_difference_of_1_percent_is_none(name: str, value: int) -> None:
    found = copy.deepcopy(timed())
    found["rows"][5][name] = value
    assert why_void(found) == []


def test_slowdowns_begin_with_the_disk_as_it_is() -> None:
    with pytest.raises(ValueError, match="slowdowns must begin with 1 and grow, or be empty; got"):
        params.resolve("chunked_offload", "ci", {"slowdowns": [2, 4]})
