"""Decoding and scoring against transformers' own, resident, token for token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_streaming import CONFIGS, IGNORED, N_LAYERS, batch, config, resident, save, streamed
from torch.nn import functional

from labkit.offload.engine import StreamedLM


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


def pair(folder: Path, kind: str, **options: int) -> tuple[StreamedLM, torch.nn.Module]:
    lora = config(save(folder, kind, torch.float32), [0, 1, 4, 5])
    own = streamed(folder, lora, **options)
    return own, resident(folder, lora, own, torch.float32).eval()


def greedy(model: torch.nn.Module, n: int, eos: int | None = None) -> torch.Tensor:
    ids, mask = prompts()
    more = {"eos_token_id": eos, "pad_token_id": eos or 0, "do_sample": False, "max_new_tokens": n}
    return model.generate(input_ids=ids, attention_mask=mask, **more)


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_tokens_are_those_of_the_resident_model(kind: str, tmp_path: Path) -> None:
    own, twin = pair(tmp_path, kind, slots=2)
    assert torch.equal(own.generate(*prompts(), max_new_tokens=6), greedy(twin, 6))


def test_with_a_buffer_for_every_layer_nothing_is_read_after_the_first_pass(tmp_path: Path) -> None:
    own, twin = pair(tmp_path, "phi3", slots=N_LAYERS + 1)
    assert torch.equal(own.generate(*prompts(), max_new_tokens=5), greedy(twin, 5))
    assert own.passes.pool.counts.loads == N_LAYERS + 1


@pytest.mark.parametrize("slots", [3, 4, 5])
def test_passes_in_one_direction_keep_the_first_layers(slots: int, tmp_path: Path) -> None:
    own, _ = pair(tmp_path, "phi3", slots=slots)
    own.generate(*prompts(), max_new_tokens=1)
    before = own.passes.pool.counts.loads
    own.generate(*prompts(), max_new_tokens=1)
    # One buffer is at work and one is read ahead; the others hold layers from pass to pass.
    assert own.passes.pool.counts.loads - before <= N_LAYERS + 1 - (slots - 2)


def test_a_sample_that_ended_stays_ended(tmp_path: Path) -> None:
    own, twin = pair(tmp_path, "llama", slots=2)
    end = int(greedy(twin, 8)[0, 10])
    found = own.generate(*prompts(), max_new_tokens=8, eos_token_id=end)
    wanted = greedy(twin, 8, end)
    assert torch.equal(found, wanted)
    assert (found[0, 10:] == end).all()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "cohere"])
def test_scores_are_the_losses_of_each_position(kind: str, tmp_path: Path) -> None:
    own, twin = pair(tmp_path, kind)
    data = batch()
    logits = twin(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits[:, :-1].flatten(0, 1)
    labels = data["labels"][:, 1:].flatten()
    wanted = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").view(5, -1)
    found = own.score(data)
    assert (found - wanted).abs().max() <= 2e-6
    assert (found[data["labels"][:, 1:] == IGNORED] == 0).all()
