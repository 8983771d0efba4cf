"""Rendering: published profiles come out of their committed cells again, byte for byte, and train nothing.

The references are the committed tables and verdicts; the machine that renders is another one than that which measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from labkit import cli
from labkit.base import paths
from labkit.workflow import freshness, notebook
from labkit.workflow import run as runner
from labkit.workflow.store import ARCHIVE, read_archive, write_archive

REPOSITORY = paths.root()
FIGURES = REPOSITORY / "figures"
PUBLISHED = sorted(
    path.parent.relative_to(FIGURES)
    for path in FIGURES.glob("*/*/results.json")
    if "evidence" in json.loads(path.read_text())
)
"""What was recorded with its cells; cells beside an older record, or alone, are those of a run that goes on."""
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


@pytest.fixture
def before_cells(tmp_path, monkeypatch):
    """What was recorded before cells were kept, alone in a folder that labkit takes for its output."""
    for record in FIGURES.glob("*/*/results.json"):
        if "evidence" not in json.loads(record.read_text()):
            shutil.copytree(record.parent, tmp_path / record.parent.relative_to(REPOSITORY))
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_recorded_before_cells_were_kept_is_judged_again_and_nothing_else_changes(before_cells):
    committed = contents(before_cells / "figures")
    own = before_cells / "figures" / "cpu-24gb" / "chunked_offload"
    verdicts = json.loads((own / "claims.json").read_text())
    (own / "claims.json").write_text(json.dumps([row | {"verdict": "reproduced"} for row in verdicts]))
    said = []
    assert runner.render("chunked_offload", "cpu-24gb", said.append) == own
    assert said == [
        f"judged {own} again; it was recorded before cells were kept, so that nothing else in it can be made again"
    ]
    assert contents(before_cells / "figures") == committed


def test_another_result_changes_the_verdict_when_it_is_judged_again(before_cells):
    own = before_cells / "figures" / "cpu-24gb" / "chunked_offload"
    document = json.loads((own / "results.json").read_text())
    document["results"]["speedup/batch_32"] |= {"ci": [4.7, 6.9], "value": 5.8}
    (own / "results.json").write_text(json.dumps(document))
    runner.render("chunked_offload", "cpu-24gb", print)
    rows = {row["claim"]: row["verdict"] for row in json.loads((own / "claims.json").read_text())}
    assert rows["offload.speedup.least"] == "contradicted"


def test_make_render_judges_a_whole_profile_that_has_no_cells(before_cells):
    committed = contents(before_cells / "figures")
    for path in before_cells.glob("figures/cpu-24gb/*/claims.json"):
        path.unlink()
    command = ["make", "render", "HW=cpu-24gb", *set_up(before_cells)]
    done = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(before_cells / "figures") == committed


def test_a_profile_with_nothing_on_record_is_told_which_have_something(tmp_path):
    done = subprocess.run(
        ["make", "render", "HW=h100", *set_up(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nothing is on record for h100; profiles with something: cpu" in done.stdout
