"""Tiny models, pairs and arms that train in seconds, for the tests of preference training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from labkit import models
from labkit.dpo.arm import DpoArm, Split
from labkit.dpo.preferences import Pair

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 300}
SHAPES = {"smollm2-135m": {}, "gemma-3-270m": {"head_dim": 8}}


def pairs(n: int, seed: int = 0) -> tuple[Pair, ...]:
    """Draw pairs of nonsense whose texts differ much in length."""
    rng = np.random.default_rng(seed)
    text = lambda low, high: " ".join("".join(rng.choice(list("abcde"), 3)) for _ in range(rng.integers(low, high)))  # noqa: E731
    names = ("factual", "behavioural", "self")
    return tuple(Pair(f"p{i}", text(2, 9) + "?", text(2, 20), text(2, 9), names[i % 3], "") for i in range(n))


def write_model(target: Path, shape: str) -> Path:
    """Write a model and a byte-level tokenizer as save_pretrained does."""
    model = models.build(shape, dtype=torch.float32, seed=0, **TINY, **SHAPES[shape])
    # Larger than a fresh initialisation, so that log-probabilities differ visibly between tokens.
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(target)
    own = Tokenizer(BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = [f"{p.prompt} {p.chosen}" for p in pairs(30)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(corpus, BpeTrainer(vocab_size=290, special_tokens=["<end>"], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(target)
    return target


def arm(folder: Path, **changes: Any) -> DpoArm:
    """An arm of a few seconds."""
    own = {"name": "tiny", "model": str(folder), "n_pairs": 12, "steps": 6, "batch_pairs": 4, "micro_batch": 2}
    own |= {"learning_rate": 1e-2, "eval_pairs": 5, "checkpoint_every": 2}
    return DpoArm(**own | changes)


def split(n: int = 12) -> Split:
    return Split(train=pairs(n), validation=pairs(3, seed=1), held_out=pairs(6, seed=2))
