"""Gradients of a streamed model against the same model in memory, bit for bit, for many architectures.

The reference is transformers' own model with PEFT's adapters, all of it resident, over the same micro-batches.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from labkit.offload import assemble
from labkit.offload.engine import StreamedLM
from labkit.offload.head import IGNORED, pieces, token_loss

N_LAYERS = 6
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4}
SMALL |= {"vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SMALL | {"num_key_value_heads": 2}
WINDOWED = GROUPED | {"head_dim": 8, "sliding_window": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED | {"tie_word_embeddings": True},
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "phi": SMALL,
    "phi3": GROUPED,
    "gemma2": WINDOWED,
    "gemma3_text": WINDOWED,
    "olmo2": GROUPED,
    "granite": GROUPED | {"logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "cohere": GROUPED,
    "gpt_neox": SMALL,
    "qwen3_5_text": GROUPED  # layers of two kinds: a recurrence over the sequence, and attention
    | {"head_dim": 8, "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": N_LAYERS, "n_head": 4, "vocab_size": 97, "n_positions": 64},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4}
    | {"vocab_size": 97, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
}
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "opt": {"dropout": 0.0}}
WHERE = {"first and last": [0, 1, 4, 5], "middle": [2, 3], "last": [5], "all": [*range(N_LAYERS)]}


def save(folder: Path, kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """Write a small model in several shards."""
    model = small(kind, CONFIGS[kind] | NO_DROPOUT.get(kind, {}), dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def small(kind: str, settings: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings))
    # Larger than a fresh initialisation, so that every gradient is far from rounding; but a recurrence whose rates of
    # decay (their logarithms are parameters) grew as well would forget everything, and have no gradient.
    for name, parameter in model.named_parameters():
        parameter.data.mul_(0 if name.endswith("A_log") else 2)
    return model.to(dtype).eval()


def maps(model: PreTrainedModel) -> list[str]:
    """Name every linear map of the layers."""
    kinds = ("Linear", "Conv1D")
    return sorted({n.rpartition(".")[2] for n, m in model.base_model.named_modules() if type(m).__name__ in kinds})


def config(model: PreTrainedModel, layers: list[int], **changes: Any) -> LoraConfig:
    own = {"r": 4, "lora_alpha": 8, "target_modules": maps(model), "layers_to_transform": layers}
    return LoraConfig(**own | changes)


def batch(padding: str = "both") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (5, 12), generator=generator)
    mask = torch.ones_like(ids)
    if padding in ("left", "both"):
        mask[1, :4] = 0
    if padding in ("right", "both"):
        mask[3, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def streamed(folder: Path, lora: LoraConfig, **options: Any) -> StreamedLM:
    own = StreamedLM(folder, lora=lora, **{"micro_batch": 2} | options)
    for name, parameter in own.adapters().items():
        if "lora_B" in name:  # zero at the start, so that an adapter that is cut off would go unnoticed
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return own


def resident(folder: Path, lora: LoraConfig, own: StreamedLM, dtype: torch.dtype) -> PeftModel:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), copy.deepcopy(lora))
    parameters = dict(model.named_parameters())
    for name, parameter in own.adapters().items():
        parameters[name].data = parameter.detach().clone()
    return model.train()


def expected(
    model: PeftModel, data: dict[str, torch.Tensor], micro_batch: int
) -> tuple[float, dict[str, torch.Tensor]]:
    counted = int((data["labels"][:, 1:] != IGNORED).sum())
    total = 0.0
    for at in range(0, len(data["input_ids"]), micro_batch):
        own = {name: value[at : at + micro_batch] for name, value in data.items()}
        logits = model(input_ids=own["input_ids"], attention_mask=own["attention_mask"], use_cache=False).logits
        loss = token_loss(logits, own["labels"], counted)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def relative(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    ends = [torch.cat([own[name].flatten().double() for name in sorted(wanted)]) for own in (found, wanted)]
    return ((ends[0] - ends[1]).norm() / ends[1].norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_are_those_of_the_resident_model(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lora = config(save(tmp_path, kind, dtype), WHERE["first and last"])
    own = streamed(tmp_path, lora)
    loss, found = own.gradients(batch())
    wanted_loss, wanted = expected(resident(tmp_path, lora, own, dtype), batch(), 2)
    assert loss == wanted_loss
    assert set(found) == set(wanted)
    unequal = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert unequal == []
    assert all(gradient.abs().max() > 0 for gradient in found.values())


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("slots", [2, 3, N_LAYERS])
def test_wherever_the_adapters_are_and_however_many_buffers(where: str, slots: int, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi3", torch.float32), WHERE[where])
    own = streamed(tmp_path, lora, slots=slots)
    _, found = own.gradients(batch())
    _, wanted = expected(resident(tmp_path, lora, own, torch.float32), batch(), 2)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("padding", ["none", "left", "right", "both"])
def test_padding_changes_nothing_but_what_it_must(padding: str, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "llama", torch.float32), WHERE["all"])
    own = streamed(tmp_path, lora)
    _, found = own.gradients(batch(padding))
    _, wanted = expected(resident(tmp_path, lora, own, torch.float32), batch(padding), 2)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_one_full_batch_gives_the_same_gradient_to_rounding(tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi3", torch.float32), WHERE["first and last"])
    wanted = expected(resident(tmp_path, lora, streamed(tmp_path, lora), torch.float32), batch(), 5)[1]
    for micro_batch in (1, 2, 4, 8):
        found = streamed(tmp_path, lora, micro_batch=micro_batch).gradients(batch())[1]
        assert relative(found, wanted) <= 1e-6, micro_batch


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2", "cohere", "granite"])
def test_a_head_in_pieces_gives_the_same_gradient_to_rounding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = config(save(tmp_path, kind, torch.float32), WHERE["all"])
    loss, wanted = streamed(tmp_path, lora).gradients(batch())
    monkeypatch.setattr(
        assemble, "pieces", lambda entry, buffer_bytes, size: pieces(entry, 30 * entry.shape[1] * size, size)
    )
    own = streamed(tmp_path, lora)
    assert len(own.passes.head.pieces) == 4
    found_loss, found = own.gradients(batch())
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert relative(found, wanted) <= 1e-6


def test_what_goes_into_layers_may_lie_in_a_file(tmp_path: Path) -> None:
    lora = config(save(tmp_path / "m", "qwen2", torch.bfloat16), WHERE["all"])
    _, wanted = streamed(tmp_path / "m", lora).gradients(batch())
    _, found = streamed(tmp_path / "m", lora, spill=tmp_path).gradients(batch())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_weights_of_one_type_are_computed_with_in_another(tmp_path: Path) -> None:
    lora = config(save(tmp_path, "qwen2", torch.bfloat16), WHERE["all"])
    own = streamed(tmp_path, lora, dtype=torch.float32)
    _, found = own.gradients(batch())
    _, wanted = expected(resident(tmp_path, lora, own, torch.float32), batch(), 2)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_dropout_is_drawn_alike_on_the_way_up_and_down(tmp_path: Path) -> None:
    """Central differences of the loss itself, in float64: wrong if the two passes through a layer draw differently."""
    # Phi has no norm that goes through float32, as most others do.
    lora = config(save(tmp_path, "phi", torch.float64), [1, 4], lora_dropout=0.3)
    own = streamed(tmp_path, lora)
    for parameter in own.adapters().values():
        parameter.data = parameter.data.double()
    _, found = own.gradients(batch(), step=7)
    for name in list(found)[:3]:
        parameter = own.adapters()[name]
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        losses = []
        for sign in (1, -1):
            parameter.data += sign * 1e-6 * direction
            losses.append(own.gradients(batch(), step=7)[0])
            parameter.data -= sign * 1e-6 * direction
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-5)
    assert own.gradients(batch(), step=8)[0] != own.gradients(batch(), step=7)[0]
