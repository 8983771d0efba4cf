"""wikitext-2 (Merity et al. 2016) from a local folder in any of its usual layouts, or from the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub
import pyarrow.parquet as parquet
from huggingface_hub.errors import HfHubHTTPError

from .base import SPLITS, MissingData

REPOSITORY = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
"""Commit of the hub repository the files are taken from."""
FOLDER_VARIABLE = "LABKIT_WIKITEXT2"

_SHORT = {"train": "train", "validation": "valid", "test": "test"}
_LAYOUTS = ("wiki.{short}.raw", "wiki.{short}.tokens", "{split}.txt", "{split}-00000-of-00001.parquet")
_SOURCE = "WikiText-2, Merity et al. 2016 (arXiv:1609.07843), text of English Wikipedia, CC BY-SA; from {place}"
_TITLE = re.compile(r"^= (?!=).* =$")


def read(folder: Path | None, _cache: Path) -> tuple[str, dict[str, tuple[str, ...]], str]:
    """Read wikitext-2 from `folder`, else from the folder named in LABKIT_WIKITEXT2, else from the hub.

    Every layout gives the same text: blank lines and blanks around a line are left out. The closed-vocabulary text
    (with `<unk>`) gets the name `wikitext-2-unk`, so that its scores never compare with those of the raw text.

    Returns:
        name, documents by split, source.

    Raises:
        MissingData: a split is not in the folder, or the hub cannot be reached.
    """
    named = folder or os.environ.get(FOLDER_VARIABLE)
    files = _folder_files(Path(named)) if named else _hub_files()
    splits = {split: articles(_read(path)) for split, path in files.items()}
    closed = any("<unk>" in document for documents in splits.values() for document in documents)
    place = "a local folder" if named else f"{REPOSITORY} at {REVISION[:8]}"
    return "wikitext-2-unk" if closed else "wikitext-2", splits, _SOURCE.format(place=place)


def articles(text: str) -> tuple[str, ...]:
    """Cut a split into articles at its titles ` = Title = `; ` = = Section = = ` stays inside.

    A title follows a blank line, which some copies render as a wider indent; a line of a formula that looks like a
    title (` = 1 rad / s = `) does not.
    """
    documents: list[list[str]] = []
    after_blank = True
    for line in text.split("\n"):
        words = line.strip()
        after_blank = after_blank or line.startswith("  ")
        if words and (not documents or (after_blank and _TITLE.match(words))):
            documents.append([])
        if words:
            documents[-1].append(words)
        after_blank = not words
    return tuple("\n".join(lines) + "\n" for lines in documents)


def _read(path: Path) -> str:
    if path.suffix != ".parquet":
        return path.read_text(encoding="utf-8")
    rows = parquet.read_table(path, columns=["text"])["text"].to_pylist()
    return "\n".join(row.removesuffix("\n") for row in rows)


def _folder_files(folder: Path) -> dict[str, Path]:
    candidates = {
        layout: {split: folder / layout.format(split=split, short=_SHORT[split]) for split in SPLITS}
        for layout in _LAYOUTS
    }
    files = max(candidates.values(), key=lambda paths: sum(path.exists() for path in paths.values()))
    for split, path in files.items():
        if not path.exists():
            raise MissingData(_advice(split, f"{folder} holds no {path.name}"))
    return files


def _hub_files() -> dict[str, Path]:
    return {split: _hub_file(split) for split in SPLITS}


def _hub_file(split: str) -> Path:
    name = f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
    try:
        return Path(huggingface_hub.hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=REVISION))
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingData(_advice(split, f"the hub did not give {REPOSITORY} {name}: {reason}")) from error


def _advice(split: str, problem: str) -> str:
    forms = ", ".join(layout.format(split=split, short=_SHORT[split]) for layout in _LAYOUTS)
    return (
        f"wikitext-2 has no {split} split: {problem}\n"
        f"Either name a folder that holds it (as one of {forms}) in {FOLDER_VARIABLE} or as folder=,\n"
        f"or connect to the hub once: hf download {REPOSITORY} --repo-type dataset --revision {REVISION} "
        "--include 'wikitext-2-raw-v1/*'"
    )
