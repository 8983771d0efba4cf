"""Gradients of StreamedLM against the resident model, for every architecture that transformers calls a causal LM.

Each is built at a tiny size with random weights in float32, every buffer that is saved changed as training would, and
written with save_pretrained. Then the gradients of LoRA adapters on the linear maps of its layers are compared, bit for
bit: the streamed model's, and those of transformers' own with PEFT's adapters over the same micro-batches.

    python benchmarks/causal_mapping.py                  # a Markdown table, in about ten minutes
    python benchmarks/causal_mapping.py llama gpt2       # these alone
    python benchmarks/causal_mapping.py --joined         # experts written joined, as they are in memory
    python benchmarks/causal_mapping.py --tokens 80      # more than the 64 positions that each has learned

What transformers refuses as too long has to be refused before a layer is read, with ValueError: *too long*.
"""

from __future__ import annotations

import argparse
import copy
import logging
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from labkit.offload import CannotStream, StreamedLM
from labkit.offload.head import IGNORED, token_loss
from labkit.offload.skeleton import find_layers

_SECONDS = 60
_MOST_PARAMETERS = 8_000_000
_ROUNDING = 1e-5
_VOCABULARY, _LAYERS, _TOKENS = 97, 4, 12
_READ = ("mamba.out_proj", "mixer.out_proj")
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("embedding_size", "embedding_dim", "hidden_size_global", "output_embedding_size"), 32),
    **dict.fromkeys(("input_embedding_size",), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "d_inner", "dim_ff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("swa_num_attention_heads", "linear_num_heads", "linear_num_key_heads", "num_ngram_heads"), 4),
    **dict.fromkeys(("linear_num_value_heads", "mamba_num_heads", "mamba_n_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "linear_head_dim", "v_head_dim", "dim_head"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "d_head", "attention_head_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "rotary_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 4),
    **dict.fromkeys(("laurel_rank", "query_pre_attn_scalar", "hidden_size_per_layer_input", "index_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "top_k_experts", "moe_topk"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size", "router_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "first_k_dense_replace", "num_mtp_layers"), 1),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "mamba_head_dim", "index_topk"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 64),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "sliding_window", "window_size", "attention_chunk_size"), 8),
    **dict.fromkeys(("attention_window_size", "sliding_window_size", "local_attention", "block_size"), 8),
    **dict.fromkeys(("image_size",), 8),
    **dict.fromkeys(("patch_size",), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), _VOCABULARY),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "lru_width": 32, "mamba_d_ssm": 64, "expand": 2},
    **{"attn_layers": None, "is_decoder": True, "attention_types": [[["global", "local"], _LAYERS // 2]]},
}
_HALVES = ["sliding_attention", "full_attention"] * 2
_SHARING = {"layer_types": _HALVES, "num_kv_shared_layers": 2}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
_ROC = {"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 50, "shape_embed_dim": 16, "shape_vocab_size": 50}
_OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots3_note_text": {"num_key_value_heads": 4, "index_n_heads": 2, "layer_types": ["full_attention"] * _LAYERS},
    "gemma3n_text": _SHARING,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"zero_expert_num": 2, "num_key_value_heads": 4, "moe_topk": 2},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {**_INDEXER, "indexer_compress_ratio": 4, "hc_lowrank": 8, "ple_layer_ids": []},
    "reformer": {
        **{"attn_layers": ["local", "lsh"] * 2, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
        **{"lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4, "num_buckets": 4, "hash_seed": 1},
    },
    "roc_bert": _ROC,
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 16},
}
"""Fields that one architecture needs beside the sizes of all."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if a block takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tiny(kind: str) -> PreTrainedConfig:
    """Return a configuration with every size that has a name in `_SIZES` made small, those of its parts as well."""
    config_class = CONFIG_MAPPING[kind]
    own = shrunk(dict.fromkeys(known(config_class)))
    if "qk_rope_head_dim" in own:
        own["head_dim"], own["num_key_value_heads"] = own["qk_rope_head_dim"], own["num_attention_heads"]
    parts = {name: shrunk(part) for name, part in config_class().to_dict().items() if isinstance(part, dict)}
    inner = {name: part for name, part in parts.items() if name in getattr(config_class, "sub_configs", {})}
    if text := _OWN.get(f"{kind}_text"):
        inner["text_config"] = inner.get("text_config", {}) | text
    return config_class(**own | inner | _OWN.get(kind, {}))


def known(config_class: type[PreTrainedConfig]) -> list[str]:
    """Name the fields of a configuration class."""
    return [name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})]


def shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    """Return those fields that have a small size, with it."""
    kept = {"model_type": fields["model_type"]} if fields.get("model_type") else {}
    return kept | {name: _SIZES[name] for name in fields if _SIZES.get(name) is not None}


def build(kind: str) -> PreTrainedModel:
    """Build a tiny model with random weights, large enough for gradients to be far from rounding."""
    config = tiny(kind)
    with torch.device("meta"):
        n = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if n > _MOST_PARAMETERS:
        raise ValueError(f"{n:,} parameters at this size")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data.mul_(0 if name.endswith("A_log") else 2)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if name not in parameters and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return model.eval()


def batch(n_tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, _VOCABULARY, (4, n_tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[3, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def adapters_of(model: PreTrainedModel) -> LoraConfig:
    """Adapt the linear maps of the layers, by their full names; where there are experts, those of attention alone."""
    inside = {id(module) for module in find_layers(model).modules()}
    linear = [name for name, m in model.named_modules() if id(m) in inside and isinstance(m, (nn.Linear, Conv1D))]
    if any("expert" in name for name, _ in model.named_modules()):
        # PEFT takes an attention's gate_proj for that of an expert, and wants up_proj beside it.
        linear = [name for name in linear if "att" in name and not name.endswith("gate_proj")] or linear
    # PEFT adapts no map that a recurrence reads as a matrix.
    return LoraConfig(r=4, lora_alpha=8, target_modules=[name for name in linear if not name.endswith(_READ)])


def resident(
    folder: Path, lora: LoraConfig, own: StreamedLM, data: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of transformers' model with PEFT's adapters."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(model, copy.deepcopy(lora)).eval()
    parameters, total = dict(model.named_parameters()), 0.0
    for parameter in parameters.values():
        # Products of matrices round by where their operands lie in memory, and a mapped file puts them anywhere.
        parameter.data = parameter.data.clone()
    for name, parameter in own.adapters().items():
        parameters[name].data = parameter.detach().clone()
    counted = int((data["labels"][:, 1:] != IGNORED).sum())
    for at in range(0, len(data["input_ids"]), 2):
        part = {name: value[at : at + 2] for name, value in data.items()}
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits
        loss = token_loss(logits, part["labels"], counted)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def compare(
    model: PreTrainedModel, folder: Path, data: dict[str, torch.Tensor], too_long: Exception | None
) -> tuple[str, str]:
    """Return how the streamed model answers, and what there is to say about it."""
    try:
        own = StreamedLM(folder, lora=adapters_of(model), micro_batch=2)
        for name, parameter in own.adapters().items():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        own.eval()
        loss, found = own.gradients(data)
    except CannotStream as error:
        return "refused", str(error).replace(f"{folder}: ", "")
    except ValueError as error:
        if too_long is None or own.passes.pool.counts.loads:
            raise
        return "too long", str(error)
    if too_long is not None:
        return "WRONG", f"a loss where transformers raises {brief(too_long)}"
    wanted_loss, wanted = resident(folder, own.lora, own, data)
    own.close()
    unequal = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    if not unequal and loss == wanted_loss and any(gradient.any() for gradient in wanted.values()):
        return "exact", f"{len(wanted)} gradients"
    ends = [torch.cat([own[name].flatten() for name in wanted]) for own in (found, wanted)]
    apart = float((ends[0] - ends[1]).norm() / ends[1].norm())
    answer = "to rounding" if apart < _ROUNDING else "WRONG"
    return (
        answer,
        f"{len(unequal)} of {len(wanted)} gradients differ by {apart:.1e}, loss {loss:.6f} for {wanted_loss:.6f}",
    )


def judge(kind: str, joined: bool, n_tokens: int) -> tuple[str, str]:
    """Return the answer for an architecture: exact, refused, too long, WRONG, CRASH or not built, with the reason."""
    too_long: Exception | None = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            with within(_SECONDS):
                model, data = build(kind), batch(n_tokens)
                model.save_pretrained(folder, save_original_format=not joined)
                loaded = AutoModelForCausalLM.from_pretrained(folder)
                run(loaded, batch(_TOKENS))
                try:
                    run(loaded, data)
                except (IndexError, RuntimeError, ValueError) as error:
                    too_long = error
        except Exception as error:
            return "not built", brief(error)
        try:
            with within(_SECONDS):
                return compare(model, Path(folder), data, too_long)
        except Exception as error:
            return "CRASH", brief(error)


def run(model: PreTrainedModel, data: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        model(input_ids=data["input_ids"], attention_mask=data["attention_mask"], use_cache=False)


def brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("kinds", nargs="*", help="model types; all by default")
    arguments.add_argument("--joined", action="store_true", help="write experts joined, as they are in memory")
    arguments.add_argument("--tokens", type=int, default=_TOKENS, help="tokens of a sample")
    options = arguments.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    print("| model type | class | answer | why |\n|---|---|---|---|")
    for kind in options.kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        answer, why = judge(kind, options.joined, options.tokens)
        counts[answer] += 1
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
        print(f"| {kind} | {name} | {answer} | {why.replace('|', '/')} |", flush=True)
    print("\n" + ", ".join(f"{n} {answer}" for answer, n in counts.most_common()))
    sys.exit(bool(counts["WRONG"] or counts["CRASH"]))


if __name__ == "__main__":
    main()
