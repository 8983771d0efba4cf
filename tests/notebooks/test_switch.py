"""Another profile is chosen in an open notebook, and the cells below are run: they show that profile and no other.

Each of our notebooks in a real kernel, from committed cells; the reference are the files published for that profile.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from notebook_tools import code_cell, read

from labkit.base import paths
from labkit.base.modes import RENDER
from labkit.workflow import kernels

CHOSEN = "cpu"


def switched(report: str) -> nbformat.NotebookNode:
    """Return a notebook with a choice made below its control; its parameters cell stays as it is."""
    notebook = read(paths.notebook(report))
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "profile")
    notebook.cells.insert(at + 1, code_cell(f"_.choice.value = {CHOSEN!r}"))
    return notebook


@pytest.mark.parametrize("report", paths.reports())
def test_a_chosen_profile_is_the_one_that_is_shown(
    report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = paths.root() / "figures" / CHOSEN
    shutil.copytree(published, tmp_path / "figures" / CHOSEN)
    for name, value in (kernels.ENVIRONMENT | {RENDER: "1", "LABKIT_OUTPUT": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    NotebookClient(switched(report), kernel_name="python3", timeout=300, resources=_here()).execute()
    shown = paths.staging(CHOSEN, report)
    names = sorted(path.name for path in (published / report).iterdir() if path.suffix in (".csv", ".json"))
    compared = [name for name in names if name != "run.json"]
    assert {"claims.csv", "claims.json"} & set(compared)
    same, different, missing = filecmp.cmpfiles(published / report, shown, compared, shallow=False)
    assert (different, missing) == ([], [])
    assert len(same) == len(compared)


def _here() -> dict[str, dict[str, str]]:
    return {"metadata": {"path": str(paths.root() / "notebooks")}}
