"""Adapters in PEFT's format, and runs that are killed and resumed: the curve is that of a run nobody disturbed.

The reference for saved adapters is PeftModel.from_pretrained; for a resumed run, the uninterrupted one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_streaming import WHERE, batch, config, resident, save, streamed
from transformers import AutoModelForCausalLM

from labkit.offload import DamagedCheckpoint, StreamedLM

RUN = """
import sys, torch
from labkit.offload import StreamedLM
torch.set_num_threads(1)
folder, state, curve, n = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
from pathlib import Path
from peft import LoraConfig
if Path(state).exists():
    model = StreamedLM.resume(state)
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-2)
    model.restore(optimizer)
else:
    lora = LoraConfig(r=4, target_modules=["qkv_proj", "down_proj"], lora_dropout=0.1)
    model = StreamedLM(folder, lora=lora, slots=2)
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-2)
print("ready", flush=True)
for step in range(model.step_number, n):
    ids = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(step))
    loss = model.step({"input_ids": ids}, optimizer).loss
    with open(curve, "a") as file:
        print(step, repr(loss), file=file, flush=True)
    model.checkpoint(state, {"loss": loss})
"""


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def curve(path: Path) -> dict[int, str]:
    return dict(line.split() for line in path.read_text().splitlines())


def wait_for(run: subprocess.Popen, path: Path, steps: int) -> None:
    """Until the run has written so many further steps: a step takes what the machine's disk takes."""
    before = len(curve(path)) if path.exists() else 0
    while run.poll() is None and (not path.exists() or len(curve(path)) < before + steps):
        time.sleep(0.002)


def test_peft_loads_what_was_saved(tmp_path: Path) -> None:
    lora = config(save(tmp_path / "m", "phi3", torch.float32), WHERE["first and last"])
    own = streamed(tmp_path / "m", lora)
    own.save_adapter(tmp_path / "a")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    twin = resident(tmp_path / "m", lora, own, torch.float32).eval()
    inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(loaded(**inputs).logits, twin(**inputs).logits)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_saved_adapters_are_gone_on_with(tmp_path: Path) -> None:
    own = streamed(tmp_path / "m", config(save(tmp_path / "m", "llama", torch.float32), [0, 5]))
    own.save_adapter(tmp_path / "a")
    again = StreamedLM(tmp_path / "m", adapter=tmp_path / "a", micro_batch=2)
    assert torch.equal(own.score(batch()), again.score(batch()))
    ours, theirs = own.gradients(batch())[1], again.gradients(batch())[1]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match="give one of them"):
        StreamedLM(tmp_path / "m", adapter=tmp_path / "a", lora=own.lora)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        StreamedLM(tmp_path / "m", adapter=tmp_path / "m")


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    streamed(tmp_path / "m", config(save(tmp_path / "m", "llama", torch.float32), [0])).save_adapter(tmp_path / "a")
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    (tmp_path / "a" / "adapter_config.json").write_text(text.replace('"r": 4', '"r": 3'))
    with pytest.raises(DamagedCheckpoint, match="holds other adapters than this model has"):
        StreamedLM(tmp_path / "m", adapter=tmp_path / "a")


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    save(tmp_path / "m", "phi3", torch.float32)
    n, chance = 40, random.Random(0)
    whole = start(tmp_path / "m", tmp_path / "whole.safetensors", tmp_path / "whole", n)
    assert whole.wait(120) == 0
    for steps in (1, 5, 0, 3):
        run = start(tmp_path / "m", tmp_path / "cut.safetensors", tmp_path / "cut", n)
        assert run.stdout.readline() == b"ready\n"
        wait_for(run, tmp_path / "cut", steps)
        time.sleep(chance.uniform(0.0, 0.05))
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert 0 < len(curve(tmp_path / "cut")) < n
    assert start(tmp_path / "m", tmp_path / "cut.safetensors", tmp_path / "cut", n).wait(120) == 0
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def one(folder: Path) -> tuple[StreamedLM, torch.optim.Optimizer]:
    own = streamed(folder, config(save(folder, "phi3", torch.float32), [0, 5]))
    return own, torch.optim.AdamW(own.adapters().values(), lr=1e-2)


def test_another_base_is_refused(tmp_path: Path) -> None:
    own, optimizer = one(tmp_path / "m")
    own.step(batch(), optimizer)
    own.checkpoint(tmp_path / "s.safetensors")
    file = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedCheckpoint, match="was written for another base than"):
        StreamedLM.resume(tmp_path / "s.safetensors")
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert StreamedLM.resume(tmp_path / "s.safetensors").step_number == 1
    settings = json.loads((tmp_path / "m" / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(DamagedCheckpoint, match="was written for another base than"):
        StreamedLM.resume(tmp_path / "s.safetensors")


def test_a_base_that_moved_can_be_named(tmp_path: Path) -> None:
    own, optimizer = one(tmp_path / "m")
    own.step(batch(), optimizer)
    own.checkpoint(tmp_path / "s.safetensors", {"epoch": 3})
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    found = StreamedLM.resume(tmp_path / "s.safetensors", checkpoint=tmp_path / "elsewhere")
    assert found.extra == {"epoch": 3}
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        StreamedLM.resume(tmp_path / "s.safetensors")


def test_a_state_file_that_is_none_is_refused(tmp_path: Path) -> None:
    own, optimizer = one(tmp_path / "m")
    own.step(batch(), optimizer)
    path = tmp_path / "s.safetensors"
    own.checkpoint(path)
    with pytest.raises(ValueError, match="holds the state of AdamW, not of SGD"):
        StreamedLM.resume(path).restore(torch.optim.SGD(own.adapters().values(), lr=1))
    with pytest.raises(ValueError, match=r"belongs to a model that StreamedLM\.resume returned"):
        own.restore(optimizer)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedCheckpoint, match="is no state"):
        StreamedLM.resume(path)
    with pytest.raises(DamagedCheckpoint, match="is no state"):
        StreamedLM.resume(next((tmp_path / "m").glob("*.safetensors")))
    with pytest.raises(FileNotFoundError, match="is not there"):
        StreamedLM.resume(tmp_path / "gone")


FULL = """
import resource, signal, sys, torch
from labkit.base.files import DiskFull
from labkit.offload import StreamedLM
torch.set_num_threads(1)
model = StreamedLM.resume(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    model.checkpoint(sys.argv[1])
except DiskFull as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    own, optimizer = one(tmp_path / "m")
    own.step(batch(), optimizer)
    path = tmp_path / "s.safetensors"
    own.checkpoint(path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert f"{path}: no room" in done.stdout
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "s.safetensors"]
