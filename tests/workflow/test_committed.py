"""Only a clean tree publishes: what git keeps is made from a commit, or its record says that it was not.

Everything is real: a repository of its own with the parameters of this one, git, and one run of a tiny notebook.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from labkit.base import paths
from labkit.cli import main
from labkit.workflow import params
from labkit.workflow import run as runner
from labkit.workflow.committed import refuse_uncommitted, uncommitted

REPOSITORY = paths.root()
WRITES = (
    "import os, pathlib\n"
    "for name in ('claims.csv', 'verdicts.csv', 'verdicts.png', 'verdicts.svg'):\n"
    "    (pathlib.Path(os.environ['LABKIT_STAGING']) / name).write_text('new')"
)


def commit(root: Path) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for command in (["add", "--all"], [*who, "commit", "--quiet", "--allow-empty", "-m", "all"]):
        subprocess.run(["git", *command], cwd=root, check=True)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed clone with one tiny notebook, whose figures go where git keeps them."""
    root = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "params", root / "params")
    shutil.copy(REPOSITORY / ".gitignore", root)
    (root / "notebooks").mkdir()
    values = params.resolve("claims", "cpu").model_dump()
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    cells = [v4.new_code_cell(lines, id="parameters", metadata={"tags": ["parameters"]})]
    cells.append(v4.new_code_cell(WRITES, id="writes"))
    spec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), root / "notebooks" / "00_claims.ipynb")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    commit(root)
    monkeypatch.setenv("LABKIT_ROOT", str(root))
    monkeypatch.setenv("LABKIT_OUTPUT", str(root))
    return root


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# edited\n")


def figures() -> Path:
    return paths.figures("cpu", "claims")


def test_a_clean_tree_publishes_whatever_stands_in_its_figures(clone: Path) -> None:
    (figures()).mkdir(parents=True)
    (figures() / "claims.csv").write_text("old")
    assert uncommitted(figures()) == []
    refuse_uncommitted(figures())


def test_an_edit_is_refused_before_anything_runs_and_the_remedy_is_named(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(clone / "params" / "claims.yaml")
    for command in ("run", "render"):
        monkeypatch.setattr("sys.argv", ["labkit", command, "claims", "--hw", "cpu"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "params/claims.yaml differs from HEAD" in said
        assert "LABKIT_OUTPUT=runs/own" in said
    assert not (clone / "figures").exists()
    assert not (clone / "runs").exists()


def test_a_new_module_and_a_removed_file_count_and_prose_does_not(clone: Path) -> None:
    (clone / "README.md").write_text("new")
    assert uncommitted(figures()) == []
    (clone / "labkit").mkdir()
    (clone / "labkit" / "new.py").write_text("")
    (clone / "params" / "scaling_grid.yaml").unlink()
    assert sorted(uncommitted(figures())) == ["labkit/new.py", "params/scaling_grid.yaml"]
    commit(clone)
    assert uncommitted(figures()) == []


def test_a_notebook_counts_by_its_cells_and_not_by_what_jupyterlab_saves_in_it(clone: Path) -> None:
    path = clone / "notebooks" / "00_claims.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [v4.new_output("stream", text="hello")]
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, path)
    assert uncommitted(figures()) == []
    notebook.cells[1].source += "\nprint('edited')"
    nbformat.write(notebook, path)
    assert uncommitted(figures()) == ["notebooks/00_claims.ipynb"]


def test_figures_that_git_does_not_keep_may_come_from_anything(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(clone / "params" / "claims.yaml")
    refuse_uncommitted(paths.figures("ci", "claims"))
    for elsewhere in (clone / "runs" / "own", tmp_path / "elsewhere"):
        monkeypatch.setenv("LABKIT_OUTPUT", str(elsewhere))
        refuse_uncommitted(figures())
    monkeypatch.setenv("LABKIT_OUTPUT", str(clone))
    with pytest.raises(ValueError, match=r"no commit holds what would make it: params/claims\.yaml"):
        refuse_uncommitted(figures())


def test_a_folder_that_is_no_checkout_has_no_commit_to_keep_to(clone: Path) -> None:
    shutil.rmtree(clone / ".git")
    edit(clone / "params" / "claims.yaml")
    refuse_uncommitted(figures())


def test_who_publishes_all_the_same_leaves_it_on_record(clone: Path) -> None:
    edit(clone / "params" / "claims.yaml")
    runner.run("claims", "cpu", say=lambda line: None, uncommitted=True)
    assert json.loads((figures() / "run.json").read_text())["uncommitted"] == ["params/claims.yaml"]


def test_no_published_record_is_marked() -> None:
    listed = subprocess.run(["git", "ls-files", "figures/*run.json"], cwd=REPOSITORY, capture_output=True, text=True)
    records = [json.loads((REPOSITORY / name).read_text()) for name in listed.stdout.split()]
    assert records
    assert not [record["report"] for record in records if "uncommitted" in record]
