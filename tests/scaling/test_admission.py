"""Every gate against a model made wrong in exactly the way it is there for, beside the right model, which passes; the
gates of a run against losses placed just below and just above each bound.

Run with `pytest tests/scaling/test_admission.py`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.scaling.admission import Admission, Gate, admit, admit_run, leakage, prefix_leakage, row_leakage
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.transformer import Transformer, TransformerConfig

VOCABULARY = 61
WIDTH = 32
LENGTH = 16
Mix = Callable[[nn.Module, Tensor], Tensor]


def ids(rows: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def running_mean(_: nn.Module, x: Tensor) -> Tensor:
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(-1)


def next_position(x: Tensor) -> Tensor:
    return x.roll(-1, 1) * (torch.arange(x.shape[1]) < x.shape[1] - 1).unsqueeze(-1)


class Toy(nn.Module):
    """Embedding, a token mixer given as a function, one MLP and a head."""

    def __init__(self, mix: Mix = running_mean) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.hidden_leak = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.hidden_leak.weight)
        self.mix = mix

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        x = x + self.mix(self, x)
        return self.head(self.norm(x + self.mlp(x)))


def resnet_bk(**changes: Any) -> ResNetBK:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 1, "context": LENGTH, "dropout": 0.1}
    return ResNetBK(ResNetBKConfig(**shape | changes))


def transformer(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 1, "context": LENGTH, "dropout": 0.1}
    return Transformer(TransformerConfig(**shape | changes))


def failed(admission: Admission) -> set[str]:
    return {gate.name for gate in admission.gates if not gate.passed}


def detail(admission: Admission, name: str) -> str:
    return next(gate.detail for gate in admission.gates if gate.name == name)


# --- the right ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Toy, resnet_bk, transformer])
def test_right_models_are_admitted(make: Callable[[], nn.Module]) -> None:
    admission = admit(make(), ids(), VOCABULARY)
    assert admission.ok, admission.why_not()
    assert admission.why_not() == ""
    own = {"parameter count", "FLOPs"} if make is not Toy else set()
    assert {gate.name for gate in admission.gates} == own | {
        "initial loss",
        "overfits one batch",
        "causality",
        "context use",
    }


def test_one_row_of_text_is_enough() -> None:
    assert admit(Toy(), ids(1), VOCABULARY).ok


# --- initial loss and overfit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [resnet_bk, transformer])
def test_head_scaled_up_fails_the_initial_loss(make: Callable[[], nn.Module]) -> None:
    model = make()
    with torch.no_grad():
        model.head.weight.mul_(30)
    assert failed(admit(model, ids(), VOCABULARY)) == {"initial loss"}


def test_wrong_vocabulary_fails_the_initial_loss() -> None:
    model = transformer(vocab_size=2 * VOCABULARY)
    assert "initial loss" in failed(admit(model, ids(), VOCABULARY))


def test_model_that_detaches_what_it_reads_cannot_overfit() -> None:
    class Detached(Toy):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens).detach() + self.head.bias

    assert failed(admit(Detached(), ids(), VOCABULARY)) == {"overfits one batch"}


@pytest.mark.parametrize("trains", ["nothing", "position_embedding"])
def test_frozen_model_cannot_overfit(trains: str) -> None:
    model = transformer().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trains))
    admission = admit(model, ids(), VOCABULARY)
    assert failed(admission) == {"overfits one batch"}
    assert "needs < 0.1" in detail(admission, "overfits one batch")


def test_targets_that_do_not_follow_their_inputs_cannot_be_memorised() -> None:
    class Shuffled(Toy):
        """Answers at positions that are drawn anew in every pass, as a misaligned loop would pair them."""

        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens)[:, torch.randperm(tokens.shape[1])]

    assert "overfits one batch" in failed(admit(Shuffled(), ids(), VOCABULARY))


# --- causality ---------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One head of attention whose mask is decided by a function of the module."""

    def __init__(self, is_causal: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal(self)).squeeze(1)


class AttentionToy(Toy):
    """The toy with attention as its mixer."""

    def __init__(self, is_causal: Callable[[nn.Module], bool]) -> None:
        super().__init__(lambda model, x: model.attention(x))
        self.attention = Attention(is_causal)


def flash_is_allowed() -> bool:
    return torch.backends.cuda.flash_sdp_enabled()


LEAKS: dict[str, Callable[[], nn.Module]] = {
    "published mixer": lambda: resnet_bk(causal=False),
    "attention without mask": lambda: AttentionToy(lambda _: False),
    "sums in both directions": lambda: Toy(lambda model, x: running_mean(model, x) + 0.1 * x.flip(1).cumsum(1).flip(1)),
    "one position in the middle only": lambda: Toy(
        lambda model, x: running_mean(model, x) + 0.1 * next_position(x) * (torch.arange(x.shape[1]) == 5).unsqueeze(-1)
    ),
    "hidden at initialisation by a zero projection": lambda: Toy(
        lambda model, x: running_mean(model, x) + model.hidden_leak(next_position(x))
    ),
    "in training mode only": lambda: Toy(
        lambda model, x: running_mean(model, x) + 0.1 * next_position(x) * model.training
    ),
    "in evaluation mode only": lambda: Toy(
        lambda model, x: running_mean(model, x) + 0.1 * next_position(x) * (not model.training)
    ),
    "under the fused backend only": lambda: AttentionToy(lambda _: not flash_is_allowed()),
    "under the explicit backend only": lambda: AttentionToy(lambda _: flash_is_allowed()),
    "under the fused backend only, too small for single precision": lambda: Toy(
        lambda model, x: running_mean(model, x) + 1e-5 * next_position(x) * flash_is_allowed()
    ),
    "from the last token only": lambda: Toy(
        lambda model, x: running_mean(model, x) + 0.1 * x[:, -1:] * (x.shape[1] == LENGTH)
    ),
    "in single precision only": lambda: Toy(
        lambda model, x: running_mean(model, x) + next_position(x) * (x.dtype == torch.float32)
    ),
    "statistics over the batch": lambda: Toy(lambda model, x: running_mean(model, x) + 0.1 * x.mean((0, 1))),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_leak_from_later_tokens_fails_causality(leak: str) -> None:
    admission = admit(LEAKS[leak](), ids(), VOCABULARY)
    assert failed(admission) == {"causality"}


ROW_LEAKS: dict[str, Mix] = {
    "mean over the rows": lambda model, x: running_mean(model, x) + 0.1 * x.mean(0),
    "earlier rows, the batch taken for the sequence": lambda model, x: running_mean(model, x) + 0.1 * x.cumsum(0),
    "the row below": lambda model, x: running_mean(model, x) + 0.1 * x.roll(-1, 0),
    "in training mode only": lambda model, x: running_mean(model, x) + 0.1 * x.mean(0) * model.training,
}


@pytest.mark.parametrize("leak", ROW_LEAKS)
@pytest.mark.parametrize("rows", [1, 3])
def test_leak_between_rows_fails_causality(leak: str, rows: int) -> None:
    admission = admit(Toy(lambda model, x: ROW_LEAKS[leak](model, x)), ids(rows), VOCABULARY)
    assert "causality" in failed(admission)


def test_leak_that_only_other_rows_show_is_named_as_such() -> None:
    model = Toy(lambda model, x: running_mean(model, x) + 0.1 * x[:, :1].mean(0))
    admission = admit(model, ids(), VOCABULARY)
    assert failed(admission) == {"causality"}
    assert "other rows replaced" in detail(admission, "causality")


def test_leak_in_larger_batches_only_fails_causality() -> None:
    model = Toy(lambda model, x: running_mean(model, x) + 0.1 * x.roll(1, 0) * (x.shape[0] > 3))
    assert failed(admit(model, ids(), VOCABULARY)) == {"causality"}


def test_logits_that_are_not_numbers_fail_causality() -> None:
    def mix(model: nn.Module, x: Tensor) -> Tensor:
        broken = x.dtype == torch.float64 and not model.training
        return running_mean(model, x) * (float("nan") if broken else 1.0)

    assert "causality" in failed(admit(Toy(mix), ids(), VOCABULARY))


@pytest.mark.parametrize("prefix", [1, 8, 15])
def test_leakage_is_exactly_zero_before_the_change_and_not_after(prefix: int) -> None:
    moved = leakage(Toy(), ids(), VOCABULARY, prefix)
    assert (moved[:prefix] == 0).all()
    assert (moved[prefix:] > 0).all()


def test_leakage_measures_how_far_each_position_moves() -> None:
    model = Toy(lambda _, x: next_position(x)).double()
    changed = ids().clone()
    changed[:, 8:] = (changed[:, 8:] + torch.arange(9, 17)) % VOCABULARY
    with torch.no_grad():
        expected = (model(ids()) - model(changed)).abs()
    moved = leakage(model, ids(), VOCABULARY, 8)
    np.testing.assert_allclose(moved, [expected[:, position].max() for position in range(LENGTH)])
    assert (moved[:7] == 0).all()
    assert moved[7] > 0


def test_every_prefix_is_tried() -> None:
    model = Toy(lambda model, x: running_mean(model, x) + next_position(x)).double()
    expected = [leakage(model, ids(1), VOCABULARY, prefix)[:prefix].max() for prefix in range(1, LENGTH)]
    np.testing.assert_allclose(prefix_leakage(model, ids(1), VOCABULARY), expected)
    assert min(expected) > 1e-3
    assert prefix_leakage(Toy().double(), ids(), VOCABULARY).max() < 1e-12


@pytest.mark.parametrize("vocabulary", [2, 3, 61])
def test_every_later_token_is_replaced_however_small_the_vocabulary(vocabulary: int) -> None:
    class OneHot(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return F.one_hot(tokens, vocabulary).double()

    assert (leakage(OneHot(), ids() % vocabulary, vocabulary, 3)[3:] == 1).all()


def test_rows_of_a_right_model_do_not_touch() -> None:
    assert row_leakage(Toy().double(), ids(), VOCABULARY) < 1e-12
    assert row_leakage(Toy(ROW_LEAKS["the row below"]), ids(), VOCABULARY) > 1e-3


# --- context use, counts -----------------------------------------------------------------------------------------


def test_model_without_a_mixer_fails_context_use() -> None:
    admission = admit(Toy(lambda _, x: torch.zeros_like(x)), ids(), VOCABULARY)
    assert "context use" in failed(admission)
    assert "causality" not in failed(admission)


def test_look_back_of_one_token_is_enough_for_context_use() -> None:
    model = Toy(lambda _, x: x.roll(1, 1) * (torch.arange(x.shape[1]) > 0).unsqueeze(-1))
    assert (
        detail(admit(model, ids(), VOCABULARY), "context use")
        == "a changed past moves the logits of 1 of the 8 next positions"
    )


@pytest.mark.parametrize("make", [resnet_bk, transformer])
def test_undeclared_parameters_fail_the_parameter_count(make: Callable[[], nn.Module]) -> None:
    model = make()
    model.extra = nn.Linear(3, 1)
    admission = admit(model, ids(), VOCABULARY)
    assert failed(admission) == {"parameter count"}
    n = sum(parameter.numel() for parameter in model.parameters())
    assert detail(admission, "parameter count") == f"{n:,} counted, {n - 4:,} by formula"


def test_config_that_lies_about_the_depth_fails_both_counts() -> None:
    model = transformer(n_layers=2)
    model.config = replace(model.config, n_layers=1)
    assert failed(admit(model, ids(), VOCABULARY)) == {"parameter count", "FLOPs"}


@pytest.mark.parametrize("base", [ResNetBK, Transformer])
def test_undeclared_products_fail_the_flops(base: type[nn.Module]) -> None:
    class Twice(base):
        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.hidden(tokens)
            return (self.head(hidden) + self.head(hidden)) / 2

    honest = resnet_bk() if base is ResNetBK else transformer()
    assert failed(admit(Twice(honest.config), ids(), VOCABULARY)) == {"FLOPs"}


# --- admit itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [resnet_bk, transformer])
@pytest.mark.parametrize("training", [True, False])
def test_admit_leaves_model_mode_gradients_and_random_states_alone(
    make: Callable[[], nn.Module], training: bool
) -> None:
    model = make().train(training)
    model.final_norm.train(not training)
    loss = model(ids()).logsumexp(-1).mean() + (model.auxiliary_loss() if make is resnet_bk else 0)
    loss.backward(retain_graph=True)
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    admit(model, ids(), VOCABULARY)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], gradients, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    if make is resnet_bk:  # the last routing still belongs to the caller's forward pass
        assert model.auxiliary_loss().requires_grad


def test_admit_says_the_same_whatever_random_state_it_is_called_in() -> None:
    model, said = transformer(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        said.append(admit(model, ids(), VOCABULARY))
    assert said[0] == said[1]


@pytest.mark.parametrize("bad", [ids()[:, :7], ids()[0], ids() + VOCABULARY, ids() - VOCABULARY])
def test_ids_that_cannot_show_anything_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ids must be \[B, T >= 8\] with values in \[0, 61\)"):
        admit(Toy(), bad, VOCABULARY)


def test_why_not_names_every_failed_gate_with_its_figure() -> None:
    gates = (Gate("a", True, "fine"), Gate("b", False, "2 > 1"), Gate("c", False, "nan"))
    assert Admission(gates).why_not() == "b: 2 > 1; c: nan"
    assert not Admission(gates).ok


# --- runs --------------------------------------------------------------------------------------------------------

N_BLOCKS = 100
HASH = "5" * 64


def run(**changes: Any) -> dict[str, Any]:
    """A run that is well below both floors, and predicts a token better for a longer past."""
    good = {
        "block_nats": [300.0] * N_BLOCKS,
        "position_nats": [3.5, 3.2, 3.0, 2.9],
        "late_block_nats": [140.0] * N_BLOCKS,
        "late_alone_block_nats": [150.0] * N_BLOCKS,
        "loss_nats": 3.0,
        "train_loss_nats": 2.9,
        "n_counted": 1000,
        "n_total": 1000,
        "tokens_seen": 4096,
        "order_sha256": HASH,
    }
    return good | changes


def floors(unigram: float = 500.0, bigram: float = 400.0) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 5, (2, N_BLOCKS))
    return {"unigram": unigram + noise[0], "bigram": bigram + noise[1], "kneser_ney": np.full(N_BLOCKS, 1.0)}


def failed_run(result: dict[str, Any], **changes: Any) -> set[str]:
    return failed(admit_run(result, floors(**changes), HASH, 4096))


def not_shown(admission: Admission) -> set[str]:
    return {gate.name for gate in admission.skill if not gate.passed}


def test_good_run_is_admitted() -> None:
    assert failed_run(run()) == set()


@pytest.mark.parametrize(
    ("name", "errors", "passes"),
    [
        ("unigram", 1.9, False),
        ("unigram", 2.1, True),
        ("bigram", 1.9, False),
        ("bigram", 2.1, True),
        ("bigram", -5.0, False),
    ],
)
def test_floor_must_be_beaten_by_two_standard_errors(name: str, errors: float, passes: bool) -> None:
    blocks = np.full(N_BLOCKS, 300.0)
    saved = np.random.default_rng(1).normal(0, 5, N_BLOCKS)
    saved += errors * saved.std(ddof=1) / np.sqrt(N_BLOCKS) - saved.mean()
    given = floors() | {name: blocks + saved}
    admission = admit_run(run(block_nats=blocks.tolist()), given, HASH, 4096)
    assert not_shown(admission) - {"beats kneser_ney"} == (set() if passes else {f"beats {name}"})
    assert admission.ok, "skill selects nothing"


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"order_sha256": "6" * 64}, "data order"),
        ({"tokens_seen": 4095}, "data order"),
        ({"n_counted": 1001}, "parameters trained"),
        ({"train_loss_nats": float("nan")}, "gap recorded"),
    ],
)
def test_run_made_wrong_in_one_way_fails_that_gate(changes: dict[str, Any], gate: str) -> None:
    assert failed_run(run(**changes)) == {gate}


@pytest.mark.parametrize(("errors", "shown"), [(2.1, True), (1.9, False), (-5.0, False)])
def test_whether_context_helps_is_asked_of_the_same_tokens_and_refuses_nothing(errors: float, shown: bool) -> None:
    saved = np.random.default_rng(1).normal(0, 5, N_BLOCKS)
    saved += errors * saved.std(ddof=1) / np.sqrt(N_BLOCKS) - saved.mean()
    late = np.full(N_BLOCKS, 140.0)
    changes = {"late_block_nats": late.tolist(), "late_alone_block_nats": (late + saved).tolist()}
    admission = admit_run(run(**changes), floors(), HASH, 4096)
    assert ("context helps" not in not_shown(admission)) == shown
    assert admission.ok
    assert ("not shown: context helps" in admission.not_shown()) == (not shown)


def test_loss_that_is_not_a_number_is_refused() -> None:
    assert failed_run(run(block_nats=[float("nan")] * N_BLOCKS)) == {"losses finite"}
