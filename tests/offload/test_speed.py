"""Timed steps of a random-weight checkpoint: what was read is what was planned, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit import models
from labkit.base.files import DiskFull
from labkit.offload import random_weights, shapes
from labkit.offload.random_weights import write_random_checkpoint
from labkit.reports.chunked_offload import speed
from labkit.reports.chunked_offload.speed import SpeedSpec
from labkit.reports.chunked_offload.study import run_study
from labkit.workflow import params

SPEC = SpeedSpec(
    shape="phi3-30m",
    dtype="bfloat16",
    budget_bytes=700 << 20,
    batch_sizes=(1, 4),
    ablated=(4,),
    repeats=2,
    seq_len=8,
    lora_rank=2,
    lora_alpha=4,
    trained_ends=4,
    learning_rate=1e-4,
    slots=2,
    device="cpu",
    threads=1,
    seed=0,
)
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def test_every_timed_step_reads_what_the_plan_says_and_the_weights_are_deleted(tmp_path: Path) -> None:
    found = speed.measure_speed(SPEC, tmp_path / "weights")
    assert [(row["repeat"], row["batch"]) for row in found["rows"]] == [(0, 1), (0, 4), (1, 4), (1, 1)]
    for row in found["rows"]:
        assert row["bytes_read"] == found["plans"][str(row["batch"])]["bytes_read"]
        assert 0 < row["peak_bytes"] < SPEC.budget_bytes
    assert [row["batch"] for row in found["ablations"]] == [4, 4]
    assert found["limits"]["limit_bytes"] == SPEC.budget_bytes
    assert found["weights"]["parameters"] == shapes.n_parameters("phi3-30m")
    assert not [*tmp_path.iterdir()]


def test_a_budget_without_room_for_the_steps_is_named_before_anything_else_runs() -> None:
    with pytest.raises(RuntimeError, match=r"phi3-30m could not be timed within 0\.2 GiB: LimitReached.*budget_gib"):
        run_study(params.resolve("chunked_offload", "ci", {"budget_gib": 0.2}))


def test_a_random_checkpoint_is_one_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "_SHARD_BYTES", 8_000)
    made = write_random_checkpoint(tmp_path / "m", "phi-4", dtype=torch.float32, **TINY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert len([*(tmp_path / "m").glob("*.safetensors")]) > 2
    assert sum(p.numel() for p in model.parameters()) == made["parameters"]
    own = models.build("phi-4", device="meta", **TINY).config.to_dict()
    kept = set(own) - {"_name_or_path", "architectures", "dtype"}
    assert {name: model.config.to_dict()[name] for name in kept} == {name: own[name] for name in kept}
    assert '"Phi3ForCausalLM"' in (tmp_path / "m" / "config.json").read_text()
    matrix = model.model.layers[0].mlp.down_proj.weight
    assert matrix.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.model.norm.weight, torch.ones(32))


def test_a_random_checkpoint_is_the_same_each_time_and_another_with_another_seed(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_checkpoint(tmp_path / name, "phi-4", dtype=torch.bfloat16, seed=seed, **TINY)
        files.append(next((tmp_path / name).glob("*.safetensors")).read_bytes())
    assert files[0] == files[1] != files[2]


def test_weights_that_the_disk_cannot_hold_are_refused_before_any_is_made(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"random weights take .* are free; free some space"):
        write_random_checkpoint(tmp_path / "m", "phi-4", dtype=torch.float32, num_hidden_layers=4_000)
    assert not [*tmp_path.iterdir()]
