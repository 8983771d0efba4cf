"""Every notebook, run by nbval exactly as it is stored, and compared with the outputs that it keeps.

The reference is each notebook's own kept output: numbers that follow from arithmetic alone and are equal on every
machine. Parameters are those of the notebook, which are the smoke profile's.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from notebook_tools import KEPT, NOTEBOOKS, Checked, code_cells, finish, read, start_nbval, tags, together

from labkit.base import paths
from labkit.workflow import params

pytestmark = pytest.mark.timeout(1_800)
"""Without a browser nothing has run the notebooks before; of one half, two have taken 376 and 163 s on a Xeon."""


@pytest.fixture(scope="module")
def checked(ci_output: Path) -> Checked:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUTPUT", str(ci_output))
        halves = [start_nbval(NOTEBOOKS[i::2], paths.root(), "--nbval-lax") for i in range(2)]
    return together([finish(half) for half in halves])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_every_kept_output_comes_out_again(path: Path, checked: Checked) -> None:
    assert checked.of(path.name) == ["PASSED"] * len(code_cells(read(path))), checked.text


@pytest.mark.parametrize("report", paths.reports())
def test_a_notebook_run_by_hand_writes_all_it_declares_to_its_draft(
    report: str, checked: Checked, ci_output: Path
) -> None:
    draft = ci_output / "runs" / "ci" / report / "draft"
    assert checked.exit_code == 0, checked.text
    assert set(params.declared_outputs(report)) <= {path.name for path in draft.iterdir()}
    assert not (ci_output / "figures").exists(), "only `labkit run` publishes"


def test_a_wrong_kept_output_is_found(tmp_path: Path) -> None:
    """The checked cells of all notebooks alone, each with one kept digit changed."""
    copies = [copy for path in NOTEBOOKS if (copy := with_wrong_outputs(path, tmp_path))]
    assert copies, "no notebook keeps an output"
    found = finish(start_nbval(copies, tmp_path, "--nbval-lax"))
    for copy in copies:
        expected = ["FAILED" if "nbval-check-output" in tags(cell) else "PASSED" for cell in code_cells(read(copy))]
        assert found.of(copy.name) == expected, found.text
    assert "Cell execution caused an exception" not in found.text
    assert "Cell outputs differ" in found.text


def with_wrong_outputs(path: Path, folder: Path) -> Path | None:
    notebook = read(path)
    needed = {"parameters", *KEPT}
    notebook.cells = [cell for cell in notebook.cells if needed & set(tags(cell)) or cell.id == "profile"]
    for cell in notebook.cells:
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), output.text, count=1)
    nbformat.write(notebook, folder / path.name)
    return folder / path.name if any(set(KEPT) & set(tags(cell)) for cell in notebook.cells) else None
