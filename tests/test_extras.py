"""Each library needs what its extra installs and nothing else: it runs in a process that can import no more.

What an extra installs is read off the installed packages: its requirements, theirs, and so on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from labkit.base import paths

PROGRAMS = {
    "": """
from labkit.ledger import audit, claims
assert len(claims.load()) > 400
assert audit.audit(claims.ledgers()[0])
import labkit.cli
""",
    "offload": """
import sys, tempfile, torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from labkit.offload import StreamedLM
shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=97)
with tempfile.TemporaryDirectory() as folder:
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    with StreamedLM(folder, lora=LoraConfig(r=4, target_modules=["q_proj"])) as model:
        optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-3)
        assert model.step({"input_ids": torch.randint(97, (2, 8))}, optimizer).loss > 0
""",
    "hybrid": """
import tempfile, torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from labkit.hybrid import HybridCallback, HybridConfig
model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16))
data = [{"input_ids": row, "labels": row} for row in torch.randint(64, (64, 16))]
callback = HybridCallback(HybridConfig(warmup_steps=2, full_steps=4, predict_steps=2))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, max_steps=12, per_device_train_batch_size=4, report_to=[], use_cpu=True)
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
assert len(callback.history)
""",
    "scaling": """
import numpy as np, torch
from labkit.scaling import ResNetBK, ResNetBKConfig, Transformer, fit_law, resolvent_diagonal
n = np.geomspace(1e5, 1e8, 8)
law = fit_law(n, 2.0 + 300 * n**-0.4, bootstrap=0)
assert abs(law.alpha - 0.4) < 0.01
law.plot()
""",
    "decoding": """
from labkit import models
from labkit.decoding import measure_decode
model = models.build("gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=64)
assert measure_decode
""",
    "dpo": "from labkit.dpo import DpoArm, train_arm",
    "routing": "from labkit.routing import replay",
}
GUARD = """
import sys
from importlib.machinery import PathFinder
ALLOWED, OURS = set({allowed!r}), {ours!r}
class Guard(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        return None if top in OURS and top not in ALLOWED else super().find_spec(name, path, target)
sys.meta_path[:] = [Guard if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""Hides packages, also from those that look which others are there."""


def requirements() -> dict[str, list[str]]:
    project = tomllib.loads((paths.root() / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def canonical(requirement: str) -> str:
    return re.split(r"[\s\[><=!~;(]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def installed_by(extra: str) -> set[str]:
    """Name the distributions that an extra brings, with the core's."""
    pending = [*requirements()[""], *requirements()[extra]]
    found: set[str] = set()
    while pending:
        requirement = pending.pop()
        if own := re.match(r"labkit\[([\w,]+)\]", requirement):
            pending += [each for name in own[1].split(",") for each in requirements()[name]]
            continue
        name = canonical(requirement)
        if name in found or re.search(r";.*\bextra\b", requirement):
            continue
        found.add(name)
        try:
            pending += metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            found.discard(name)
    return found


@pytest.mark.parametrize("extra", PROGRAMS, ids=lambda extra: extra or "core")
def test_a_library_runs_on_what_its_extra_installs(extra: str) -> None:
    allowed = installed_by(extra)
    homes = metadata.packages_distributions()
    tops = {top for top, names in homes.items() if any(canonical(name) in allowed for name in names)}
    guard = GUARD.format(allowed=sorted(tops), ours=sorted(set(homes) - {"labkit"}))
    done = subprocess.run([sys.executable, "-c", guard + PROGRAMS[extra]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_guard_refuses_what_is_not_in_an_extra() -> None:
    homes = metadata.packages_distributions()
    guard = GUARD.format(allowed=["numpy"], ours=sorted(homes))
    done = subprocess.run([sys.executable, "-c", guard + "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr


def test_the_core_brings_no_torch() -> None:
    assert "torch" not in installed_by("")
    assert "torch" in installed_by("offload")
    assert set(requirements()) >= {"offload", "hybrid", "scaling", "dpo", "reports", "lab", "track", "dev"}
