"""Losses and gradients of preference training against trl's own forward pass and loop on the same data.

Run with `pytest tests/inertia/test_dpo.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_arms import arm, split
from trl import DPOTrainer

from labkit import models
from labkit.dpo import evaluate
from labkit.dpo.arm import DpoArm, data_order, optimizer_steps, train_arm
from labkit.dpo.packed import TokenLogProbs, use_packed_pairs
from labkit.dpo.run import as_dataset, lay_out, lora_config, quiet, trainer_config


def plain_trainer(own: DpoArm, tmp: Path, packed: bool, **changes: Any) -> DPOTrainer:
    """Return trl's trainer with adapters that are not zero, with or without the packed forward."""
    loaded = models.load(own.model, dtype=getattr(torch, own.dtype))
    with quiet():
        trainer = DPOTrainer(
            model=loaded.model,
            args=trainer_config(own, tmp, **{"save_strategy": "no"} | changes),
            train_dataset=as_dataset(split().train, chat=False),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(own),
        )
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if packed:
        use_packed_pairs(trainer.model.get_base_model())
    return trainer


def loss_and_gradient(trainer: DPOTrainer, micro_batches: list[list[int]]) -> tuple[float, torch.Tensor]:
    """Run trl's loss on rows of the data set, micro-batch by micro-batch, as one step does."""
    trainer.model.train()
    rows = list(trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]))
    total = 0.0
    for chosen in micro_batches:
        batch = trainer.data_collator([rows[i] for i in chosen])
        loss = trainer.compute_loss(trainer.model, batch) / len(micro_batches)
        loss.backward()
        total += loss.item()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    trainer.model.zero_grad()
    return total, gradient


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_the_reports_loop_takes_75_steps() -> None:
    assert optimizer_steps(115, 2, 4, 5) == 75
    assert DpoArm.report("phi-2").steps == 75
    assert optimizer_steps(116, 2, 4, 5) == 75
    assert optimizer_steps(121, 2, 4, 5) == 80


def test_packed_pairs_have_the_loss_and_gradient_of_trls_own_forward(folder: Path, tmp_path: Path) -> None:
    own = arm(folder)
    expected_loss, expected = loss_and_gradient(plain_trainer(own, tmp_path, packed=False), [[0, 1, 2, 3, 4, 5]])
    loss, gradient = loss_and_gradient(plain_trainer(own, tmp_path, packed=True), [[0, 1, 2, 3, 4, 5]])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert abs(loss - math.log(2)) > 1e-3
    assert relative(gradient, expected) < 1e-5


def test_micro_batches_sorted_by_length_have_the_gradient_of_the_unsorted_batch(folder: Path, tmp_path: Path) -> None:
    trainer = plain_trainer(arm(folder), tmp_path, packed=True)
    expected_loss, expected = loss_and_gradient(trainer, [[0, 1, 2, 3, 4, 5]])
    loss, gradient = loss_and_gradient(trainer, [[5, 2], [0, 3], [1, 4]])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative(gradient, expected) < 1e-5


def test_the_rejected_text_does_not_see_the_chosen_one(folder: Path, tmp_path: Path) -> None:
    trainer = plain_trainer(arm(folder), tmp_path, packed=True)
    row = trainer.train_dataset[0]
    other = dict(row) | {"chosen_ids": row["chosen_ids"][::-1]}
    scores = evaluate.pair_logps(trainer, [row, other], adapter=True)
    assert scores[0, 1] == pytest.approx(scores[1, 1], rel=1e-6)
    assert abs(scores[0, 0] - scores[1, 0]) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_log_probabilities_through_tiles_equal_log_softmax(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.dpo.packed._TILE_VALUES", 350)
    monkeypatch.setattr("labkit.dpo.packed._CACHED_VALUES", 150)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).float()  # noqa: E731
    hidden, weight, offset = draw(11, 8).requires_grad_(), draw(50, 8), draw(50) if bias else None
    target = torch.randint(50, (11,), generator=generator)
    factor = draw(11)
    own, _ = TokenLogProbs.apply(hidden, weight, offset, target)
    (own * factor).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    expected = F.log_softmax(F.linear(hidden, weight, offset), -1).gather(1, target[:, None])[:, 0]
    (expected * factor).sum().backward()
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-5)


def test_a_head_that_caps_its_logits_is_refused(llama: Path) -> None:
    model = models.load(str(llama)).model.requires_grad_(False)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping=30"):
        use_packed_pairs(model)


def test_training_follows_trls_own_loop_on_the_same_batches(llama: Path, tmp_path: Path) -> None:
    own = arm(llama, steps=5, warmup_steps=1, schedule_steps=8)
    result = train_arm(own, tmp_path / "ours", split=split())
    loaded = models.load(own.model)
    with quiet():
        trainer = DPOTrainer(
            model=loaded.model,
            args=trainer_config(own, tmp_path / "trl", save_strategy="no", max_steps=8),
            train_dataset=as_dataset(split().train, chat=False),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(own),
        )
        rows = list(trainer.train_dataset)
        lay_out(trainer, rows, np.zeros((len(rows), 2)), data_order(len(rows), 8, own.batch_pairs, own.seed))
        trainer.precompute_ref_logps = False
        trainer.train()
    expected = [row for row in trainer.state.log_history if "loss" in row][:5]
    for key, tolerance in {"loss": 1e-4, "rewards/margins": 1e-4, "learning_rate": 0, "logps/chosen": 1e-3}.items():
        ours, theirs = [row[key] for row in result["curve"]], [row[key] for row in expected]
        assert ours == pytest.approx(theirs, rel=1e-4, abs=tolerance)
    assert result["curve"][-1]["loss"] < 0.5
