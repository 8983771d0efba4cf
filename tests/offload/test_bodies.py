"""Bodies that do unusual things around their layers: exact to the bit, or refused when they are opened.

The reference is transformers' own model with PEFT's adapters, resident.
"""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from test_streaming import batch, expected, resident, streamed
from tiny_models import CONFIGS, lora_on, maps, unequal, write
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from labkit.offload import CannotStream, StreamedLM
from labkit.offload.shared import Shared
from labkit.offload.skeleton import find_layers

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8}
LONG |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "changes its embeddings in place": ("ctrl", {"resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "layers return lists": ("openai-gpt", {}),
    "projects before and after its layers": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "its base has another name than it says": ("llama4_text", {}),
    "rope grows with the sequence": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 8}),
    "rope switches with the sequence": ("phi3", {"rope_parameters": LONG, "max_position_embeddings": 32}),
    "a second embedding for the layers": ("gemma4_text", {}),
    "a vision tower beside it": ("gemma3", {}),
    "alibi": ("bloom", {}),
    "alibi as an argument": ("falcon", {"alibi": True, "multi_query": False}),
    "experts": ("mixtral", {}),
    "a mask with a gradient": ("doge", {}),
    "layers keep their state": ("recurrent_gemma", {}),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_body_is_streamed_exactly(what: str, tmp_path: Path) -> None:
    kind, changes = UNUSUAL[what]
    targets: Any = r".*language_model.*\.(q_proj|down_proj)" if kind == "gemma3" else None
    model = write(tmp_path, kind, **changes)
    lora = lora_on(model, [0, 3])
    if targets:
        lora = lora_on(model, [0, 3], target_modules=targets, layers_to_transform=None)
    assert unequal(tmp_path, lora) == []


def longer(n: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 97, (2, n), generator=torch.Generator().manual_seed(n))}


@pytest.mark.parametrize("what", ["rope grows with the sequence", "rope switches with the sequence"])
def test_no_batch_changes_what_comes_of_the_next(what: str, tmp_path: Path) -> None:
    kind, changes = UNUSUAL[what]
    lora = lora_on(write(tmp_path, kind, **changes), [0, 3])
    own = streamed(tmp_path, lora)
    for n in (12, 20, 6, 12):
        _, found = own.gradients(longer(n))
        data = longer(n) | {"attention_mask": torch.ones(2, n, dtype=torch.long), "labels": longer(n)["input_ids"]}
        _, wanted = expected(resident(tmp_path, lora, own, torch.float32), data, 2)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), n


def test_a_vision_tower_is_never_read(tmp_path: Path) -> None:
    model = write(tmp_path, "gemma3")
    lora = lora_on(model, [0], target_modules=r".*language_model.*q_proj", layers_to_transform=None)
    own = streamed(tmp_path, lora)
    assert {name.split(".")[1] for name in own.passes.skeleton.kept} == {"language_model"}
    assert "q_proj" in maps(model)


SHARING: dict[str, dict[str, Any]] = {"gemma4_text": {"num_kv_shared_layers": 2}, "gemma3n_text": {}}


@pytest.mark.parametrize("layers", [[0, 3], [0, 1, 2, 3], [1], [3]], ids=str)
@pytest.mark.parametrize("kind", SHARING)
def test_gradients_come_back_through_keys_and_values_that_layers_share(
    kind: str, layers: list[int], tmp_path: Path
) -> None:
    """Layers 2 and 3 read what layers 0 and 1 left."""
    assert unequal(tmp_path, lora_on(write(tmp_path, kind, **SHARING[kind]), layers)) == []


def test_what_a_layer_left_may_not_be_replaced() -> None:
    box = UserDict()
    shared = Shared.of([((), {"box": box})])
    box["keys"] = (torch.ones(1),)
    shared.note(0)
    box["keys"] = (torch.ones(1),)
    with pytest.raises(CannotStream, match="layer 1 replaces what layer 0 left in box"):
        shared.note(1)


def test_a_second_plan_is_made_after_layers_have_run(tmp_path: Path) -> None:
    own = streamed(tmp_path, lora_on(write(tmp_path, "recurrent_gemma"), [0, 3]))
    for n in (12, 6):
        own.gradients(longer(n))


def test_parts_that_do_not_run_by_themselves_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "prophetnet")
    with pytest.raises(CannotStream, match="the parts of ProphetNetForCausalLM do not run by themselves"):
        StreamedLM(tmp_path)


class SpoilingConfig(LlamaConfig):
    model_type = "spoils_what_it_is_given"
    spoils = "nothing"


class SpoilingLayer(LlamaDecoderLayer):
    def forward(self, hidden_states, position_embeddings=None, spoils=None, scale=None, **more):
        if spoils == "hidden states":
            hidden_states.mul_(1.5)
        if spoils == "arguments":
            position_embeddings[0].mul_(1.5)
        return super().forward(hidden_states, position_embeddings=position_embeddings, **more)


class SpoilingModel(LlamaModel):
    """Llama that changes in place what it is given or gives its layers, or passes more than hidden states between."""

    def __init__(self, config: SpoilingConfig) -> None:
        super().__init__(config)
        self.layers = torch.nn.ModuleList(SpoilingLayer(config, i) for i in range(config.num_hidden_layers))

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        embeds, spoils = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds, self.config.spoils
        hidden = embeds.clone() if spoils == "skips" else embeds
        if spoils == "batch":
            [own.zero_() for own in (input_ids, attention_mask, inputs_embeds) if own is not None]
        position = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        for layer in self.layers:
            scale = hidden.mean() if spoils == "computes" else None
            hidden = layer(hidden, position_embeddings=position, spoils=spoils, scale=scale)
            hidden = hidden.mul_(1.5) if spoils == "between" else hidden
        hidden = hidden.mul_(1.5) if spoils == "after" else hidden
        hidden = hidden + embeds if spoils == "skips" else hidden
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class SpoilingForCausalLM(LlamaForCausalLM):
    config_class = SpoilingConfig

    def __init__(self, config: SpoilingConfig) -> None:
        super().__init__(config)
        self.model = SpoilingModel(config)
        self.post_init()


AutoConfig.register("spoils_what_it_is_given", SpoilingConfig, exist_ok=True)
AutoModelForCausalLM.register(SpoilingConfig, SpoilingForCausalLM, exist_ok=True)


def spoiling(folder: Path, spoils: str) -> LoraConfig:
    torch.manual_seed(0)
    model = SpoilingForCausalLM(SpoilingConfig(**CONFIGS["llama"], spoils=spoils))
    model.save_pretrained(folder)
    return lora_on(model, [0, 3])


@pytest.mark.parametrize("spoils", ["batch", "after"])
def test_what_is_spoilt_is_a_copy(spoils: str, tmp_path: Path) -> None:
    own, data = streamed(tmp_path, lora := spoiling(tmp_path, spoils)), batch()
    _, found = own.gradients(data)
    assert all(torch.equal(data[name], batch()[name]) for name in data)
    _, wanted = expected(resident(tmp_path, lora, own, torch.float32), data, 2)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("spoils", "why"),
    [
        ("between", "changes its hidden states between layers 0 and 1"),
        ("hidden states", "SpoilingLayer changes in place what it is given"),
        ("arguments", "SpoilingLayer changes in place what all layers are given"),
        ("computes", "calls a layer with something computed from what layers below it returned"),
        ("skips", "uses more after its layers than the hidden states that the last one returned"),
    ],
)
def test_what_would_be_spoilt_for_others_is_refused(spoils: str, why: str, tmp_path: Path) -> None:
    lora = spoiling(tmp_path, spoils)
    with pytest.raises(CannotStream, match=why):
        StreamedLM(tmp_path, lora=lora)


def test_a_configuration_without_a_number_of_layers_is_refused() -> None:
    """BLT has several stacks, each with a configuration of its own, and none of the whole."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIGS["llama"]))
    model.config.num_hidden_layers = 0
    with pytest.raises(CannotStream, match="does not say how many layers it has"):
        find_layers(model)
