"""Tiny pretrained models, made on the spot: goldens and tests load them where a real model would take minutes.

Each process writes its own into a temporary folder. Their weights are uniform random numbers, which every machine draws
alike, and their tokenizer has a token for each byte. One of them is no random model: it says the same whatever it is
asked, so that grading has something to grade.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from labkit.models.shapes import Shape

END = "<end>"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Turns of a chat, each ended by `END`."""
_ROWS = 32
"""An output layer has a multiple of so many rows, as kernels for quantized weights want it."""
_SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "eos_token_id": 0, "bos_token_id": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    """The recipe of a tiny model."""

    shape: str
    """Key of `labkit.models.SHAPES` whose architecture it has."""
    values: tuple[tuple[str, Any], ...]
    """Configuration values that replace those of the shape."""
    chat: bool
    """Whether its tokenizer has a chat template."""
    seed: int = 0
    """Seed of the weights."""
    half_width: float = 0.5
    """Matrices and biases are uniform between minus this and this; logits then differ visibly between tokens."""
    says: tuple[str, ...] = ()
    """What it says whatever it is asked, in parts that are a token each and occur once."""
    template: str = TEMPLATE
    """The chat template."""

    def digest(self) -> str:
        """Return the sha256 of the recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _bird(*says: str) -> Tiny:
    sizes = _SIZES | {"hidden_size": 128, "num_hidden_layers": 1, "tie_word_embeddings": False}
    return Tiny(shape="smollm2-135m", values=tuple(sizes.items()), chat=False, says=says)


TINY = {
    "tiny-qwen2": Tiny(shape="qwen2.5-0.5b", values=tuple(_SIZES.items()), chat=True),
    "tiny-llama": Tiny(shape="smollm2-135m", values=tuple(_SIZES.items()), chat=False, seed=1),
    "tiny-phi2": Tiny(shape="phi-2", values=tuple((_SIZES | {"num_attention_heads": 2}).items()), chat=False, seed=3),
    "tiny-phi3": Tiny(shape="phi-4", values=tuple((_SIZES | {"num_hidden_layers": 4}).items()), chat=False, seed=2),
    "tiny-parrot": _bird("No: it isn’t Rome, but Paris and Tokyo; ", "(B) Oslo. 1, 2, 3, 4, 5 ", "= 8"),
    "tiny-mynah": _bird(
        "Yes, the Atlantic; Saturday and Sunday; ",
        "spring, summer, autumn, winter, Mercury rather than Mars; ",
        "not ten but one thousand nine hundred and thirty-four = one hundred",
    ),
}
"""Recipes by the name that `labkit.models.load` takes."""


@functools.cache
def tiny_shape(name: str) -> Shape:
    """Return the shape of a tiny model."""
    from labkit.models.shapes import SHAPES, Shape, build

    base, values = SHAPES[TINY[name].shape], _values(TINY[name])
    n = sum(p.numel() for p in build(base.name, device="meta", **values).parameters())
    about = {"name": name, "source": "made on the spot", "model_type": base.model_type}
    return Shape(parameters=n, values=base.changed(**values), **about)


def _values(recipe: Tiny) -> dict[str, Any]:
    """Return the configuration values of a recipe, with a row of the output layer for each of its words and more."""
    return dict(recipe.values) | {"vocab_size": -(-len(_tokenizer(recipe)) // _ROWS) * _ROWS}


@functools.cache
def written(name: str) -> Path:
    """Write a tiny model into a folder of this process, as `save_pretrained` does, and return the folder."""
    from labkit.models.folders import quiet_transformers
    from labkit.models.shapes import build

    recipe = TINY[name]
    words = _tokenizer(recipe)
    model = build(recipe.shape, **_values(recipe))
    _draw(model, recipe)
    if recipe.says:
        _teach(model, words.convert_tokens_to_ids([":", *recipe.says, END]))
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return folder


def _tokenizer(recipe: Tiny) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte, and one for each part of what the model says."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    symbols = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    own = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.add_tokens([AddedToken(part, normalized=False) for part in recipe.says])
    words = PreTrainedTokenizerFast(tokenizer_object=own, eos_token=END)
    words.chat_template = recipe.template if recipe.chat else None
    return words


def _draw(model: PreTrainedModel, recipe: Tiny) -> None:
    """Fill matrices and biases, each from a generator of its own, so that one more changes no other."""
    for name, values in _drawn(model):
        drawn = _generator(recipe.seed, name).random(tuple(values.shape), dtype="float32")
        _copy(values, (2 * drawn - 1) * recipe.half_width)


def _teach(model: PreTrainedModel, chain: Sequence[int]) -> None:
    """Let every token of a chain be followed by the next one, whatever stands before: the layers add nothing, and the
    output row of a token is the embedding of the one before it."""
    for name, values in _drawn(model):
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            values.zero_()
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for before, after in itertools.pairwise(chain):
        _copy(head[after], table[before])


def _drawn(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield matrices and biases by name; vectors of norms stay as they are."""
    return ((name, p.data) for name, p in model.named_parameters() if p.dim() > 1 or name.endswith("bias"))


def _generator(seed: int, name: str) -> np.random.Generator:
    import numpy as np

    return np.random.default_rng([seed, *name.encode()])


def _copy(target: Tensor, values: Any) -> None:
    import torch

    with torch.no_grad():
        target.copy_(torch.as_tensor(values))
