"""Saving: finished cells of a run are packed as far as they stand, and code that nobody signed is refused.

The cells are committed ones of profile `cpu`, laid into the folder of a run as that run leaves them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from labkit.base import paths
from labkit.workflow import evidence, params
from labkit.workflow.cells import store_of
from labkit.workflow.store import ARCHIVE, read_archive

REPOSITORY = paths.root()
RECORDS = read_archive(REPOSITORY / "figures" / "cpu" / "scaling_grid" / ARCHIVE)


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    """A clone that has parameters, the lock and no committed cells."""
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    for name in ("evidence.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    return params.resolve("scaling_grid", "cpu")


def finished(*records):
    store = store_of("cpu", "scaling_grid")
    for record in records:
        store.save(record)


def test_an_incomplete_run_is_packed_and_goes_on_where_its_folder_is_gone(resolved):
    finished(*RECORDS[:5])
    path, n = evidence.save(resolved)
    assert (n, {one.key for one in read_archive(path)}) == (5, {one.key for one in RECORDS[:5]})
    shutil.rmtree(paths.runs("cpu", "scaling_grid"))
    state = evidence.look(resolved)
    assert 0 < state.n_present <= 5
    first = path.read_bytes()
    finished(*RECORDS[5:7])
    assert evidence.save(resolved)[1] == 7, "what was packed before stays"
    shutil.rmtree(paths.runs("cpu", "scaling_grid"))
    path.write_bytes(first)
    assert evidence.save(resolved)[1] == 5


def test_cells_of_another_version_or_other_data_are_left_out(resolved):
    other_version = replace(RECORDS[1], identity=RECORDS[1].identity | {"version": 0})
    other_data = replace(RECORDS[2], identity=RECORDS[2].identity | {"data": {"corpus wiki-sample": "another"}})
    finished(RECORDS[0], other_version, other_data)
    path, n = evidence.save(resolved)
    assert (n, read_archive(path)) == (1, [RECORDS[0]])


def test_code_that_nobody_signed_is_refused_by_name_and_nothing_is_written(resolved):
    finished(RECORDS[0], replace(RECORDS[1], provenance=RECORDS[1].provenance | {"code": "0" * 64}))
    with pytest.raises(ValueError, match=r"a cell of scaling\.\w+ was computed by code that is not signed"):
        evidence.save(resolved)
    assert not (paths.figures("cpu", "scaling_grid") / ARCHIVE).exists()


def test_what_no_commit_holds_is_refused(resolved):
    git = RECORDS[1].provenance["git"] | {"dirty": True}
    finished(RECORDS[0], replace(RECORDS[1], provenance=RECORDS[1].provenance | {"git": git}))
    with pytest.raises(ValueError, match=r"a cell of scaling\.\w+ was computed with changes that no commit holds"):
        evidence.save(resolved)
    assert not (paths.figures("cpu", "scaling_grid") / ARCHIVE).exists()


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob(f"figures/*/*/{ARCHIVE}")), ids=lambda path: path.parent.name)
def test_every_committed_cell_was_computed_from_a_commit(path):
    assert {record.provenance["git"]["dirty"] for record in read_archive(path)} == {False}


def test_nothing_to_pack_is_said(resolved):
    with pytest.raises(ValueError, match="no finished cell of scaling_grid on cpu is here"):
        evidence.save(resolved)
