"""Shapes: exact parameter counts of the published models, seeded weights, and refusals before anything is allocated.

References: the counts that the models' own pages and the reports' raw files give, and transformers' own construction of
the same configuration.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit import models
from labkit.models import shapes

PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768,
    "phi-2": 2_779_683_840,
    "qwen2.5-7b": 7_615_616_512,
    "gpt2": 124_439_808,
    "phi-4": 14_659_507_200,
    "smollm2-135m": 134_515_008,
    "gemma-3-270m": 268_098_176,
    "bitnet-2b": 2_412_820_480,
}
SMALL = {
    "qwen2.5-0.5b": {"num_hidden_layers": 2, "vocab_size": 512},
    "phi-2": {"num_hidden_layers": 1, "vocab_size": 512},
    "gpt2": {"num_hidden_layers": 2, "vocab_size": 512},
    "phi-4": {"num_hidden_layers": 1, "vocab_size": 512, "intermediate_size": 64},
    "smollm2-135m": {"num_hidden_layers": 2, "vocab_size": 512},
    "gemma-3-270m": {"num_hidden_layers": 7, "vocab_size": 512},
    "bitnet-2b": {"num_hidden_layers": 1, "vocab_size": 512, "intermediate_size": 64},
}


def distinct(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_parameters_of_the_published_model(name: str) -> None:
    assert models.SHAPES[name].parameters == PUBLISHED[name]
    assert distinct(models.build(name, device="meta")) == PUBLISHED[name]


@pytest.mark.parametrize("name", SMALL)
def test_random_weights_run_as_transformers_own_model_with_the_same_weights_does(name: str) -> None:
    ours = models.build(name, seed=3, **SMALL[name])
    theirs = AutoModelForCausalLM.from_config(models.shape_of(name).config(**SMALL[name])).eval()
    vectors = {name: tensor for name, tensor in theirs.named_parameters() if tensor.dim() == 1}
    assert all(torch.equal(ours.get_parameter(name), tensor) for name, tensor in vectors.items())
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = ours(ids).logits
        torch.testing.assert_close(logits, theirs(ids).logits, rtol=0, atol=0)
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("n_layers", [2, 6, 7, 18])
def test_a_shape_of_two_kinds_of_layers_keeps_their_pattern_at_any_depth(n_layers: int) -> None:
    full = [i % 6 == 5 for i in range(n_layers)]
    kinds = models.SHAPES["gemma-3-270m"].config(num_hidden_layers=n_layers).layer_types
    assert kinds == ["full_attention" if own else "sliding_attention" for own in full]


def test_the_seed_alone_decides_the_weights() -> None:
    small, threads = SMALL["qwen2.5-0.5b"], torch.get_num_threads()
    assert 4 * shapes._CHUNK < 896 * 4864, "the test needs a matrix of several chunks"
    first = models.build("qwen2.5-0.5b", seed=1, **small).state_dict()
    torch.set_num_threads(3 if threads != 3 else 1)
    again = models.build("qwen2.5-0.5b", seed=1, **small).state_dict()
    torch.set_num_threads(threads)
    other = models.build("qwen2.5-0.5b", seed=2, **small).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_weights_do_not_depend_on_the_depth_and_are_rounded_to_the_type() -> None:
    two = models.build("smollm2-135m", seed=1, num_hidden_layers=2, vocab_size=512).state_dict()
    one = models.build("smollm2-135m", seed=1, num_hidden_layers=1, vocab_size=512, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(two[key].bfloat16(), tensor) for key, tensor in one.items())


def test_matrices_are_normal_and_every_part_of_them_differs() -> None:
    weight = models.build("smollm2-135m", num_hidden_layers=1).model.embed_tokens.weight.detach()
    assert weight.numel() > 20 * shapes._CHUNK
    assert weight.mean().abs() < 5 * 0.02 / weight.numel() ** 0.5
    assert weight.std() == pytest.approx(0.02, rel=5 / (2 * weight.numel()) ** 0.5)
    assert (weight.abs() < 0.02).float().mean() == pytest.approx(0.6827, abs=1e-3)
    chunks = weight.view(-1)[: 20 * shapes._CHUNK].view(20, shapes._CHUNK)
    assert len({tuple(row[:4].tolist()) for row in chunks}) == 20


MEASURE = """
import torch
from labkit import device, models
torch.set_num_threads(2)
models.build("qwen2.5-0.5b", num_hidden_layers=1, vocab_size=64)
assert device.reset_peak_rss()
before = device.peak_rss_bytes()
model = models.build("qwen2.5-0.5b", dtype=torch.bfloat16, num_hidden_layers=10)
print((device.peak_rss_bytes() - before) / models.weight_bytes(model))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux alone")
def test_building_takes_little_more_memory_than_the_weights() -> None:
    # What glibc keeps of freed chunks varies by a tenth of the weights; a fixed threshold hands every chunk back, so
    # that what is measured is what the builder holds.
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False, env=exact)
    assert 0.95 < float(done.stdout) < 1.1, done.stderr


def test_weights_are_held_in_the_type_asked_for_and_tied_ones_count_once() -> None:
    model = models.build("qwen2.5-0.5b", dtype=torch.bfloat16, **SMALL["qwen2.5-0.5b"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert models.weight_bytes(model) == 2 * distinct(model)


def test_a_model_larger_than_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes.machine, "available_memory_bytes", lambda: 2**30)
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("something was allocated"))
    with pytest.raises(models.TooLarge, match=r"phi-2 in float32 needs 10\.4 GiB .* and 1\.0 GiB are free on cpu"):
        models.build("phi-2")


def test_names_that_do_not_exist_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'qwen2.5-05b'; did you mean 'qwen2.5-0.5b'"):
        models.build("qwen2.5-05b")
    with pytest.raises(ValueError, match=r"'vocabsize' is no configuration value; did you mean 'vocab_size'"):
        models.shape_of("gpt2").config(vocabsize=512)
    with pytest.raises(ValueError, match=r"'num_layers' is no configuration value; did you mean 'num_.*layers'"):
        models.build("phi-2", device="meta", num_layers=2)
