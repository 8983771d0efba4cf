"""What a pretrained model is, tokenizer included: told without fetching it and, where it is pinned, without reading it.

Evidence names its data by these revisions (`labkit.cell.data`), so that it can be judged and shown where the
weights are not.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from labkit.base.files import sha256_of
from labkit.models.pins import CONVERSION, PACKED
from labkit.models.tiny import TINY

FOLDER_VARIABLE = "LABKIT_MODELS"
"""Variable that names a folder with one sub-folder per model name, looked at first."""
FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*")
FILES += ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""What of a folder, or of a repository on the hub, makes a model."""


def revision(name_or_folder: str | Path) -> str:
    """Tell what a model is.

    Args:
        name_or_folder: as for `labkit.models.load`.

    Returns:
        for a pinned model its sha256 and the version of its conversion, for one made on the spot the sha256 of its
        recipe, else that of the files in its folder.

    Raises:
        MissingWeights: a model of the hub is not here.
        ValueError: no such model.
    """
    name = str(name_or_folder)
    if own := own_folder(name):
        return _of_folder(own)
    if name in TINY:
        return f"recipe {TINY[name].digest()}"
    if name in PACKED:
        return f"conversion {CONVERSION} of {PACKED[name].sha256}"
    from labkit.models.weights import located

    return _of_folder(located(name, fetch=False))


def own_folder(name: str) -> Path | None:
    """Return the user's own folder of a model, if LABKIT_MODELS holds one.

    Raises:
        ValueError: LABKIT_MODELS names no folder.
    """
    if not (named := os.environ.get(FOLDER_VARIABLE)):
        return None
    if not Path(named).is_dir():
        raise ValueError(f"{FOLDER_VARIABLE} is {named!r}, which is no folder; correct it or unset it")
    folder = Path(named) / name
    return folder if Path(name).name == name and folder.is_dir() else None


def _of_folder(folder: Path) -> str:
    files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    return _of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.cache
def _of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the sha256 over names and contents; files that look as they did are not read again."""
    listing = "".join(f"{sha256_of(path)}  {path.name}\n" for path, _, _ in files)
    return hashlib.sha256(listing.encode()).hexdigest()
