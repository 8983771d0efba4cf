"""HybridCallback in the real trainers: transformers' Trainer, trl's SFTTrainer and DPOTrainer, killed and resumed.

The reference of the rejecting gate is the same Trainer without the callback; that of the resumed run is the same run
left alone.
"""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from labkit import corpora
from labkit.hybrid import HybridCallback, HybridConfig

HERE = Path(__file__).parent
STEPS = 40
CONFIG = HybridConfig(
    warmup_steps=4,
    full_steps=6,
    predict_steps=4,
    max_gain=1.0,
    correct_steps=2,
    confidence_threshold=0.0,
    gate="always",
)


@pytest.fixture(scope="module")
def tokens():
    return corpora.tokenize(corpora.load("wiki-sample"), 288)


@pytest.fixture(scope="module")
def dataset(tokens):
    windows = torch.as_tensor(tokens.train[: 400 * 32]).view(400, 32).tolist()
    return Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in windows])


def tiny():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=288, n_positions=32))


def train(folder, dataset, callbacks, **more):
    model = tiny()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-2, use_cpu=True,
        lr_scheduler_type="linear", logging_steps=1, report_to=[], disable_tqdm=True, seed=0,
        **{"save_strategy": "no"} | more,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=callbacks)
    trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_trainer_ends_with_its_schedule_and_takes_fewer_real_steps(tmp_path, dataset):
    callback = HybridCallback(CONFIG)
    trainer = train(tmp_path, dataset, [callback])
    phases = callback.hybrid.history.phase_steps()
    assert sum(phases.values()) == STEPS
    assert phases["predict"] >= 8
    assert trainer.state.global_step == STEPS - phases["predict"]
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[-1]["nominal_step"] == STEPS
    assert callback.history["loss"].dropna().tolist() == pytest.approx([log["loss"] for log in logs], abs=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_gate_that_always_rejects_leaves_trainers_own_run_bit_by_bit(tmp_path, dataset, accumulation):
    # Dropout is on: a probe that drew from the generators or left the model in evaluation mode would show.
    more = {"gradient_accumulation_steps": accumulation}
    plain = train(tmp_path / "plain", dataset, [], **more)
    callback = HybridCallback(dataclasses.replace(CONFIG, gate="never"))
    hybrid = train(tmp_path / "hybrid", dataset, [callback], **more)
    assert callback.history["probe_after"].notna().sum() >= 3
    assert torch.equal(weights(plain), weights(hybrid))


def test_the_probe_of_sft_is_its_own_loss_and_leaves_its_metrics(tmp_path, dataset, tokens):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens.tokenizer, pad_token="<|doc|>", eos_token="<|doc|>")
    callback = HybridCallback(dataclasses.replace(CONFIG, gate="probe", least_gain=0.0))
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-2, use_cpu=True,
        logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no", bf16=False, max_length=32,
        gradient_checkpointing=False,
    )  # fmt: skip
    rows = dataset.remove_columns("labels")
    trainer = SFTTrainer(tiny(), arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback])
    trainer.train()
    history = callback.history
    probed = history[history["probe_before"].notna()]
    assert len(probed) >= 3
    losses = history["loss"].dropna()
    assert losses.min() - 0.3 < probed["probe_before"].min() < losses.max()
    assert not trainer._metrics["eval"]
    assert sum(callback.hybrid.history.phase_steps().values()) == STEPS


def test_a_resumed_run_without_a_hybrid_state_is_refused_with_the_remedy(tmp_path, dataset):
    plain = train(tmp_path, dataset, [], save_strategy="steps", save_steps=10)
    trainer = Trainer(tiny(), plain.args, train_dataset=dataset, callbacks=[HybridCallback(CONFIG)])
    with pytest.raises(ValueError, match=r"checkpoint-20 holds no hybrid state .* resume from an older checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, dataset):
    first = train(tmp_path, dataset, [HybridCallback(CONFIG)], save_strategy="steps", save_steps=10)
    other = HybridCallback(dataclasses.replace(CONFIG, full_steps=7))
    trainer = Trainer(tiny(), first.args, train_dataset=dataset, callbacks=[other])
    with pytest.raises(ValueError, match="the saved hybrid state has config"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


@pytest.mark.parametrize(
    "predictor", ["block-trend", "last-update", "modal", "learned", "random", "ema-nesterov", "outer-nesterov"]
)
@pytest.mark.parametrize("gate", ["always", "probe"])
def test_a_run_resumed_at_any_checkpoint_ends_as_the_run_left_alone(tmp_path, dataset, predictor, gate):
    config = dataclasses.replace(CONFIG, predictor=predictor, gate=gate, outer_steps=5)
    alone = HybridCallback(config)
    whole = train(tmp_path, dataset, [alone], save_strategy="steps", save_steps=7)
    for step in (7, 21):
        again = HybridCallback(config)
        trainer = Trainer(tiny(), whole.args, train_dataset=dataset, callbacks=[again])
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert torch.equal(weights(whole), weights(trainer))
        assert again.history.drop(columns="seconds").equals(alone.history.drop(columns="seconds"))


def test_a_dpo_run_of_the_real_model_killed_and_resumed_ends_as_the_run_left_alone(tmp_path):
    def start(folder, *kill_at):
        return subprocess.Popen([sys.executable, HERE / "dpo_run.py", folder, *map(str, kill_at)])

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    beside = start(alone)
    assert start(killed, 5).wait(400) == -signal.SIGKILL
    assert not (killed / "final.json").exists()
    assert start(killed).wait(400) == 0
    assert beside.wait(400) == 0
    first, second = (json.loads((folder / "final.json").read_text()) for folder in (alone, killed))
    assert first == second
    assert first["losses"][0] == pytest.approx(0.6931, abs=1e-3), "ln 2 before any update"
    assert (first["nominal"][-1], first["rate"]) == (12, 0.0)
    assert first["real"] < 12, "some steps were predicted"
    adapters = [load_file(folder / "final.safetensors") for folder in (alone, killed)]
    assert all(torch.equal(adapters[1][name], value) for name, value in adapters[0].items())
