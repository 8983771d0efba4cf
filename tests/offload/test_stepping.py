"""Optimizer steps of a streamed model against a plain PyTorch loop over the resident one, and the kernel's counters.

The reference is transformers' model with PEFT's adapters and torch's AdamW over the same micro-batches.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_streaming import IGNORED, N_LAYERS, WHERE, batch, config, expected, relative, resident, save, streamed

from labkit.offload import NotFinite, StreamedLM
from labkit.offload.head import token_loss

RATE = 1e-2


def adamw(model: StreamedLM) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.adapters().values(), lr=RATE)


def rchar() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_four_steps_are_those_of_a_plain_loop_bit_for_bit(
    dtype: torch.dtype, clip: float | None, tmp_path: Path
) -> None:
    lora = config(save(tmp_path, "phi3", dtype), WHERE["first and last"])
    own = streamed(tmp_path, lora)
    twin = resident(tmp_path, lora, own, dtype)
    parameters = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    ours, theirs = adamw(own), torch.optim.AdamW(parameters.values(), lr=RATE)
    for _ in range(4):
        report = own.step(batch(), ours, max_grad_norm=clip)
        loss, _ = expected(twin, batch(), 2)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        theirs.step()
        theirs.zero_grad()
        assert report.loss == loss
    assert all(torch.equal(p, parameters[name]) for name, p in own.adapters().items())


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_what_is_read_is_what_was_planned_and_k_buffers_save_2k_loads(slots: int, tmp_path: Path) -> None:
    own = streamed(tmp_path, config(save(tmp_path, "phi3", torch.float32), WHERE["all"]), slots=slots)
    optimizer = adamw(own)
    own.step(batch(), optimizer)
    for _ in range(2):
        before = rchar()
        report = own.step(batch(), optimizer)
        # The head is one piece here, and fits into a buffer that a layer would have had.
        assert report.loads == 2 * N_LAYERS + 1 - (slots - 1) - slots
        assert report.bytes_read == report.plan.bytes_read
        # The process also reads its own state, a few hundred bytes for each look at its memory.
        assert 0 <= rchar() - before - report.bytes_read - report.row_bytes_read < 2_000_000
        assert report.peak_bytes > 0


def test_every_report_reaches_the_callbacks(tmp_path: Path) -> None:
    seen = []
    own = streamed(tmp_path, config(save(tmp_path, "qwen2", torch.float32), [1]), callbacks=[seen.append])
    optimizer = adamw(own)
    reports = [own.step(batch(), optimizer) for _ in range(2)]
    assert seen == reports
    assert [report.step for report in reports] == [0, 1]
    assert set(reports[0].grad_norms) == set(own.adapters())
    assert reports[0].grad_norm == pytest.approx(sum(n**2 for n in reports[0].grad_norms.values()) ** 0.5)
    assert reports[0].tokens == int((batch()["labels"][:, 1:] != IGNORED).sum())


def test_means_over_micro_batches_would_be_another_gradient(tmp_path: Path) -> None:
    lora = config(save(tmp_path, "llama", torch.float32), WHERE["all"])
    own = streamed(tmp_path, lora)
    _, found = own.gradients(batch("right"))
    twin = resident(tmp_path, lora, own, torch.float32)
    parts = [{n: v[at : at + 2] for n, v in batch("right").items()} for at in (0, 2, 4)]
    for part in parts:
        counted = int((part["labels"][:, 1:] != IGNORED).sum())
        logits = twin(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
        (token_loss(logits, part["labels"], counted) / len(parts)).backward()
    wrong = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    assert relative(found, wrong) > 1e-3


def test_a_frozen_prefix_is_walked_once(tmp_path: Path) -> None:
    own = streamed(tmp_path, config(save(tmp_path, "phi3", torch.float32), [4, 5]), slots=2)
    _, first = own.gradients(batch())
    before = own.passes.pool.counts.loads
    _, again = own.gradients(batch())
    assert own.passes.pool.counts.loads - before <= 4
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = batch() | {"input_ids": batch()["input_ids"].flip(0)}
    before = own.passes.pool.counts.loads
    own.gradients(other)
    assert own.passes.pool.counts.loads - before >= N_LAYERS


def test_a_prefix_with_dropout_is_walked_each_time(tmp_path: Path) -> None:
    model = save(tmp_path, "gpt2", torch.float32)
    model.config.resid_pdrop = 0.5
    model.config.save_pretrained(tmp_path)
    own = streamed(tmp_path, config(model, [4, 5]), slots=2)
    losses = [own.gradients(batch(), step=step)[0] for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    own.eval()
    assert own.gradients(batch(), step=0)[0] == own.gradients(batch(), step=1)[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": torch.zeros(2, 3)}, "input_ids"),
        ({"input_ids": torch.zeros(2, 3)}, r"input_ids are torch.float32 of shape \(2, 3\)"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"of shape \(3,\)"),
        ({"input_ids": torch.full((2, 3), 97)}, "reach from 97 to 97; the vocabulary is 97"),
        ({"input_ids": torch.full((2, 3), -1)}, "reach from -1"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 2)}, r"attention_mask has the shape"),
        ({"input_ids": torch.ones(2, 3).long(), "labels": torch.full((2, 3), IGNORED)}, "no position of the batch"),
    ],
)
def test_a_batch_that_is_none_is_refused_by_name(wrong: dict, message: str, tmp_path: Path) -> None:
    own = streamed(tmp_path, config(save(tmp_path, "phi3", torch.float32), [1]))
    with pytest.raises(ValueError, match=message):
        own.gradients(wrong)


def test_an_optimizer_of_something_else_is_refused(tmp_path: Path) -> None:
    own = streamed(tmp_path, config(save(tmp_path, "phi3", torch.float32), [1]))
    with pytest.raises(ValueError, match="holds none of this model's adapters"):
        own.step(batch(), torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))
    bare = StreamedLM(tmp_path)
    with pytest.raises(ValueError, match="this model has no adapters"):
        bare.gradients(batch())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_stops_the_step_by_name(value: float, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi3", torch.float32), WHERE["all"])
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "layers.3.mlp.down_proj" in name:
                tensors[name][0, 0] = value
        save_file(tensors, file, {"format": "pt"})
    own = streamed(tmp_path, lora)
    before = {name: p.detach().clone() for name, p in own.adapters().items()}
    with pytest.raises(NotFinite, match="step 0: what layer 3 returned is not finite"):
        own.step(batch(), adamw(own))
    assert all(torch.equal(p, before[name]) for name, p in own.adapters().items())
    assert own.step_number == 0
