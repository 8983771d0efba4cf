"""What an edit does to evidence: a table of edits, each made to a copy, with the cells it makes stale.

The copies hold the committed cells of profile `cpu`; whether they stand is asked of each copy's own labkit. Code whose
behaviour changed is found by its goldens (test_lock), and made stale by the version that they then ask for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from labkit.base import paths
from labkit.workflow.store import ARCHIVE, read_archive

REPOSITORY = paths.root()
REPORTS = ("size_inertia", "chunked_offload", "predict_phase", "scaling_grid")


def recorded(concerns=lambda record: True) -> Counter[str]:
    """Count the committed cells of the profile that something concerns, by their function."""
    files = [REPOSITORY / "figures" / "cpu" / report / ARCHIVE for report in REPORTS]
    return Counter(one.identity["cell"] for file in files for one in read_archive(file) if concerns(one))


def with_package(name: str) -> Counter[str]:
    """Count the cells that a package computes."""
    return recorded(lambda one: name in one.environment["packages"])


def with_data(label: str) -> Counter[str]:
    """Count the cells that read something."""
    return recorded(lambda one: label in one.identity["data"])


def of_function(name: str) -> Counter[str]:
    """Count the cells of a function."""
    return recorded(lambda one: one.identity["cell"] == name)


def replace(path: str, old: str, new: str, *, times: int = 1):
    """Return an edit that replaces a text, which must be there."""

    def edit(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        (root / path).write_text(text.replace(old, new, times), encoding="utf-8")

    return edit


def first_line_of_docstring(path: str):
    def edit(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        (root / path).write_text(re.sub(r'\A"""[^\n]*', '"""Another first line.', text), encoding="utf-8")

    return edit


def every_annotation_of_results(path: str):
    def edit(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        (root / path).write_text(text.replace("-> dict[str, Any]:", "-> dict[str, object]:"), encoding="utf-8")

    return edit


def comment_on_every_function(root: Path) -> None:
    for path in (root / "labkit").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"^def ", "# Why it is here.\ndef ", text, flags=re.MULTILINE), encoding="utf-8")


def moved_module(root: Path) -> None:
    (root / "labkit/scaling/optim.py").rename(root / "labkit/scaling/optimizing.py")
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "scaling.optim " in text:
            path.write_text(text.replace("labkit.scaling.optim ", "labkit.scaling.optimizing "), encoding="utf-8")


def notebook_prose(root: Path) -> None:
    for path in (root / "notebooks").glob("*.ipynb"):
        document = json.loads(path.read_text(encoding="utf-8"))
        for cell in document["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = ["Better."]
        path.write_text(json.dumps(document), encoding="utf-8")


def new_report(root: Path) -> None:
    (root / "params" / "fifth.yaml").write_text("outputs: []\nscience:\n  steps: 3\n")
    shutil.copy(root / "notebooks/00_claims.ipynb", root / "notebooks/05_fifth.ipynb")
    (root / "labkit/reports/fifth").mkdir()
    (root / "labkit/reports/fifth/params.py").write_text(
        "from typing import Annotated\nfrom labkit.workflow.schema import Layer, Params\n\n\n"
        'class Fifth(Params):\n    """A fifth report."""\n\n    report = "fifth"\n'
        '    steps: Annotated[int, Layer.SCIENCE]\n    """Steps."""\n'
    )
    (root / "labkit/reports/fifth/__init__.py").write_text(
        "from labkit.reports.fifth.params import Fifth\nfrom labkit.workflow.report import Report\n\n"
        "REPORT = Report(params=Fifth)\n"
    )


def jsonl(path: str, field: str, change):
    """Return an edit of one field of the first line of a shipped file."""

    def edit(root: Path) -> None:
        first, *rest = (root / path).read_text(encoding="utf-8").splitlines(keepends=True)
        row = json.loads(first)
        row[field] = change(row[field])
        (root / path).write_text("".join([json.dumps(row, ensure_ascii=False) + "\n", *rest]), encoding="utf-8")

    return edit


def raised(path: str, name: str):
    """Return an edit that raises the version of a cell function."""

    def edit(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        after, n = re.subn(rf'("{name}",\s+version=)(\d+)', lambda found: f"{found[1]}{int(found[2]) + 1}", text)
        assert n == 1, path
        (root / path).write_text(after, encoding="utf-8")

    return edit


NOTHING_STALE = {
    "a comment before every function": comment_on_every_function,
    "a docstring": first_line_of_docstring("labkit/reports/predict_phase/train.py"),
    "an annotation": every_annotation_of_results("labkit/scaling/train.py"),
    "the name of a private function": replace("labkit/scaling/train.py", "_thin(", "_points_of(", times=2),
    "a moved module": moved_module,
    "a caption": replace("labkit/reports/scaling_grid/plots.py", "Loss against width.", "Width."),
    "the colour of a plot": replace(
        "labkit/workflow/figures.py", "(0, 3, 2, 4, 1, 5, 9, 7, 6, 8)", "(3, 0, 2, 4, 1, 5, 9, 7, 6, 8)"
    ),
    "a notebook's prose": notebook_prose,
    "a progress bar": replace("labkit/progress/__init__.py", "HEARTBEAT_SECONDS = 1.0", "HEARTBEAT_SECONDS = 2.0"),
    "another report's ledger": replace("labkit/reports/size_inertia/ledger.yaml", "claims:", "# Rows.\nclaims:"),
    "a new report": new_report,
    "the fit through the cells": replace("labkit/scaling/law.py", "_TAILS = (0.025, 0.975)", "_TAILS = (0.05, 0.95)"),
    "how a table is laid out": replace("labkit/reports/predict_phase/tables.py", "def ", "LAID_OUT = 3\n\n\ndef "),
}
OTHER_PACKAGES = {
    "torch": recorded,
    "trl": lambda: with_package("trl"),
    "torchao": lambda: with_package("torchao"),
    "papermill": Counter,
    "aim": Counter,
    "matplotlib": Counter,
}
STALE = {
    "a preference pair": (
        jsonl("labkit/dpo/data/factual.jsonl", "chosen", lambda text: text + " Perhaps."),
        lambda: with_data("file inertia/data/factual.jsonl"),
    ),
    "a question's answer key": (
        jsonl("labkit/routing/data/questions.jsonl", "answer", lambda answer: "another"),
        lambda: with_data("file inertia/data/questions.jsonl"),
    ),
    "a corpus": (
        replace("labkit/corpora/revisions.py", 'PINNED = {"wiki-sample": "', 'PINNED = {"wiki-sample": "0'),
        lambda: with_data("corpus wiki-sample"),
    ),
    "a loss formula, with its version": (
        raised("labkit/scaling/train.py", "scaling.train"),
        lambda: of_function("scaling.train"),
    ),
    "a preference loss, with its version": (
        raised("labkit/dpo/arm.py", "inertia.arm"),
        lambda: of_function("inertia.arm"),
    ),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A function that copies the repository as far as evidence depends on it."""
    made = tmp_path_factory.mktemp("copies")

    def copy(name: str) -> Path:
        root = made / re.sub(r"\W+", "-", name)
        for folder in ("labkit", "params", "notebooks"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for report in REPORTS:
            own = Path("figures", "cpu", report)
            (root / own).mkdir(parents=True)
            shutil.copy(REPOSITORY / own / ARCHIVE, root / own)
        for file in ("evidence.lock", "pyproject.toml", "constraints.txt"):
            shutil.copy(REPOSITORY / file, root / file)
        return root

    return copy


@pytest.fixture(scope="module")
def ask():
    """A function that asks the warm process about a copy."""
    script = str(Path(__file__).with_name("edit_server.py"))
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LABKIT_RENDER")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, script], env=own, text=True, **pipes) as server:

        def answer(root: Path, first: Path | None = None):
            server.stdin.write(json.dumps({"root": str(root), "first": first and str(first)}) + "\n")
            server.stdin.flush()
            said = json.loads(server.stdout.readline())
            assert "error" not in said, said["error"]
            return said

        yield answer
        server.stdin.close()


def not_standing(said, kinds=("missing", "outdated", "packages")) -> Counter[str]:
    """Count the cells that no longer stand, by their function."""
    return Counter(label.partition(":")[0] for own in said["reports"].values() for kind in kinds for label in own[kind])


def test_all_committed_cells_stand_as_they_are(copies, ask):
    said = ask(copies("as it is"))
    assert not_standing(said) == {}
    assert {report: own["present"] for report, own in said["reports"].items()} == {
        report: len(read_archive(REPOSITORY / "figures" / "cpu" / report / ARCHIVE)) for report in REPORTS
    }


@pytest.mark.parametrize("edit", NOTHING_STALE)
def test_an_edit_that_computes_nothing_makes_nothing_stale(copies, ask, edit):
    root = copies(edit)
    NOTHING_STALE[edit](root)
    assert not_standing(ask(root)) == {}


@pytest.mark.parametrize("edit", STALE)
def test_an_edit_makes_exactly_the_cells_concerned_stale(copies, ask, edit):
    root = copies(edit)
    change, count = STALE[edit]
    change(root)
    concerned = count()
    assert concerned, "the edit concerns some cells"
    assert not_standing(ask(root), kinds=("outdated",)) == concerned


@pytest.mark.parametrize("package", OTHER_PACKAGES)
def test_another_version_of_a_package_makes_stale_what_it_computes(copies, ask, tmp_path, package):
    (tmp_path / f"{package}-99.0.dist-info").mkdir()
    (tmp_path / f"{package}-99.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n"
    )
    said = ask(copies(f"other {package}"), tmp_path)
    assert not_standing(said) == OTHER_PACKAGES[package]()


@pytest.mark.parametrize(
    ("path", "old", "new", "function"),
    [
        ("labkit/scaling/optim.py", "return F.cross_entropy(", "return F.nll_loss(", "scaling.train"),
        ("labkit/scaling/transformer.py", "HEAD_SCALE = 0.02", "HEAD_SCALE = 0.03", "scaling.train"),
    ],
)
def test_a_changed_formula_or_constant_drifts_in_exactly_the_functions_that_reach_it(
    copies, ask, path, old, new, function
):
    root = copies(f"drift {path}")
    replace(path, old, new)(root)
    said = ask(root)
    assert f"{function}: code" in said["drift"]
    assert not_standing(said) == {}, "until the goldens have spoken"
