"""Sequences for which a model has no positions: refused as transformers fails, before anything is read.

The reference is transformers' resident model, asked with as many tokens as it has learned positions and with one more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import streamed
from tiny_models import lora_on, write
from transformers import AutoModelForCausalLM

from labkit.offload import StreamedLM

N_POSITIONS = 64
ENDING = ("gpt2", "gpt_bigcode", "openai-gpt", "opt", "ctrl", "biogpt", "gptj", "codegen", "gpt_neo")
"""Kinds that have a table of positions, in their body or in every layer."""
ENDLESS = ("llama", "bloom", "stablelm")


def ids(n: int) -> torch.Tensor:
    return torch.randint(3, 97, (2, n), generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each model by its kind, written when it is first asked for."""
    found: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp(kind)
            write(found[kind], kind)
        return found[kind]

    return folder


def fits(folder: Path, n: int) -> bool:
    """Say whether the resident model takes so many tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    try:
        model(input_ids=ids(n))
    except (IndexError, RuntimeError):
        return False
    return True


def opened(folder: Path) -> StreamedLM:
    return streamed(folder, lora_on(AutoModelForCausalLM.from_pretrained(folder), [0]))


def read(own: StreamedLM) -> int:
    return own.passes.pool.counts.loads


@pytest.mark.parametrize("kind", ENDING)
def test_one_position_too_many_is_refused_before_a_layer_is_read(kind: str, made: Any) -> None:
    assert fits(made(kind), N_POSITIONS)
    assert not fits(made(kind), N_POSITIONS + 1)
    own = opened(made(kind))
    with pytest.raises(ValueError, match=f"does not take sequences of {N_POSITIONS + 1} tokens"):
        own.gradients({"input_ids": ids(N_POSITIONS + 1)})
    with pytest.raises(ValueError, match="does not take sequences"):
        own.score({"input_ids": ids(N_POSITIONS + 1)})
    assert read(own) == 0
    own.gradients({"input_ids": ids(N_POSITIONS)})
    assert read(own) > 0


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_model_without_a_table_takes_any_length(kind: str, made: Any) -> None:
    assert fits(made(kind), N_POSITIONS + 1)
    loss, _ = opened(made(kind)).gradients({"input_ids": ids(N_POSITIONS + 1)})
    assert loss > 0


@pytest.mark.parametrize(("padding", "new", "taken"), [(0, 5, True), (0, 6, False), (4, 9, True), (4, 10, False)])
def test_what_is_to_be_generated_counts_and_padding_does_not(padding: int, new: int, taken: bool, made: Any) -> None:
    """60 tokens of 64: the last token that is returned goes through the model no more."""
    own, prompt = opened(made("gpt2")), ids(N_POSITIONS - 4 + 0)
    mask = torch.ones_like(prompt)
    mask[:, :padding] = 0
    if taken:
        assert own.generate(prompt, mask, max_new_tokens=new).shape[1] == N_POSITIONS - 4 + new
        return
    with pytest.raises(ValueError, match="does not take sequences"):
        own.generate(prompt, mask, max_new_tokens=new)
    assert read(own) == 0


def test_asking_draws_no_random_number_and_changes_nothing(made: Any) -> None:
    """The first step of a model that was asked about a longer sequence is that of one that was not."""
    plain, asked = opened(made("gpt2")), opened(made("gpt2"))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="does not take"):
        asked.score({"input_ids": ids(N_POSITIONS + 1)})
    assert torch.equal(torch.get_rng_state(), state)
    (a, first), (b, second) = (own.gradients({"input_ids": ids(12)}) for own in (plain, asked))
    assert a == b
    assert all(torch.equal(first[name], second[name]) for name in first)
