"""What adapters start from, and what LoRA can be: as PEFT has it for the resident model, or refused by name.

The reference is PEFT's own `get_peft_model` on transformers' model with its weights.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoftQConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig
from test_streaming import GROUPED, batch, config, expected, resident, save, small, streamed
from transformers import AutoModelForCausalLM

from labkit.offload import CannotStream, StreamedLM, assemble

DRAWN = [True, False, "gaussian", "orthogonal"]
REFUSED_STARTS = ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "mica", "loftq", "eva", "lora_ga", "gausian"]
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """PEFT warns of what the tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def started(lora: LoraConfig, start: Any) -> LoraConfig:
    """Return a configuration with an initialisation, also one that needs more settings."""
    more = {"loftq_config": LoftQConfig(loftq_bits=4)} if start == "loftq" else {}
    return LoraConfig(r=4, target_modules=lora.target_modules, init_lora_weights=start, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal"])
def test_new_adapters_are_those_of_peft_after_the_same_seed(start: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi", dtype), [0, 5], init_lora_weights=start)
    own = StreamedLM(tmp_path, lora=lora, seed=11).adapters()
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    torch.manual_seed(11)
    theirs = {n: p for n, p in get_peft_model(model, copy.deepcopy(lora)).named_parameters() if p.requires_grad}
    assert own.keys() == theirs.keys()
    assert [name for name in own if not torch.equal(own[name], theirs[name])] == []
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in own.values())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("start", [True, False])
def test_the_biases_of_adapters_start_as_the_rest_does(start: bool, bias: bool, tmp_path: Path) -> None:
    lora = config(save(tmp_path, "phi", torch.float32), [1], init_lora_weights=start, lora_bias=bias)
    own = StreamedLM(tmp_path, lora=lora).adapters()
    assert any(name.endswith("lora_B.default.bias") for name in own) == bias
    for name, parameter in own.items():
        bound = 1 / math.sqrt(4 if "lora_B" in name else parameter.shape[1])
        assert bool(parameter.any()) == ("lora_A" in name or not start), name
        assert parameter.abs().max() <= bound


@pytest.fixture
def _nothing_in_fresh_memory() -> Any:
    """Memory that nobody wrote to holds no numbers, so that whoever reads it is found out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_nothing_in_fresh_memory")
@pytest.mark.parametrize("start", DRAWN)
def test_no_adapter_holds_what_lay_in_memory_before(start: Any, tmp_path: Path) -> None:
    lora = config(save(tmp_path / "m", "llama", torch.float32), [0], init_lora_weights=start)
    own = StreamedLM(tmp_path / "m", lora=lora)
    assert all(parameter.isfinite().all() for parameter in own.adapters().values())
    own.save_adapter(tmp_path / "a")
    again = StreamedLM(tmp_path / "m", adapter=tmp_path / "a").adapters()
    assert all(torch.equal(again[name], parameter) for name, parameter in own.adapters().items())


@pytest.mark.parametrize("start", REFUSED_STARTS)
def test_an_initialisation_that_needs_weights_data_or_a_guess_is_refused_by_name(start: str, tmp_path: Path) -> None:
    lora = started(config(save(tmp_path, "llama", torch.float32), [0]), start)
    with pytest.raises(CannotStream, match=f"init_lora_weights is '{start}'.*new adapters start from True, False"):
        StreamedLM(tmp_path, lora=lora)


@pytest.mark.parametrize("start", [*DRAWN, "eva", "lora_ga"])
def test_saved_adapters_need_no_initialisation(start: Any, tmp_path: Path) -> None:
    own = streamed(tmp_path / "m", config(save(tmp_path / "m", "llama", torch.float32), [0, 5]))
    own.save_adapter(tmp_path / "a")
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text()) | {"init_lora_weights": start}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(said))
    again = StreamedLM(tmp_path / "m", adapter=tmp_path / "a", micro_batch=2)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), tmp_path / "a")
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, again.adapters()[name])
    assert again.gradients(batch())[0] == own.gradients(batch())[0]


def test_saved_adapters_that_go_with_other_weights_are_refused(tmp_path: Path) -> None:
    """PEFT takes the adapters' first value off the base when it loads such adapters, so alone they mean nothing."""
    lora = config(save(tmp_path / "m", "llama", torch.float32), [0, 5], init_lora_weights="pissa")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    get_peft_model(base, lora).save_pretrained(tmp_path / "a")
    with pytest.raises(CannotStream, match=r"is .pissa.*path_initial_model_for_weight_conversion"):
        StreamedLM(tmp_path / "m", adapter=tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["phi", "gpt2"])
def test_magnitudes_start_as_long_as_the_rows_of_the_weights(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lora = config(save(tmp_path, kind, dtype), [0, 5], use_dora=True)
    own = StreamedLM(tmp_path, lora=lora).adapters()
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(lora))
    found = {name: p for name, p in theirs.named_parameters() if "magnitude" in name}
    assert found
    assert [name for name, parameter in found.items() if not torch.equal(own[name], parameter)] == []


LORAS: dict[str, tuple[str, dict[str, Any]]] = {
    "rank-stabilised": ("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "ranks by name": ("llama", {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 2, r"3\.self_attn.v_proj": 7}}),
    "alphas by name": ("llama", {"target_modules": ATTENTION, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}),
    "one layer": ("llama", {"target_modules": ATTENTION, "layers_to_transform": 3}),
    "a pattern": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [2], "layers_pattern": "layers"}),
    "a regular expression": ("llama", {"target_modules": r".*\.layers\.[24]\.(self_attn\.o|mlp\.up)_proj"}),
    "all linear maps": ("llama", {"target_modules": "all-linear"}),
    "all linear maps of gpt2": ("gpt2", {"target_modules": "all-linear"}),
    "all but some": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj", "k_proj"]}),
    "full names": ("llama", {"target_modules": ["model.layers.1.mlp.gate_proj", "layers.4.self_attn.q_proj"]}),
    "what PEFT chooses": ("llama", {}),
    "what PEFT chooses for phi": ("phi", {}),
    "a bias in the adapter": ("phi", {"target_modules": ["dense", "fc1"], "lora_bias": True}),
    "biases of a model without": ("llama", {"target_modules": ATTENTION, "bias": "all"}),
    "biases of maps without": ("llama", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "weights kept by rows": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "a task": ("llama", {"target_modules": ATTENTION, "task_type": "CAUSAL_LM"}),
    "no initial values": ("llama", {"target_modules": ATTENTION, "init_lora_weights": False}),
    "magnitudes": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "magnitudes of gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "magnitudes without initial values": ("phi", {"use_dora": True, "init_lora_weights": False}),
    "orthogonal ones": ("llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
}


def as_resident(own: StreamedLM, folder: Path, lora: LoraConfig) -> float:
    """Hold loss and gradients against the resident model's, bit for bit, and return the loss."""
    loss, found = own.gradients(batch())
    wanted_loss, wanted = expected(resident(folder, lora, own, torch.float32), batch(), 2)
    assert loss == wanted_loss
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    return loss


@pytest.mark.parametrize("name", LORAS)
def test_what_lora_can_be_has_the_gradients_of_the_resident_model(name: str, tmp_path: Path) -> None:
    kind, settings = LORAS[name]
    save(tmp_path / "m", kind, torch.float32)
    lora = LoraConfig(**{"r": 4, "lora_alpha": 8} | settings)
    own = streamed(tmp_path / "m", lora)
    loss = as_resident(own, tmp_path / "m", lora)
    own.checkpoint(tmp_path / "s.safetensors")
    assert StreamedLM.resume(tmp_path / "s.safetensors", micro_batch=2).gradients(batch())[0] == loss
    own.save_adapter(tmp_path / "a")
    assert StreamedLM(tmp_path / "m", adapter=tmp_path / "a", micro_batch=2).gradients(batch())[0] == loss


def write_experts(folder: Path) -> None:
    settings = GROUPED | {"num_hidden_layers": 3, "moe_intermediate_size": 24, "head_dim": 8}
    settings |= {"num_experts": 5, "num_experts_per_tok": 2}
    small("qwen3_moe", settings, torch.float32).save_pretrained(folder)


@pytest.mark.parametrize("names", [["mlp.experts.gate_up_proj"], ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]])
def test_adapters_of_bare_parameters_have_the_gradients_of_the_resident_model(names: list[str], tmp_path: Path) -> None:
    write_experts(tmp_path / "m")
    lora = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=names)
    own = streamed(tmp_path / "m", lora)
    loss = as_resident(own, tmp_path / "m", lora)
    assert own.gradients(batch())[0] == loss


LOST: dict[str, tuple[str, dict[str, Any], str]] = {
    "a whole head": ("llama", {"modules_to_save": ["lm_head"]}, r"train lm_head\.modules_to_save.*modules_to_save="),
    "a whole embedding": ("phi", {"modules_to_save": ["embed_tokens"]}, r"train model\.embed_tokens\.modules_to_save"),
    "norms": ("llama", {"modules_to_save": ["norm"]}, r"modules_to_save.* 5 more, for .*=\['norm'\] out"),
    "norms in layers": ("phi", {"modules_to_save": ["input_layernorm"]}, r"layernorm\.modules_to_save.* more, for"),
    "an adapted embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, r"tokens\.lora_embedding_A"),
    "an adapted head": ("phi", {"target_modules": ["q_proj", "lm_head"]}, r"train lm_head\.lora_A.*these targets out"),
    "all biases": ("phi", {"bias": "all"}, r"\.bias.* more, for which .* leave bias='all' out"),
    "biases of the maps": ("phi", {"bias": "lora_only"}, r"q_proj\.base_layer\.bias.*leave bias='lora_only' out"),
    "tokens": ("llama", {"trainable_token_indices": [1, 5]}, r"token_adapter.*trainable_token_indices=\[1, 5\]"),
    "layers used twice": ("llama", {"layer_replication": [(0, 4), (2, 6)]}, "LoRA with layer_replication cannot"),
    "invocation tokens": ("llama", {"alora_invocation_tokens": [5]}, "LoRA with alora_invocation_tokens cannot"),
    "blocks": ("llama", {"use_bdlora": BdLoraConfig(nblocks=2)}, "LoRA with use_bdlora cannot be streamed"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_trained_without_a_gradient_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings, message = LOST[name]
    save(tmp_path, kind, torch.float32)
    monkeypatch.setattr(assemble, "try_reading", lambda parts: pytest.fail("something was read"))
    with pytest.raises(CannotStream, match=message):
        StreamedLM(tmp_path, lora=LoraConfig(**{"target_modules": ATTENTION, "task_type": "CAUSAL_LM"} | settings))


OTHERS = [IA3Config(target_modules=["k_proj"], feedforward_modules=[]), AdaLoraConfig(total_step=9)]


@pytest.mark.parametrize("other", OTHERS, ids=["IA3", "ADALORA"])
def test_other_adapters_than_lora_are_refused_by_their_kind(other: Any, tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", torch.float32)
    with pytest.raises(CannotStream, match=rf"adapters of the kind {other.peft_type.value} cannot be streamed"):
        StreamedLM(tmp_path / "m", lora=other)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), other)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(CannotStream, match=rf"adapters of the kind {other.peft_type.value} cannot be streamed"):
        StreamedLM(tmp_path / "m", adapter=tmp_path / "a")
