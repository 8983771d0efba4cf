"""Memory counted without allocating any, against the same passes on real tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_streaming import WHERE, batch, config, save, streamed

from labkit.offload import footprint
from labkit.offload.body import run_layer
from labkit.offload.footprint import Line, LiveBytes, measure
from labkit.offload.skeleton import weights_of

KB = 1024


def test_what_is_alive_is_counted_and_what_is_gone_is_not() -> None:
    with LiveBytes() as live:
        first = torch.empty(KB, dtype=torch.uint8)
        second = first + first
        assert (live.now, live.peak) == (2 * KB, 2 * KB)
        del first
        assert live.now == KB
        third = second.to(torch.float32)
        assert (live.now, live.peak) == (5 * KB, 5 * KB)
        del second, third
    assert (live.now, live.peak) == (0, 5 * KB)


def test_views_and_what_was_there_before_count_nothing() -> None:
    before = torch.zeros(KB)
    with LiveBytes() as live:
        view = before.view(32, 32).t()[1:]
        before.add_(1.0)
        assert live.peak == 0
        own = torch.empty(KB, dtype=torch.uint8)
        assert live.now == KB
        del view, own


def test_a_line_goes_through_its_points() -> None:
    line = Line(fixed=100, per_sample=7.5)
    assert [line(n) for n in (0, 1, 4)] == [100, 107, 130]


@pytest.mark.parametrize("kind", ["phi3", "gemma2", "gpt2", "qwen3_5_text"])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_layer_takes_what_was_counted_whatever_the_number_of_samples(kind: str, samples: int, tmp_path: Path) -> None:
    lora = config(save(tmp_path, kind, torch.float32), WHERE["all"])
    own = streamed(tmp_path, lora)
    data = {name: value[:1].repeat(samples, 1) for name, value in batch("left").items()}
    data["attention_mask"][:, 0] = 0
    data.pop("labels")
    counted = measure(own._parts.skeleton, data["input_ids"].shape[1]).layer(samples)
    taken = [layer_peak(own, data, i) for i in range(len(own._parts.skeleton.layers))]
    # Two ways of the same kernel may differ by a mask or two; a plan has slack of megabytes for that.
    assert max(taken) <= counted + 256 * samples
    assert counted <= 1.1 * max(taken) + 256 * samples


def layer_peak(own, data: dict[str, torch.Tensor], i: int) -> int:
    """Run a layer forward and backward on real tensors, and return the peak of what was alive."""
    skeleton, passes = own._parts.skeleton, own.passes
    own.have_buffers(*data["input_ids"].shape)
    calls = passes.body.open(data)
    layer = skeleton.layers[i]
    trained = [p for p in layer.parameters() if p.requires_grad]
    with passes.pool.hold(i) as slot:
        weights = weights_of(layer, passes.store.views(i, slot.memory))
        hidden = calls.hidden.detach().clone().requires_grad_()
        upstream = torch.ones_like(hidden)
        with LiveBytes() as live:
            out = run_layer(layer, weights, hidden, calls.arguments[i])
            torch.autograd.grad(out, [hidden, *trained], upstream, allow_unused=True)
            del out
    return live.peak


def test_one_layer_of_each_kind_is_looked_at(tmp_path: Path) -> None:
    model = save(tmp_path, "qwen3_5_text", torch.float32)
    skeleton = streamed(tmp_path, config(model, WHERE["first and last"]))._parts.skeleton
    calls = footprint._body_of_ones(skeleton).open(footprint._padded(1, 12))
    chosen = footprint._one_of_each_kind(skeleton, calls)
    # Layers 0, 1, 4 and 5 have adapters; 2 and 5 are attention.
    assert chosen == [0, 2, 3, 5]
