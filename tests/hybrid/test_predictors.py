"""Predictors against sequences whose continuation is known: constant drift, decaying modes, noise without drift."""

import numpy as np
import pytest
import torch
from small_runs import Regression
from torch import nn

from labkit.hybrid import HybridConfig
from labkit.hybrid.kinds import JUMPS
from labkit.hybrid.learned import N_FEATURES, ScaleEnsemble
from labkit.hybrid.modal import SNAPSHOTS, Modal, forecast
from labkit.hybrid.predictors import BlockTrend

EXACT = HybridConfig(full_steps=8, history_dtype="float32")


def one_parameter(size=50):
    return ["mlp.weight"], [nn.Parameter(torch.zeros(size))]


def walk(predictor, parameters, steps, rate=1.0):
    """Move the parameters by the given steps and let the predictor see them."""
    predictor.start_block()
    for i, step in enumerate(steps):
        predictor.before_step(last=i == len(steps) - 1)
        parameters[0].data.add_(step)
        predictor.after_step(rate)


def test_drift_is_extrapolated_in_full_and_confidently():
    names, parameters = one_parameter()
    predictor = BlockTrend(names, parameters, EXACT)
    drift = torch.randn(50, generator=torch.Generator().manual_seed(0))
    walk(predictor, parameters, [drift] * 8)
    proposal = predictor.propose(4, 1.0, None)
    assert torch.allclose(proposal.jump[0], 4 * drift, rtol=1e-5)
    assert proposal.confidence == pytest.approx(1.0, abs=1e-6)


def test_noise_without_drift_is_shrunk_to_nearly_nothing():
    names, parameters = one_parameter(5000)
    predictor = BlockTrend(names, parameters, EXACT)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(5000, generator=generator) for _ in range(8)]
    walk(predictor, parameters, noise)
    proposal = predictor.propose(8, 1.0, None)
    moved = sum(noise).norm()
    assert proposal.jump[0].norm() < 0.1 * moved
    assert proposal.confidence < 0.1


def test_a_falling_rate_shortens_the_jump():
    names, parameters = one_parameter()
    predictor = BlockTrend(names, parameters, EXACT)
    walk(predictor, parameters, [torch.ones(50)] * 8, rate=1.0)
    assert torch.allclose(predictor.propose(4, 0.25, None).jump[0], torch.full((50,), 1.0), rtol=1e-5)


def test_trust_follows_the_pace_after_a_jump():
    names, parameters = one_parameter()
    predictor = BlockTrend(names, parameters, EXACT)
    walk(predictor, parameters, [torch.ones(50)] * 8)
    jump = predictor.propose(4, 1.0, None).jump
    walk(predictor, parameters, [torch.full((50,), 0.5)] * 2)
    predictor.judge(jump, 4)
    # The steps went on at half the jump's pace, so trust moves by 0.3 of the way from 1 to a half.
    assert predictor.numbers()["trust"][2] == pytest.approx(1 + 0.3 * (0.5 - 1))


@pytest.mark.parametrize("eigenvalues", [[0.9], [0.95, 0.7], [0.97, 0.85, 0.6]])
def test_decaying_modes_are_summed_as_the_geometric_series_they_are(eigenvalues):
    rng = np.random.default_rng(0)
    modes = rng.standard_normal((len(eigenvalues), 200))
    displacements = [sum(m * v**i for m, v in zip(modes, eigenvalues, strict=True)) for i in range(SNAPSHOTS)]
    gram = np.array([[a @ b for b in displacements] for a in displacements])
    weights, skill = forecast(gram, 3.0)
    found = sum(w * d for w, d in zip(weights, displacements, strict=True))
    expected = sum(m * sum(v ** (SNAPSHOTS + i) for i in range(3)) for m, v in zip(modes, eigenvalues, strict=True))
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    assert skill > 0.999


def test_modes_that_grow_or_alternate_are_left_out():
    rng = np.random.default_rng(0)
    growing, alternating = rng.standard_normal((2, 200))
    displacements = [growing * 1.2**i + alternating * (-0.9) ** i for i in range(SNAPSHOTS)]
    gram = np.array([[a @ b for b in displacements] for a in displacements])
    weights, _ = forecast(gram, 3.0)
    found = sum(w * d for w, d in zip(weights, displacements, strict=True))
    assert np.linalg.norm(found) < 0.05 * np.linalg.norm(displacements[-1])


def test_the_modal_predictor_waits_for_its_ring_and_then_continues_a_decay():
    names, parameters = one_parameter()
    predictor = Modal(names, parameters, EXACT)
    direction = torch.randn(50, generator=torch.Generator().manual_seed(0))
    steps = [direction * 0.97**i for i in range(16)]
    walk(predictor, parameters, steps[:8])
    assert predictor.propose(4, 1.0, None) is None
    for i, step in enumerate(steps[8:]):
        parameters[0].data.add_(step)
        predictor.after_step(1.0)
        assert predictor.propose(4, 1.0, None) is None or i >= 1
    expected = direction * sum(0.97 ** (16 + i) for i in range(4))
    assert torch.allclose(predictor.propose(4, 1.0, None).jump[0], expected, rtol=0.02)


def test_the_ensemble_learns_a_linear_rule_and_grows_sure_of_it():
    rng, ensemble = np.random.default_rng(0), ScaleEnsemble(seed=0)
    rule = np.array([0.2, 0.5, 0.3, -0.1])
    before = ensemble.forecast(np.eye(N_FEATURES))[1].mean()
    for _ in range(60):
        features = rng.uniform(0, 1, (4, N_FEATURES))
        ensemble.learn(features, features @ rule)
    features = rng.uniform(0, 1, (20, N_FEATURES))
    mean, deviation = ensemble.forecast(features)
    assert np.abs(mean - features @ rule).max() < 0.05
    assert deviation.mean() < 0.2 * before


def test_the_ensembles_spread_covers_its_errors_on_noisy_targets():
    rng, ensemble = np.random.default_rng(1), ScaleEnsemble(seed=0)
    rule, covered = np.array([0.2, 0.5, 0.3, -0.1]), []
    for i in range(200):
        features = rng.uniform(0, 1, (4, N_FEATURES))
        targets = features @ rule + 0.2 * rng.standard_normal(4)
        if i >= 50:
            mean, deviation = ensemble.forecast(features)
            covered += list(np.abs(targets - mean) < 2 * deviation)
        ensemble.learn(features, targets)
    assert 0.88 < np.mean(covered) < 1.0


@pytest.mark.parametrize("kind", sorted(JUMPS))
def test_a_predictors_buffers_are_made_once(kind):
    model = Regression()
    names, parameters = zip(*model.named_parameters(), strict=True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    predictor = JUMPS[kind](names, parameters, HybridConfig(full_steps=8))

    def addresses():
        return {name: [t.data_ptr() for t in own] for name, own in predictor.buffers().items()}

    first = addresses()
    for block in range(6):
        predictor.start_block()
        for i in range(8):
            predictor.before_step(last=i == 7)
            model.loss(model.batch(8 * block + i)).backward()
            optimizer.step()
            optimizer.zero_grad()
            predictor.after_step(1e-2)
        predictor.propose(4, 1e-2, optimizer)
    assert addresses() == first


def test_history_is_recorded_in_sixteen_bits_and_weights_in_their_own():
    names, parameters = one_parameter()
    types = {name: own[0].dtype for name, own in BlockTrend(names, parameters, HybridConfig()).buffers().items()}
    assert types == {"start": torch.float32, "first": torch.bfloat16, "trend": torch.bfloat16}


def test_coasting_says_which_state_it_needs():
    names, parameters = one_parameter()
    optimizer = torch.optim.Adagrad(parameters)
    predictor = JUMPS["coasting"](names, parameters, HybridConfig())
    with pytest.raises(ValueError, match=r"needs an optimizer that keeps momentum .* found step, sum"):
        predictor.propose(2, 1e-2, optimizer)
