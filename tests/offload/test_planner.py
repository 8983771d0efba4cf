"""Plans from numbers alone: what is counted on paper, and budgets that are just enough or just too small."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_streaming import save

from labkit.base.units import parse_bytes
from labkit.offload import TooSmall, plan
from labkit.offload.footprint import Footprint, Line
from labkit.offload.planner import FEWEST_SLOTS, Rates, Request, Shape, choose
from labkit.offload.random_weights import write_random_checkpoint

MIB = 1 << 20
RATES = Rates(bytes_per_second=1e9, flops_per_second=1e12)
SHAPE = Shape(
    n_layers=10,
    lowest_trained=0,
    slot_bytes=100 * MIB,
    layer_bytes=1000 * MIB,
    head_bytes=80 * MIB,
    n_pieces=1,
    kept_bytes=MIB,
    staging_bytes=0,
    layer_parameters=500 * MIB,
    head_parameters=40 * MIB,
    adapter_parameters=MIB,
)


def request(shape: Shape = SHAPE, **changes: Any) -> Request:
    footprint = Footprint(
        hidden=4 * MIB,
        arguments=1000,
        layer=Line(fixed=0, per_sample=5 * MIB),
        head=Line(fixed=MIB, per_sample=2 * MIB),
    )
    own = {"footprint": footprint, "batch_size": 16, "seq_len": 32, "base_bytes": 300 * MIB, "rates": RATES}
    return Request(shape=shape, **own | changes)


@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("lowest", [0, 4])
def test_each_buffer_saves_a_load_at_the_top_and_one_at_the_bottom(slots: int, lowest: int) -> None:
    found = choose(request(replace(SHAPE, lowest_trained=lowest)), 10**12, slots=slots, spill=False)
    # Up and down, once the head; at the top the head takes one of the buffers.
    down = 10 - lowest
    first = (10 + max(down - (slots - 1), 0)) * 100 * MIB + 80 * MIB
    assert found.first_bytes_read == first
    # The next step finds the lowest layers of this one, unless those below them have taken their buffers.
    assert found.bytes_read == first - max(slots - lowest, 0) * 100 * MIB


def test_with_a_buffer_for_everything_nothing_is_read_again() -> None:
    assert choose(request(), 10**12).bytes_read == 0
    assert choose(request(), 10**12).slots == 11


def test_more_memory_is_never_slower() -> None:
    for rates in (RATES, Rates(bytes_per_second=1e9, flops_per_second=1e15)):
        plans = [choose(request(rates=rates), n * MIB) for n in range(700, 2500, 50)]
        assert [p.seconds for p in plans] == sorted((p.seconds for p in plans), reverse=True)
    moved = [p.bytes_read + 2 * p.spilled_bytes for p in plans]
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) > 5


def test_the_budget_it_names_works_and_a_little_less_does_not() -> None:
    with pytest.raises(TooSmall, match="16 samples of 32 tokens need at least") as caught:
        choose(request(), 400 * MIB)
    named = parse_bytes(re.search(r"at least ([\d.]+ \w+)", str(caught.value))[1])
    assert choose(request(), int(1.002 * named)).slots == FEWEST_SLOTS
    with pytest.raises(TooSmall):
        choose(request(), int(0.98 * named))


def test_hidden_states_go_to_a_file_only_where_memory_does_not_hold_them() -> None:
    roomy, tight = choose(request(), 3000 * MIB), choose(request(), 800 * MIB)
    assert (roomy.spill, tight.spill) == (False, True)
    assert roomy.parts["kept for the way back"] == 10 * 16 * 4 * MIB
    assert tight.parts["kept for the way back"] == 0
    assert tight.peak_bytes <= 800 * MIB


def test_no_plan_is_above_its_budget() -> None:
    for n in range(700, 3000, 100):
        assert choose(request(), n * MIB).peak_bytes <= n * MIB


def test_reading_and_computing_take_equally_long_at_the_crossover() -> None:
    found = choose(request(), 700 * MIB)
    per_token = 6 * 500 * MIB + 4 * 40 * MIB
    assert found.flops == found.tokens * per_token
    seconds_per_token = found.compute_seconds / found.tokens
    assert found.crossover_tokens * seconds_per_token == pytest.approx(found.io_seconds)
    assert seconds_per_token == pytest.approx(per_token / 1e12 * (1 + 48 / (32 * found.micro_batch)) / (1 + 48 / 512))
    assert found.seconds == max(found.io_seconds, found.compute_seconds)
    assert "both take equally long at" in found.describe()


def test_choices_made_by_hand_are_kept_and_refused_beyond_the_budget() -> None:
    found = choose(request(), 3000 * MIB, micro_batch=3, slots=4, spill=True)
    assert (found.micro_batch, found.slots, found.spill) == (3, 4, True)
    assert choose(request(), 3000 * MIB, micro_batch=99).micro_batch == 16
    with pytest.raises(TooSmall):
        choose(request(), 900 * MIB, slots=8)


def rchar() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_plan_reads_headers_and_no_weights(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    wide |= {"num_key_value_heads": 4, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    made = write_random_checkpoint(tmp_path / "m", "phi-4", dtype=torch.bfloat16, **wide)
    asked = {"batch_size": 4, "seq_len": 16, "rates": RATES}
    plan(tmp_path / "m", memory="4GiB", **asked)  # what is imported on the way is read once
    before = rchar()
    found = plan(tmp_path / "m", memory="4GiB", **asked)
    assert rchar() - before < 0.02 * made["bytes"]
    assert (found.batch_size, found.seq_len) == (4, 16)
    with pytest.raises(TooSmall, match=r"and the budget is 100\.0 MiB"):
        plan(tmp_path / "m", memory="100MiB", **asked)


def test_a_budget_that_is_none_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "phi3", torch.float32)
    asked = {"batch_size": 1, "seq_len": 4, "rates": RATES}
    with pytest.raises(ValueError, match="'2XiB' is not a size"):
        plan(tmp_path, memory="2XiB", **asked)
    with pytest.raises(ValueError, match=r"memory is .* and this process may use .* at most"):
        plan(tmp_path, memory="9000TiB", **asked)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        plan(tmp_path / "gone", **asked)
