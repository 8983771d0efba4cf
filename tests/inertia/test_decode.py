"""The decoding loop against `generate` of transformers, its clock against models that sleep for a known time, counts of
bytes against sums written out by hand, and cold loads against the kernel's own list of cached pages."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from labkit.decoding import decode, loading
from labkit.device import pagecache

HIDDEN, LAYERS, VOCABULARY, FEED_FORWARD = 32, 2, 97, 48
SMALL = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": FEED_FORWARD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
CONFIGS = {
    "qwen2": SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama": SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "phi": SMALL,
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128},
    "gemma3_text": SMALL | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8, "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(kind: str = "qwen2", seed: int = 0, **values: object) -> PreTrainedModel:
    """Build a tiny float32 model whose weights are large enough that its tokens vary."""
    torch.manual_seed(seed)
    config: PretrainedConfig = CONFIG_MAPPING[kind](**{**CONFIGS[kind], **values})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", CONFIGS)
def test_tokens_equal_those_of_greedy_generate(kind: str, seed: int) -> None:
    model = tiny(kind, seed)
    timing = decode.measure_decode(model, prompt_tokens=7, new_tokens=12, repeats=2, warmup=0, seed=seed)
    prompt = decode.random_prompt(model, 7, seed)
    model.generation_config.eos_token_id = None
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=12,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    assert list(timing.tokens) == expected[0, 7:].tolist()
    assert len(set(timing.tokens)) > 2, "a constant answer would show little"


def test_an_end_of_text_token_ends_nothing() -> None:
    model = tiny()
    made = decode.measure_decode(model, prompt_tokens=5, new_tokens=9, repeats=1).tokens
    model.config.eos_token_id = model.generation_config.eos_token_id = made[1]
    again = decode.measure_decode(model, prompt_tokens=5, new_tokens=9, repeats=1)
    assert again.tokens == made
    assert len(again.token_seconds[0]) == 8


def test_prefill_and_each_step_are_timed_apart() -> None:
    model, lengths = tiny(), []

    def sleep(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        lengths.append(kwargs["input_ids"].shape[1])
        time.sleep(0.05 if lengths[-1] > 1 else 0.01 * (len(lengths) % 2))

    model.register_forward_pre_hook(sleep, with_kwargs=True)
    timing = decode.measure_decode(model, prompt_tokens=6, new_tokens=5, repeats=1, warmup=0)
    assert lengths[-5:] == [6, 1, 1, 1, 1], "one prefill, then one token at a time from the cache"
    assert timing.prefill_seconds[0] >= 0.05
    slow, fast = timing.token_seconds[0][1::2], timing.token_seconds[0][::2]
    assert min(slow) >= 0.01
    assert min(fast) < 0.01, "a step's time does not hold its neighbour's"
    assert timing.seconds_per_token[0] == pytest.approx(sum(sorted(timing.token_seconds[0])[1:3]) / 2)


def test_repeats_are_kept_raw_and_warm_up_is_not() -> None:
    model, calls, between = tiny(), [], []
    model.register_forward_pre_hook(lambda *_: calls.append(len(between)))
    timing = decode.measure_decode(
        model, prompt_tokens=4, new_tokens=3, repeats=2, warmup=3, between=lambda: between.append(0)
    )
    n_compared = 2 * 3
    assert len(calls) == n_compared + (3 + 2) * 3
    assert calls == [0] * (n_compared + 9) + [1] * 3 + [2] * 3, "what is done between comes before each timed repeat"
    assert len(timing.prefill_seconds) == len(timing.seconds_per_token) == len(timing.token_seconds) == 2


def test_conditions_name_all_that_a_time_depends_on() -> None:
    timing = decode.measure_decode(tiny(), prompt_tokens=4, new_tokens=3, repeats=1)
    plain = json.loads(json.dumps(timing.as_dict(), allow_nan=False))
    expected = {"dtype": "float32", "threads": 1, "device": "cpu", "prompt_tokens": 4, "new_tokens": 3, "batch": 1}
    expected |= {"adapters": "none", "sampler": "greedy", "torch": str(torch.__version__), "cache": "DynamicCache"}
    expected |= {"attention": "sdpa", "n_layers": LAYERS, "compiled": False, "warmup": 1}
    assert plain["conditions"].items() >= expected.items()
    assert plain["conditions"]["parameters"] == sum(p.numel() for p in tiny().parameters())


def test_adapters_are_told_unmerged_merged_and_none() -> None:
    model = adapted(tiny())
    assert decode.adapter_state(model) == "unmerged"
    assert decode.measure_decode(model, prompt_tokens=4, new_tokens=3, repeats=1).conditions["adapters"] == "unmerged"
    model.merge_adapter()
    assert decode.adapter_state(model) == "merged"
    assert decode.adapter_state(model.merge_and_unload()) == "none"
    unloaded = decode.measure_decode(tiny(), prompt_tokens=4, new_tokens=3, repeats=1, adapters="merged")
    assert unloaded.conditions["adapters"] == "merged"


def test_merging_adapters_changes_no_token() -> None:
    model = adapted(tiny(seed=4))
    unmerged = decode.measure_decode(model, prompt_tokens=6, new_tokens=10, repeats=1).tokens
    merged = decode.measure_decode(model.merge_and_unload(), prompt_tokens=6, new_tokens=10, repeats=1).tokens
    assert unmerged == merged
    assert unmerged != decode.measure_decode(tiny(seed=4), prompt_tokens=6, new_tokens=10, repeats=1).tokens


def test_a_step_reads_a_shared_head_once_and_of_a_lookup_table_a_row() -> None:
    heads = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2
    layer = heads + 3 * HIDDEN * FEED_FORWARD + 2 * HIDDEN
    matrix = VOCABULARY * HIDDEN
    biases = HIDDEN + HIDDEN
    assert decode.bytes_per_token(tiny("qwen2")) == 4 * (LAYERS * (layer + biases) + HIDDEN + matrix)
    assert decode.bytes_per_token(tiny("llama")) == 4 * (LAYERS * layer + HIDDEN + matrix)
    whole = sum(p.numel() for p in tiny("llama").parameters())
    assert decode.bytes_per_token(tiny("llama")) == 4 * (whole - matrix)
    positions = 128 * HIDDEN
    whole = sum(p.numel() for p in tiny("gpt2").parameters())
    assert decode.bytes_per_token(tiny("gpt2")) == 4 * (whole - positions)


def test_bytes_follow_the_type() -> None:
    assert decode.bytes_per_token(tiny().bfloat16()) * 2 == decode.bytes_per_token(tiny())


@pytest.mark.parametrize(
    "changed",
    [{"prompt_tokens": 0}, {"new_tokens": 1}, {"repeats": 0}, {"warmup": -1}, {"prompt_tokens": 127}],
    ids=str,
)
def test_counts_below_the_least_and_prompts_beyond_the_positions_are_refused(changed: dict[str, int]) -> None:
    counts = {"prompt_tokens": 4, "new_tokens": 3, "repeats": 1} | changed
    with pytest.raises(ValueError, match=r"least 1|more than the model's 128 positions"):
        decode.measure_decode(tiny(), **counts)


def test_tokens_that_change_between_repeats_are_an_error() -> None:
    model = tiny()

    def forget(*_: object) -> None:
        torch.nn.init.normal_(model.model.embed_tokens.weight)

    with pytest.raises(RuntimeError, match="different tokens in different repeats"):
        decode.measure_decode(model, prompt_tokens=4, new_tokens=6, repeats=3, between=forget)


def test_a_training_step_moves_the_adapters_and_nothing_else() -> None:
    model = adapted(tiny())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seconds = decode.measure_train_step(model, batch=2, length=9, repeats=3, warmup=1)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_training_time_holds_the_whole_step() -> None:
    model = adapted(tiny())
    slow = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    slow.register_hook(lambda _: time.sleep(0.03))
    assert min(decode.measure_train_step(model, batch=1, length=5, repeats=2)) >= 0.03


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="0 trainable tensors"):
        decode.measure_train_step(model, batch=1, length=5, repeats=1)
    with pytest.raises(ValueError, match="length 1"):
        decode.measure_train_step(tiny(), batch=1, length=1, repeats=1)


def test_pages_are_dropped_and_a_read_brings_them_back(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(os.urandom(1 << 20))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pagecache.resident_share([file]) > 0.02:
        pytest.skip("the file system of the temporary folder lies in memory, whose pages cannot be dropped")
    file.read_bytes()
    assert pagecache.resident_share([file]) == 1
    assert pagecache.drop_pages([file]) == ""
    assert pagecache.resident_share([file]) <= 0.02


def test_pages_that_the_kernel_keeps_are_reported() -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no memory file system, whose pages cannot be dropped")
    file = memory / f"labkit-{os.getpid()}"
    try:
        file.write_bytes(b"x" * 100_000)
        assert pagecache.drop_pages([file]) == "the kernel kept 100% of the files' pages in the cache"
    finally:
        file.unlink()


def saved(folder: Path) -> Path:
    tiny("llama").save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_loads_are_timed_cold_and_warm(tmp_path: Path) -> None:
    spec = loading.LoadSpec(model=str(saved(tmp_path / "m")), dtype="float32", repeats=2)
    found = loading.measure_load(spec)
    assert len(found["warm_seconds"]) == 2
    assert (found["cold_seconds"] is None) == bool(found["cold_unavailable"])
    assert found["cold_unavailable"] or len(found["cold_seconds"]) == 2
    assert found["file_bytes"] == sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    json.dumps(found, allow_nan=False)


def test_a_load_whose_pages_stay_has_no_cold_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "drop_pages", lambda files: "the kernel kept 100% of the files' pages in the cache")
    found = loading.measure_load(loading.LoadSpec(model=str(saved(tmp_path / "m")), repeats=1))
    assert found["cold_seconds"] is None
    assert "kept 100%" in found["cold_unavailable"]
    assert len(found["warm_seconds"]) == 1


def test_a_type_that_torch_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'int9000'"):
        loading.measure_load(loading.LoadSpec(model=str(tmp_path), dtype="int9000"))
