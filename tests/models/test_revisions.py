"""What a model is, told by its revision: every byte that a model is read from counts, and nothing else does.

References: copies of a folder with one file changed, and `sha256sum`'s listing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import models
from labkit.models import pins
from labkit.models.revisions import revision
from labkit.models.tiny import TINY, written


@pytest.fixture(autouse=True)
def _no_folder_of_yours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_MODELS", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as save_pretrained writes it."""
    return Path(shutil.copytree(written("tiny-qwen2"), tmp_path / "models" / "phi-2"))


def test_a_pinned_model_is_its_bytes_and_their_conversion_told_without_torch() -> None:
    code = (
        "import sys; from labkit.cell.data import weights; print(weights('smollm2-135m')); "
        "sys.exit(bool({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = revision("smollm2-135m")
    assert done.stdout.strip() == str({"weights smollm2-135m": told})
    assert told == f"conversion {pins.CONVERSION} of {pins.PACKED['smollm2-135m'].sha256}"
    assert told != revision("gemma-3-270m")


def test_another_conversion_is_another_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    before = revision("smollm2-135m")
    monkeypatch.setattr("labkit.models.revisions.CONVERSION", pins.CONVERSION + 1)
    assert revision("smollm2-135m") != before


def test_a_folder_is_the_listing_of_the_files_that_make_a_model(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    listing = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    assert revision(folder) == hashlib.sha256(listing).hexdigest()
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert any(name.startswith("chat_template") for name in names)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_every_file_of_a_model_counts_and_others_do_not(folder: Path, name: str) -> None:
    before = revision(folder)
    (folder / "README.md").write_text("no part of it")
    assert revision(folder) == before
    changed = folder / name
    changed.write_bytes(changed.read_bytes() + b" ")
    assert revision(folder) != before
    changed.unlink()
    assert revision(folder) != before


def test_a_folder_that_changes_within_a_process_is_read_again(folder: Path) -> None:
    before, path = revision(folder), folder / "config.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1", b"2"))
    os.utime(path, ns=(0, 0))
    assert revision(folder) != before
    path.write_bytes(content)
    assert revision(folder) == before


def test_a_folder_of_yours_comes_before_the_pinned_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = revision("smollm2-135m")
    shutil.copytree(folder, folder.with_name("smollm2-135m"))
    monkeypatch.setenv("LABKIT_MODELS", str(folder.parent))
    assert revision("smollm2-135m") == revision("phi-2") == revision(folder) != pinned


@pytest.mark.parametrize("name", ["phi-2", "microsoft/phi-2"])
def test_a_model_of_the_hub_that_is_not_here_is_refused_as_loading_it_is(name: str) -> None:
    with pytest.raises(models.MissingWeights, match=r"hf download microsoft/phi-2 --local-dir FOLDER/phi-2"):
        revision(name)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        revision("smollm2")


def test_a_tiny_model_is_its_recipe() -> None:
    told = {name: revision(name) for name in TINY}
    assert len(set(told.values())) == len(TINY)
    assert told["tiny-qwen2"] == f"recipe {TINY['tiny-qwen2'].digest()}"
