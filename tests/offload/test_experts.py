"""Mixtures of experts, whose checkpoints hold each expert in tensors of its own: streamed as transformers joins them.

The reference is transformers' own model loaded from the same folder, with PEFT's adapters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_streaming import GROUPED, batch, config, expected, resident, small, streamed
from transformers import AutoModelForCausalLM, PreTrainedModel, conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter

from labkit.offload import CannotStream, StreamedLM
from labkit.offload.headers import open_checkpoint
from labkit.offload.store import Joined
from labkit.offload.tracing import trace

SMALL = GROUPED | {"num_hidden_layers": 3, "num_experts_per_tok": 2}
OF_FIVE = SMALL | {"num_experts": 5}
ROUTED = SMALL | {"n_routed_experts": 5, "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
LATENT = ROUTED | {"kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
LATENT |= {"v_head_dim": 8, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": SMALL | {"num_local_experts": 5},
    "qwen2_moe": OF_FIVE | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "qwen3_moe": OF_FIVE | {"moe_intermediate_size": 24, "head_dim": 8},
    "olmoe": OF_FIVE,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "phimoe": SMALL | {"num_local_experts": 5, "router_jitter_noise": 0.0},
    "ernie4_5_moe": SMALL
    | {"moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1}
    | {"moe_layer_end_index": 2},
    "glm4_moe": ROUTED | {"head_dim": 8},
    "dots1": ROUTED,
    "flex_olmo": OF_FIVE,
    "hunyuan_v1_moe": OF_FIVE | {"moe_topk": 2, "head_dim": 8},
    "minimax": SMALL | {"num_local_experts": 5, "head_dim": 8, "block_size": 4},
}
ONE_TENSOR_EACH = {
    "gpt_oss": SMALL | {"num_local_experts": 5, "head_dim": 8, "sliding_window": 8},
    "granitemoe": SMALL | {"num_local_experts": 5},
    "granitemoeshared": SMALL | {"num_local_experts": 5, "shared_intermediate_size": 40},
}

BOTH_TYPES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss", "granitemoe", "ernie4_5_moe"]
SAVED = [(kind, torch.float32) for kind in (*EXPERTS, *ONE_TENSOR_EACH)] + [
    (kind, torch.bfloat16) for kind in BOTH_TYPES
]


def compare(folder: Path, model: PreTrainedModel, dtype: torch.dtype, **options: Any) -> StreamedLM:
    lora = config(model, [0, 2])
    own = streamed(folder, lora, dtype=dtype, **options)
    loss, found = own.gradients(batch())
    theirs = resident(folder, lora, own, dtype)
    for parameter in theirs.parameters():
        # Where the file is mapped tensors lie at any address, and a grouped product rounds otherwise at odd ones.
        parameter.data = parameter.data.clone()
    wanted_loss, wanted = expected(theirs, batch(), 2)
    assert loss == wanted_loss
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    return own


@pytest.mark.parametrize(("kind", "dtype"), SAVED, ids=lambda value: str(value).removeprefix("torch."))
def test_experts_as_they_are_saved(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(kind, (EXPERTS | ONE_TENSOR_EACH)[kind], dtype)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    own = compare(tmp_path, model, dtype)
    joined = [one for layer in own._parts.skeleton.sources for one in layer.values() if isinstance(one, Joined)]
    assert bool(joined) == (kind in EXPERTS)
    # In every layer with experts two parameters: their first maps, two and two, and their second ones.
    assert {len(one.parts) for one in joined} == ({10, 5} if joined else set())


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_in_the_layout_of_the_model_itself(kind: str, slots: int, tmp_path: Path) -> None:
    model = small(kind, EXPERTS[kind], torch.float32)
    model.save_pretrained(tmp_path, save_original_format=False)
    own = compare(tmp_path, model, torch.float32, slots=slots)
    assert not any(isinstance(one, Joined) for layer in own._parts.skeleton.sources for one in layer.values())


def test_experts_stored_in_one_type_and_computed_with_in_another(tmp_path: Path) -> None:
    model = small("qwen2_moe", EXPERTS["qwen2_moe"], torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    own = compare(tmp_path, model, torch.float32)
    joined = [one for layer in own._parts.skeleton.sources for one in layer.values() if isinstance(one, Joined)]
    # Parts of one parameter lie in several files here, as they do in large checkpoints.
    assert any(len({part.file for part in one.parts}) > 1 for one in joined)


def test_more_than_ten_experts_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    model = small("qwen3_moe", EXPERTS["qwen3_moe"] | {"num_experts": 12}, torch.float32)
    model.save_pretrained(tmp_path)
    compare(tmp_path, model, torch.float32)


def test_names_of_the_first_checkpoints_are_known(tmp_path: Path) -> None:
    model = small("mixtral", EXPERTS["mixtral"], torch.float32)
    model.save_pretrained(tmp_path)
    assert any(".block_sparse_moe.experts.4.w3.weight" in name for name in load_file(tmp_path / "model.safetensors"))
    compare(tmp_path, model, torch.float32)


def test_every_value_comes_to_lie_where_transformers_puts_it(tmp_path: Path) -> None:
    small("mixtral", EXPERTS["mixtral"], torch.float32).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    own = StreamedLM(tmp_path)
    with own._ready({"input_ids": torch.zeros(1, 1, dtype=torch.long)}, "look"), own.passes.pool.hold(1) as slot:
        views = own.passes.store.views(1, slot.memory)
        theirs = dict(loaded.model.layers[1].named_parameters())
        assert views.keys() == theirs.keys()
        assert all(torch.equal(view, theirs[name]) for name, view in views.items())


@pytest.mark.parametrize("lost", ["block_sparse_moe.experts.2.w1.weight", "block_sparse_moe.experts.4.w2.weight"])
def test_an_expert_that_is_not_there_is_missed(lost: str, tmp_path: Path) -> None:
    small("mixtral", EXPERTS["mixtral"], torch.float32).save_pretrained(tmp_path)
    content = load_file(tmp_path / "model.safetensors")
    content.pop(f"model.layers.1.{lost}")
    save_file(content, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotStream, match=r"1 parameters of .* no tensor of their name and shape .*1\.mlp\.experts"):
        StreamedLM(tmp_path)
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_is_turned_round_when_it_is_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of that kind is joined wrongly: the reason and what helps are named."""
    assert conversion_mapping.get_checkpoint_conversion_mapping("qwen2") is None
    turned = [WeightConverter("mlp.down_proj.weight", "mlp.down_proj.weight", [Transpose(0, 1)])]
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "qwen2", turned)
    model = small("qwen2", GROUPED, torch.float32)
    model.save_pretrained(tmp_path / "as shared")
    with pytest.raises(CannotStream, match=r"computes 6 parameters of .*\(Transpose\).*save_original_format"):
        StreamedLM(tmp_path / "as shared")
    model.save_pretrained(tmp_path / "as computed", save_original_format=False)
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, "qwen2", [])
    assert StreamedLM(tmp_path / "as computed").score({"input_ids": batch()["input_ids"]}).shape == (5, 11)


KEPT = [("ernie4_5_moe", torch.bfloat16), ("gpt_oss", torch.float16), ("deepseek_v3", torch.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), KEPT)
def test_what_transformers_keeps_in_float32_is_held_in_it(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(kind, (EXPERTS | ONE_TENSOR_EACH)[kind], dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    own = StreamedLM(tmp_path)
    theirs = {name: own.dtype for name, own in loaded.state_dict().items() if own.dtype != dtype}
    sources = trace(own._parts.skeleton.model, open_checkpoint(tmp_path))
    assert {name: source.parts[0].held for name, source in sources.items() if source.parts[0].held} == theirs
    assert theirs
