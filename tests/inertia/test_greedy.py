"""Decoding loops of models that remember in different ways, against transformers' own greedy `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from labkit.decoding import decode, greedy

VOCABULARY, LAYERS = 97, 3
IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = IDS | {"hidden_size": 32, "num_hidden_layers": LAYERS}
STATE = WIDE | {"state_size": 8}
HEADS = WIDE | {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 128}
OLD = IDS | {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}
ENCODERS = HEADS | {"is_decoder": True}
BARTS = {"d_model": 32, "decoder_layers": LAYERS, "encoder_layers": LAYERS, "decoder_attention_heads": 4}
BARTS |= IDS | {"decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_start_token_id": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba": STATE,
    "mamba2": STATE | {"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": STATE,
    "rwkv": WIDE | {"context_length": 128, "rescale_every": 2},
    "openai-gpt": OLD,
    "ctrl": OLD | {"dff": 48},
    "bloom": IDS | {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "opt": HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "recurrent_gemma": HEADS | {"lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1, "head_dim": 8},
    "minimax": HEADS | {"num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 8, "block_size": 8}
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "jamba": HEADS | {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
    | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "qwen3_next": HEADS | {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 16}
    | {"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "lfm2": HEADS | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"]},
    "gpt_neo": IDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8}
    | {"max_position_embeddings": 128}
    | {"attention_types": [[["global", "local"], 1]]},
    "phi3": HEADS | {"num_key_value_heads": 2},
    "bert": ENCODERS,
    "roberta": ENCODERS,
    "bart": BARTS,
    "xglm": IDS | {"d_model": 32, "ffn_dim": 48, "num_layers": LAYERS, "attention_heads": 4}
    | {"max_position_embeddings": 128},
}  # fmt: skip
SPREAD = {"openai-gpt": 0.2, "ctrl": 1.0, "xglm": 1.0}
"""Standard deviations of weights with which a kind's tokens vary, where the usual one is none of them."""
REMEMBER = {"mamba": "cache_params", "rwkv": "state", "openai-gpt": "none", "phi3": "DynamicCache"}
REMEMBER |= {"minimax": "past_key_values"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str, seed: int = 0) -> PreTrainedModel:
    """Build a tiny model whose weights are large enough that its tokens vary, and depend on what came before."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**CONFIGS[kind]), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.endswith("A_log"):
            torch.nn.init.normal_(parameter, std=SPREAD.get(kind, 0.3))
    return model.eval()


def generated(model: PreTrainedModel, prompt: torch.Tensor, n: int) -> list[int]:
    own = greedy.base_of(model).generation_config
    own.eos_token_id = own.forced_eos_token_id = None
    asked = {"min_new_tokens": n, "max_new_tokens": n, "do_sample": False, "pad_token_id": 0}
    made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **asked)
    return made[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_are_those_of_generate_whatever_a_model_remembers_by(kind: str) -> None:
    model = tiny(kind)
    timing = decode.measure_decode(model, prompt_tokens=7, new_tokens=20, repeats=2, warmup=0)
    assert list(timing.tokens) == generated(model, decode.random_prompt(model, 7), 20)
    assert len(set(timing.tokens)) > 2, "a constant answer would show little"
    assert timing.conditions["cache"] == REMEMBER.get(kind, timing.conditions["cache"])


@pytest.mark.parametrize(("kind", "target"), [("mamba", "in_proj"), ("rwkv", "key"), ("openai-gpt", "c_attn")])
def test_the_same_with_adapters(kind: str, target: str) -> None:
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules=[target], init_lora_weights=False, fan_in_fan_out=target == "c_attn")
    model = get_peft_model(tiny(kind), lora)
    timing = decode.measure_decode(model, prompt_tokens=5, new_tokens=9, repeats=1)
    assert list(timing.tokens) == generated(model, decode.random_prompt(model, 5), 9)
    assert timing.conditions["adapters"] == "unmerged"


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv", "openai-gpt"])
def test_a_loop_that_forgets_is_refused_before_anything_is_timed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Keys and values are handed over, and these models drop them without a word.
    monkeypatch.setattr(greedy, "_as_generate_does", lambda model, *_: greedy._with_keys_and_values(model))
    timed: list[int] = []
    with pytest.raises(RuntimeError, match=r"token \d is \d+ in this loop and \d+ in transformers' generate"):
        decode.measure_decode(tiny(kind), prompt_tokens=7, new_tokens=9, repeats=2, between=lambda: timed.append(0))
    assert not timed


def test_tokens_that_only_rounding_tells_apart_are_no_difference() -> None:
    model = tiny("phi3")
    prompt = decode.random_prompt(model, 6)
    first = greedy.generated(model, prompt, 5).tokens[0]
    twin = (first + 1) % VOCABULARY
    model.lm_head.weight.data[twin] = model.lm_head.weight.data[first]
    expected = greedy.generated(model, prompt, 5)
    assert expected.tokens[0] in (first, twin)
    assert greedy.difference(model, expected, expected.tokens) == ""
    other = first + twin - expected.tokens[0]
    assert greedy.difference(model, expected, (other, 0, 0, 0, 0)) == ""
    wrong = (twin + 1) % VOCABULARY
    said = f"token 0 is {wrong} in this loop and {expected.tokens[0]} in transformers' generate"
    assert greedy.difference(model, expected, (wrong, 0, 0, 0, 0)) == said


def test_what_a_model_wishes_of_its_answers_is_set_aside_and_given_back() -> None:
    model = tiny("mamba")
    made = decode.measure_decode(model, prompt_tokens=5, new_tokens=9, repeats=1).tokens
    wishes = model.generation_config
    wishes.repetition_penalty, wishes.eos_token_id, wishes.do_sample = 5.0, made[1], True
    again = decode.measure_decode(model, prompt_tokens=5, new_tokens=9, repeats=1)
    assert again.tokens == made
    assert model.generation_config is wishes
    assert (wishes.repetition_penalty, wishes.eos_token_id) == (5.0, made[1])


def test_of_a_model_that_sees_the_language_model_is_timed() -> None:
    text = HEADS | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    timing = decode.measure_decode(model.eval(), prompt_tokens=5, new_tokens=6, repeats=1)
    assert timing.conditions["n_layers"] == LAYERS
    own = AutoModelForCausalLM.from_config(model.config.text_config)
    assert timing.conditions["bytes_per_token"] == decode.bytes_per_token(own.float())
    assert timing.conditions["parameters"] > sum(p.numel() for p in own.parameters())


def test_a_timing_shows_what_was_timed_and_how_long_it_took() -> None:
    timing = decode.measure_decode(tiny("phi3"), prompt_tokens=5, new_tokens=6, repeats=2)
    shown = repr(timing)
    parts = (
        "<DecodeTiming phi3, float32 on cpu, 1 threads: ",
        " ms a token (",
        "2 repeats of 6 tokens",
        "prefill of 5",
    )
    assert [part for part in parts if part not in shown] == []
