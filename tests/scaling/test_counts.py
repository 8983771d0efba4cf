"""Parameter and FLOP formulas against models that were built and summed module by module, against the totals of the
original report and of GPT-2 small, and against PyTorch's own FLOP counter.

Run with `pytest tests/scaling/test_counts.py`.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit.scaling.counts import (
    ModelConfig,
    counted_flops,
    forward_flops,
    palm_training_flops,
    parameter_counts,
    published_forward_flops,
    training_flops,
)
from labkit.scaling.resnet_bk import MixtureOfExperts, ResNetBK, ResNetBKConfig
from labkit.scaling.transformer import Transformer, TransformerConfig

GPT2_SMALL = TransformerConfig(vocab_size=50_257, d_model=768, n_layers=12, context=1024, n_heads=12, tied=True)
GRID = [
    *(
        ResNetBKConfig(vocab_size=v, d_model=d, n_layers=n_layers, context=24, n_experts=experts)
        for v, d, n_layers, experts in product((50, 97), (8, 64), (1, 3), (1, 2, 4))
    ),
    *(
        TransformerConfig(vocab_size=v, d_model=d, n_layers=n_layers, context=24, tied=tied)
        for v, d, n_layers, tied in product((50, 97), (8, 64), (1, 3), (False, True))
    ),
]


def published_grid_point(d_model: int, n_layers: int) -> ResNetBKConfig:
    return ResNetBKConfig(vocab_size=30_000, d_model=d_model, n_layers=n_layers, context=128)


def build(config: ModelConfig) -> ResNetBK | Transformer:
    return ResNetBK(config) if isinstance(config, ResNetBKConfig) else Transformer(config)


def size(*modules: nn.Module) -> int:
    """Sum the elements of the distinct parameters of some modules."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


@pytest.mark.parametrize("config", GRID, ids=str)
def test_every_count_equals_the_sum_over_modules(config: ModelConfig) -> None:
    model, counts = build(config), parameter_counts(config)
    embeddings = [model.token_embedding, model.position_embedding]
    assert counts.total == size(model)
    assert counts.embedding == size(*embeddings)
    assert counts.head == size(model) - size(*embeddings, model.blocks, model.final_norm)
    assert counts.non_embedding == size(model.blocks, model.final_norm)
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    idle = [expert for mixture in mixtures for expert in mixture.experts[1:]]
    assert counts.active == size(model.blocks, model.final_norm) - size(*idle)
    skipped = {id(module) for expert in idle for module in expert.modules()}
    visited = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in skipped]
    assert counts.matmul == sum(module.weight.numel() for module in visited)


@pytest.mark.parametrize(
    ("d_model", "n_layers", "total", "non_embedding"),
    [
        (64, 4, 4_146_120, 267_928),
        (64, 16, 4_949_520, 1_071_328),
        (128, 8, 9_846_368, 2_119_984),
        (256, 8, 23_856_992, 8_434_224),
        (256, 16, 32_290_704, 16_867_936),
        (512, 4, 47_638_856, 16_823_320),
        (512, 16, 98_105_744, 67_290_208),
    ],
)
def test_report_grid_has_its_exact_sizes(d_model: int, n_layers: int, total: int, non_embedding: int) -> None:
    counts = parameter_counts(published_grid_point(d_model, n_layers))
    assert (counts.total, counts.non_embedding) == (total, non_embedding)


@pytest.mark.parametrize(("d_model", "n_layers", "shorthand"), [(64, 4, 71_192), (512, 16, 16_957_536)])
def test_the_shorthand_active_count_keeps_idle_biases_and_drops_the_final_norm(
    d_model: int, n_layers: int, shorthand: int
) -> None:
    # L(4 d^2 + 22 d + 6) takes off the matrices of three experts only: their 3 * 3d biases stay, the final norm goes.
    idle_biases, final_norm = n_layers * 3 * 3 * d_model, 2 * d_model
    assert n_layers * (4 * d_model**2 + 22 * d_model + 6) == shorthand
    assert parameter_counts(published_grid_point(d_model, n_layers)).active == shorthand - idle_biases + final_norm


def test_gpt2_small_has_its_published_parameters_and_flops() -> None:
    assert parameter_counts(GPT2_SMALL).total == 124_337_664
    assert forward_flops(GPT2_SMALL, 1, 1024) == 291_648_307_200
    head = 2 * 1024 * 768 * 50_257
    assert head / forward_flops(GPT2_SMALL, 1, 1024) == pytest.approx(0.271, abs=5e-4)


def test_palm_convention_is_one_part_in_ten_thousand_above_the_exact_count_for_gpt2_small() -> None:
    ratio = palm_training_flops(GPT2_SMALL, 1, 1024) / training_flops(GPT2_SMALL, 1, 1024)
    assert ratio == pytest.approx(1.0001, abs=5e-5)


@pytest.mark.parametrize("config", GRID, ids=str)
@pytest.mark.parametrize("length", [1, 24])
def test_flop_formula_equals_the_counter(config: ModelConfig, length: int) -> None:
    ids = torch.randint(config.vocab_size, (3, length))
    assert counted_flops(build(config), ids) == forward_flops(config, 3, length)


def test_the_math_kernel_is_plain_products_that_the_bare_counter_sees() -> None:
    config = TransformerConfig(vocab_size=50, d_model=64, n_layers=2, context=24, attention="math")
    model, ids = Transformer(config), torch.zeros(2, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as bare:
        model(ids)
    assert bare.get_total_flops() == counted_flops(model, ids) == forward_flops(config, 2, 24)


def test_gpt2_small_counts_alike_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert counted_flops(Transformer(GPT2_SMALL), torch.zeros(1, 1024, dtype=torch.long)) == 291_648_307_200


def test_the_bare_counter_misses_the_attention_of_the_cpu() -> None:
    config = TransformerConfig(vocab_size=50, d_model=64, n_layers=2, context=24)
    ids = torch.zeros(3, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as bare:
        Transformer(config)(ids)
    attention = 4 * 2 * 64 * 3 * 24**2
    assert bare.get_total_flops() == forward_flops(config, 3, 24) - attention


@pytest.mark.parametrize("config", [GRID[6], GRID[-1]], ids=str)
def test_a_training_step_is_three_forward_passes(config: ModelConfig) -> None:
    model = build(config)
    if isinstance(config, TransformerConfig):
        for block in model.blocks:
            block.attention.kernel = "math"
    ids = torch.randint(config.vocab_size, (3, 24))
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert counter.get_total_flops() == training_flops(config, 3, 24)


def test_causal_convention_counts_only_pairs_that_are_attended() -> None:
    config = TransformerConfig(vocab_size=50, d_model=64, n_layers=2, context=24)
    pairs = sum(1 for query in range(24) for key in range(24) if key <= query)
    difference = forward_flops(config, 5, 24) - forward_flops(config, 5, 24, attention="causal")
    assert difference == 5 * 2 * 4 * 64 * (24**2 - pairs)
    linear = published_grid_point(64, 4)
    assert forward_flops(linear, 5, 24) == forward_flops(linear, 5, 24, attention="causal")


def test_original_counter_is_reproduced_for_its_stored_baseline() -> None:
    assert published_forward_flops(published_grid_point(64, 4), 32, 128) == 16_287_760_384


@pytest.mark.parametrize(("batch", "length"), [(0, 8), (1, 0), (1, 129)])
def test_shapes_out_of_range_are_refused(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match="1 to 128, the context"):
        forward_flops(published_grid_point(64, 4), batch, length)
