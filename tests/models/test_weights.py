"""Real weights by name: the bytes that were asked for, and one clear refusal for each way in which they may be wrong.

References: a tiny model written by save_pretrained, `sha256sum`'s listing, and a local server that speaks the hub's
protocol to the real client.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from labkit import models
from labkit.models import shapes

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "vocab_size": 16}
NAME = "qwen2.5-0.5b"


@pytest.fixture(autouse=True)
def _no_folder_of_yours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_MODELS", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as save_pretrained writes it."""
    target = tmp_path / "models" / NAME
    models.build(NAME, dtype=torch.float32, seed=7, **TINY).save_pretrained(target)
    own = Tokenizer(BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.train_from_iterator(["a b"], BpeTrainer(vocab_size=16, special_tokens=["<end>"]))
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(target)
    return target


def test_a_folder_is_loaded_as_it_is_and_its_bytes_are_named(folder: Path) -> None:
    loaded = models.load(folder)
    original = models.build(NAME, dtype=torch.float32, seed=7, **TINY)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), original.parameters(), strict=True))
    file = folder / "model.safetensors"
    assert loaded.weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.weights.n_bytes == file.stat().st_size
    assert (loaded.weights.name, loaded.weights.format) == (NAME, "safetensors")
    assert json.loads(json.dumps(loaded.weights.as_dict())) == loaded.weights.as_dict()
    assert len(loaded.tokenizer("a b")["input_ids"]) == 2
    assert not loaded.model.training


def test_a_sharded_folder_gives_the_same_model_and_the_hash_of_its_listing(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(folder, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = models.load(folder)
    whole.model.save_pretrained(sharded, max_shard_size="20KB")
    loaded = models.load(sharded)
    for a, b in zip(loaded.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 1
    listing = subprocess.run(["sha256sum", *files], cwd=sharded, capture_output=True, check=True).stdout
    assert loaded.weights.sha256 == hashlib.sha256(listing).hexdigest()
    (sharded / files[1]).unlink()
    with pytest.raises(models.MissingWeights, match=f"holds no {files[1]}"):
        models.load(sharded)


def test_a_folder_named_in_the_environment_comes_before_hub_and_wheels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_MODELS", str(folder.parent))
    folder.rename(folder.parent / "smollm2-135m")
    loaded = models.load("smollm2-135m", dtype=torch.bfloat16)
    assert loaded.model.num_parameters() < 100_000
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert "LABKIT_MODELS" in loaded.weights.source
    with pytest.raises(models.MissingWeights, match="hf download"):
        models.load("phi-2")
    monkeypatch.setenv("LABKIT_MODELS", str(folder.parent / "nowhere"))
    with pytest.raises(ValueError, match=r"LABKIT_MODELS is '.*nowhere', which is no folder"):
        models.load("smollm2-135m")


def test_a_folder_in_the_current_directory_does_not_pass_for_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(models.MissingWeights, match="hf download"):
        models.load(NAME)
    assert models.load(f"./{NAME}").weights.name == NAME


@pytest.mark.parametrize("name", ["phi-2", "microsoft/phi-2"])
def test_without_a_connection_the_message_has_the_command_that_fetches(name: str) -> None:
    with pytest.raises(models.MissingWeights, match=r"hf download microsoft/phi-2 --local-dir FOLDER/phi-2"):
        models.load(name)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        models.load("smollm2")


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_that_lacks_something_is_refused_by_its_name(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(models.MissingWeights, match=f"{NAME} holds no {lost}"):
        models.load(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(models.MissingWeights, match=r"holds no model\.safetensors"):
        models.load(folder)


def test_files_that_transformers_does_not_read_count_for_nothing(folder: Path) -> None:
    before = models.load(folder).weights
    (folder / "consolidated.safetensors").write_bytes(b"no safetensors at all")
    (folder / "model.fp16.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert models.load(folder).weights == before


def test_shards_that_are_not_there_or_distributed_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "gone.safetensors"}}))
    with pytest.raises(models.MissingWeights, match=r"holds no gone\.safetensors"):
        models.load(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged: no JSON"):
        models.load(folder)
    (folder / "shard-00000-model-00001-of-00001.safetensors").touch()
    with pytest.raises(ValueError, match="holds a distributed checkpoint"):
        models.load(folder)


def test_a_safetensors_file_cut_short_is_refused_by_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*fetch it again"):
        models.load(folder)


@pytest.mark.parametrize("change", ["a tensor is missing", "a tensor has another shape"])
def test_weights_that_do_not_fit_the_configuration_are_not_filled_up_at_random(folder: Path, change: str) -> None:
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name] = torch.zeros(3, 3)
    if change == "a tensor is missing":
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config\.json: .*layers\.1\.mlp\.up_proj\.weight"):
        models.load(folder)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes.machine, "available_memory_bytes", lambda: 1000)
    with pytest.raises(models.TooLarge, match=r"in bfloat16 needs .* KiB for its weights and 1000 B are free"):
        models.load(folder, dtype=torch.bfloat16)


def test_no_device_stands_in_for_another(folder: Path) -> None:
    with pytest.raises(ValueError, match="device 'tpu' is not here"):
        models.load(folder, device="tpu")


def test_every_model_has_a_licence_and_a_source() -> None:
    table = models.licences()
    assert set(table["model"]) == set(models.SHAPES)
    assert tuple(table["model"][:2]) == models.OFFLINE_PAIR
    assert (table[["licence", "weights"]] != "").all(axis=None)


# the hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = f"""
from labkit import models
loaded = models.load("{NAME}")
print(loaded.weights.sha256, loaded.weights.source, loaded.model.num_parameters(), sep=";")
"""


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    """Serve the folder as a repository of the hub, with a pickle and a script beside it that must not be asked for."""
    for name in ("pytorch_model.bin", "modeling_own.py"):
        (folder / name).write_bytes(b"never to be read")
    repository = models.SHAPES[NAME].source

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            name = path.rpartition("/")[2]
            if path.startswith(f"/api/models/{repository}/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in folder.iterdir()
                ]
                self._answer(json.dumps(files).encode())
            elif path.startswith(f"/api/models/{repository}"):
                files = [{"rfilename": each.name} for each in folder.iterdir()]
                self._answer(json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
            elif path.startswith(f"/{repository}/resolve/{COMMIT}/") and name not in Hub.forbidden:
                self._answer((folder / name).read_bytes())
            else:
                self.send_error(404)

        forbidden = ("pytorch_model.bin", "modeling_own.py")
        do_HEAD = do_GET

        def _answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def load_from_hub(home: Path, endpoint: str, *, is_offline: bool) -> subprocess.CompletedProcess[str]:
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(is_offline))}
    environment = {**os.environ, **hub, "LABKIT_MODELS": ""}
    return subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=False, env=environment)


def test_the_hub_is_asked_once_for_what_is_needed_and_the_commit_is_recorded(
    hub: str, folder: Path, tmp_path: Path
) -> None:
    done = load_from_hub(tmp_path / "home", hub, is_offline=False)
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    n_parameters = models.build(NAME, device="meta", **TINY).num_parameters()
    assert done.stdout.strip() == f"{expected};Qwen/Qwen2.5-0.5B at {COMMIT[:12]};{n_parameters}", done.stderr
    assert not {path.suffix for path in (tmp_path / "home").rglob("*")} & {".bin", ".py"}
    assert load_from_hub(tmp_path / "home", hub, is_offline=True).stdout == done.stdout
