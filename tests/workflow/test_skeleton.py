"""A fifth report, made by one command in a copy of the clone: found by make, run, judged, rendered, and removed.

Nothing outside its own files changes, and what the tests ask of every report holds of it, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from labkit.base import paths
from labkit.workflow import skeleton

NAME = "fifth_claim"
TEST = f"tests/reports/test_{NAME}.py"
COPIED = ("labkit", "params", "notebooks", "tests", "docs")
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "evidence.lock", "README.md", ".gitattributes", ".gitignore")


@dataclass(frozen=True)
class Clone:
    """A copy of the repository with a fifth report in it."""

    root: Path
    written: str

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.root / ".venv" / "bin"), os.environ["PATH"]])
        own = {
            "LABKIT_ROOT": str(self.root),
            "LABKIT_OUTPUT": str(self.root),
            "PYTHONPATH": str(self.root),
            "PATH": path,
        }
        return subprocess.run(command, cwd=self.root, env=os.environ | own | more, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    root = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        shutil.copytree(paths.root() / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(paths.root() / name, root)
        os.utime(root / name, (0, 0))  # make would install again what is newer than the environment
    (root / ".venv").symlink_to(sys.prefix)
    bare = Clone(root, "")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    for given in (["init", "--quiet"], ["add", "--all"], [*who, "commit", "--quiet", "-m", "before"]):
        subprocess.run(["git", *given], cwd=root, check=True)
    made = bare.run(sys.executable, "-m", "labkit.cli", "new", NAME)
    assert made.returncode == 0, made.stdout + made.stderr
    return Clone(root, made.stdout)


def changed(clone: Clone) -> list[str]:
    shown = clone.run("git", "status", "--porcelain", "--untracked-files=all", "--", ".", ":!runs", ":!figures")
    return sorted(line[3:] for line in shown.stdout.splitlines())


def test_one_command_writes_its_own_files_and_changes_no_other(clone: Clone) -> None:
    own = {
        f"labkit/reports/{NAME}",
        f"params/{NAME}.yaml",
        f"notebooks/05_{NAME}.ipynb",
        f"tests/reports/test_{NAME}.py",
    }
    assert all(any(name.startswith(place) for place in own) for name in changed(clone))
    assert len(changed(clone)) == 12
    assert f"make {NAME} HW=ci" in clone.written


def test_make_finds_it_runs_it_in_seconds_and_it_is_judged(clone: Clone) -> None:
    done = clone.run("make", NAME, "HW=ci")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = clone.root / "figures" / "ci" / NAME
    measured = json.loads((folder / "results.json").read_text())["results"]["estimate/pi"]
    assert measured["ci"][0] < 3.1416 < measured["ci"][1]
    verdicts = {row["claim"]: row["verdict"] for row in json.loads((folder / "claims.json").read_text())}
    assert verdicts == {f"{NAME}.points": "input", f"{NAME}.pi": "not attempted", f"{NAME}.quarter": "audited only"}
    assert clone.run("make", NAME, "HW=ci").stdout.count("labkit run") == 0, "a second make does nothing"


def test_at_a_scale_that_counts_its_claim_is_decided_and_rendered(clone: Clone) -> None:
    done = clone.run(sys.executable, "-m", "labkit.cli", "run", NAME, "--hw", "cpu", "--uncommitted")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = clone.root / "figures" / "cpu" / NAME
    verdicts = {row["claim"]: row["verdict"] for row in json.loads((folder / "claims.json").read_text())}
    assert verdicts[f"{NAME}.pi"] == "reproduced"
    before = (folder / "estimates.csv").read_bytes()
    rendered = clone.run(sys.executable, "-m", "labkit.cli", "render", NAME, "--hw", "cpu", "--uncommitted")
    assert rendered.returncode == 0, rendered.stdout + rendered.stderr
    assert (folder / "estimates.csv").read_bytes() == before


def test_it_passes_what_is_asked_of_every_report_and_its_own_test(clone: Clone) -> None:
    asked = [
        "tests/notebooks/test_notebooks.py",
        "tests/test_rooms.py",
        "tests/test_params.py",
        f"tests/reports/test_{NAME}.py",
    ]
    done = clone.run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked)
    assert done.returncode == 0, done.stdout[-3000:]


def test_nothing_is_left_when_it_is_deleted(clone: Clone) -> None:
    for name in changed(clone):
        (clone.root / name).unlink()
    assert changed(clone) == []


@pytest.mark.parametrize("name", ["Fifth", "5th", "a-b", "class", "", "../x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a report"):
        skeleton.new(name)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="is there already"):
        skeleton.new("scaling_grid")
