"""What git and hashes keep of a notebook: what somebody wrote, whatever JupyterLab saves beside it, with real git."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from labkit.base import paths
from labkit.workflow.sources import after_save, source_hash, stripped, written

REPOSITORY = paths.root()
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def notebook() -> nbformat.NotebookNode:
    kept = v4.new_code_cell("print(2)", id="kept", metadata={"tags": ["keep_output"]}, execution_count=1)
    kept.outputs = [v4.new_output("stream", text="2\n")]
    cells = [v4.new_markdown_cell("# Why?", id="title"), v4.new_code_cell("1 + 1", id="sum"), kept]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def saved_by_jupyterlab(original: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return it as JupyterLab saves it after everything has run."""
    saved = nbformat.from_dict(original)
    saved.metadata |= {"language_info": {"name": "python", "version": "3.11.2"}, "widgets": {"state": {}}}
    saved.cells[1] |= {"execution_count": 4, "outputs": [v4.new_output("execute_result", {"text/plain": "2"})]}
    saved.cells[1].outputs[0].execution_count = 4
    saved.cells[2].execution_count = 5
    return saved


def text(document: nbformat.NotebookNode) -> str:
    return nbformat.writes(document) + "\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one notebook, and the filter as `make setup` sets it."""
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    (root / ".gitattributes").write_text((REPOSITORY / ".gitattributes").read_text())
    (root / "notebooks" / "00_a.ipynb").write_text(text(notebook()))
    command = f"{sys.executable} -m labkit.workflow.sources"
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for given in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *given], cwd=root, check=True)
    subprocess.run(["git", "config", "filter.labkit-notebook.clean", command], cwd=root, check=True)
    return root


def changed(root: Path) -> str:
    return subprocess.run(
        ["git", "diff", "--stat", "HEAD"], cwd=root, check=True, capture_output=True, text=True
    ).stdout


def test_what_jupyterlab_saves_beside_the_cells_is_stripped() -> None:
    assert stripped(text(notebook())) == text(notebook())
    saved = text(saved_by_jupyterlab(notebook()))
    assert saved != text(notebook())
    assert stripped(saved) == text(notebook())


def test_a_saved_notebook_leaves_the_checkout_clean_and_an_edited_cell_does_not(checkout: Path) -> None:
    path = checkout / "notebooks" / "00_a.ipynb"
    path.write_text(text(saved_by_jupyterlab(notebook())))
    assert changed(checkout) == ""
    subprocess.run(["git", "config", "--unset", "filter.labkit-notebook.clean"], cwd=checkout, check=True)
    path.touch()
    assert "00_a.ipynb" in changed(checkout), "without the filter it is dirty"
    edited = saved_by_jupyterlab(notebook())
    edited.cells[1].source = "1 + 2"
    assert "1 + 2" in stripped(text(edited))


def test_git_is_told_of_a_save_that_changed_nothing_but_outputs(checkout: Path) -> None:
    path = checkout / "notebooks" / "00_a.ipynb"
    path.write_text(text(saved_by_jupyterlab(notebook())))
    assert status(checkout) == " M notebooks/00_a.ipynb\n", "git looks at its size"
    after_save(model={"type": "notebook"}, os_path=str(path), contents_manager=None)
    assert status(checkout) == ""
    edited = saved_by_jupyterlab(notebook())
    edited.cells[1].source = "1 + 2 + 3"
    path.write_text(text(edited))
    after_save(model={"type": "notebook"}, os_path=str(path), contents_manager=None)
    assert status(checkout) == " M notebooks/00_a.ipynb\n", "an edit stays one, and is not staged"


def status(root: Path) -> str:
    shown = ["git", "status", "--porcelain"]
    return subprocess.run(shown, cwd=root, check=True, capture_output=True, text=True).stdout


def test_make_sets_the_filter_that_the_repository_names() -> None:
    assert "notebooks/*.ipynb filter=labkit-notebook\n" in (REPOSITORY / ".gitattributes").read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "git config filter.labkit-notebook.clean '$(STRIP)'" in makefile
    assert "STRIP   := $(BIN)/python -m labkit.workflow.sources\n" in makefile


@pytest.mark.parametrize("edit", ["source", "tags", "kind", "order"])
def test_a_hash_follows_what_was_written_and_nothing_else(tmp_path: Path, edit: str) -> None:
    path, other = tmp_path / "a.ipynb", nbformat.from_dict(notebook())
    path.write_text(text(notebook()))
    before = source_hash(path)
    path.write_text(text(saved_by_jupyterlab(notebook())))
    assert source_hash(path) == before
    if edit == "source":
        other.cells[1].source = "1 + 2"
    elif edit == "tags":
        other.cells[1].metadata = {"tags": ["parameters"]}
    elif edit == "kind":
        other.cells[0] = v4.new_raw_cell("# Why?", id="title")
    else:
        other.cells = other.cells[::-1]
    path.write_text(text(other))
    assert source_hash(path) != before


def test_files_are_stripped_in_place_or_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text(saved_by_jupyterlab(notebook())))
    command = [sys.executable, "-m", "labkit.workflow.sources"]
    told = subprocess.run([*command, "--verify", str(path)], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (1, f"{path} holds more than what somebody wrote: run `make format`\n")
    assert subprocess.run([*command, str(path)]).returncode == 0
    assert path.read_text() == text(notebook())
    assert subprocess.run([*command, "--verify", str(path)]).returncode == 0
    assert [kind for kind, _, _ in written(path.read_text())] == ["markdown", "code", "code"]
