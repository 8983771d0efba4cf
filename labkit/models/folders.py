"""A model folder as save_pretrained writes it: what it holds, what is wrong with it, and the hash of its bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from labkit.base.files import MissingData, read_json, sha256_of

INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class MissingWeights(MissingData):
    """A model's weights are neither here nor to be fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Which bytes a model was made from; part of every record."""

    name: str
    """Model name, or the folder's name."""
    source: str
    """Where they came from, for people."""
    licence: str
    """Terms of use."""
    sha256: str
    """SHA-256 of the one file; of several, that of their `sha256sum` listing, sorted by name."""
    n_bytes: int
    """Bytes of those files."""
    format: str
    """How they were stored: GGUF with its quantization, or safetensors."""

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON."""
        return dataclasses.asdict(self)


def weights_file(folder: Path) -> Path | None:
    """Return the file that transformers loads a folder from, one of weights or an index of several; None without one.

    A name in config.json comes first, then model.safetensors, then the index; whatever else lies there is left alone.

    Raises:
        ValueError: config.json is damaged, or names a file outside the folder or of another kind.
    """
    if (named := _named_weights(folder / "config.json")) is not None:
        return folder / named
    return next((folder / name for name in (_WEIGHTS, INDEX) if (folder / name).is_file()), None)


def _named_weights(config: Path) -> str | None:
    named = read_json(config, remedy="fetch it again").get("transformers_weights") if config.is_file() else None
    if named is None:
        return None
    inside = isinstance(named, str) and not Path(named).is_absolute() and ".." not in Path(named).parts
    if not inside or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"{config} names {named!r} as transformers_weights, which is no safetensors file beside it")
    if not (config.parent / named).is_file():
        raise ValueError(f"{config} names {named} as transformers_weights, which is not there; fetch it again")
    return named


def distributed_shards(folder: Path) -> list[Path]:
    """Return the files of a distributed checkpoint, which transformers reads before anything else in a folder."""
    return sorted(path for path in folder.glob("shard-*.safetensors") if _DISTRIBUTED.fullmatch(path.name))


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads of a folder; some that an index names may be missing.

    Raises:
        ValueError: config.json or the index is damaged.
    """
    file = weights_file(folder)
    if file is None or file.suffix != ".json":
        return [] if file is None else [file]
    listed = read_json(file, remedy="fetch it again").get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{file} is damaged: its weight_map does not map names to files; fetch it again")
    return [folder / name for name in sorted(set(listed.values()))]


def check_folder(folder: Path, remedy: str) -> list[Path]:
    """Return a folder's files of weights; each must open, which holds its header against its length.

    Raises:
        MissingWeights: it lacks the configuration, the tokenizer or a file of weights.
        ValueError: a file is damaged. Both name the file; what they say of weights ends with `remedy`.
    """
    if found := distributed_shards(folder):
        raise ValueError(f"{folder} holds a distributed checkpoint ({found[0].name}), which is not read here; {remedy}")
    files = weight_files(folder)
    names = {path.name for path in folder.iterdir()}
    lacking = [] if "config.json" in names else ["config.json"]
    lacking += [] if names.intersection(_TOKENIZERS) else ["tokenizer.json"]
    lacking += [path.name for path in files if not path.is_file()] or ([] if files else [_WEIGHTS])
    if lacking:
        raise MissingWeights(f"{folder} holds no {', '.join(lacking)}; {remedy}")
    for path in files:
        _tensor_sizes(path, remedy)
    return files


def _tensor_sizes(path: Path, remedy: str = "fetch it again") -> list[int]:
    try:
        with safe_open(path, "pt") as file:
            return [torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from None


def count_values(files: list[Path]) -> int:
    """Count the numbers in safetensors files, from their headers alone."""
    return sum(sum(_tensor_sizes(path)) for path in files)


def hashes(files: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name; large files are read side by side."""
    with ThreadPoolExecutor() as pool:
        return dict(zip((path.name for path in files), pool.map(sha256_of, files), strict=True))


def combined_hash(digests: dict[str, str]) -> str:
    """Return one hash for a set of files: that of the only one, or of `sha256sum *` over several."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leave transformers' progress bars and hints out of a notebook; errors still come through."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
