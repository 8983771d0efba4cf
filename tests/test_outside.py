"""labkit without its repository around it: what needs none works in ./runs, what needs one says so in one line.

The package is copied to a folder of its own, and programs run in another one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import labkit

LACKS = "labkit runs from a clone; install it there with `pip install -e .` or name the clone in LABKIT_ROOT"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(Path(labkit.__file__).parent, folder / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def ran(outside: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("LABKIT_")}
    own |= {"PYTHONPATH": str(outside), "PYTHONDONTWRITEBYTECODE": "1"}
    start = [sys.executable, *arguments]
    return subprocess.run(start, cwd=folder, env=own, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", [["plan", "scaling_grid"], ["claims"], ["status"], ["run", "claims"]], ids=str)
def test_a_command_that_needs_the_repository_says_so(outside: Path, tmp_path: Path, command: list[str]) -> None:
    done = ran(outside, tmp_path, "-m", "labkit.cli", *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"labkit: {outside} holds no pyproject.toml: {LACKS}\n"
    assert not [*tmp_path.iterdir()]


def test_the_version_needs_no_repository(outside: Path, tmp_path: Path) -> None:
    done = ran(outside, tmp_path, "-m", "labkit.cli", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"labkit {labkit.__version__}\n", "")


FOLLOWED = """
from labkit import metrics, track

with track.follow(lambda report, machine: Keeps(), "mine", "here"):
    metrics.emit("first", 0, {"loss": 1.0})
"""
KEEPS = """
class Keeps:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None
"""


def test_a_run_is_followed_in_the_folder_it_was_started_in(outside: Path, tmp_path: Path) -> None:
    done = ran(outside, tmp_path, "-c", KEEPS + FOLLOWED)
    assert done.returncode == 0, done.stderr
    assert '"loss"' in (tmp_path / "runs" / "here" / "mine" / "metrics.jsonl").read_text()


CELLS = """
from labkit.ledger import claims
from labkit.workflow import lock
from labkit.workflow.cells import Cells
from labkit.workflow.origin import origin

cells = Cells.of("here", "scaling_grid")
assert not list(cells.store.records())
assert origin()["git"] == {"commit": None, "dirty": None}
assert origin()["lock_sha256"] is None
assert lock.read() == {}
assert len(claims.load()) > 100
print(cells.store.folder)
"""


def test_cells_are_kept_in_the_folder_a_grid_is_started_in(outside: Path, tmp_path: Path) -> None:
    done = ran(outside, tmp_path, "-c", CELLS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path.resolve() / "runs" / "here" / "scaling_grid" / "cells")


def test_a_grid_from_standard_input_is_told_at_once_to_become_a_file(tmp_path: Path) -> None:
    program = """
from labkit.workflow import params
from labkit.reports.scaling_grid import study

def measured(*_):
    raise SystemExit("the baselines were measured first")

study.needed = measured
study.run_grid(params.resolve("scaling_grid", "ci", {"d_model": [8], "n_layers": [1], "isoflop_budgets": []}))
"""
    own = os.environ | {"LABKIT_OUTPUT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-"], input=program, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "it came from <stdin>: save it as a file" in done.stderr
