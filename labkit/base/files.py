"""Write files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(ValueError):
    """A result could not be written because the disk, quota or file-size limit is exhausted."""


class MissingData(ValueError):
    """Text or weights are neither here nor to be fetched; the message says what to run or which file to place where."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read block by block."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *keys: str, remedy: str = "make it again, or delete it") -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file.
        keys: names that the object must have.
        remedy: what to do about a damaged one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged; the message names it, says how and what to do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: no JSON in UTF-8 ({error}); {remedy}") from error
    lacking = [key for key in keys if key not in found] if isinstance(found, dict) else []
    if lacking or not isinstance(found, dict):
        problem = f"lacks {', '.join(lacking)}" if lacking else f"holds a {type(found).__name__} and no object"
        raise ValueError(f"{path} is damaged: it {problem}; {remedy}")
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or the old one, and a full disk leaves the old one untouched.

    Raises:
        DiskFull: no room; the message names the file and its size.
    """
    with replacing(path, n_bytes=len(data)) as aside:
        aside.write_bytes(data)


@contextmanager
def replacing(path: Path, *, n_bytes: int | None = None) -> Iterator[Path]:
    """Yield a file to write by whatever means; it takes the place of `path` when the block ends without an error.

    Args:
        path: the file to replace; its folder is made.
        n_bytes: size of what is written, where it is known, for the message.

    Raises:
        DiskFull: no room; the old file is as it was.
    """
    with disk_errors(path, n_bytes=n_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.chmod(0o644)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path, variable: str = "LABKIT_OUTPUT", *, n_bytes: int | None = None) -> Iterator[None]:
    """Turn a full disk inside the block into `DiskFull`, for writers that are not ours; `variable` moves the path.

    Raises:
        DiskFull: no room at `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        size = "" if n_bytes is None else f" for {n_bytes} bytes"
        again = "" if n_bytes is None else ", then rerun: what was finished is kept"
        remedy = f"free some space or set {variable} to another disk{again}"
        raise DiskFull(f"{path}: no room{size} ({error.strerror}); {remedy}") from error
