"""Training one cell: alignment against a stream whose successor is known, the schedule against torch's own schedulers,
gradients against autograd on the losses written out, and equality to the bit where the code promises it.

Run with `pytest tests/scaling/test_train.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from labkit.corpora import Tokens
from labkit.reports.scaling_grid.cells import cell_for
from labkit.scaling import train
from labkit.scaling.data import load_tokens, token_nats
from labkit.scaling.optim import adamw
from labkit.scaling.schedule import batches, n_steps, order_hash, rate_at
from labkit.scaling.train import Cell, build, train_cell, train_step
from labkit.workflow import params

TINY = {
    "d_model": [8],
    "n_layers": [1],
    "epochs": 0.0011,
    "batch_size": 4,
    "context": 32,
    "dropout": 0.1,
    "kneser_ney_order": 2,
    "learning_rates": [1e-2],
}
TIMED = ("seconds", "peak_bytes")


def cell(mixer: str = "resnet-bk", **changes: Any) -> Cell:
    tiny = params.resolve("scaling_grid", "ci", TINY)
    return replace(cell_for(tiny, mixer, 8, 1, 0, 1e-2), **changes)


@cache
def trained(mixer: str = "resnet-bk", **changes: Any) -> dict[str, Any]:
    return train_cell(cell(mixer, **changes))


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in TIMED}


def test_a_cell_scored_on_the_way_ends_where_one_scored_once_does() -> None:
    once, thrice = trained(), trained(scorings=3)
    scored = thrice["scorings"]
    assert [one["step"] for one in scored] == [round(once["steps"] * part / 3) for part in (1, 2, 3)]
    assert untimed(thrice) == untimed(once) | {"scorings": scored}
    assert scored[-1]["block_nats"] == once["block_nats"]
    assert scored[0]["loss_nats"] > scored[-1]["loss_nats"]


def test_steps_that_are_told_replace_epochs() -> None:
    told = trained(steps=3)
    assert (told["steps"], told["tokens_seen"]) == (3, 3 * 4 * 32)
    assert told["order_sha256"] == order_hash(told["train_tokens"], 3, 4, 32, 0)


# --- batches -----------------------------------------------------------------------------------------------------


class Successor(nn.Module):
    """Predicts (id + 1) mod V with near certainty."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.head = nn.Linear(vocab_size, vocab_size, bias=False)
        nn.init.eye_(self.head.weight)
        self.seen: list[Tensor] = []

    def hidden(self, ids: Tensor) -> Tensor:
        self.seen.append(ids)
        return 100.0 * F.one_hot((ids + 1) % self.vocab_size, self.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))


def text(stream: np.ndarray) -> Tokens:
    """Real tokens, of which those that are trained on are replaced."""
    return replace(load_tokens("wiki-sample", 288)[1], train=stream)


def test_every_target_is_the_token_after_its_input() -> None:
    stream, model = np.arange(20_000) % 509, Successor(509)
    losses, *_ = train._fit(model, text(stream), cell(batch_size=32, context=128), steps=6)
    # One wrong target among the 4096 of a batch would cost 100 / 4096 nats.
    assert len(losses) == 6
    assert max(losses) < 1e-6
    for ids in model.seen:
        assert ids.shape == (32, 128)
        assert ((ids[:, 1:] - ids[:, :-1]) % 509 == 1).sum() == 32 * 127


def all_starts(length: int, steps: int, batch: int, context: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(batches(np.zeros(length), steps, batch, context, seed)))


@pytest.mark.parametrize(("length", "batch"), [(1000, 4), (1000, 31), (1025, 7), (60, 1), (40, 5)])
def test_each_pass_visits_each_window_once(length: int, batch: int) -> None:
    starts = all_starts(length, 4 * (length // 32 + 1) // batch + 1, batch, 32)
    phases = []
    for _ in range(3):
        phases.append(int(starts[0]) % 32)
        expected = np.arange(phases[-1], length - 32, 32)
        assert sorted(starts[: len(expected)]) == expected.tolist()
        assert expected[-1] + 32 < length <= expected[-1] + 64
        starts = starts[len(expected) :]
    assert len(set(phases)) > 1


def test_windows_are_visited_in_random_order() -> None:
    starts = all_starts(100_000, 100, 30, 32)
    assert abs(np.corrcoef(np.arange(3000), starts)[0, 1]) < 0.05


def test_order_depends_on_the_seed_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = all_starts(5000, 40, 8, 32)
    np.random.seed(2)  # noqa: NPY002  (global state that must not matter)
    np.testing.assert_array_equal(all_starts(5000, 40, 8, 32), first)
    np.testing.assert_array_equal(all_starts(5000, 50, 8, 32)[: len(first)], first)
    assert (all_starts(5000, 40, 8, 32, seed=1) != first).any()


def test_order_hash_is_equal_across_mixers_and_widths_and_differs_between_seeds() -> None:
    same = [trained(), trained("transformer"), trained(d_model=16), trained(learning_rate=1e-3), trained(n_layers=2)]
    assert len({result["order_sha256"] for result in same}) == 1
    assert trained(seed=1)["order_sha256"] != same[0]["order_sha256"]


# --- schedule ----------------------------------------------------------------------------------------------------


def torch_schedule(steps: int, peak: float, warmup: int, final: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 1 - warmup, eta_min=final * peak)
    rates = [peak * (step + 1) / warmup for step in range(warmup)]
    for _ in range(steps - warmup):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return rates


@pytest.mark.parametrize(
    ("steps", "fraction", "final"), [(100, 0.05, 0.1), (37, 0.1, 0.0), (1000, 0.3, 0.5), (10, 0, 1)]
)
def test_schedule_equals_that_of_torch(steps: int, fraction: float, final: float) -> None:
    rates = [rate_at(step, steps, 3e-3, fraction, final) for step in range(steps)]
    warmup = math.ceil(fraction * steps)
    np.testing.assert_allclose(rates, torch_schedule(steps, 3e-3, warmup, final), rtol=1e-9)
    np.testing.assert_allclose(np.diff(rates[:warmup], 2), 0, atol=1e-12)
    assert max(rates) == pytest.approx(3e-3)
    assert rates[-1] == pytest.approx(final * 3e-3)


@pytest.fixture
def rates_used() -> Iterator[list[float]]:
    rates: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[-1]["lr"]))
    yield rates
    handle.remove()


def test_optimizer_runs_through_the_whole_schedule(rates_used: list[float]) -> None:
    train._fit(Successor(61), text(np.arange(2000) % 61), cell(), steps=20)
    assert rates_used == [rate_at(step, 20, 1e-2, 0.05, 0.1) for step in range(20)]
    assert rates_used[0] == 1e-2
    assert rates_used[-1] == pytest.approx(1e-3)


# --- one step ----------------------------------------------------------------------------------------------------


def windows(batch: int = 4, length: int = 32) -> Tensor:
    return torch.randint(512, (batch, length + 1), generator=torch.Generator().manual_seed(3))


def gradients_of_one_step(one: Cell) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build(one.config())
    train_step(model.train(), adamw(model, 0.0, 0.0), windows(), one)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_step_descends_cross_entropy_plus_weighted_balance_loss() -> None:
    one = cell(dropout=0.0, balance_loss=0.3, grad_clip=1e9)
    torch.manual_seed(0)
    model = build(one.config())
    log_p = model(windows()[:, :-1]).log_softmax(-1)
    loss = -log_p.gather(-1, windows()[:, 1:, None]).mean()
    routing = model.blocks[0].mixer.experts.routing
    share = torch.stack([(routing.probabilities.argmax(-1) == expert).float().mean() for expert in range(4)])
    loss = loss + 0.3 * 4 * (share * routing.probabilities.mean(0)).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    torch.testing.assert_close(gradients_of_one_step(one), expected)


def test_balance_loss_reaches_the_router() -> None:
    name = "blocks.0.mixer.experts.router.weight"
    without, with_it = (gradients_of_one_step(cell(balance_loss=weight, dropout=0.0))[name] for weight in (0.0, 10.0))
    assert (with_it - without).abs().max() > 10 * without.abs().max()


def test_gradient_is_clipped_to_the_declared_norm() -> None:
    def norm(clip: float) -> float:
        gradients = gradients_of_one_step(cell(grad_clip=clip, dropout=0.0)).values()
        return math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))

    free = norm(1e9)
    assert norm(free / 7) == pytest.approx(free / 7, rel=1e-4)


def test_reported_loss_leaves_the_balance_loss_out() -> None:
    torch.manual_seed(0)
    one = cell(dropout=0.0, balance_loss=100.0)
    model = build(one.config())
    with torch.no_grad():
        expected = F.cross_entropy(model(windows()[:, :-1]).flatten(0, 1), windows()[:, 1:].flatten())
    torch.testing.assert_close(train_step(model, adamw(model, 0.0), windows(), one), expected)


# --- a loss that is not finite -------------------------------------------------------------------------------------


class BreaksAt(Successor):
    """Is infinitely wrong from one forward pass on."""

    def __init__(self, step: int) -> None:
        super().__init__(61)
        self.step = step

    def hidden(self, ids: Tensor) -> Tensor:
        hidden = super().hidden(ids)
        return hidden * math.inf if len(self.seen) > self.step else hidden


@pytest.mark.parametrize("step", [0, 7, 49, 50, 63])
def test_error_names_the_first_step_with_a_loss_that_is_not_finite(step: int) -> None:
    with pytest.raises(FloatingPointError, match=rf"training loss is nan at step {step}$"):
        train._fit(BreaksAt(step), text(np.arange(2000) % 61), cell(), steps=64)


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_a_rate_far_too_large_raises(mixer: str) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is nan at step [1-9]"):
        train_cell(cell(mixer, learning_rate=1e4))


def test_weights_ruined_by_the_last_step_raise() -> None:
    with pytest.raises(FloatingPointError, match="validation loss is nan after the last step, 0"):
        train_cell(cell(learning_rate=1e30, epochs=1e-9))


# --- a whole cell ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_same_cell_gives_the_same_result_to_the_bit(mixer: str) -> None:
    torch.manual_seed(99)  # what ran before must not matter
    again = train_cell(cell(mixer))
    assert untimed(again) == untimed(trained(mixer))


def test_seed_changes_the_result() -> None:
    assert trained(seed=1)["loss_nats"] != trained()["loss_nats"]


def test_seed_changes_the_initialisation_and_not_only_the_order() -> None:
    still = [trained(learning_rate=1e-30, seed=seed)["loss_nats"] for seed in (0, 1)]
    assert still[0] != still[1]
    assert still == pytest.approx([math.log(512)] * 2, rel=0.05)


def test_threads_of_one_process_do_not_disturb_each_other() -> None:
    cells = [cell(dropout=0.1, mixer=mixer) for mixer in ("resnet-bk", "transformer")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train_cell, cells))
    assert [untimed(result) for result in found] == [untimed(trained()), untimed(trained("transformer"))]


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_counts_are_those_of_the_declared_run(mixer: str) -> None:
    result, n_tokens = trained(mixer), len(load_tokens("wiki-sample", 512)[1].train)
    assert result["n_counted"] == result["n_total"] == sum(p.numel() for p in build(cell(mixer).config()).parameters())
    assert result["train_tokens"] == n_tokens
    assert result["tokens_seen"] == result["steps"] * 4 * 32
    assert 0 <= 0.0011 * n_tokens - result["tokens_seen"] < 4 * 32
    assert result["steps"] == len(result["curve"]) == n_steps(n_tokens, 0.0011, 4, 32)


def test_scores_add_up() -> None:
    result, n = trained(), len(load_tokens("wiki-sample", 512)[1].validation) - 1
    assert sum(result["block_nats"]) == pytest.approx(result["loss_nats"] * n)
    assert len(result["position_nats"]) == 32
    assert np.mean(result["position_nats"]) == pytest.approx(result["loss_nats"], rel=1e-3)
    late = np.mean(result["position_nats"][16:]) * (n // 32 * 16)
    assert sum(result["late_block_nats"]) == pytest.approx(late)


def test_training_lowers_the_loss_on_held_out_text() -> None:
    torch.manual_seed(0)
    _, tokens = load_tokens("wiki-sample", 512)
    before = token_nats(build(cell().config()), tokens.validation[:5000], 32).mean()
    assert before == pytest.approx(math.log(512), rel=0.05)
    assert trained()["loss_nats"] < before - 0.2
    assert trained()["curve"][-1] < trained()["curve"][0] - 0.2


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_bfloat16_products_train_alike(mixer: str) -> None:
    assert trained(mixer, dtype="bfloat16")["loss_nats"] == pytest.approx(trained(mixer)["loss_nats"], rel=0.02)
    assert trained(mixer, dtype="bfloat16")["curve"] != trained(mixer)["curve"]
