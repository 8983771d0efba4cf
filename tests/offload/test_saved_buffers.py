"""Buffers that a checkpoint holds, against transformers' own model with PEFT's adapters, resident and bit for bit.

A layer's scalar in Gemma 4 and the routers' biases of DeepSeek-V3 and its kin are trained without being parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_streaming import resident, streamed
from tiny_models import lora_on, unequal, write
from transformers import PreTrainedModel

from labkit.offload import StreamedLM

BUFFERED = ["gemma4_text", "deepseek_v3", "glm4_moe", "dots1", "ernie4_5_moe"]
Tensors = dict[str, torch.Tensor]


def written_with(change: Callable[[Tensors], object], folder: Path, kind: str) -> PreTrainedModel:
    """Write a model into one file, with a change to its tensors."""
    model = write(folder, kind, max_shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", BUFFERED)
def test_trained_buffers_count(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert unequal(tmp_path, lora_on(write(tmp_path, kind, dtype), [0, 3]), dtype) == []


@pytest.mark.parametrize("kind", ["gemma4_text", "deepseek_v3"])
def test_a_buffer_that_the_checkpoint_lacks_is_what_the_model_makes_of_it(kind: str, tmp_path: Path) -> None:
    def lose(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(("layer_scalar", "e_score_correction_bias"))]:
            del tensors[name]

    assert unequal(tmp_path, lora_on(written_with(lose, tmp_path, kind), [0, 3])) == []


def test_a_buffer_of_another_shape_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.layer_scalar"
    written_with(lambda tensors: tensors.update({name: torch.ones(2)}), tmp_path, "gemma4_text")
    with pytest.raises(ValueError, match=r"no tensor of their name and shape there, model\.layers\.1\.layer_scalar"):
        StreamedLM(tmp_path)


def test_a_routers_bias_stays_float32_where_the_rest_is_bfloat16(tmp_path: Path) -> None:
    lora = lora_on(write(tmp_path, "deepseek_v3", torch.bfloat16), [3])
    own, name = streamed(tmp_path, lora), "mlp.gate.e_score_correction_bias"
    own.have_buffers(1, 4)
    with own.passes.pool.hold(1) as slot:
        held = own.passes.store.views(1, slot.memory)
        twin = dict(resident(tmp_path, lora, own, torch.bfloat16).base_model.model.model.layers[1].named_buffers())
        assert torch.equal(held[name], twin[name])
        assert held[name].dtype == twin[name].dtype == torch.float32


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.qkv_proj.bias"
    written_with(lambda tensors: tensors.update({name: torch.ones(4)}), tmp_path, "phi3")
    with pytest.warns(UserWarning, match="no place for 1 of the tensors there, model.layers.0.self_attn.qkv_proj.bias"):
        StreamedLM(tmp_path)


def test_a_tensor_that_transformers_knows_to_be_harmless_is_not(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    written_with(lambda tensors: tensors.update({name: torch.ones(4)}), tmp_path, "phi3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamedLM(tmp_path)
