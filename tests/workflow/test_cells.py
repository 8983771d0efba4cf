"""Cells: equal specs, data and environments are one cell; whatever damages, kills or moves a record, nothing is lost.

Checked against the files themselves, which are truncated, altered, written by killed processes and moved between
machines; keys are compared with sha256 sums computed here.
"""

from __future__ import annotations

import json
import lzma
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import pytest
from small_sums import Sum

from labkit.base import paths
from labkit.cell import environment
from labkit.workflow import cells as walks
from labkit.workflow.cells import Cells, MissingCells
from labkit.workflow.store import ARCHIVE, Record, Store, read_archive, write_archive


@pytest.fixture
def cells(tmp_path):
    return Cells(Store(tmp_path / "cells"))


def again(own, **changes):
    """Walk once more over the same store."""
    return Cells(Store(own.store.folder, own.store.archives), **changes)


def only_file(own):
    (path,) = own.store.folder.glob("*.json")
    return path


def test_a_cell_is_computed_once_and_read_back_as_it_was_returned(cells, work):
    first = cells.one(work, Sum(), "sum")
    second_walk = again(cells)
    assert second_walk.one(work, Sum(), "sum", do=lambda spec: pytest.fail("computed twice")) == first
    assert first == {"total": 3.0, "terms": [1.0, 2.0], "seconds": 0.5}
    assert (cells.cached, second_walk.cached) == (0, 1)


def test_what_names_a_cell_for_people_is_not_in_its_key_and_all_else_is(cells, work):
    cells.one(work, Sum(), "sum")
    assert again(cells).load(work, Sum(name="another name"), "sum") is not None
    for change in ({"terms": (1.0, 2.0000001)}, {"fails": "later"}):
        assert again(cells).load(work, replace(Sum(), **change), "sum") is None


@pytest.mark.parametrize("part", ["version", "_data", "_packages"])
def test_another_version_data_or_package_is_another_cell(cells, work, part, monkeypatch):
    cells.one(work, Sum(), "sum")
    other = {"version": 2, "_data": lambda spec: {"corpus made-up": "r2"}, "_packages": ("pandas",)}
    monkeypatch.setattr(work, part, other[part])
    assert again(cells).load(work, Sum(), "sum") is None


def test_a_record_says_where_it_comes_from(cells, work):
    cells.one(work, Sum(), "sum")
    (record,) = cells.used.values()
    assert set(record.provenance) == {"git", "versions", "machine", "lock_sha256", "finished", "seconds", "code"}
    assert record.environment["instruction_set"] == environment.instruction_set()
    assert "machine" not in record.environment, "no time is what it measures"


def test_a_cell_of_another_instruction_set_is_not_taken_for_ones_own_but_can_be_shown(cells, work, monkeypatch):
    cells.one(work, Sum(), "sum")
    monkeypatch.setattr(environment, "instruction_set", lambda device="cpu": "another one")
    here = again(cells)
    assert here.load(work, Sum(), "sum") is None
    (said,) = here.remarks() or [""]
    assert said == f"1 cells on record were computed elsewhere ({only_environment(cells)}) and run again here"
    assert again(cells, only_recorded=True).load(work, Sum(), "sum")["total"] == 3.0
    here.one(work, Sum(), "sum")
    assert len(list(cells.store.folder.glob("*.json"))) == 2, "neither is overwritten"


def test_a_run_may_go_on_with_cells_of_another_instruction_set_and_says_how_many(cells, work, monkeypatch):
    cells.one(work, Sum(), "sum")
    monkeypatch.setattr(environment, "instruction_set", lambda device="cpu": "another one")
    here = again(cells, anywhere=True)
    assert here.load(work, Sum(), "sum")["total"] == 3.0
    assert here.remarks()[1:] == [f"1 of them were computed elsewhere ({only_environment(cells)})"]
    monkeypatch.setattr(work, "_packages", ("pandas",))
    assert again(cells, anywhere=True).load(work, Sum(), "sum") is None, "other packages are another result"


def test_a_time_of_another_machine_is_taken_only_by_who_takes_no_time_of_it(cells, work, monkeypatch):
    monkeypatch.setattr(work, "timed", True)
    cells.one(work, Sum(), "sum")
    monkeypatch.setattr(environment, "machine_kind", lambda: "another one")
    assert again(cells, anywhere=True).load(work, Sum(), "sum") is None
    assert again(cells, anywhere=True, untimed=frozenset({work.name})).load(work, Sum(), "sum")["total"] == 3.0
    assert again(cells, untimed=frozenset({work.name})).load(work, Sum(), "sum") is None, "unless asked, it runs here"


def only_environment(own):
    (record,) = own.used.values()
    return record.environment["instruction_set"]


def test_what_onednn_is_held_to_is_part_of_the_instruction_set(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    held = environment.instruction_set()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert environment.instruction_set() != held
    assert environment.instruction_set().endswith("oneDNN SSE41")


@pytest.mark.parametrize("kind", ["mathematics", "machine"])
def test_what_the_machine_or_mathematics_kills_is_listed_kept_for_rendering_and_tried_again(cells, work, kind):
    spec = Sum(fails=kind)
    assert cells.one(work, spec, "sum") is None
    assert "no sum" in cells.failures["sum"]
    shown = again(cells, only_recorded=True)
    assert (shown.load(work, spec, "sum"), shown.failures) == (None, cells.failures)
    healed = again(cells)
    assert healed.one(work, spec, "sum", do=lambda spec: {"total": 1.0}) == {"total": 1.0}
    assert again(cells, only_recorded=True).load(work, spec, "sum") == {"total": 1.0}


def test_bad_input_is_raised(cells, work):
    with pytest.raises(ValueError, match="no sum"):
        cells.one(work, Sum(fails="input"), "sum")


def test_a_pool_gives_what_one_process_gives(cells, work):
    specs = {Sum(terms=(float(n),)): f"sum {n}" for n in range(4)}
    with ThreadPoolExecutor(2) as pool:
        found = {spec: result for spec, result, _ in cells.each(work, specs, pool)}
        once_more = [new for _, _, new in again(cells).each(work, specs, pool)]
    assert {spec: result["total"] for spec, result in found.items()} == {spec: spec.terms[0] for spec in specs}
    assert once_more == [False] * 4


def test_a_cell_function_travels_to_a_worker_by_name(work):
    assert ForkingPickler.loads(ForkingPickler.dumps(work)) is work


def test_rendering_lists_every_missing_cell(cells, work):
    cells.one(work, Sum(), "the sum that is there")
    shown = again(cells, only_recorded=True)
    for n in range(3):
        shown.one(work, Sum(terms=(1.0, float(n))), f"sum {n}", do=lambda spec: pytest.fail("nothing may run"))
    with pytest.raises(MissingCells, match=r"2 cells are not on record:\n  demo.sum: sum 0\n  demo.sum: sum 1$"):
        shown.require()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"total": 3.0', '"total": 4.0'),
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"git"', '"gut"'),
        lambda text: "[]",
        lambda text: "null",
    ],
)
def test_a_damaged_cell_is_set_aside_by_name_and_computed_again(cells, work, damage):
    cells.one(work, Sum(), "sum")
    path = only_file(cells)
    path.write_text(damage(path.read_text()))
    with pytest.warns(
        UserWarning, match=rf"{path} is damaged .* set aside as {path.stem}.corrupt, the cell runs again"
    ):
        assert again(cells).load(work, Sum(), "sum") is None
    assert path.with_suffix(".corrupt").exists()
    assert again(cells).one(work, Sum(), "sum")["total"] == 3.0


def test_a_number_that_json_lacks_is_refused(cells, work):
    with pytest.raises(ValueError, match="JSON"):
        cells.one(work, Sum(), "sum", do=lambda spec: {"total": float("nan")})
    assert not list(cells.store.folder.glob("*"))


def test_an_archive_has_the_same_bytes_whatever_order_cells_ended_in(cells, work, tmp_path):
    for n in (2, 0, 1):
        cells.one(work, Sum(terms=(float(n),)), f"sum {n}")
    records = list(cells.used.values())
    write_archive(tmp_path / "a", records)
    write_archive(tmp_path / "b", reversed(records))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {record.key for record in read_archive(tmp_path / "a")} == {record.key for record in records}


def test_a_cell_in_an_archive_is_found_where_the_folder_has_none(cells, work, tmp_path):
    cells.one(work, Sum(), "sum")
    cells.pack(tmp_path)
    elsewhere = Cells(Store(tmp_path / "empty", (tmp_path / ARCHIVE,)))
    assert elsewhere.load(work, Sum(), "sum")["total"] == 3.0


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-40], lambda b: b"x" + b[1:], lambda b: b"", lambda b: lzma.compress(b"{}")]
)
def test_a_damaged_archive_is_one_clear_line_with_its_remedy(cells, work, tmp_path, damage):
    cells.one(work, Sum(), "sum")
    cells.pack(tmp_path)
    path = tmp_path / ARCHIVE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} is damaged .*`git checkout {path}` .* cells in runs/ are safe"):
        Cells(Store(tmp_path / "empty", (path,))).load(work, Sum(), "sum")


def test_an_edited_number_in_an_archive_does_not_pass(cells, work, tmp_path):
    cells.one(work, Sum(), "sum")
    cells.pack(tmp_path)
    path = tmp_path / ARCHIVE
    text = lzma.decompress(path.read_bytes()).replace(b'"total":3.0', b'"total":2.0')
    path.write_bytes(lzma.compress(text))
    with pytest.raises(ValueError, match="do not match their checksum"):
        read_archive(path)


SAVE = """
import os, signal, sys
from pathlib import Path
from labkit.base import files
from labkit.workflow.store import read_archive, write_archive

target = Path(sys.argv[1])
records = read_archive(target)
replace = os.replace

def die(*names):
    if int(sys.argv[2]):
        replace(*names)
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = die
write_archive(target, records[:1])
"""


@pytest.mark.parametrize("after", [0, 1])
def test_a_kill_while_an_archive_is_written_leaves_the_old_or_the_new_one_whole(cells, work, tmp_path, after):
    for n in range(3):
        cells.one(work, Sum(terms=(float(n),)), f"sum {n}")
    cells.pack(tmp_path)
    killed = subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / ARCHIVE), str(after)])
    assert killed.returncode == -signal.SIGKILL
    assert len(read_archive(tmp_path / ARCHIVE)) == (1 if after else 3)


def test_the_committed_cells_of_a_profile_are_looked_into(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    store = walks.store_of("cpu", "scaling_grid")
    ours = paths.root() / "figures" / "cpu" / "scaling_grid" / ARCHIVE
    assert store.archives == (tmp_path / "figures" / "cpu" / "scaling_grid" / ARCHIVE, ours)


def test_a_record_survives_its_own_json(cells, work):
    cells.one(work, Sum(), "sum")
    (record,) = cells.used.values()
    assert Record.of(json.loads(json.dumps(record.as_dict()))) == record
