"""Publish a folder in one step: what was there stays until the new one stands, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """Have a fresh folder beside the published ones, removed whatever happens."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _recover(final)
    folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.new."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _recover(final: Path) -> None:
    """Clean up after a run that was killed: half-made folders go, figures caught between two renames come back."""
    for left in final.parent.glob(f".{final.name}.new.*"):
        shutil.rmtree(left)
    old = _set_aside(final)
    if old.exists() and final.exists():
        shutil.rmtree(old)
    elif old.exists():
        os.rename(old, final)


def swap_in(folder: Path, final: Path) -> Path:
    """Swap a new folder in; the old one is gone only once the new one stands."""
    os.chmod(folder, 0o755)
    if final.exists():
        os.rename(final, _set_aside(final))
    os.rename(folder, final)
    shutil.rmtree(_set_aside(final), ignore_errors=True)
    return final


def _set_aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")
