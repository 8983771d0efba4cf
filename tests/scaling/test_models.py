"""Both language models against references written out here: every expert computed for every token, attention by its
definition, published parameter totals, and the entropy of a Markov chain that both must learn.

Run with `pytest tests/scaling/test_models.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.scaling import optim
from labkit.scaling.optim import adamw, next_token_loss
from labkit.scaling.resnet_bk import (
    TILE,
    MixtureOfExperts,
    ResNetBK,
    ResNetBKConfig,
    Routing,
    _in_whole_tiles,
    _Permute,
)
from labkit.scaling.transformer import CausalSelfAttention, Transformer, TransformerConfig

VOCABULARY = 61


def resnet_bk(**changes: object) -> ResNetBK:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "context": 80} | changes
    return ResNetBK(ResNetBKConfig(**shape))


def transformer(**changes: object) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "context": 80} | changes
    return Transformer(TransformerConfig(**shape))


BOTH = pytest.mark.parametrize("make", [resnet_bk, transformer])
Make = Callable[..., ResNetBK | Transformer]


def random_ids(batch: int = 3, length: int = 80, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def amplify(model: nn.Module, factor: float = 8.0) -> None:
    """Scale the small initial matrices up, so that a leak or a dead path is visible above rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(factor)


@BOTH
@pytest.mark.parametrize("length", [1, 2, 37, 80])
def test_logits_have_one_row_per_token(make: Make, length: int) -> None:
    assert make()(random_ids(2, length)).shape == (2, length, VOCABULARY)


@BOTH
def test_sequences_beyond_the_context_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="81 tokens exceeds the context of 80"):
        make()(random_ids(1, 81))


@BOTH
@pytest.mark.parametrize("vocabulary", [61, 2048])
def test_first_loss_is_within_five_percent_of_ln_v(make: Make, vocabulary: int) -> None:
    model, ids = make(vocab_size=vocabulary, d_model=128, n_layers=4), random_ids(8)
    loss = F.cross_entropy(model(ids).flatten(0, 1), random_ids(8, seed=2).flatten())
    assert loss.item() == pytest.approx(math.log(vocabulary), rel=0.05)


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_later_tokens_change_no_earlier_logit(make: Make, training: bool) -> None:
    model = make().train(training)
    amplify(model)
    ids = random_ids()
    for cut in (1, 40, 79):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % VOCABULARY
        torch.testing.assert_close(model(changed)[:, :cut], model(ids)[:, :cut], rtol=0, atol=2e-5)
        assert not torch.equal(model(changed)[:, cut:], model(ids)[:, cut:])


def test_published_mixer_reads_the_next_token() -> None:
    model = resnet_bk(causal=False)
    amplify(model)
    ids = random_ids()
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % VOCABULARY
    assert (model(changed)[:, 39] - model(ids)[:, 39]).abs().max() > 0.01


@BOTH
def test_earlier_tokens_change_later_logits(make: Make) -> None:
    model = make()
    amplify(model)
    ids = random_ids()
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    assert ((model(changed) - model(ids))[:, 10].abs().amax(-1) > 1e-3).all()


@BOTH
def test_every_parameter_receives_gradient(make: Make) -> None:
    model, ids = make(), random_ids(8)
    loss = F.cross_entropy(model(ids).flatten(0, 1), random_ids(8, seed=2).flatten())
    loss.backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0]
    assert without == []


@BOTH
def test_training_reaches_the_entropy_of_a_markov_chain(make: Make) -> None:
    # Every token has 2 equally likely successors, so the entropy rate is ln 2; a unigram model stays near ln V.
    generator = torch.Generator().manual_seed(0)
    successors = torch.randint(VOCABULARY, (VOCABULARY, 2), generator=generator)
    columns = [torch.randint(VOCABULARY, (2048,), generator=generator)]
    for _ in range(32):
        columns.append(successors[columns[-1], torch.randint(2, (2048,), generator=generator)])
    chain = torch.stack(columns, 1)
    model = make(context=32, d_model=64)
    optimizer = adamw(model, lr=3e-3)
    for step in range(120):
        batch = chain[16 * step : 16 * (step + 1)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = chain[1920:]
    with torch.no_grad():
        nats = F.cross_entropy(model(held_out[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten()).item()
    assert math.log(2) - 0.05 < nats < math.log(2) + 0.25


# --- ResNet-BK ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d_model", "n_layers", "published"),
    [(64, 4, 4_146_120), (64, 16, 4_949_520), (128, 8, 9_846_368), (256, 16, 32_290_704), (512, 16, 98_105_744)],
)
def test_parameter_total_is_that_of_the_original(d_model: int, n_layers: int, published: int) -> None:
    with torch.device("meta"):
        model = ResNetBK(ResNetBKConfig(vocab_size=30_000, d_model=d_model, n_layers=n_layers, context=128))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def every_expert(mixture: MixtureOfExperts, x: Tensor) -> Tensor:
    """Compute all experts for all tokens, keep the likeliest one's output and scale it by its probability."""
    probabilities = torch.softmax(mixture.router(x), -1)
    outputs = torch.stack([expert(x) for expert in mixture.experts], -2)
    best = probabilities.argmax(-1)
    chosen = outputs[torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1]), best]
    return chosen * probabilities.gather(-1, best.unsqueeze(-1))


@pytest.mark.parametrize("n_experts", [1, 2, 4, 7])
def test_dispatch_equals_computing_every_expert(n_experts: int) -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(
        ResNetBKConfig(vocab_size=9, d_model=16, n_layers=1, context=8, n_experts=n_experts)
    ).double()
    x = torch.randn(5, 11, 16, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 11, 16, dtype=torch.float64)
    wanted = [x, *mixture.parameters()]
    expected_output, output = every_expert(mixture, x), mixture(x)
    expected = torch.autograd.grad((expected_output * upstream).sum(), wanted)
    actual = torch.autograd.grad((output * upstream).sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(actual, expected)


def test_dispatch_survives_experts_without_tokens() -> None:
    mixture = MixtureOfExperts(ResNetBKConfig(vocab_size=9, d_model=16, n_layers=1, context=8))
    with torch.no_grad():
        mixture.router.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(mixture(x), every_expert(mixture, x))
    assert mixture.routing.usage.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_router_learns_where_the_published_gate_gives_it_no_gradient() -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(ResNetBKConfig(vocab_size=9, d_model=16, n_layers=1, context=8))
    x, upstream = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    (gradient,) = torch.autograd.grad((mixture(x) * upstream).sum(), mixture.router.weight)
    assert gradient.abs().max() > 1e-4

    logits = mixture.router(x)
    top = logits.max(-1, keepdim=True)
    outputs = torch.stack([expert(x) for expert in mixture.experts], -1)
    chosen = outputs.gather(-1, top.indices.unsqueeze(-2).expand(*x.shape, 1)).squeeze(-1)
    published = chosen * top.values.softmax(-1)
    (gradient,) = torch.autograd.grad((published * upstream).sum(), mixture.router.weight)
    assert gradient.abs().max() == 0


def test_balance_loss_is_one_when_balanced_and_the_number_of_experts_when_collapsed() -> None:
    balanced = Routing(torch.full((8, 4), 0.25), torch.tensor([2, 2, 2, 2]))
    collapsed = Routing(torch.eye(4)[[3] * 8], torch.tensor([0, 0, 0, 8]))
    assert balanced.balance_loss().item() == pytest.approx(1.0)
    assert collapsed.balance_loss().item() == pytest.approx(4.0)


def test_auxiliary_loss_is_the_weighted_sum_of_the_layers_of_the_last_forward_pass() -> None:
    model = resnet_bk(n_layers=3, balance_coefficient=0.5)
    for seed in (1, 2):
        model(random_ids(seed=seed))
    layers = [block.mixer.experts.routing for block in model.blocks]
    expected = 0.5 * sum(4 * (r.counts / 240 * r.probabilities.mean(0)).sum() for r in layers)
    torch.testing.assert_close(model.auxiliary_loss(), expected)
    torch.testing.assert_close(model.expert_usage().sum(-1), torch.ones(3))
    assert torch.autograd.grad(model.auxiliary_loss(), model.blocks[0].mixer.experts.router.weight)[0].abs().max() > 0


def test_auxiliary_loss_before_a_forward_pass_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no forward pass"):
        resnet_bk().auxiliary_loss()


def test_balance_loss_evens_out_a_collapsed_router() -> None:
    model, ids = resnet_bk(n_layers=1, balance_coefficient=1.0), random_ids(8)
    with torch.no_grad():
        model.blocks[0].mixer.experts.router.bias[0] = 1.0
    optimizer = adamw(model, lr=2e-2, weight_decay=0.0)
    usage = []
    for _ in range(100):
        model(ids)
        usage.append(model.expert_usage())
        optimizer.zero_grad()
        model.auxiliary_loss().backward()
        optimizer.step()
    assert usage[0].max() == 1.0
    assert torch.stack(usage[-50:]).mean(0).max() < 0.4


@BOTH
def test_model_can_be_copied_after_a_training_step(make: Make) -> None:
    model, ids = make(), random_ids()
    model(ids).sum().backward()
    torch.testing.assert_close(copy.deepcopy(model)(ids), model(ids))


def test_model_keeps_running_in_bfloat16() -> None:
    model = resnet_bk().bfloat16()
    logits = model(random_ids())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


# --- Transformer -------------------------------------------------------------------------------------------------


def test_gpt2_small_has_its_published_number_of_parameters() -> None:
    config = TransformerConfig(vocab_size=50_257, d_model=768, n_layers=12, context=1024, n_heads=12, tied=True)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_337_664


def test_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=9, d_model=12, n_layers=1, context=10, n_heads=3)
    attention = CausalSelfAttention(config).double()
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    query, key, value = (attention.qkv.weight.split(12)[i] for i in range(3))
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        scores = (x @ query[rows].T) @ (x @ key[rows].T).mT / math.sqrt(4)
        weights = scores.masked_fill(torch.ones(10, 10).triu(1).bool(), -math.inf).softmax(-1)
        heads.append(weights @ (x @ value[rows].T))
    torch.testing.assert_close(attention(x), torch.cat(heads, -1) @ attention.out.weight.T)


def test_both_attention_kernels_agree() -> None:
    fused, explicit = transformer(), transformer(attention="math")
    torch.testing.assert_close(fused(random_ids()), explicit(random_ids()), rtol=0, atol=1e-5)


def test_tied_head_is_the_token_embedding() -> None:
    tied, untied = transformer(tied=True), transformer()
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight


@pytest.mark.parametrize(("d_model", "heads"), [(16, 1), (32, 1), (64, 2), (512, 16)])
def test_heads_are_32_wide_by_default(d_model: int, heads: int) -> None:
    assert TransformerConfig(vocab_size=9, d_model=d_model, n_layers=1, context=8).heads == heads


# --- configurations, loss and optimiser --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ResNetBKConfig, TransformerConfig])
@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 0), ("d_model", 0), ("n_layers", 0), ("context", -1), ("dropout", 1.0)]
)
def test_shapes_out_of_range_are_refused_by_name(config: type, field: str, value: float) -> None:
    shape = {"vocab_size": 9, "d_model": 8, "n_layers": 1, "context": 8} | {field: value}
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        config(**shape)


@pytest.mark.parametrize(
    ("field", "value"), [("z_imag", 0.0), ("potential_clip", -1.0), ("balance_coefficient", -0.1), ("n_experts", 0)]
)
def test_resnet_bk_refuses_values_out_of_range_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        resnet_bk(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("n_heads", 5), ("n_heads", 0), ("attention", "flash")])
def test_transformer_refuses_values_out_of_range_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        transformer(**{field: value})


@pytest.mark.parametrize("make", [resnet_bk, transformer, lambda: transformer(tied=True)])
@pytest.mark.parametrize("min_rows", [1, 7, 64, 10_000])
def test_chunked_loss_and_its_gradient_equal_cross_entropy_over_all_logits(
    make: Make, min_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "MIN_ROWS", min_rows)
    monkeypatch.setattr(optim, "CHUNK_LOGITS", 0)
    model, ids, targets = make().double(), random_ids(), random_ids(seed=2)
    expected_loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    loss = next_token_loss(model, ids, targets)
    torch.testing.assert_close(loss, expected_loss)
    expected = torch.autograd.grad(3 * expected_loss, list(model.parameters()))
    torch.testing.assert_close(torch.autograd.grad(3 * loss, list(model.parameters())), expected)


@BOTH
def test_chunked_loss_follows_autocast(make: Make) -> None:
    model, ids, targets = make(), random_ids(), random_ids(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model, ids, targets)
    loss.backward()
    assert loss.item() == pytest.approx(next_token_loss(model, ids, targets).item(), abs=0.01)


@BOTH
def test_second_derivative_of_the_chunked_loss_is_refused(make: Make) -> None:
    model = make()
    loss = next_token_loss(model, random_ids(), random_ids(seed=2))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, list(model.parameters()), create_graph=True)


@BOTH
def test_only_matrices_are_decayed_and_every_trained_parameter_is_in_one_group(make: Make) -> None:
    model = make()
    model.position_embedding.weight.requires_grad_(False)
    decayed, plain = adamw(model, lr=1e-3, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all(parameter.dim() < 2 for parameter in plain["params"])
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in decayed["params"] + plain["params"]} == trained


def test_fused_optimiser_takes_the_step_of_the_paper() -> None:
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = adamw(layer, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9))
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0), torch.full((2,), -3.0)
    optimizer.step()
    # Bias correction makes the first moments exactly g and g^2, so the first step is -lr * sign(g).
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(layer.bias.detach(), bias + 0.1)


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_a_step_in_bfloat16_is_that_in_float32_up_to_rounding(mixer: str) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "d_model": 64, "n_layers": 2, "context": 40}
    model = Transformer(TransformerConfig(**shape)) if mixer == "transformer" else ResNetBK(ResNetBKConfig(**shape))
    ids = torch.randint(60, (5, 41))  # 200 tokens: no expert's share is a whole number of tiles
    losses, gradients = [], []
    for narrow in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert gradients[-1].dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_rows_that_fill_a_tile_reach_neither_tokens_nor_gradients() -> None:
    torch.manual_seed(1)
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    order, sizes = _in_whole_tiles(torch.tensor([4, 1, 0, 3, 2]), [2, 0, 3])
    assert sizes == [TILE, 0, TILE]
    assert int((order < 5).sum()) == 5
    inverse = torch.empty(6, dtype=torch.long).scatter_(0, order, torch.arange(len(order)))[:5]
    sorted_rows = _Permute.apply(rows, order, inverse)
    assert torch.equal(sorted_rows[2:TILE], torch.zeros(TILE - 2, 3, dtype=torch.float64))
    back = _Permute.apply(sorted_rows + 1, inverse, order)
    assert torch.equal(back, rows + 1)
    back.square().sum().backward()
    assert torch.equal(rows.grad, 2 * (rows + 1))
