"""Write files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(ValueError):
    """A result could not be written because the disk, quota or file-size limit is exhausted."""


class MissingData(ValueError):
    """Text or weights are neither here nor to be fetched; the message says what to run or which file to place where."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or the old one, and a full disk leaves the old one untouched.

    Raises:
        DiskFull: no room; the message names the file and its size.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"{path}: no room for {len(data)} bytes ({error.strerror}); free some space or set LABKIT_OUTPUT to "
            "another disk, then rerun: what was finished is kept"
        ) from error


@contextmanager
def disk_errors(path: Path, variable: str = "LABKIT_OUTPUT") -> Iterator[None]:
    """Turn a full disk inside the block into `DiskFull`, for writers that are not ours; `variable` moves the path.

    Raises:
        DiskFull: no room at `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        remedy = f"free some space or set {variable} to another disk"
        raise DiskFull(f"{path}: no room ({error.strerror}); {remedy}") from error
