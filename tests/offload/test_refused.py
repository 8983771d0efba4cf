"""Models that cannot be streamed are refused when they are opened, with the reason, and nothing of them is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_streaming import GROUPED, N_LAYERS, WHERE, config, save
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel, XLMConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from labkit.offload import CannotStream, StreamedLM


class BetweenConfig(LlamaConfig):
    model_type = "between_layers"
    scale = 2.0
    repeats = 1


class BetweenModel(LlamaModel):
    """Llama whose body works on the hidden states between its layers, or calls them more than once."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        position = self.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
        for layer in [*self.layers] * self.config.repeats:
            hidden = layer(hidden, position_embeddings=position)
            hidden = hidden if self.config.scale == 1 else self.config.scale * hidden
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class BetweenForCausalLM(LlamaForCausalLM):
    config_class = BetweenConfig

    def __init__(self, config: BetweenConfig) -> None:
        super().__init__(config)
        self.model = BetweenModel(config)
        self.post_init()


AutoConfig.register("between_layers", BetweenConfig, exist_ok=True)
AutoModelForCausalLM.register(BetweenConfig, BetweenForCausalLM, exist_ok=True)


def test_a_body_that_works_between_its_layers(tmp_path: Path) -> None:
    BetweenForCausalLM(BetweenConfig(**GROUPED)).save_pretrained(tmp_path)
    with pytest.raises(CannotStream, match=r"changes its hidden states between layers 0 and 1 \(LlamaDecoderLayer\)"):
        StreamedLM(tmp_path)


def test_a_body_that_calls_its_layers_twice(tmp_path: Path) -> None:
    BetweenForCausalLM(BetweenConfig(**GROUPED, scale=1, repeats=2)).save_pretrained(tmp_path)
    with pytest.raises(CannotStream, match=rf"called {2 * N_LAYERS} of its {N_LAYERS} layers"):
        StreamedLM(tmp_path)


def test_the_same_body_without_that_is_streamed(tmp_path: Path) -> None:
    BetweenForCausalLM(BetweenConfig(**GROUPED, scale=1)).save_pretrained(tmp_path)
    assert StreamedLM(tmp_path).score({"input_ids": torch.arange(3, 12)[None]}).shape == (1, 8)


def test_layers_that_are_several_lists(tmp_path: Path) -> None:
    small = XLMConfig(vocab_size=97, emb_dim=32, n_layers=3, n_heads=4)
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path)
    with pytest.raises(
        CannotStream, match=r"XLMWithLMHeadModel has \d lists of 3 modules, so its layers cannot be told"
    ):
        StreamedLM(tmp_path)


@pytest.mark.parametrize("change", ["gone", "another shape"])
def test_a_checkpoint_that_lacks_a_weight(change: str, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi3", torch.float32), WHERE["all"])
    name = "model.layers.3.mlp.down_proj.weight"
    file = next(path for path in tmp_path.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    weight = tensors.pop(name)
    if change == "another shape":
        tensors[name] = weight[:-1].contiguous()
    save_file(tensors, file)
    if change == "gone":
        index = tmp_path / "model.safetensors.index.json"
        listed = json.loads(index.read_text())
        del listed["weight_map"][name]
        index.write_text(json.dumps(listed))
    with pytest.raises(CannotStream, match=r"1 parameters of Phi3ForCausalLM have no tensor .* model\.layers\.3\.mlp"):
        StreamedLM(tmp_path, lora=lora)
