"""The phase machine against sequences worked out by hand from the rules of report 003's code (src/phases.rs)."""

import pytest

from labkit.hybrid import REPORT, HybridConfig, Phase, PhaseMachine

SHORT = HybridConfig(warmup_steps=2, full_steps=4, predict_steps=4, correct_steps=2, max_gain=1.0, predict_until=1.0)


def walk(config, total, accept=True):
    """Return the phase of every nominal step, with a predictor that is always or never believed."""
    machine, phases = PhaseMachine(config, total), []
    while not machine.over:
        phases.append(machine.phase)
        machine.count_real()
        if machine.left:
            continue
        if not machine.may_predict:
            machine.end_phase()
            continue
        steps = machine.horizon(block_steps=config.full_steps) if accept else 0
        machine.predict(steps)
        phases += [Phase.PREDICT] * steps
    return phases


def test_the_reports_configuration_gives_its_phases_step_by_step():
    phases = walk(HybridConfig(**REPORT), 50)
    expected = (
        [(Phase.WARMUP, 5), (Phase.FULL, 10)] + 3 * [(Phase.PREDICT, 5), (Phase.CORRECT, 5)] + [(Phase.PREDICT, 5)]
    )
    assert phases == [phase for phase, n in expected for _ in range(n)]
    assert [phases.count(phase) for phase in Phase] == [5, 10, 20, 15]


def test_a_predictor_that_is_never_believed_leaves_full_steps_only():
    assert set(walk(SHORT, 40, accept=False)) == {Phase.WARMUP, Phase.FULL}


def test_after_five_predict_phases_in_a_row_comes_a_full_one():
    phases = walk(SHORT, 80)
    first = phases.index(Phase.PREDICT)
    assert phases[first : first + 5 * 6] == 5 * (4 * [Phase.PREDICT] + 2 * [Phase.CORRECT])
    assert phases[first + 30 : first + 34] == 4 * [Phase.FULL]


def test_no_jump_goes_past_the_end_of_the_schedule():
    machine = PhaseMachine(SHORT, 10)
    for _ in range(6):
        machine.count_real()
        if not machine.left and machine.phase is Phase.WARMUP:
            machine.end_phase()
    assert machine.horizon(block_steps=100) == 4
    machine.nominal = 8
    assert machine.horizon(block_steps=100) == 2


def test_no_jump_starts_late_in_the_schedule():
    config = HybridConfig(warmup_steps=0, full_steps=1, max_gain=1.0, predict_until=0.5)
    machine = PhaseMachine(config, 10)
    may = []
    while not machine.over:
        machine.count_real()
        may.append(machine.may_predict)
        machine.end_phase()
    assert may == 4 * [True] + 6 * [False]


def test_predicted_steps_may_leave_the_schedule_where_it_is():
    config = HybridConfig(warmup_steps=0, full_steps=2, predict_steps=2, max_gain=1.0, advance_schedule=False)
    machine = PhaseMachine(config, 10)
    machine.count_real(), machine.count_real()
    machine.predict(2)
    assert (machine.nominal, machine.phase) == (2, Phase.CORRECT)


def test_an_undone_jump_takes_the_schedule_back_and_halves_the_next_one_and_three_end_prediction():
    machine = PhaseMachine(SHORT, 100)
    for strike in range(1, 4):
        while machine.phase is not Phase.FULL or machine.left:
            machine.count_real()
            if not machine.left and machine.phase is not Phase.FULL:
                machine.end_phase()
        before = machine.nominal
        assert machine.may_predict
        machine.predict(machine.horizon(block_steps=100))
        machine.count_real()
        machine.undo(before)
        assert (machine.nominal, machine.strikes, machine.reach) == (before, strike, max(1, 4 >> strike))
    machine.left = 0
    assert not machine.may_predict


def test_after_refusals_in_a_row_the_machine_asks_less_and_less_often():
    config = HybridConfig(warmup_steps=1, full_steps=1, max_gain=1.0, predict_until=1.0, most_wait=4)
    machine, asked = PhaseMachine(config, 24), []
    while not machine.over:
        machine.count_real()
        if machine.may_predict:
            asked.append(machine.nominal)
            machine.predict(0)
        else:
            machine.end_phase()
    assert asked == [2, 3, 5, 9, 14, 19]
    machine.predict(1)
    assert machine.refused == 0


def test_a_machine_restored_from_json_goes_on_alike():
    machine = PhaseMachine(SHORT, 40)
    for _ in range(2):
        machine.count_real()
    machine.end_phase()
    machine.count_real()
    restored = PhaseMachine.restored(SHORT, 40, machine.state())
    assert restored == machine
    assert restored.phase is Phase.FULL


def test_a_real_step_in_no_phase_is_a_mistake_of_the_caller():
    machine = PhaseMachine(SHORT, 40)
    machine.left = 0
    with pytest.raises(RuntimeError, match="no real step is due in phase warmup"):
        machine.count_real()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"full_steps": 0}, "full_steps is 0; it must be at least 1"),
        ({"confidence_threshold": 1.5}, "confidence_threshold is 1.5; it must be between 0 and 1"),
        ({"max_gain": 0.0}, "max_gain is 0.0; it must be above 0"),
        ({"predictor": "oracle"}, "predictor is 'oracle'; it must be one of block-trend"),
        ({"gate": "maybe"}, "gate is 'maybe'; it must be one of probe, always, never"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        HybridConfig(**values)
