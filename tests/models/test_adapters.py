"""LoRA coverage against PEFT's own trainable count and against the counts that follow from r (d_in + d_out)."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    XLMConfig,
)

from labkit import models

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
PHI4_LINEAR = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def shape(name: str) -> PreTrainedModel:
    return models.build(name, device="meta")


def test_the_reports_list_on_the_smaller_model_is_all_four_projections() -> None:
    found = models.lora_coverage(shape("qwen2.5-0.5b"), LoraConfig(r=16, target_modules=QKVO))
    assert found.trainable == 24 * 16 * (2 * (896 + 896) + 2 * (896 + 128)) == 2_162_688
    assert found.matched == dict.fromkeys(sorted(QKVO), 24)
    assert found.unmatched == ()
    assert found.percent == pytest.approx(0.4358, abs=1e-4)


def test_the_same_list_on_phi_2_is_three_of_four_and_refused_unless_allowed() -> None:
    config = LoraConfig(r=16, target_modules=QKVO)
    with pytest.raises(ValueError, match=r"target 'o_proj' matches nothing in phi, whose linear maps are dense"):
        models.lora_coverage(shape("phi-2"), config)
    found = models.lora_coverage(shape("phi-2"), config, allow_unmatched=("o_proj",))
    assert found.trainable == 32 * 3 * 16 * 5120 == 7_864_320
    assert found.unmatched == ("o_proj",)


def test_phi_2_with_its_own_output_projection() -> None:
    config = LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "dense"])
    assert models.lora_coverage(shape("phi-2"), config).trainable == 10_485_760


def test_first_and_last_four_layers_of_phi_4() -> None:
    config = LoraConfig(r=8, target_modules=PHI4_LINEAR, layers_to_transform=[0, 1, 2, 3, 36, 37, 38, 39])
    found = models.lora_coverage(shape("phi-4"), config)
    assert found.trainable == 5_570_560
    assert found.layers == (0, 1, 2, 3, 36, 37, 38, 39)
    assert found.n_layers == 40


CONFIGS = {
    "a list": {"target_modules": ["q_proj", "down_proj"]},
    "a pattern": {"target_modules": r".*\.1\..*(up|gate)_proj"},
    "all linear maps": {"target_modules": "all-linear"},
    "PEFT's default": {},
    "some layers": {"target_modules": ["v_proj"], "layers_to_transform": [1]},
    "exclusions": {"target_modules": ["v_proj", "q_proj"], "exclude_modules": ["model.layers.0.self_attn.v_proj"]},
    "a bias": {"target_modules": ["v_proj"], "bias": "lora_only"},
    "a whole module besides": {"target_modules": ["v_proj"], "modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_count_is_pefts_own_and_the_model_is_left_as_it_was(kind: str) -> None:
    model = models.build("qwen2.5-0.5b", num_hidden_layers=2, vocab_size=512, hidden_size=56, intermediate_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = LoraConfig(r=4, **CONFIGS[kind])
    found = models.lora_coverage(model, config)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert found.total == model.num_parameters()
    adapted = get_peft_model(model, config)
    reached = [name.split(".") for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert found.trainable == adapted.get_nb_trainable_parameters()[0]
    assert found.matched == Counter(path[-1] for path in reached)
    assert found.layers == tuple(sorted({int(path[path.index("layers") + 1]) for path in reached}))


def test_a_target_outside_the_chosen_layers_is_refused_with_the_layers() -> None:
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[99])
    with pytest.raises(ValueError, match=r"'q_proj' matches nothing in qwen2 \(layers \[99\] of 24\)"):
        models.lora_coverage(shape("qwen2.5-0.5b"), config)


def test_tied_matrices_count_once_and_conv1d_maps_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = models.lora_coverage(shape("gpt2"), LoraConfig(r=8, target_modules=["c_attn"]))
    assert found.total == models.SHAPES["gpt2"].parameters
    assert found.trainable == 12 * 8 * (768 + 3 * 768)
    with pytest.raises(ValueError, match="linear maps are c_attn, c_fc, c_proj, lm_head"):
        models.lora_coverage(shape("gpt2"), LoraConfig(target_modules=["q_proj"]))


SIZES = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "d_model": 32}
SIZES |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3}
BERT = SIZES | {"num_hidden_layers": 3, "is_decoder": True}
BART = SIZES | {"encoder_layers": 2, "decoder_layers": 3}


@pytest.mark.parametrize(
    ("build", "config", "targets", "layers", "n_layers"),
    [
        (AutoModelForCausalLM, BertConfig(**BERT), ["query"], (0, 1, 2), 3),
        (AutoModelForCausalLM, BertConfig(**BERT), r".*layer\.2.*query", (2,), 3),
        (AutoModelForSeq2SeqLM, BartConfig(**BART), ["q_proj"], (0, 1, 2, 3, 4), 5),
        (AutoModelForSeq2SeqLM, BartConfig(**BART), ["encoder_attn.q_proj"], (2, 3, 4), 5),
        (AutoModelForCausalLM, BartConfig(**BART), ["q_proj"], (0, 1, 2), 3),
        (AutoModelForSeq2SeqLM, T5Config(**T5), ["q"], (0, 1, 2, 3, 4), 5),
        (AutoModelForSeq2SeqLM, T5Config(**T5), r"decoder.*block\.1.*\.q", (3,), 5),
        (AutoModelForCausalLM, XLMConfig(vocab_size=97, emb_dim=32, n_layers=3, n_heads=4), ["q_lin"], (0, 1, 2), 3),
        (
            AutoModelForCausalLM,
            MixtralConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=4),
            ["q_proj"],
            (0, 1),
            2,
        ),
    ],
)
def test_layers_are_told_whatever_a_model_calls_them(
    build: type, config: PretrainedConfig, targets: list[str] | str, layers: tuple[int, ...], n_layers: int
) -> None:
    found = models.lora_coverage(build.from_config(config), LoraConfig(r=2, target_modules=targets))
    assert (found.layers, found.n_layers) == (layers, n_layers)


def test_what_lies_outside_the_language_model_is_not_reached_without_a_word() -> None:
    text = SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 8}
    text.pop("d_model")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 16, "patch_size": 8})
    model = Gemma3ForConditionalGeneration(config)
    with pytest.warns(UserWarning, match=r"5 of 8 maps that get an adapter lie outside the language model model\.lang"):
        found = models.lora_coverage(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert (found.layers, found.n_layers, found.matched) == ((0, 1, 2), 3, {"q_proj": 8})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = models.lora_coverage(model, LoraConfig(r=2, target_modules=r"model.language_model.*q_proj"))
    assert own.matched == {"q_proj": 3}
