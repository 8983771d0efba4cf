"""Tiny models of further architectures, with state that is not a parameter, noise or an unusual body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from test_streaming import batch, expected, resident, streamed
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

N_LAYERS = 4
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = SIZES | TOKENS | {"intermediate_size": 64, "max_position_embeddings": 64}
GROUPED = SMALL | {"num_key_value_heads": 2}
EMBD = TOKENS | {"vocab_size": 97, "n_embd": 32, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 64}
LATENT = SMALL | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
EXPERTS |= {"n_shared_experts": 1, "n_group": 2, "topk_group": 1}
LOCAL = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 8, "patch_size": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": EMBD,
    "gpt_bigcode": EMBD,
    "openai-gpt": EMBD,
    "ctrl": EMBD | {"dff": 64},
    "gptj": EMBD | {"rotary_dim": 4},
    "codegen": EMBD | {"rotary_dim": 4, "n_ctx": 64},
    "opt": SIZES | TOKENS | {"ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "xglm": TOKENS
    | {"vocab_size": 97, "d_model": 32, "ffn_dim": 64, "num_layers": N_LAYERS, "attention_heads": 4}
    | {"max_position_embeddings": 64},
    "biogpt": SMALL,
    "bloom": TOKENS | {"vocab_size": 97, "hidden_size": 32, "n_layer": N_LAYERS, "n_head": 4},
    "falcon": SIZES | TOKENS | {"max_position_embeddings": 64},
    "mpt": TOKENS | {"vocab_size": 97, "d_model": 32, "n_heads": 4, "n_layers": N_LAYERS, "max_seq_len": 64},
    "gpt_neo": TOKENS
    | {"vocab_size": 97, "hidden_size": 32, "num_layers": N_LAYERS, "num_heads": 4, "window_size": 8}
    | {"max_position_embeddings": 64, "attention_types": [[["global", "local"], 2]]},
    "stablelm": GROUPED,
    "persimmon": SMALL,
    "starcoder2": GROUPED,
    "llama": GROUPED,
    "phi3": GROUPED,
    "mixtral": LOCAL,
    "phimoe": LOCAL,
    "minimax": LOCAL | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
    "dbrx": TOKENS
    | {"vocab_size": 97, "d_model": 32, "n_heads": 4, "n_layers": N_LAYERS, "max_seq_len": 64}
    | {"ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v3": LATENT | EXPERTS | {"num_key_value_heads": 4},
    "glm4_moe": GROUPED | EXPERTS | {"head_dim": 8},
    "dots1": GROUPED | EXPERTS | {"head_dim": 8},
    "ernie4_5_moe": GROUPED | {"moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2},
    "gemma4_text": GROUPED
    | {"head_dim": 8, "global_head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 97}
    | {"hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3n_text": GROUPED
    | {"head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8}
    | {"laurel_rank": 4, "num_kv_shared_layers": 2, "intermediate_size": [64] * N_LAYERS, "altup_num_inputs": 2}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * N_LAYERS},
    "llama4_text": LOCAL | {"head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
    "doge": GROUPED,
    "recurrent_gemma": SIZES
    | TOKENS
    | {"intermediate_size": 64, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1, "head_dim": 8}
    | {"block_types": ["recurrent", "attention"]},
    "prophetnet": TOKENS
    | {"vocab_size": 97, "hidden_size": 32, "num_decoder_layers": N_LAYERS, "num_decoder_attention_heads": 4}
    | {"decoder_ffn_dim": 64, "num_encoder_layers": 1, "max_position_embeddings": 64},
    "gemma3": {
        "text_config": GROUPED | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 96,
    },
}


def write(
    folder: Path, kind: str, dtype: torch.dtype = torch.float32, max_shard_size: str = "60KB", **changes: Any
) -> PreTrainedModel:
    """Write a small model as it is in memory, its buffers as if they had been trained."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**CONFIGS[kind] | changes), dtype=dtype)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    saved = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if name not in saved and tensor.is_floating_point():
            tensor.add_(0.3 * torch.randn(tensor.shape).to(tensor.dtype))
    # What transformers would cut into a tensor for each expert is another matter: here they stay joined.
    model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)
    return model


def maps(model: PreTrainedModel) -> list[str]:
    """Name every linear map of the layers; those of experts are parameters, and no maps of their own."""
    named = {name.rpartition(".")[2]: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    mixed = any("expert" in name for name, _ in model.named_modules())
    beside = {"router", "gate_proj", "up_proj", "down_proj"} if mixed else set()
    beside |= {n for n, m in named.items() if m is model.get_output_embeddings() or n.isdigit()}
    return sorted({*named} - beside)


def lora_on(model: PreTrainedModel, layers: list[int], **changes: Any) -> LoraConfig:
    own = {"r": 4, "lora_alpha": 8, "target_modules": maps(model), "layers_to_transform": layers}
    return LoraConfig(**own | changes)


def aligned(model: PeftModel) -> PeftModel:
    """Move weights to memory that begins where a processor's vectors do.

    A file that is mapped into memory puts them anywhere, and products of matrices round by where their operands lie.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def unequal(folder: Path, lora: LoraConfig, dtype: torch.dtype = torch.float32, **options: Any) -> list[str]:
    """Name what differs from the resident model in evaluation mode, "loss" for one; nothing, if all is well."""
    own = streamed(folder, lora, **options)
    own.eval()
    loss, found = own.gradients(batch())
    wanted_loss, wanted = expected(aligned(resident(folder, lora, own, dtype)).eval(), batch(), 2)
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    differing = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    return differing + ["loss"] * (loss != wanted_loss) + sorted(set(found) ^ set(wanted))
