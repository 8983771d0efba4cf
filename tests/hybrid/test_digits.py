"""The small network on real digits: what it reads, what it must reach, and that the report's own numbers cannot."""

import dataclasses

import numpy as np
import torch
from test_hybrid_runs import RUN

from labkit.reports.predict_phase import train
from labkit.reports.predict_phase.digits import Cnn, Digits, digit_losses

CNN_RUN = dataclasses.replace(RUN, task="digits-cnn", steps=80, batch_size=64)


def test_training_and_held_out_digits_are_all_digits_and_apart():
    data = Digits(64, 0, "cpu")
    rows = {tuple(row.tolist()) for row in data._train}
    held_out = data.held_out()
    assert len(data._train) + len(held_out) == 1797
    assert not any(tuple(row.tolist()) in rows for row in held_out)
    assert held_out[:, :-1].min() >= 0
    assert held_out[:, :-1].max() == 16
    assert set(held_out[:, -1].tolist()) == set(range(10))


def test_a_pass_reads_every_digit_once():
    data = Digits(1437 // 3 + 1, 0, "cpu")
    batches = data.batches()
    read = torch.cat([next(batches) for _ in range(3)])[: len(data._train)]
    assert torch.equal(torch.sort(read.sum(1)).values, torch.sort(data._train.sum(1)).values)


def test_the_network_has_the_size_the_report_states():
    n = sum(p.numel() for p in Cnn().parameters())
    assert 45_000 < n < 55_000


def test_the_untrained_network_is_at_chance_and_the_trained_one_recognises_nearly_all():
    found = train.train(CNN_RUN)
    assert abs(np.mean(found["initial_nats"]) - np.log(10)) < 0.1
    assert found["accuracy"] > 0.95
    assert found["loss_nats"] < 0.25


def test_random_labels_leave_any_network_at_chance():
    data = Digits(64, 0, "cpu")
    rows = data.held_out().clone()
    rows[:, -1] = torch.randint(10, (len(rows),), generator=torch.Generator().manual_seed(0)).float()
    assert float(digit_losses(Cnn().eval(), rows).detach().mean()) > 2.2
