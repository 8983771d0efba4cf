"""Rendering: published profiles come out of their committed cells again, byte for byte, and train nothing.

The references are the committed tables and verdicts; the machine that renders is another one than that which measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from labkit import cli, freshness, paths
from labkit.workflow import notebook
from labkit.workflow.store import ARCHIVE, read_archive, write_archive

REPOSITORY = paths.root()
FIGURES = REPOSITORY / "figures"
PUBLISHED = sorted(path.parent.relative_to(FIGURES) for path in FIGURES.glob(f"*/*/{ARCHIVE}"))
HELD = (".csv", "results.json", "claims.json", ARCHIVE)
"""Files that come out the same on every machine."""


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.endswith(HELD)}


def set_up(folder: Path) -> list[str]:
    """Tell make to use the environment that runs the tests, and that it needs no setting up."""
    (folder / "ready").touch()
    return [f"VENV={sys.prefix}", f"READY={folder / 'ready'}"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder into which make has rendered every published profile, with no text, no weights and no network."""
    folder = tmp_path_factory.mktemp("rendered")
    own = os.environ | {"LABKIT_OUTPUT": str(folder), "LABKIT_CACHE": str(folder / "empty"), "PIP_NO_INDEX": "1"}
    for profile in sorted({str(path.parent) for path in PUBLISHED}):
        command = ["make", "render", f"HW={profile}", *set_up(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_report_of_the_profile_for_any_laptop_is_published_with_cells():
    reports = ("size_inertia", "chunked_offload", "predict_phase", "scaling_grid")
    assert {str(path) for path in PUBLISHED} >= {f"cpu/{report}" for report in reports}


@pytest.mark.parametrize("published", PUBLISHED, ids=str)
def test_tables_results_and_verdicts_come_out_byte_for_byte(rendered, published):
    expected, found = held(FIGURES / published), held(rendered / "figures" / published)
    assert found.keys() == expected.keys()
    assert [name for name, content in expected.items() if found[name] != content] == []


@pytest.mark.parametrize("published", PUBLISHED, ids=str)
def test_every_figure_and_the_notebook_are_made_again(rendered, published):
    folder = rendered / "figures" / published
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100
    written = nbformat.read(folder / notebook.NAME, as_version=4)
    images = [o for cell in written.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) >= len(list(folder.glob("*.png")))


@pytest.mark.parametrize("path", sorted(FIGURES.glob(f"*/*/{notebook.NAME}")), ids=lambda path: path.parent.name)
def test_a_published_notebook_shows_nothing_of_one_machine_and_is_small_enough_to_be_shown(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= notebook.MOST_BYTES
    assert str(Path.home()) not in text
    written = nbformat.read(path, as_version=4)
    outputs = [output for cell in written.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "widget" not in str([list(output.get("data", {})) for output in outputs])


def test_what_is_only_shown_is_up_to_date_and_still_to_be_run_here(rendered, monkeypatch):
    monkeypatch.setenv("LABKIT_OUTPUT", str(rendered))
    said = dict(freshness.states("cpu"))
    assert {said[published.name] for published in PUBLISHED if published.parent.name == "cpu"} == {"up to date"}
    for published in PUBLISHED:
        assert not freshness.was_run_here(published.name, published.parent.name)


def test_a_missing_cell_is_listed_and_nothing_published_changes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    for folder in ("params", "notebooks"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    own = Path("figures", "cpu", "scaling_grid")
    shutil.copytree(REPOSITORY / own, tmp_path / own)
    records = read_archive(tmp_path / own / ARCHIVE)
    write_archive(tmp_path / own / ARCHIVE, [one for one in records if one.identity["cell"] != "scaling.baselines"])
    before = {path.name: path.read_bytes() for path in (tmp_path / own).iterdir()}
    monkeypatch.setattr(sys, "argv", ["labkit", "render", "scaling_grid", "--hw", "cpu"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "labkit: scaling_grid on cpu: 1 cells are not on record; `labkit run scaling_grid --hw cpu`"
    )
    assert "scaling.baselines: " in error
    assert {path.name: path.read_bytes() for path in (tmp_path / own).iterdir()} == before


def test_a_profile_without_cells_is_told_which_have_some(tmp_path):
    done = subprocess.run(
        ["make", "render", "HW=h100", *set_up(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no cells are committed for h100; those with some: cpu" in done.stdout
