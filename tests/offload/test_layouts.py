"""Folders in every layout, read as transformers reads them: the same gradients, or a refusal where it refuses.

Each layout is made from a folder that save_pretrained wrote, so what other files say is wrong on purpose.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_streaming import batch, config, expected, resident, save, streamed
from transformers import AutoModelForCausalLM

from labkit.offload import CannotStream, DamagedCheckpoint, StreamedLM
from labkit.offload.headers import INDEX, open_checkpoint

NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
QUERY = "model.layers.2.self_attn.q_proj.weight"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def clear(folder: Path) -> dict[str, torch.Tensor]:
    """Take all weights out of a folder."""
    found = tensors(folder)
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    return found


def put(file: Path, content: dict[str, torch.Tensor]) -> None:
    file.parent.mkdir(exist_ok=True)
    save_file(content, file, metadata={"format": "pt"})


def listed(folder: Path, **files: dict[str, torch.Tensor]) -> None:
    """Write shards and the index that names them."""
    where = {name: f"{file}.safetensors" for file, content in files.items() for name in content}
    for file, content in files.items():
        put(folder / f"{file}.safetensors", content)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def change(path: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    said = json.loads(path.read_text())
    alter(said)
    path.write_text(json.dumps(said))


def others(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in content.items()}


def halves(content: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    names = sorted(content)
    return {n: content[n] for n in names[::2]}, {n: content[n] for n in names[1::2]}


def shards(folder: Path) -> None:
    """As it was saved."""


def one_file(folder: Path) -> None:
    put(folder / "model.safetensors", clear(folder))


def one_file_beside_a_stale_index(folder: Path) -> None:
    put(folder / "model.safetensors", others(tensors(folder)))


def one_file_beside_an_index_of_files_that_are_gone(folder: Path) -> None:
    put(folder / "model.safetensors", clear(folder))
    (folder / INDEX).write_text('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}')


def files_of_other_names(folder: Path) -> None:
    wrong = others(tensors(folder))
    for name in ("consolidated", "model.fp16", "adapter_model", "aaa", "zzz"):
        put(folder / f"{name}.safetensors", wrong)
    (folder / "model.fp16.safetensors.index.json").write_text("{")
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")


def saved_twice_into_shards_of_other_sizes(folder: Path) -> None:
    again = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in again.parameters():
        parameter.data += 0.01
    old = folder.parent / "old"
    shutil.copytree(folder, old)
    again.save_pretrained(folder, max_shard_size="100KB")
    for file in old.glob("*.safetensors"):
        if not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    assert len(list(folder.glob("*.safetensors"))) > len({e.file for e in open_checkpoint(folder).entries.values()})


def an_index_that_names_the_wrong_shard_of_a_tensor(folder: Path) -> None:
    def alter(said: dict[str, Any]) -> None:
        files = sorted(set(said["weight_map"].values()))
        said["weight_map"][QUERY] = next(file for file in files if file != said["weight_map"][QUERY])

    change(folder / INDEX, alter)


def an_index_that_leaves_tensors_out(folder: Path) -> None:
    change(folder / INDEX, lambda said: said["weight_map"].pop(QUERY))


def an_index_that_names_a_tensor_nobody_needs_and_nobody_has(folder: Path) -> None:
    change(folder / INDEX, lambda said: said["weight_map"].update(gone=said["weight_map"][QUERY]))


def a_tensor_in_two_shards_of_which_the_index_names_the_first(folder: Path) -> None:
    content = clear(folder)
    one, two = halves(content)
    listed(folder, a=one | {QUERY: content[QUERY] + 1}, b=two | {QUERY: content[QUERY]})
    change(folder / INDEX, lambda said: said["weight_map"].update({QUERY: "a.safetensors"}))


def shards_below_the_folder(folder: Path) -> None:
    one, two = halves(clear(folder))
    listed(folder, **{"weights/1": one, "weights/2": two})


def files_that_are_links(folder: Path) -> None:
    for i, file in enumerate(folder.glob("*.safetensors")):
        blob = folder.parent / "blobs" / str(i)
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        os.symlink(blob, file)


def a_file_named_in_the_configuration(folder: Path) -> None:
    content = clear(folder)
    put(folder / "mine.safetensors", content)
    put(folder / "model.safetensors", others(content))
    change(folder / "config.json", lambda said: said.update(transformers_weights="mine.safetensors"))


def an_index_named_in_the_configuration(folder: Path) -> None:
    (folder / INDEX).rename(folder / "mine.safetensors.index.json")
    put(folder / "model.safetensors", others(tensors(folder)))
    change(folder / "config.json", lambda said: said.update(transformers_weights="mine.safetensors.index.json"))


def a_body_without_its_prefix(folder: Path) -> None:
    content = clear(folder)
    put(folder / "model.safetensors", {name.removeprefix("model."): tensor for name, tensor in content.items()})


def a_head_that_is_tied_and_stored_alike(folder: Path) -> None:
    content = clear(folder)
    put(folder / "model.safetensors", content | {HEAD: content[EMBEDDING].clone()})


def a_head_that_should_be_tied_and_is_not(folder: Path) -> None:
    content = clear(folder)
    put(folder / "model.safetensors", content | {HEAD: content[EMBEDDING].flip(0).contiguous()})


def a_head_in_place_of_the_embedding(folder: Path) -> None:
    content = clear(folder)
    put(folder / "model.safetensors", content | {HEAD: content.pop(EMBEDDING)})


def shards_of_several_types(folder: Path) -> None:
    one, two = halves(clear(folder))
    listed(folder, a={n: t.bfloat16() for n, t in one.items()}, b={n: t.double() for n, t in two.items()})


def tensors_of_types_that_nothing_needs(folder: Path) -> None:
    content = clear(folder)
    for name, dtype in {"a": torch.float8_e4m3fn, "b": torch.float8_e5m2, "i": torch.int8, "u": torch.uint16}.items():
        content[f"unused.{name}"] = torch.zeros(3).to(dtype)
    content |= {"unused.c": torch.zeros(3, dtype=torch.complex64), "unused.l": torch.zeros(1 << 20, dtype=torch.int64)}
    put(folder / "model.safetensors", content)


def tensors_of_half_a_byte_that_nothing_needs(folder: Path) -> None:
    file = folder / "model.safetensors"
    put(file, clear(folder))
    raw = file.read_bytes()
    length = 8 + struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:length]), raw[length:]
    header["unused"] = {"dtype": "F4", "shape": [6], "data_offsets": [len(data), len(data) + 3]}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data + b"abc")


LAYOUTS = [
    *(shards, one_file, one_file_beside_a_stale_index, one_file_beside_an_index_of_files_that_are_gone),
    *(files_of_other_names, saved_twice_into_shards_of_other_sizes, an_index_that_names_the_wrong_shard_of_a_tensor),
    *(an_index_that_leaves_tensors_out, an_index_that_names_a_tensor_nobody_needs_and_nobody_has),
    *(
        a_tensor_in_two_shards_of_which_the_index_names_the_first,
        shards_below_the_folder,
        files_that_are_links,
        a_file_named_in_the_configuration,
    ),
    *(an_index_named_in_the_configuration, a_body_without_its_prefix, a_head_that_is_tied_and_stored_alike),
    *(a_head_that_should_be_tied_and_is_not, a_head_in_place_of_the_embedding, shards_of_several_types),
    *(tensors_of_types_that_nothing_needs, tensors_of_half_a_byte_that_nothing_needs),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_folder_is_read_as_transformers_reads_it(layout: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    lora = config(save(folder, "llama", torch.float32), [0, 5])
    layout(folder)
    own = streamed(folder, lora, dtype=torch.float32)
    loss, found = own.gradients(batch())
    wanted_loss, wanted = expected(resident(folder, lora, own, torch.float32), batch(), 2)
    assert loss == wanted_loss
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_a_folder_below_another_is_one_of_its_own(tmp_path: Path) -> None:
    lora = config(save(tmp_path / "m" / "below", "llama", torch.float32), [0])
    save(tmp_path / "m", "phi3", torch.float32)
    own = streamed(tmp_path / "m" / "below", lora)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", subfolder="below", dtype=torch.float32)
    model.save_pretrained(tmp_path / "same")
    assert own.gradients(batch())[0] == expected(resident(tmp_path / "same", lora, own, torch.float32), batch(), 2)[0]


def test_the_type_is_that_of_the_weights_not_of_what_nothing_needs(tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", torch.bfloat16)
    content = clear(tmp_path / "m")
    content["unused"] = torch.zeros(1 << 20).to(torch.float8_e4m3fn)
    put(tmp_path / "m" / "model.safetensors", content)
    assert StreamedLM(tmp_path / "m")._parts.skeleton.model.dtype == torch.bfloat16


def only_a_consolidated_file(folder: Path) -> None:
    put(folder / "consolidated.safetensors", clear(folder))


def only_a_variant(folder: Path) -> None:
    put(folder / "model.fp16.safetensors", clear(folder))


def one_file_of_any_name(folder: Path) -> None:
    put(folder / "weights.safetensors", clear(folder))


def an_index_of_a_file_that_is_gone(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def a_name_in_the_configuration_that_is_gone(folder: Path) -> None:
    change(folder / "config.json", lambda said: said.update(transformers_weights="gone.safetensors"))


def a_name_in_the_configuration_that_leads_out(folder: Path) -> None:
    (folder / INDEX).rename(folder.parent / INDEX)
    change(folder / "config.json", lambda said: said.update(transformers_weights=f"../{INDEX}"))


REFUSED = {
    only_a_consolidated_file: r"\(consolidated\.safetensors\) and no model\.safetensors",
    only_a_variant: r"\(model\.fp16\.safetensors\) and no model\.safetensors",
    one_file_of_any_name: r"\(weights\.safetensors\) and no model\.safetensors",
    an_index_of_a_file_that_is_gone: "which is not there",
    a_name_in_the_configuration_that_is_gone: "names gone.safetensors as transformers_weights, which is not there",
    a_name_in_the_configuration_that_leads_out: "as transformers_weights, which is no safetensors file beside it",
}


@pytest.mark.parametrize("layout", REFUSED, ids=lambda layout: layout.__name__)
def test_a_folder_that_transformers_refuses_is_refused(layout: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", torch.float32)
    layout(tmp_path / "m")
    with pytest.raises((FileNotFoundError, DamagedCheckpoint), match=REFUSED[layout]):
        StreamedLM(tmp_path / "m")
    with pytest.raises((OSError, ValueError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", local_files_only=True)


def test_a_distributed_checkpoint_that_transformers_would_read_first_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "llama", torch.float32)
    put(tmp_path / "shard-00000-model-00001-of-00001.safetensors", tensors(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds a distributed checkpoint"):
        StreamedLM(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_a_parameter_of_a_type_that_is_not_computed_with_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path, "llama", torch.float32)
    content = clear(tmp_path)
    content[QUERY] = content[QUERY].to(dtype)
    put(tmp_path / "model.safetensors", content)
    with pytest.raises(CannotStream, match=rf"{QUERY} is stored as (I8|U16|F8_E4M3|C64), and weights"):
        StreamedLM(tmp_path)


def test_an_index_that_promises_what_its_file_lacks_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, "llama", torch.float32)
    file = next(path for path in tmp_path.glob("*.safetensors") if QUERY in load_file(path))
    put(file, {name: tensor for name, tensor in load_file(file).items() if name != QUERY})
    assert open_checkpoint(tmp_path).absent == {QUERY: file.name}
    with pytest.raises(DamagedCheckpoint, match=f"says that {file.name} holds {QUERY}, which that file does not"):
        StreamedLM(tmp_path)


def test_a_quantized_checkpoint_is_refused_by_the_name_of_its_method(tmp_path: Path) -> None:
    save(tmp_path, "llama", torch.float32)
    change(tmp_path / "config.json", lambda said: said.update(quantization_config={"quant_method": "mxfp4"}))
    with pytest.raises(CannotStream, match=r"is quantized \(mxfp4\)"):
        StreamedLM(tmp_path)


def test_adapters_that_transformers_would_load_with_the_model_are_not_left_out(tmp_path: Path) -> None:
    lora = config(save(tmp_path / "m", "llama", torch.float32), [0, 5])
    own = streamed(tmp_path / "m", lora)
    own.save_adapter(tmp_path / "m")
    with pytest.raises(CannotStream, match=r"holds adapters \(adapter_config\.json\), which transformers loads"):
        StreamedLM(tmp_path / "m")
    again = StreamedLM(tmp_path / "m", adapter=tmp_path / "m", micro_batch=2)
    assert again.gradients(batch())[0] == own.gradients(batch())[0]
