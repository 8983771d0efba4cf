"""What a Trainer tells as it trains, against its own log and against gradients taken apart in another way.

Everything is real and tiny: transformers' Trainer, PEFT's adapters, the hybrid's callback. The lines are those that any
follower reads.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from labkit import metrics
from labkit.hybrid import HybridCallback, HybridConfig
from labkit.metrics.trainer import TrainerMetrics

SHAPE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
MAPS = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of somebody who follows."""
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path / "metrics.jsonl"))
    return tmp_path / "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[dict[str, Any]]:
    return [line for line in read(path) if "loss" in line.get("values", {})]


def trainer(tmp_path: Path, callbacks: list[Any] = (), **changes: Any) -> Trainer:
    """Make a Trainer of a tiny model with two adapters."""
    torch.manual_seed(0)
    model = get_peft_model(
        GPT2LMHeadModel(GPT2Config(**SHAPE)),
        LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True),
    )
    ids = torch.randint(0, 50, (24, 8), generator=torch.Generator().manual_seed(1)).tolist()
    own = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    own |= {"save_strategy": "no", "use_cpu": True, "report_to": [], "disable_tqdm": True, "max_grad_norm": 0.0}
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), **own | changes)
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    return Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


class Gradients(TrainerCallback):
    """Takes each adapter's gradient as one long vector and notes its length."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        own = dict(kwargs["model"].named_parameters())
        names = {name: f"base_model.model.{name}.lora_{{}}.default.weight" for name in MAPS}
        vectors = {n: torch.cat([own[p.format(x)].grad.flatten() for x in "AB"]) for n, p in names.items()}
        self.norms.append({name: math.sqrt(float(vector @ vector)) for name, vector in vectors.items()})


def test_every_step_is_told_with_what_the_trainer_logs(tmp_path: Path, lines: Path) -> None:
    gradients = Gradients()
    own = trainer(tmp_path, [TrainerMetrics("mine"), gradients], include_num_input_tokens_seen="all")
    own.train()
    first, *rest = read(lines)
    assert first["run"] == "mine"
    assert first["about"]["learning_rate"] == 1e-2
    assert "output_dir" not in first["about"]
    logged = [row for row in own.state.log_history if "loss" in row]
    told = steps(lines)
    assert len(told) == 6
    for line, row, norms in zip(told, logged, gradients.norms, strict=True):
        assert line["step"] == row["step"]
        assert {name: line["values"][name] for name in row if name != "step"} == {
            name: value for name, value in row.items() if name != "step"
        }
        assert line["values"]["memory_bytes"] > 50e6
        assert line["values"]["tokens_per_second"] > 10
        assert line["adapters"] == pytest.approx(norms, rel=1e-5)
    assert "train_runtime" in rest[-1]["values"], "what is logged last is told, too"


def test_norms_are_those_before_clipping(tmp_path: Path, lines: Path) -> None:
    trainer(tmp_path, [TrainerMetrics("clipped")], max_grad_norm=1e-3).train()
    for line in steps(lines):
        whole = math.sqrt(sum(norm**2 for norm in line["adapters"].values()))
        assert line["values"]["grad_norm"] > 1e-2
        assert whole == pytest.approx(line["values"]["grad_norm"], rel=1e-3)


def test_only_logged_steps_are_told(tmp_path: Path, lines: Path) -> None:
    trainer(tmp_path, [TrainerMetrics("some")], logging_steps=2, logging_first_step=True).train()
    assert [line["step"] for line in steps(lines)] == [1, 2, 4, 6]
    assert all(set(line["adapters"]) == set(MAPS) for line in steps(lines))


def test_trainers_with_a_callback_tell_their_steps_and_no_others(tmp_path: Path, lines: Path) -> None:
    told = [trainer(tmp_path, [TrainerMetrics("told", {"targets": ("c_attn",), "folder": tmp_path})]) for _ in range(2)]
    for own in (*told, trainer(tmp_path)):
        own.train()
    assert len(steps(lines)) == 12
    assert {line["run"] for line in read(lines)} == {"told"}
    assert read(lines)[0]["about"] == {"targets": ["c_attn"], "folder": str(tmp_path)}


def test_what_a_later_callback_adds_to_the_log_is_told(tmp_path: Path, lines: Path) -> None:
    config = HybridConfig(
        warmup_steps=2, full_steps=2, predict_steps=2, max_gain=1.0, confidence_threshold=0.0, gate="always"
    )
    own = trainer(tmp_path, [TrainerMetrics("hybrid", {}), HybridCallback(config)], max_steps=16)
    own.train()
    logged = [row["nominal_step"] for row in own.state.log_history if "loss" in row]
    assert logged[-1] == 16 > own.state.global_step
    assert [line["values"]["nominal_step"] for line in steps(lines)] == logged


def test_the_last_log_before_a_failure_is_told(tmp_path: Path, lines: Path) -> None:
    class Breaks(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise FloatingPointError("the loss is not finite")

    with pytest.raises(FloatingPointError), TrainerMetrics("broken", {}) as followed:
        trainer(tmp_path, [followed, Breaks()]).train()
    assert [line["step"] for line in steps(lines)] == [1, 2, 3]


def test_where_nobody_follows_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.VARIABLE, raising=False)
    callback = TrainerMetrics("nobody")
    trainer(tmp_path, [callback], max_steps=2).train()
    assert callback._adapters is None
    assert callback._logged is None


def test_following_changes_no_weight(tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = trainer(tmp_path, [TrainerMetrics("followed", {})], max_grad_norm=0.1)
    followed.train()
    assert steps(lines)
    monkeypatch.delenv(metrics.VARIABLE)
    alone = trainer(tmp_path, max_grad_norm=0.1)
    alone.train()
    pairs = zip(followed.model.parameters(), alone.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
