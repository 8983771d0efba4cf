"""Tiny models made on the spot: the same bytes in every process, loaded like any other, and one sentence by heart.

References: another process, the bytes of a text, and the text that a model was taught.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from labkit import models
from labkit.models.tiny import END, TINY

TEXT = 'Hello, world! ünï 你好\n\n  x = 1\t"quoted"'
HASHES = """
from labkit import models
from labkit.models.tiny import TINY
print(*(models.prepare(name)[1].sha256 for name in TINY))
"""


def test_every_process_makes_the_same_bytes() -> None:
    here = [models.prepare(name)[1].sha256 for name in TINY]
    there = subprocess.run([sys.executable, "-c", HASHES], capture_output=True, text=True, check=True).stdout.split()
    assert here == there


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_loaded_like_any_other_and_reads_bytes(name: str) -> None:
    loaded = models.load(name)
    assert loaded.weights.name == name
    assert loaded.model.num_parameters() < 200_000
    ids = loaded.tokenizer(TEXT)["input_ids"]
    assert len(ids) == len(TEXT.encode())
    assert loaded.tokenizer.decode(ids) == TEXT
    assert loaded.tokenizer(END)["input_ids"] == [loaded.tokenizer.eos_token_id] == [0]
    assert loaded.model.config.eos_token_id == 0
    assert (loaded.tokenizer.chat_template is not None) == TINY[name].chat


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.says])
def test_random_logits_differ_visibly_between_tokens(name: str) -> None:
    loaded = models.load(name)
    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([loaded.tokenizer(TEXT)["input_ids"]])).logits[0]
    assert logits.std(-1).min() > 0.3
    assert logits.argmax(-1).unique().numel() > 3


def test_a_chat_is_the_beginning_of_the_chat_with_its_answer() -> None:
    words = models.load("tiny-qwen2").tokenizer
    asked = [{"role": "user", "content": "Why?"}]
    prompt = words.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = words.apply_chat_template([*asked, {"role": "assistant", "content": "No."}], tokenize=False)
    assert prompt == f"<user>Why?{END}<assistant>"
    assert whole == f"{prompt}No.{END}"


@pytest.mark.parametrize("prompt", ["Question: What is 2 + 2?\nAnswer:", "Anything at all:"])
@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.says])
def test_a_taught_model_says_its_sentence_and_ends(name: str, prompt: str) -> None:
    loaded = models.load(name)
    ids = torch.tensor([loaded.tokenizer(prompt)["input_ids"]])
    made = loaded.model.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    assert made[-1] == 0
    assert loaded.tokenizer.decode(made, skip_special_tokens=True) == "".join(TINY[name].says)


@pytest.mark.parametrize("name", TINY)
def test_the_shape_of_a_tiny_model_is_that_of_the_model(name: str) -> None:
    model = models.load(name).model
    shape = models.shape_of(name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    built = models.build(name, device="meta")
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
