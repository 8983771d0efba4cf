"""The reports' model shapes, with random weights made here or with none at all (the meta device).

Speed and memory of a dense model depend on its shape and type, not on the values of its weights, so a shape with random
weights stands in for a model that cannot be downloaded. Configurations are those published with each model; parameter
counts follow from them and are tested.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from labkit import device as machine
from labkit.base.units import format_bytes
from labkit.models.tiny import TINY, tiny_shape

_CHUNK = 1 << 20
"""Values filled from one generator; part of what the weights of a seed are."""
_SIGMA = 0.02


class TooLarge(MemoryError, ValueError):
    """A model does not fit into the memory that is free; who asks for it by name has asked for too much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A published model without its weights."""

    name: str
    """Name in this package."""
    parameters: int
    """Distinct parameters; tied matrices count once."""
    source: str
    """Repository of the published model on the hub."""
    model_type: str
    """Architecture, as transformers names it."""
    values: Mapping[str, Any] = field(repr=False)
    """Published configuration values that differ from the architecture's defaults."""

    def config(self, **overrides: Any) -> PretrainedConfig:
        """Return the configuration, with some values replaced.

        What a replaced value contradicts gives way: the list of layer types follows the number of layers, and special
        tokens outside a smaller vocabulary are dropped.

        Raises:
            ValueError: an override that this architecture does not have.
        """
        kind = CONFIG_MAPPING[self.model_type]
        valid = sorted(set(kind().to_dict()) | set(kind.attribute_map) | {"attn_implementation"})
        for name in overrides:
            if name not in valid:
                near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
                raise ValueError(f"{self.name}: {name!r} is no configuration value; did you mean {near!r}?")
        return kind(**self.changed(**overrides))

    def changed(self, **overrides: Any) -> dict[str, Any]:
        """Return the values that differ from the architecture's defaults once some are replaced."""
        kind = CONFIG_MAPPING[self.model_type]
        values = {**kind().to_dict(), **self.values}
        wanted = {kind.attribute_map.get(name, name): value for name, value in overrides.items()}
        return {**self.values, **_reduced(values, wanted), **wanted}


def _reduced(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what has to change with overrides: special tokens outside the vocabulary, the list of layer types."""
    n_tokens = overrides.get("vocab_size", values["vocab_size"])
    special = [name for name in values if re.fullmatch(r"(bos|eos|pad)_token_id", name)]
    dropped = {name: None for name in special if isinstance(values[name], int) and values[name] >= n_tokens}
    if (types := values.get("layer_types")) and (n_layers := overrides.get("num_hidden_layers")):
        dropped["layer_types"] = [types[i % len(types)] for i in range(n_layers)]
    return dropped


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, **more: Any) -> dict[str, Any]:
    values = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    values |= {"num_key_value_heads": kv_heads, "intermediate_size": feed_forward}
    return values | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}} | more


_GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
}

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            name="qwen2.5-0.5b",
            parameters=494_032_768,
            source="Qwen/Qwen2.5-0.5B",
            model_type="qwen2",
            values=_qwen2(896, 24, 14, 2, 4864, vocab_size=151_936, tie_word_embeddings=True),
        ),
        Shape(
            name="qwen2.5-7b",
            parameters=7_615_616_512,
            source="Qwen/Qwen2.5-7B",
            model_type="qwen2",
            values=_qwen2(3584, 28, 28, 4, 18_944, vocab_size=152_064),
        ),
        Shape(
            name="phi-2",
            parameters=2_779_683_840,
            source="microsoft/phi-2",
            model_type="phi",
            values={
                "hidden_size": 2560,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "intermediate_size": 10_240,
                "vocab_size": 51_200,
                "resid_pdrop": 0.1,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4},
            },
        ),
        Shape(name="gpt2", parameters=124_439_808, source="openai-community/gpt2", model_type="gpt2", values={}),
        Shape(
            name="phi-4",
            parameters=14_659_507_200,
            source="microsoft/phi-4",
            model_type="phi3",
            values={
                "hidden_size": 5120,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 10,
                "intermediate_size": 17_920,
                "vocab_size": 100_352,
                "max_position_embeddings": 16_384,
                "original_max_position_embeddings": 16_384,
                "rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0},
                "bos_token_id": 100_257,
                "eos_token_id": 100_265,
                "pad_token_id": 100_349,
            },
        ),
        Shape(
            name="smollm2-135m",
            parameters=134_515_008,
            source="HuggingFaceTB/SmolLM2-135M-Instruct",
            model_type="llama",
            values={
                "hidden_size": 576,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "intermediate_size": 1536,
                "vocab_size": 49_152,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
            },
        ),
        Shape(
            name="gemma-3-270m",
            parameters=268_098_176,
            source="google/gemma-3-270m",
            model_type="gemma3_text",
            values={
                "hidden_size": 640,
                "num_hidden_layers": 18,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "intermediate_size": 2048,
                "vocab_size": 262_144,
                "max_position_embeddings": 32_768,
                "sliding_window": 512,
                "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)],
                "rope_parameters": _GEMMA_ROPE,
            },
        ),
        # "2B" are the 2,084,485,120 values outside the tied 128,256 x 2,560 embedding. The repository holds the bf16
        # master weights; without its ternary layers this shape is as fast and as large as any dense model.
        Shape(
            name="bitnet-2b",
            parameters=2_412_820_480,
            source="microsoft/bitnet-b1.58-2B-4T-bf16",
            model_type="bitnet",
            values={"tie_word_embeddings": True, "max_position_embeddings": 4096},
        ),
    )
}
"""Shapes by name."""


def shape_of(name: str) -> Shape:
    """Return a shape by name; a tiny model, which is made on the spot, has one, too.

    Raises:
        ValueError: no such shape; the message has the nearest name.
    """
    if name in TINY:
        return tiny_shape(name)
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown model shape {name!r}; did you mean {near!r}? (known: {', '.join(SHAPES)})")
    return SHAPES[name]


def build(
    shape: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu", **overrides: Any
) -> PreTrainedModel:
    """Build a shape with seeded random weights in evaluation mode, or without any on device "meta".

    Matrices are N(0, 0.02^2), vectors of norms 1, biases 0. Each tensor is filled in place by chunks, each from a
    generator seeded by `seed`, the tensor's name and the chunk's place: a model needs no more memory than its weights,
    and a shape with fewer layers has the same first layers.

    Args:
        shape: a key of SHAPES.
        dtype: type the weights are held in; they are drawn in float32 and rounded to it.
        seed: the same seed gives the same weights on the same kind of device, whatever the number of threads.
        device: "cpu", "cuda" or "meta".
        overrides: configuration values to replace, such as num_hidden_layers=2.

    Raises:
        ValueError: unknown shape or override.
        TooLarge: more weights than free memory; nothing was allocated.
    """
    config = shape_of(shape).config(**overrides)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if device == "meta":
        return model.eval()
    require_memory(weight_bytes(model), f"{shape} in {str(dtype).removeprefix('torch.')}", device)
    model.to_empty(device=device)
    model.tie_weights()
    _fill(model, seed)
    return model.eval()


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's distinct parameters as they are held; quantized ones count at their real size."""
    return sum(_held_bytes(p) for p in {id(p): p for p in model.parameters()}.values())


def _held_bytes(tensor: torch.Tensor) -> int:
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    parts = [part for name in names if isinstance(part := getattr(tensor, name), torch.Tensor)]
    return sum(map(_held_bytes, parts)) if parts else tensor.numel() * tensor.element_size()


def require_memory(n_bytes: float, what: str, device: str = "cpu") -> None:
    """Refuse weights that do not fit, before anything is allocated.

    Raises:
        TooLarge: the message has what is needed, what is free and what to do.
    """
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else machine.available_memory_bytes()
    if n_bytes > free:
        raise TooLarge(
            f"{what} needs {format_bytes(n_bytes)} for its weights and {format_bytes(free)} are free on {device}; "
            "choose a smaller model, bfloat16 weights or a profile of a larger machine"
        )


def _fill(model: PreTrainedModel, seed: int) -> None:
    matrices = {name: tensor for name, tensor in model.named_parameters() if tensor.dim() > 1}
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name not in matrices:
                tensor.fill_(0.0 if name.endswith("bias") or _is_shifted_norm(model, name) else 1.0)
        # A generator is sequential and releases the interpreter, so as many chunks run at once as there are threads.
        with ThreadPoolExecutor(torch.get_num_threads() if model.device.type == "cpu" else 1) as pool:
            list(pool.map(_draw, *zip(*_chunks(matrices, seed), strict=True)))
        _compute_buffers(model)


def _chunks(matrices: Mapping[str, torch.Tensor], seed: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Cut matrices into flat views, each with a seed of its own."""
    for name, tensor in matrices.items():
        for index, chunk in enumerate(tensor.detach().view(-1).split(_CHUNK)):
            digest = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()
            # The generator on the processor uses 32 bits of its seed.
            yield chunk, int.from_bytes(digest[:4], "big")


def _draw(chunk: torch.Tensor, seed: int) -> None:
    generator = torch.Generator(chunk.device).manual_seed(seed)
    drawn = torch.empty(chunk.shape, device=chunk.device)
    chunk.copy_(drawn.normal_(0.0, _SIGMA, generator=generator))


def _is_shifted_norm(model: PreTrainedModel, name: str) -> bool:
    """Gemma's norms multiply by one plus their weight."""
    return name.endswith("norm.weight") and model.config.model_type.startswith("gemma")


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute what `to_empty` left undefined: buffers such as rotary frequencies follow from the configuration."""
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        if own:
            fresh = _fresh(module, model.config)
            for name, tensor in own.items():
                tensor.copy_(dict(fresh.named_buffers(recurse=False))[name].to(tensor.dtype))


def _fresh(module: torch.nn.Module, config: PretrainedConfig) -> torch.nn.Module:
    """Build a parameterless module again, on the processor; embeddings with a scale keep theirs."""
    if isinstance(module, torch.nn.Embedding):
        scale = torch.nn.Module()
        scale.register_buffer("embed_scale", torch.tensor(module.scalar_embed_scale))
        return scale
    return type(module)(config=config)
