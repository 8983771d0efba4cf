"""Files that fail while they are trained from: one clear error, nothing lost, and the next step goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_streaming import WHERE, batch, config, save, streamed

from labkit.offload import ReadError, StreamedLM
from labkit.offload.slots import StaleBuffer


def ready(folder: Path, **options: object) -> tuple[StreamedLM, torch.optim.Optimizer]:
    own = streamed(folder, config(save(folder, "phi3", torch.float32), WHERE["all"]), slots=2, **options)
    return own, torch.optim.AdamW(own.adapters().values(), lr=1e-2)


@pytest.mark.parametrize("reader", ["drop", "direct", "cached"])
def test_a_shard_cut_short_is_named_and_nothing_is_lost(reader: str, tmp_path: Path) -> None:
    own, optimizer = ready(tmp_path, reader=reader)
    own.step(batch(), optimizer)
    file = sorted(tmp_path.glob("*.safetensors"))[2]
    whole = file.read_bytes()
    with file.open("r+b") as cut:
        cut.truncate(len(whole) // 3)
    before = {name: p.detach().clone() for name, p in own.adapters().items()}
    with pytest.raises(ReadError, match=rf"{file.name}: bytes .* could not be read: it ends at byte"):
        own.step(batch(), optimizer)
    assert all(torch.equal(p, before[name]) for name, p in own.adapters().items())
    assert own.step_number == 1
    file.write_bytes(whole)
    twin, other = ready(tmp_path / "twin")
    twin.step(batch(), other)
    assert own.step(batch(), optimizer).loss == twin.step(batch(), other).loss


def test_one_flipped_byte_is_another_loss(tmp_path: Path) -> None:
    own, _ = ready(tmp_path)
    loss, _ = own.gradients(batch())
    file = sorted(tmp_path.glob("*.safetensors"))[2]
    raw = bytearray(file.read_bytes())
    raw[-2] ^= 0x40
    file.write_bytes(raw)
    fresh = streamed(tmp_path, own.lora, slots=2)
    assert fresh.gradients(batch())[0] != loss


def test_a_buffer_refilled_during_a_pass_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = ready(tmp_path)
    prefetch = own.passes.pool.prefetch

    def too_early(layer: int) -> bool:
        for slot in own.passes.pool.slots:
            slot.holders, slot.used = 0, -slot.used
        return prefetch(layer)

    monkeypatch.setattr(type(own.passes.pool), "prefetch", lambda self, layer: too_early(layer))
    with pytest.raises((StaleBuffer, RuntimeError), match=r"refilled|buffers in use"):
        own.gradients(batch())
