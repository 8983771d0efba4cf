"""A file that is replaced by whatever writes it, checked against what stands on the disk afterwards."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from labkit.base import files


def test_a_file_is_replaced_when_its_writer_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.bin"
    for content in (b"first", b"second"):
        with files.replacing(path) as aside:
            aside.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b"first", "nobody sees half of the second"
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in path.parent.iterdir()] == ["state.bin"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "state.bin"
    files.write_atomically(path, b"old")
    with contextlib.suppress(KeyError), files.replacing(path) as aside:
        aside.write_bytes(b"half of the n")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state.bin"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "no JSON in UTF-8"),
        (b"", "no JSON in UTF-8"),
        (b"\xff\xfe", "no JSON in UTF-8"),
        (b"[1]", "it holds a list and no object"),
        (b'{"b": 1}', "it lacks a"),
    ],
)
def test_damaged_json_names_its_file_and_the_remedy(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged: {problem}.*; delete it"):
        files.read_json(path, "a", remedy="delete it")
    path.write_text('{"a": [1]}')
    assert files.read_json(path, "a") == {"a": [1]}
