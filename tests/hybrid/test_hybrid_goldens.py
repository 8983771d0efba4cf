"""What the goldens of report 003 go through: a change of behaviour shows only where one of them comes along."""

import pytest

from labkit.hybrid.kinds import JUMPS, LEAD_KINDS
from labkit.reports.predict_phase import costs, floors, goldens, growth, noise, oracle, original, train
from labkit.reports.predict_phase.arms import ARMS
from labkit.reports.predict_phase.tasks import ADAPTED, CNN, TASKS

TRAINED = goldens.GOLDENS[train.train]


def test_every_cell_function_has_goldens():
    own = {original.measure_original, oracle.measure_oracle, noise.measure_noise, growth.measure_growth}
    assert goldens.GOLDENS.keys() == own | {train.train, costs.measure_costs, floors.measure_floors}


def test_every_predictor_optimizer_and_kind_of_task_is_trained():
    arms = [ARMS[run.arm] for run in TRAINED]
    assert {arm.hybrid["predictor"] for arm in arms if arm.hybrid} == JUMPS.keys() | LEAD_KINDS.keys()
    assert {arm.optimizer for arm in arms} == {arm.optimizer for arm in ARMS.values()}
    assert {arm.schedule for arm in arms} == {arm.schedule for arm in ARMS.values()}
    assert {name for arm in arms for name in arm.reads} == {name for arm in ARMS.values() for name in arm.reads}
    assert any(arm.tail_average for arm in arms)
    assert any(arm.micro_batches > 1 and arm.dtype == "bfloat16" for arm in arms)
    tasks = {run.task for run in TRAINED}
    assert CNN in tasks
    assert tasks & TASKS.keys()
    assert tasks & ADAPTED.keys()


@pytest.fixture(scope="module")
def jumps():
    return [jump for run in TRAINED for jump in train.train(run)["jumps"]]


def test_jumps_are_kept_refused_shortened_and_undone(jumps):
    assert sum(jump["accepted"] and "probe_after" in jump for jump in jumps) > 8
    assert any(jump.get("overshoot", 1.0) < 1 for jump in jumps)
    remarks = " ".join(jump["remark"] for jump in jumps if not jump["accepted"])
    for why in ("the probe did not show the gain", "not confident", "undone at step"):
        assert why in remarks
