"""The hybrid run against plain training and against toys whose answer is known in closed form."""

import copy
import dataclasses
import math

import pytest
import torch
from small_runs import EAGER, Linear, Quadratic, Regression, linear_decay, probe_of, proceed, train, weights

from labkit.hybrid import REPORT, Hybrid, HybridConfig
from labkit.hybrid.gate import Verdict
from labkit.hybrid.kinds import JUMPS
from labkit.hybrid.persist import load_state, save_state

BELIEVED = Verdict(accepted=True, before=1.0, after=0.0, error=0.0)
CAUTIOUS = HybridConfig(warmup_steps=4, full_steps=8, predict_steps=4, confidence_threshold=0.0)


def plain_training(model, steps, lead=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = linear_decay(optimizer, steps)
    losses = []
    for i in range(steps):
        loss = model.loss(model.batch(i))
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def jumps(hybrid):
    table = hybrid.history.table()
    return table[(table["phase"] == "predict") & (table["horizon"] > 0)]


@pytest.mark.parametrize("predictor", sorted(JUMPS))
def test_a_gate_that_always_rejects_leaves_plain_adamw_bit_by_bit(predictor):
    plain, hybrid_model = Regression(), Regression()
    torch.manual_seed(5)
    losses = plain_training(plain, 60)
    torch.manual_seed(5)
    config = HybridConfig(
        predictor=predictor, warmup_steps=4, full_steps=8, predict_steps=4, gate="never", confidence_threshold=0.0
    )
    hybrid = train(hybrid_model, config, 60)
    assert torch.equal(weights(plain), weights(hybrid_model))
    assert hybrid.history.table()["loss"].dropna().tolist() == losses
    probed = hybrid.history.table()["probe_after"].notna().sum()
    assert probed >= 3, "the gate was asked, and its probes changed nothing"


def test_a_constant_gradient_is_predicted_exactly():
    model = Linear([1.0, -2.0, 0.5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config = HybridConfig(warmup_steps=2, full_steps=8, predict_steps=4, predict_until=1.0, history_dtype="float32")
    hybrid = train(model, config, 48, optimizer=optimizer, scheduler=still)
    assert len(jumps(hybrid)) >= 3
    assert hybrid.history.phase_steps()["predict"] >= 12
    assert torch.equal(model.w.detach(), -0.25 * 48 * model.slope), "48 nominal steps, predicted or not"


def test_every_jump_moves_the_weights_by_the_norm_on_record():
    model, seen = Regression(dropout=0.0), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before_step, moved = {}, []

    def after_optimizer(*_):
        before_step["weights"] = weights(model).clone()

    optimizer.register_step_post_hook(after_optimizer)

    def watch(hybrid):
        made = len(jumps(hybrid))
        if made > len(seen):
            seen.append(made)
            moved.append(float((weights(model) - before_step["weights"]).norm()))

    hybrid = train(model, EAGER, 80, optimizer=optimizer, watch=watch)
    recorded = jumps(hybrid)["jump_norm"].tolist()
    assert len(recorded) >= 4
    assert min(recorded) > 0
    assert moved == pytest.approx(recorded, rel=1e-4)


def test_what_the_original_did_keeps_its_phase_counts_and_is_on_record_as_no_movement():
    hybrid = train(Regression(), HybridConfig(**REPORT, predictor="frozen", gate="always", damp_momentum=False), 50)
    assert hybrid.history.phase_steps() == {"warmup": 5, "full": 10, "predict": 20, "correct": 15}
    assert jumps(hybrid)["jump_norm"].tolist() == [0.0] * 4


@pytest.mark.parametrize("predictor", ["block-trend", "last-update", "coasting", "random", "learned"])
def test_the_reports_configuration_has_its_phase_counts_with_every_predictor_that_can_always_propose(predictor):
    hybrid = train(Regression(), HybridConfig(**REPORT, predictor=predictor, gate="always"), 50)
    assert hybrid.history.phase_steps() == {"warmup": 5, "full": 10, "predict": 20, "correct": 15}


def test_a_probe_touches_neither_generators_nor_gradients_nor_modes():
    model = Regression(dropout=0.5)
    model.loss(model.batch(0)).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    model.mlp[2].eval()
    losses = probe_of(model)(3)
    model.mlp.eval()
    without_dropout = [float(model.loss(model.batch(i)).detach()) for i in range(10_000, 10_003)]
    model.mlp.train()
    model.mlp[2].eval()
    assert losses() == without_dropout
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert model.training
    assert not model.mlp[2].training


def test_a_loss_that_draws_in_evaluation_mode_too_draws_the_same_in_every_probe_and_leaves_the_generator():
    class Noisy(Regression):
        def loss(self, batch):
            return super().loss(batch) * (1 + 0.1 * torch.rand(()))

    model = Noisy()
    random = torch.get_rng_state()
    losses = probe_of(model)(2)
    assert losses() == losses(), "both ends of a jump meet the same noise"
    assert torch.equal(random, torch.get_rng_state())


def test_an_undone_jump_puts_everything_back_bit_by_bit():
    model = Regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = linear_decay(optimizer, 200)
    config = HybridConfig(
        predictor="random",
        warmup_steps=4,
        full_steps=8,
        predict_steps=8,
        max_gain=100.0,
        confidence_threshold=0.0,
        divergence_threshold=0.01,
    )
    hybrid = Hybrid(model, optimizer, config, total_steps=200, scheduler=scheduler, probe=probe_of(model))
    hybrid._search = lambda proposal: (proposal.steps, BELIEVED)
    i = proceed(hybrid, model, optimizer, scheduler, until=11)
    states = {}
    original = hybrid._snapshot.take

    def take(*arguments):
        original(*arguments)
        states["weights"] = weights(model).clone()
        states["optimizer"] = copy.deepcopy(optimizer.state_dict())
        states["schedule"] = copy.deepcopy(scheduler.state_dict())
        states["random"] = torch.get_rng_state()

    hybrid._snapshot.take = take
    while "undone" not in str(hybrid.history.table()["remark"].tolist()):
        i = proceed(hybrid, model, optimizer, scheduler, first_batch=i, until=i + 1)
        assert i < 100, "a random jump of this size is undone"
    assert torch.equal(weights(model), states["weights"])
    assert torch.equal(torch.get_rng_state(), states["random"])
    now = optimizer.state_dict()
    assert now["param_groups"] == states["optimizer"]["param_groups"]
    for number, state in states["optimizer"]["state"].items():
        assert all(torch.equal(now["state"][number][name], value) for name, value in state.items())
    assert scheduler.state_dict() == states["schedule"]
    assert hybrid.machine.strikes == 1
    assert hybrid.machine.reach == 4


def test_a_jump_past_the_minimum_of_a_quadratic_is_refused_by_the_probe():
    # Gradient descent at rate 0.15 on curvatures 1 and 12: the steep one has converged and flips sign at each step.
    model = Quadratic([1.0, 12.0], [4.0, 4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config = HybridConfig(
        warmup_steps=0, full_steps=4, predict_steps=40, max_gain=10.0, confidence_threshold=0.0, predict_until=1.0
    )
    hybrid = train(model, config, 60, optimizer=optimizer, scheduler=still)
    table = hybrid.history.table()
    assert (table["remark"] == "the probe did not show the gain").any() or table["overshoot"].notna().any()
    losses = table["loss"].dropna().to_numpy()
    assert losses[-1] < 0.01 * losses[0]
    assert math.isfinite(losses.max())
    assert losses.max() == losses[0]


def test_probes_on_the_way_keep_the_part_of_a_jump_that_still_gains():
    # At rate 0.01 a step moves w from 4 by a hundredth of it, so the minimum lies about 100 such steps ahead.
    model = Quadratic([1.0], [4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config = HybridConfig(
        predictor="last-update",
        warmup_steps=0,
        full_steps=4,
        predict_steps=160,
        max_gain=100.0,
        correction_interval=20,
        predict_until=1.0,
        confidence_threshold=0.0,
    )
    hybrid = train(model, config, 400, optimizer=optimizer, scheduler=still)
    first = jumps(hybrid).iloc[0]
    assert 20 <= first["horizon"] < 160
    assert first["horizon"] % 20 == 0
    assert first["probe_after"] < first["probe_before"]


def test_history_beside_the_weights_or_on_the_processor_is_the_same_run():
    beside, on_processor = Regression(), Regression()
    config = dataclasses.replace(EAGER, gate="probe", confidence_threshold=0.0, least_gain=0.0)
    for model, where in ((beside, None), (on_processor, "cpu")):
        torch.manual_seed(5)
        train(model, dataclasses.replace(config, history_device=where), 80)
    assert torch.equal(weights(beside), weights(on_processor))


def test_a_jump_across_the_minimum_is_taken_back_to_where_its_slope_vanishes():
    model = Quadratic([1.0], [4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config = HybridConfig(
        predictor="last-update", warmup_steps=0, full_steps=8, predict_steps=160, max_gain=100.0, predict_until=1.0
    )
    hybrid = Hybrid(model, optimizer, config, total_steps=400, scheduler=still, probe=probe_of(model))
    hybrid._search = lambda proposal: (proposal.steps, BELIEVED)
    proceed(hybrid, model, optimizer, still, until=8)
    across = model.w.item()
    assert across < -1, "the jump has crossed the minimum at 0"
    proceed(hybrid, model, optimizer, still, first_batch=8, until=9)
    assert abs(model.w.item()) < 0.1 * abs(across)
    assert 0.5 < jumps(hybrid).iloc[0]["overshoot"] < 0.9


def test_a_run_saved_before_a_jump_is_judged_undoes_it_as_the_run_left_alone(tmp_path):
    config = HybridConfig(
        predictor="random",
        warmup_steps=4,
        full_steps=8,
        predict_steps=8,
        correct_steps=3,
        max_gain=100.0,
        confidence_threshold=0.0,
        divergence_threshold=0.01,
    )

    def start():
        model = Regression(dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = linear_decay(optimizer, 200)
        hybrid = Hybrid(model, optimizer, config, total_steps=200, scheduler=scheduler, probe=probe_of(model))
        hybrid._search = lambda proposal: (proposal.steps, BELIEVED)
        return hybrid, model, optimizer, scheduler

    alone = start()
    proceed(*alone, until=13)
    assert len(jumps(alone[0])) == 1
    save_state(alone[0], tmp_path)
    states = [copy.deepcopy(part.state_dict()) for part in alone[1:]]
    proceed(*alone, first_batch=13, until=15)
    assert alone[0].machine.strikes == 1, "the jump was undone after the state was saved"
    again = start()
    # One step gives the optimizer a state to load into, as a checkpoint of a Trainer does.
    proceed(*again, until=1)
    for part, state in zip(again[1:], states, strict=True):
        part.load_state_dict(state)
    load_state(again[0], tmp_path)
    proceed(*again, first_batch=13, until=15)
    assert torch.equal(weights(alone[1]), weights(again[1]))
    left, right = (run[2].state_dict() for run in (alone, again))
    assert left["param_groups"] == right["param_groups"]
    for number, state in left["state"].items():
        assert all(torch.equal(right["state"][number][name], value) for name, value in state.items())


def test_the_same_jumps_unprobed_make_it_diverge():
    model = Quadratic([1.0, 12.0], [4.0, 4.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    still = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config = HybridConfig(
        predictor="last-update",
        warmup_steps=0,
        full_steps=4,
        predict_steps=40,
        max_gain=10.0,
        gate="always",
        predict_until=1.0,
    )
    hybrid = train(model, config, 200, optimizer=optimizer, scheduler=still)
    losses = hybrid.history.table()["loss"].dropna().to_numpy()
    assert losses.max() > losses[0]


@pytest.mark.parametrize("config", [CAUTIOUS, EAGER, HybridConfig(**REPORT, gate="always")])
def test_the_schedule_ends_at_zero_and_its_steps_add_up(config):
    model = Regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = linear_decay(optimizer, 100)
    hybrid = train(model, config, 100, optimizer=optimizer, scheduler=scheduler)
    assert scheduler.get_last_lr() == [0.0]
    assert sum(hybrid.history.phase_steps().values()) == 100 == scheduler.last_epoch


def test_a_jump_counts_in_adams_own_counter():
    model = Regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, EAGER, 60, optimizer=optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {60}


def test_a_parameter_that_no_loss_uses_is_left_where_it_is():
    model = Regression()
    model.idle = torch.nn.Parameter(torch.ones(3))
    hybrid = train(model, EAGER, 60)
    assert hybrid.history.phase_steps()["predict"] >= 8
    assert torch.equal(model.idle.detach(), torch.ones(3))


def test_a_run_without_anything_to_train_or_to_probe_is_refused():
    model = Regression()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="give `probe`, which draws fresh training batches"):
        Hybrid(model, optimizer, HybridConfig(), total_steps=10)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        Hybrid(model, optimizer, HybridConfig(), total_steps=10, probe=probe_of(model))
