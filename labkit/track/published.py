"""What a published folder holds for a tracker: its pictures with their captions, and the numbers of results.json."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from PIL import Image

from labkit.base.files import read_json
from labkit.track import private


def pictures(folder: Path) -> Iterator[tuple[str, Image.Image, str]]:
    """Yield each picture with its name and caption; of what else is in its file nothing goes along."""
    for path in sorted(folder.glob("**/*.png")):
        with Image.open(path) as image:
            caption = private.text(image.info.get("Title", ""))
            bare = Image.frombytes(image.mode, image.size, image.tobytes())
        yield path.relative_to(folder).with_suffix("").as_posix(), bare, caption


def numbers(folder: Path) -> dict[str, float]:
    """Return what was measured, by key; none where the folder has no results.json."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    found = read_json(path, "results")["results"]
    values = {private.text(key): _value(own) for key, own in found.items()}
    return {key: float(value) for key, value in values.items() if isinstance(value, Real)}


def _value(own: Any) -> Any:
    return own.get("value") if isinstance(own, dict) else own
