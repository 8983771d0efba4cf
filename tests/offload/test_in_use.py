"""StreamedLM as people use it: closed at the end of its block, its adapters loaded by PEFT's automatic class."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from test_generate_memory import prompts, save

from labkit.offload.engine import StreamedLM
from labkit.offload.planner import Rates
from labkit.offload.planning import plan

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def test_a_block_closes_the_model_also_where_it_fails(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    with pytest.raises(KeyError, match="in the block"), StreamedLM(tmp_path) as own:  # noqa: PT012
        own.score({"input_ids": prompts()[0]})
        raise KeyError("in the block")
    with pytest.raises(RuntimeError):
        own.passes.pool.prefetch(0) or own.score({"input_ids": prompts()[0]})


@pytest.mark.parametrize("given", [None, "someone/base-of-theirs", "gone/with the folder"])
def test_saved_adapters_load_by_themselves(given: str | None, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save(base, "llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        own = StreamedLM(base, lora=LoraConfig(**LORA, base_model_name_or_path=given))
    with own:
        for parameter in own.adapters().values():
            torch.nn.init.normal_(parameter, std=0.3)
        own.save_adapter(adapter)
        wanted = own.score({"input_ids": prompts()[0]})
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    if given == "someone/base-of-theirs":
        assert config["base_model_name_or_path"] == given
        return
    with warnings.catch_warnings(), StreamedLM(base, adapter=adapter) as again:
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(again.score({"input_ids": prompts()[0]}), wanted)
    twin = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    logits = twin(input_ids=prompts()[0]).logits[:, :-1].flatten(0, 1)
    found = torch.nn.functional.cross_entropy(logits, prompts()[0][:, 1:].flatten(), reduction="none")
    assert torch.allclose(found.view(3, -1), wanted, atol=2e-6)


def test_a_plan_without_reading_says_so_instead_of_a_crossover_at_no_tokens(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    found = plan(
        tmp_path, memory="4GiB", batch_size=2, seq_len=8, rates=Rates(bytes_per_second=1e9, flops_per_second=1e12)
    )
    assert found.bytes_read == 0
    assert "all of it computing: every layer has a buffer and stays in memory" in found.describe()
    assert "equally long" not in found.describe()


@pytest.mark.parametrize(
    ("asked", "message"), [({"batch_size": 0}, "batch_size is 0"), ({"seq_len": -4}, "seq_len is -4")], ids=str
)
def test_a_plan_of_nothing_is_refused(asked: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, **{"batch_size": 2, "seq_len": 8} | asked)
