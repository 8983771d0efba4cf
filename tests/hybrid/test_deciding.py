"""The deciding protocol: new optimizers and read-outs against their plain formulas, runs that serve all budgets, prices
measured apart, gates that are exercised, conditions under which nothing may be said; and how often intervals cover.
"""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from labkit.base.modes import RENDER
from labkit.corpora import ngrams
from labkit.hybrid.config import HybridConfig
from labkit.hybrid.inner import AdEMAMix, ScheduleFree
from labkit.hybrid.noisy import NoiseMatched
from labkit.hybrid.optimizers import Schedule
from labkit.hybrid.readouts import N_BLOCKS, BlockMeans, PowerMean, Readouts, extrapolate
from labkit.hybrid.vectors import norm
from labkit.reports.predict_phase import costs, plots, protocol, results, speed, study, sweeps, tables, train, void
from labkit.reports.predict_phase.arms import ARMS, GATES, LEAST_JUMPS
from labkit.reports.predict_phase.floors import FloorSpec, measure_floors
from labkit.reports.predict_phase.frontier import DECAY, read_steps
from labkit.reports.predict_phase.tasks import Run, Text, build, score
from labkit.reports.predict_phase.tuning import tune
from labkit.workflow import params

RUN = Run(
    task="text-0.1m",
    arm="adamw",
    learning_rate=8e-3,
    steps=40,
    seed=3,
    corpus="wiki-sample",
    vocab_size=288,
    context=16,
    batch_size=8,
    held_out_windows=16,
    weight_decay=0.1,
    beta2=0.95,
    warmup_fraction=0.05,
    grad_clip=1.0,
    device="cpu",
    dtype="float32",
    threads=1,
)
GRADIENTS = np.random.default_rng(0).normal(size=(12, 3))
START = np.array([1.0, -2.0, 0.5])


def stepped(make, rates):
    """Feed GRADIENTS to an optimizer of three numbers in float64; return it and the parameter after every step."""
    parameter = torch.nn.Parameter(torch.tensor(START))
    optimizer = make([{"params": [parameter], "weight_decay": 0.1}])
    found = []
    for gradient, rate in zip(GRADIENTS, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        found.append(parameter.detach().numpy().copy())
    return optimizer, parameter, np.array(found)


def test_schedule_free_adamw_is_algorithm_1_of_its_paper():
    rates = [0.01, 0.02, *[0.03] * 10]
    optimizer, parameter, found = stepped(lambda groups: ScheduleFree(groups, 0.03, (0.9, 0.95)), rates)
    x, z, v, weights, beta1, beta2 = START.copy(), START.copy(), np.zeros(3), 0.0, 0.9, 0.95
    for t, (gradient, rate) in enumerate(zip(GRADIENTS, rates, strict=True), start=1):
        y = (1 - beta1) * z + beta1 * x
        v = beta2 * v + (1 - beta2) * gradient**2
        z = z - rate * (gradient / (np.sqrt(v / (1 - beta2**t)) + 1e-8) + 0.1 * y)
        weights += max(rates[:t]) ** 2
        c = max(rates[:t]) ** 2 / weights
        x = (1 - c) * x + c * z
        np.testing.assert_allclose(found[t - 1], (1 - beta1) * z + beta1 * x, rtol=1e-12)
    np.testing.assert_allclose(optimizer.averages([parameter])[0].numpy(), x, rtol=1e-12)


def test_ademamix_is_its_papers_update_with_its_schedules():
    total, alpha, b1, b2 = 24, 5.0, 0.9, 0.95
    optimizer, _, found = stepped(lambda groups: AdEMAMix(groups, 0.02, total=total), [0.02] * 12)
    b3_end = max(b1, 1 - 1 / (0.25 * total))
    w, m1, m2, v = START.copy(), np.zeros(3), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(GRADIENTS, start=1):
        share = t / total
        b3 = math.exp(math.log(b1) * math.log(b3_end) / ((1 - share) * math.log(b3_end) + share * math.log(b1)))
        m1, m2 = b1 * m1 + (1 - b1) * gradient, b3 * m2 + (1 - b3) * gradient
        v = b2 * v + (1 - b2) * gradient**2
        mixed = m1 / (1 - b1**t) + alpha * share * m2
        w = w - 0.02 * (mixed / (np.sqrt(v / (1 - b2**t)) + 1e-8) + 0.1 * w)
        np.testing.assert_allclose(found[t - 1], w, rtol=1e-10)
    assert optimizer.mixing(0)[1] == pytest.approx(b1)
    assert optimizer.mixing(total) == pytest.approx((alpha, b3_end))


def test_a_power_mean_weighs_steps_by_their_power_and_lies_its_share_behind():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    mean = PowerMean([parameter], 0.1)
    for t in range(1, 2001):
        parameter.data.fill_(float(t))
        mean.observe(t)
    weights = np.diff(np.arange(2001, dtype=float) ** 9)  # t^9 - (t-1)^9: the integral of the power 8 over a step
    expected = np.average(np.arange(1, 2001), weights=weights)
    assert float(mean.values()[0]) == pytest.approx(expected, rel=1e-9)
    assert 1 - expected / 2000 == pytest.approx(0.1, abs=1e-3)


def test_reduced_rank_extrapolation_is_its_formula_and_finds_the_limit_of_a_linear_iteration():
    rng = np.random.default_rng(1)
    matrix = 0.9 * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    shift, x = rng.normal(size=4), rng.normal(size=4)
    limit, points = np.linalg.solve(np.eye(4) - matrix, shift), [x]
    for _ in range(5):
        points.append(matrix @ points[-1] + shift)
    exact = extrapolate([[torch.tensor(p)] for p in points])[0].numpy()
    np.testing.assert_allclose(exact, limit, rtol=1e-4)
    short = np.array(points[:4])
    steps = np.diff(short, axis=0).T
    # Least squares with the constraint that shares add up to 1 eliminated.
    free = np.linalg.lstsq(steps[:, :2] - steps[:, 2:], -steps[:, 2], rcond=None)[0]
    expected = short[:3].T @ np.append(free, 1 - free.sum())
    found = extrapolate([[torch.tensor(p[:2]), torch.tensor(p[2:])] for p in points[:4]])
    np.testing.assert_allclose(torch.cat(found).numpy(), expected, rtol=1e-8)
    flat = extrapolate([[torch.tensor(p)] for p in points[:4]], ridge=1e9)[0].numpy()
    np.testing.assert_allclose(flat, short[:3].mean(0), rtol=1e-6)


def test_block_means_are_those_of_the_last_blocks_before_each_step():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    blocks = BlockMeans([parameter], [40, 100])
    for t in range(1, 101):
        parameter.data.fill_(float(t))
        blocks.observe(t)
    for end, length in ((40, 2), (100, 5)):
        means = [float(block[0]) for block in blocks.take(end)]
        starts = [end - (N_BLOCKS - i) * length for i in range(N_BLOCKS)]
        assert means == pytest.approx([np.mean(np.arange(start + 1, start + length + 1)) for start in starts])


def test_rates_of_a_cosine_and_of_a_branch_that_falls():
    def rates(kind, fall=None):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = Schedule(optimizer, 10, 2, kind)
        schedule.fall = fall
        return [schedule.share(step) for step in range(11)]

    assert rates("cosine") == pytest.approx([0.5, 1.0, *[0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]])
    assert rates("constant") == [0.5, *[1.0] * 10]
    assert rates("constant", (6, 10)) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0])


@pytest.fixture(scope="module")
def runs():
    names = ("adamw", "constant", "wsd", "schedule-free", "muon-constant")
    return {name: train.train(dataclasses.replace(RUN, arm=name)) for name in names}


def test_a_run_that_serves_all_budgets_is_read_at_each_and_ends_at_its_first_read_out(runs):
    for name in ("constant", "muon-constant", "wsd", "schedule-free"):
        found = runs[name]
        assert list(found["frontier"]) == [str(step) for step in read_steps(RUN.steps)] == ["8", "16", "24", "32", "40"]
        assert all(set(read) == set(ARMS[name].reads) for read in found["frontier"].values())
        assert found["loss_nats"] == pytest.approx(found["frontier"]["40"][ARMS[name].reads[0]], rel=1e-6)
    assert "frontier" not in runs["adamw"]


def test_reading_a_run_out_does_not_change_it():
    """The same constant rate without any read-out, step by step."""
    run = dataclasses.replace(RUN, arm="constant", steps=16)
    model, text = build(run), Text(run)
    optimizer, schedule = train.optimizer_of(run, model)
    batches = text.batches()
    for _ in range(16):
        train.take_step(run, model, optimizer, schedule, None, next(batches))
    plain = float(score(model, text.held_out(), run.batch_size).mean())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARMS, "constant", dataclasses.replace(ARMS["constant"], reads=("last", *ARMS["constant"].reads)))
        assert train.train(run)["frontier"]["16"]["last"] == pytest.approx(plain, rel=1e-9)


def test_a_decay_branch_is_the_run_that_decays_alone(runs):
    """Warmup-stable-decay at a budget of 24, made again without any other budget."""
    run = dataclasses.replace(RUN, arm="wsd")
    model, text = build(run), Text(run)
    optimizer, schedule = train.optimizer_of(run, model)
    schedule.fall = (round((1 - DECAY) * 24), 24)
    batches = text.batches()
    for _ in range(24):
        train.take_step(run, model, optimizer, schedule, None, next(batches))
    alone = float(score(model, text.held_out(), run.batch_size).mean())
    assert runs["wsd"]["frontier"]["24"]["last"] == pytest.approx(alone, rel=1e-9)
    taken = 32 + sum(end - round((1 - DECAY) * end) for end in read_steps(40))
    assert runs["wsd"]["real_steps"] == taken


def test_a_diverged_read_out_has_the_loss_of_the_start():
    found = train.train(dataclasses.replace(RUN, arm="constant", learning_rate=1e30, grad_clip=1e30, steps=10))
    assert found["diverged"]
    assert list(found["frontier"]["10"].values()) == pytest.approx([np.mean(found["initial_nats"])] * 5)


def test_the_noise_matched_control_has_the_trends_length_and_none_of_its_drift():
    parameter = torch.nn.Parameter(torch.zeros(400))
    config = HybridConfig(predictor="noise-matched", full_steps=8, history_dtype="float32")
    generator = torch.Generator().manual_seed(0)
    predictor = NoiseMatched(["w"], [parameter], config)
    predictor.start_block()
    drift = torch.zeros(400)
    drift[:200] = 0.3
    signs = []
    for block in range(4):
        predictor.start_block()
        for _ in range(8):
            parameter.data += drift + 0.05 * torch.randn(400, generator=generator)
            predictor.after_step(1.0)
        predictor._drawn = block
        jump = predictor.propose(4, 1.0, torch.optim.SGD([parameter], lr=1.0)).jump
        own = [trend * g for trend, g in zip(predictor._trend, [1.0], strict=True)]
        cosine = float(jump[0] @ own[0]) / (norm(jump) * norm(own))
        assert abs(cosine) < 0.2
        signs.append(norm(jump))
    assert all(length > 0 for length in signs)


def test_a_round_prices_steps_probes_and_jumps_of_every_arm():
    arms = ("adamw", "constant-ema", "last-update", "ema-nesterov", "frozen")
    spec = costs.CostSpec(run=dataclasses.replace(RUN, steps=2), arms=arms, rounds=2)
    found = costs.measure_costs(spec)
    assert [sorted(order) for order in found["order"]] == [sorted(arms)] * 2
    assert {kind: set(found[kind]) for kind in ("step", "forward", "jump")} == {
        "step": set(arms), "forward": {"last-update", "frozen"}, "jump": {"last-update", "frozen"},
    }  # fmt: skip
    assert all(
        0 < seconds < 10 for kind in ("step", "forward", "jump") for own in found[kind].values() for seconds in own
    )
    counts = {"step": 7, "forward": 3, "jump": 2}
    expected = 7 * np.array(found["step"]["frozen"])
    expected += 3 * np.array(found["forward"]["frozen"]) + 2 * np.array(found["jump"]["frozen"])
    np.testing.assert_allclose(costs.price(found, "frozen", counts), expected)


def made_up(n_seeds, rng, *, gain=1.5, price=1.04, n_rounds=10, spread=0.03):
    """Runs whose arm needs `gain` times fewer steps at `price` times the cost of one; seeds and rounds scatter."""
    budgets = 100 * np.array([0.4, 0.6, 0.8, 1.0])
    shared = rng.lognormal(0, 0.1, n_rounds)
    prices = {
        "adamw": shared * rng.lognormal(0, spread, n_rounds),
        "muon": price * shared * rng.lognormal(0, spread, n_rounds),
    }
    rows = []
    for seed in range(n_seeds):
        own, level = gain * rng.lognormal(0, 0.05), 0.05 * rng.standard_normal()
        for arm, factor in (("adamw", 1.0), ("muon", own)):
            for steps in budgets:
                loss = 3 + level + (factor * steps) ** -0.3 + 0.0005 * rng.standard_normal()
                row = {"arm": arm, "steps": int(steps), "seed": seed, "loss": loss, "jumps": 0}
                rows.append(row | speed.price_columns(steps * prices[arm]))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_interval_with_prices_covers_the_true_speed(n_seeds):
    """Both errors matter here: those of the seeds, and those of ten rounds of prices."""
    rng, covered, n = np.random.default_rng(2), 0, 150
    for _ in range(n):
        found = speed.reach(made_up(n_seeds, rng, spread=0.1), "muon")
        covered += found.interval.contains(1.5 / 1.04)
    assert covered / n >= 0.92


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_combined_interval_covers_at_its_nominal_rate_where_either_error_dominates(n_seeds):
    rng = np.random.default_rng(3)
    for seeds, rounds in ((0.05, 0.05), (0.05, 0.005), (0.005, 0.05)):
        covered = 0
        for _ in range(2000):
            speeds = np.exp(rng.normal(0, seeds, n_seeds))
            by_round = np.exp(rng.normal(0, rounds, 10))
            # The rounds' mean error is part of every seed's speed: all are priced by the same mean.
            shift = np.exp(np.log(by_round).mean())
            covered += speed.with_prices(speeds * shift, by_round).contains(1.0)
        assert covered / 2000 >= 0.92, (seeds, rounds)


def test_leaving_the_error_of_prices_out_would_cover_too_little():
    rng, covered = np.random.default_rng(4), 0
    for _ in range(1000):
        by_round = np.exp(rng.normal(0, 0.05, 10))
        speeds = np.exp(rng.normal(0, 0.002, 5)) * np.exp(np.log(by_round).mean())
        covered += speed.ratio_ci(speeds, np.ones(5)).contains(1.0)
    assert covered / 1000 < 0.5


def test_one_step_in_four_left_out_of_the_count_reads_a_third_more():
    """The positive control of the protocol."""
    table = made_up(5, np.random.default_rng(5), gain=1.0, price=1.0)
    base = table[table["arm"] == "adamw"]
    rounds = [name for name in base if name.startswith(speed.ROUND)]
    counted = base.assign(arm="muon", **{name: 0.75 * base[name] for name in ["seconds", *rounds]})
    found = speed.reach(pd.concat([base, counted]), "muon")
    assert found.ratio == pytest.approx(4 / 3, rel=1e-6)
    assert found.interval.low <= 4 / 3 * (1 + 1e-6)
    assert found.interval.high >= 4 / 3 * (1 - 1e-6)


def decided(**values):
    table = made_up(5, np.random.default_rng(6))
    return table.assign(rate_inside=True, bigram=9.0, **values)


def said(table, arm="muon"):
    return next(own for own in protocol.judge(table) if own.arm == arm).claims


def test_each_condition_makes_a_comparison_void():
    assert "faster at equal loss" in said(decided())
    assert "void: adamw ends at" in said(decided().assign(bigram=3.0))[0]
    edge = decided()
    edge.loc[(edge["arm"] == "muon") & (edge["steps"] == 60), "rate_inside"] = False
    assert said(edge) == ("void: its rate is at an edge at 60 steps",)
    edge.loc[(edge["arm"] == "adamw") & (edge["steps"] == 40), "rate_inside"] = False
    assert said(edge)[0] == "void: the rate of adamw is at an edge at 40 steps"
    control = pd.concat([decided(), decided()[lambda t: t["arm"] == "muon"].assign(arm="frozen", jumps=9)])
    assert said(control)[0].startswith("void: the control frozen reads 1.4")
    assert void.of_comparison(decided().drop(columns="rate_inside").assign(bigram=3.0), "adamw", {}) == []


def test_a_predictive_arm_is_held_against_the_best_of_the_others():
    table = decided()
    muon = table[table["arm"] == "muon"]
    times = [name for name in muon if name.startswith("seconds")]
    both = pd.concat([table, muon.assign(arm="constant-rre", **{name: muon[name] / 1.3 for name in times})])
    judged = protocol.judge(both)
    found, own = protocol.goal(both, judged), next(one for one in judged if one.arm == "constant-rre")
    assert (found.best, list(found.reaches)) == ("muon", ["constant-rre"])
    assert found.reaches["constant-rre"].ratio == pytest.approx(1.3, rel=1e-6)
    assert found.said(own) == "faster than muon"
    shown = protocol.table(judged, both).set_index("arm")["decides"]
    assert shown.to_dict() == {"constant-rre": "faster than muon", "muon": ""}


def test_the_bigram_is_that_of_the_scored_targets():
    spec = FloorSpec(corpus="wiki-sample", vocab_size=288, context=16, held_out_windows=16)
    windows = Text(RUN).held_out()
    text = Text(RUN)
    nats = []
    for window in windows.numpy():
        nats.append(ngrams.bigram(text._train.numpy(), window, 288))
    assert measure_floors(spec)["bigram"] == pytest.approx(np.mean(nats), rel=1e-9)


class Recorded:
    """A runner with made-up results: losses are lowest at a rate that falls with the budget; loose gates keep jumps."""

    is_lost = False

    def __init__(self, contest):
        self.contest, self.n_extended = contest, 0

    def train(self, runs):
        for run in runs:
            reads = {
                str(steps): {name: self.loss(run, steps) + 0.1 * i for i, name in enumerate(ARMS[run.arm].reads)}
                for steps in read_steps(run.steps)
            }
            jumps = [{"accepted": True}] * (LEAST_JUMPS if run.arm in list(GATES)[3:] else 1)
            self.contest.results[run] = {"loss_nats": self.loss(run, run.steps), "frontier": reads, "jumps": jumps}

    def loss(self, run, steps):
        return 3 + abs(math.log2(run.learning_rate) - math.log2(0.01 * (self.contest.steps / steps)))

    def is_known(self, run):
        return run in self.contest.results

    def extend(self, n):
        self.n_extended += n


def test_rates_are_tuned_for_every_budget_gates_until_they_are_exercised_and_read_outs_by_their_loss():
    values = {"arms": ["adamw", "constant-ema", "block-trend-tuned", "noise-matched"], "budgets": [0.2, 1.0]}
    cfg = params.resolve("predict_phase", "ci", values | {"steps": 100, "learning_rates": [5e-3, 1e-2, 2e-2]})
    contest = study.make_study(cfg).scratch
    tune(contest, Recorded(contest))
    assert {arm: contest.rate(arm, 100) for arm in values["arms"]} == dict.fromkeys(values["arms"], 1e-2)
    # The best of three lies between 0.04 and 0.08, beyond what the longest budget tried.
    assert {contest.rate(arm, 20) for arm in values["arms"]} <= {4e-2, 8e-2}
    assert all(contest.is_inside(arm, steps) for arm in values["arms"] for steps in (20, 100))
    assert contest.gates == {"block-trend-tuned": list(GATES)[3]}
    assert set(contest.read_out.values()) == {"mean-5"}
    entries = {(own.arm, own.steps): own.run for own in contest.entries()}
    assert entries["block-trend-tuned", 20].arm == list(GATES)[3]
    assert {entries["constant-ema", steps].steps for steps in (20, 100)} == {100}
    assert entries["constant-ema", 20].learning_rate != entries["constant-ema", 100].learning_rate


def test_where_no_gate_keeps_enough_jumps_the_most_exercised_one_runs():
    cfg = params.resolve("predict_phase", "ci", {"arms": ["adamw", "block-trend-tuned"]})
    contest = study.make_study(cfg).scratch
    contest.best_rate["adamw"] = 1e-2
    for n, run in enumerate(contest.gate_runs("block-trend-tuned").values()):
        contest.results[run] = {"jumps": [{"accepted": True}] * (3 if n == 2 else 0)}
    contest.choose_gate("block-trend-tuned")
    assert contest.gates["block-trend-tuned"] == list(GATES)[2]


def test_side_arms_run_on_the_side_seeds_and_main_ones_on_all():
    cfg = params.resolve("predict_phase", "cpu-24gb")
    contest = study.make_study(cfg).scratch
    assert contest.seeds_of("muon") == [0, 1, 2, 3, 4]
    assert contest.seeds_of("last-update") == [0, 1, 2]


def test_no_time_of_a_run_in_the_background_may_enter_a_speed():
    values = params.resolve("predict_phase", "cpu-24gb").model_dump() | {"settings": ["memory"]}
    with pytest.raises(ValueError, match="no run's own time may enter a speed"):
        type(params.resolve("predict_phase", "ci"))(**values)


def test_readouts_follow_what_an_arm_asks_for_and_no_more():
    parameter = torch.nn.Parameter(torch.ones(2))
    own = Readouts(["last"], [parameter], [5])
    own.observe(1)
    assert [tensor.tolist() for tensor in own.values(1)["last"]] == [[1.0, 1.0]]


SMALL = {
    "workers": 1,
    "steps": 10,
    "context": 16,
    "budgets": [0.4, 1.0],
    "arms": ["adamw", "constant-ema", "constant-rre", "block-trend-tuned", "frozen"],
    "learning_rates": [8e-3],
    "held_out_windows": 16,
    "memory_steps": 16,
    "finetune_steps": 0,
    "cnn_steps": 0,
    "settings": [],
    "noise_batch_sizes": [],
    "original_steps": 16,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    cfg = params.resolve("predict_phase", "ci", SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUTPUT", str(tmp_path_factory.mktemp("output")))
        first = study.run_study(cfg)
        patch.setenv(RENDER, "1")
        return cfg, first, study.run_study(cfg)


def test_a_deciding_study_is_priced_apart_and_rendered_from_its_cells(both):
    cfg, first, shown = both
    assert first.cells.failures == {}
    assert shown.cells.used.keys() == first.cells.used.keys()
    assert len(first.cells.used) <= study.n_cells(cfg), "a run that two questions share is one cell"
    runs = first.scratch.comparison()
    pd.testing.assert_frame_equal(runs, shown.scratch.comparison())
    assert len(runs) == 5 * 2
    assert (runs["bigram"] == first.scratch.floors["bigram"]).all()
    frozen = runs[(runs["arm"] == "frozen") & (runs["steps"] == 10)].iloc[0]
    priced = first.scratch.costs
    for i in range(2):
        parts = [(int(frozen["real_steps"]), "step"), (int(frozen["jumps"]), "jump")]
        expected = sum(n * priced[kind]["frozen"][i] for n, kind in parts)
        assert frozen[f"{speed.ROUND}{i}"] == pytest.approx(expected)
    one = runs[runs["arm"].isin(["constant-ema", "constant-rre"])]
    assert set(one["real_steps"]) == {4, 10}


def test_its_tables_and_figures_say_what_was_chosen_and_what_is_void(both):
    _, first, _ = both
    runs = first.scratch.comparison()
    judgements = protocol.judge(runs)
    assert all(own.void for own in judgements), "one rate is no sweep, and ten steps end above the bigram"
    assert results.hybrid_arm(judgements) == "block-trend-tuned"
    assert results.comparison_results(judgements) == {}
    assert results.out_of_reach(first, judgements)["equal_loss_speed/hybrid"]["why"].startswith("void: ")
    assert len(tables.tuning_table(first.scratch)) == 5 * 2
    assert list(tables.costs_table(first.scratch)["arm"].sort_values()) == sorted(SMALL["arms"])
    assert len(tables.phase_time_table(first.scratch)) == 5
    figure, drawn = plots.loss_against_time(tables.frontiers(runs), floors=first.scratch.floors)
    assert {"unigram", "bigram"} <= {text.get_text() for text in figure.axes[0].texts}
    assert drawn["bigram"].nunique() == 1
    assert len(sweeps.noise_table(first)) == 0
    plots.noise_panel(sweeps.noise_table(first))
    plots.phase_timeline(tables.timeline(first.scratch, "block-trend-tuned"))


def test_prices_that_could_not_be_measured_stop_the_study(both):
    _, first, _ = both
    runner = study._Runner(first, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "one", lambda work, spec, label: first.cells.failures.update({label: "killed"}))
        with pytest.raises(RuntimeError, match="no run's own time may stand in: killed"):
            runner.price(first.scratch)
    first.cells.failures.clear()
