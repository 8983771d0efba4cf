"""Every random number of a run is a function of seed, step, layer and micro-batch, whatever else has drawn or run.

The reference is transformers' own model with PEFT's adapters, its generator seeded by hooks before each layer.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from test_streaming import IGNORED, batch, resident, streamed
from tiny_models import N_LAYERS, aligned, lora_on, write

from labkit.offload import CannotStream, StreamedLM, ablation
from labkit.offload.head import token_loss

DROPPED = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
PDROPPED = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
NOISY: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_bigcode": {},
    "openai-gpt": {},
    "ctrl": {},
    "opt": {"attention_dropout": 0.1},
    "xglm": {"activation_dropout": 0.1},
    "biogpt": {"activation_dropout": 0.1},
    "gptj": PDROPPED,
    "codegen": PDROPPED,
    "bloom": DROPPED,
    "falcon": DROPPED,
    "stablelm": DROPPED,
    "persimmon": DROPPED,
    "phi3": {"resid_pdrop": 0.1, "attention_dropout": 0.1},
    "starcoder2": {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "gpt_neo": {"resid_dropout": 0.1, "embed_dropout": 0.1, "attention_dropout": 0.1},
    "mpt": {"resid_pdrop": 0.1, "emb_pdrop": 0.1},
    "llama": {"attention_dropout": 0.1},
    "mixtral": {"router_jitter_noise": 0.3, "attention_dropout": 0.0},
    "phimoe": {"router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "minimax": {"router_jitter_noise": 0.3},
}
WHERE = {"first": [0], "middle": [1, 2], "last": [N_LAYERS - 1]}
EVERYWHERE = [(kind, where) for kind in ("gpt2", "opt", "falcon", "mixtral") for where in WHERE]
CASES = [*EVERYWHERE, *((kind, [*WHERE][i % 3]) for i, kind in enumerate(NOISY) if kind not in dict(EVERYWHERE))]


def seed_of(*place: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def expected_with_noise(model: PeftModel, own: StreamedLM, step: int) -> dict[str, torch.Tensor]:
    """Return the resident model's gradients, what each layer draws seeded as the streamed one says it does."""
    data, layers = batch(), own.passes.skeleton.layers
    names = {id(module): name for name, module in own.passes.skeleton.model.named_modules()}
    twin = model.base_model.model
    counted = int((data["labels"][:, 1:] != IGNORED).sum())
    for m, at in enumerate(range(0, len(data["input_ids"]), 2)):
        part = {name: value[at : at + 2] for name, value in data.items()}
        hooks = [
            twin.get_submodule(names[id(layer)]).register_forward_pre_hook(
                lambda *_, i=i, m=m: torch.manual_seed(seed_of(own.seed, step, i, m)) and None
            )
            for i, layer in enumerate(layers)
        ]
        torch.manual_seed(seed_of(own.seed, step, -1, m))
        logits = twin(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits
        token_loss(logits, part["labels"], counted).backward()
        for hook in hooks:
            hook.remove()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_a_step_is_the_same_whatever_ran_before_and_that_of_the_resident_model(
    kind: str, where: str, tmp_path: Path
) -> None:
    lora = lora_on(write(tmp_path, kind, **NOISY[kind]), WHERE[where], lora_dropout=0.1)
    own = streamed(tmp_path, lora, seed=5)
    wanted = expected_with_noise(aligned(resident(tmp_path, lora, own, torch.float32)), own, 3)
    for step in (0, 3):
        torch.manual_seed(step)
        loss, found = own.gradients(batch(), step=step)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    own.eval()
    own.gradients(batch())
    own.train()
    again = own.gradients(batch(), step=3)
    assert again[0] == loss
    assert all(torch.equal(again[1][name], found[name]) for name in found)
    assert own.gradients(batch(), step=4)[0] != loss


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mixtral"])
def test_nothing_disturbs_what_else_draws(kind: str, tmp_path: Path) -> None:
    lora = lora_on(write(tmp_path, kind, **NOISY[kind]), [2, 3])
    torch.manual_seed(11)
    before = torch.get_rng_state()
    own = StreamedLM(tmp_path, lora=lora)
    own.plan_for(3, 7)
    own.gradients(batch())
    own.score(batch())
    own.generate(batch()["input_ids"], max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_a_prefix_that_draws_is_walked_each_time(tmp_path: Path) -> None:
    quiet = streamed(tmp_path / "q", lora_on(write(tmp_path / "q", "mixtral"), [3]), slots=2)
    noisy_model = write(tmp_path / "n", "mixtral", router_jitter_noise=0.3)
    noisy = streamed(tmp_path / "n", lora_on(noisy_model, [3]), slots=2)
    for own, at_least, at_most in ((quiet, 0, 2), (noisy, N_LAYERS - 1, 2 * N_LAYERS)):
        own.gradients(batch())
        before = own.passes.pool.counts.loads
        own.gradients(batch())
        assert at_least <= own.passes.pool.counts.loads - before <= at_most


def test_a_pass_with_nothing_read_leaves_nothing_behind(tmp_path: Path) -> None:
    lora = lora_on(write(tmp_path, "llama"), [3])
    own, other = streamed(tmp_path, lora, slots=2), streamed(tmp_path, lora, slots=2)
    other.gradients({name: value.flip(0) for name, value in batch().items()})
    ablation.without_reading(other, batch())
    _, wanted = own.gradients(batch())
    _, found = other.gradients(batch())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def greedy(model: torch.nn.Module, ids: torch.Tensor, n: int) -> torch.Tensor:
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)


def test_decoding_remembers_no_prefix_by_its_last_token(tmp_path: Path) -> None:
    """What the frozen layers return for one token depends on those before it, which only the cache holds."""
    lora = lora_on(write(tmp_path, "llama"), [3])
    own = streamed(tmp_path, lora)
    twin = resident(tmp_path, lora, own, torch.float32).eval()
    for prompt in (batch()["input_ids"], batch()["input_ids"], batch()["input_ids"].flip(1)):
        assert torch.equal(own.generate(prompt, max_new_tokens=8), greedy(twin, prompt, 8))


@pytest.mark.parametrize("kind", ["opt", "xglm", "biogpt"])
def test_layers_left_out_at_random_are_refused_at_once(kind: str, tmp_path: Path) -> None:
    lora = lora_on(write(tmp_path, kind, layerdrop=0.1), [0])
    with pytest.raises(CannotStream, match=r"leaves out each layer with probability 0\.1 while it trains"):
        StreamedLM(tmp_path, lora=lora)
    assert StreamedLM(tmp_path).score(batch()).shape == (5, 11)


def test_layers_left_out_under_another_name_are_noticed(tmp_path: Path) -> None:
    own = streamed(tmp_path, lora_on(write(tmp_path, "opt"), [0]))
    own.passes.skeleton.model.model.decoder.layerdrop = 0.99
    with pytest.raises(CannotStream, match=r"called \d of its 4 layers; layers left out at random"):
        own.gradients(batch())


GO_ON = """
import json, sys, torch
from labkit.offload import StreamedLM
torch.set_num_threads(1)
torch.rand(17)
model = StreamedLM.resume(sys.argv[1] + "/state.safetensors")
optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-2)
model.restore(optimizer)
ids = torch.tensor(json.loads(sys.argv[2]))
model.step({"input_ids": ids}, optimizer)
model.save_adapter(sys.argv[1] + "/resumed")
"""


def test_a_step_in_another_process_is_that_of_the_run_left_alone(tmp_path: Path) -> None:
    lora: LoraConfig = lora_on(write(tmp_path, "gpt2"), [2, 3], lora_dropout=0.2)
    own = StreamedLM(tmp_path, lora=lora, micro_batch=2, seed=9)
    optimizer = torch.optim.AdamW(own.adapters().values(), lr=1e-2)
    data = {"input_ids": batch()["input_ids"]}
    own.step(data, optimizer)
    own.checkpoint(tmp_path / "state.safetensors")
    ids = json.dumps(data["input_ids"].tolist())
    subprocess.run([sys.executable, "-c", GO_ON, str(tmp_path), ids], check=True)
    own.step(data, optimizer)
    own.save_adapter(tmp_path / "alone")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("alone", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
