"""Make: what it would run, in which order, and what makes it run again, as `make -n` says in a copy of the clone.

Stamps and rules are written by labkit; make alone decides. Nothing is installed or executed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from labkit.base import paths
from labkit.workflow import freshness, kernels

REPOSITORY = paths.root()
RUN = {name: f".venv/bin/labkit run {name} --hw ci" for name in ("size_inertia", "scaling_grid", "claims")}
OTHER_NOTEBOOK = (
    '{"cells": [{"cell_type": "code", "source": ["from labkit.base import units"], "metadata": {}, "outputs": []}],'
    ' "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
)


def copy_repository(root):
    """Copy what make reads, an hour old, with setup done and three reports, one of them made up."""
    for name in ("labkit", "params"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    for report in ("claims", "scaling_grid"):
        shutil.copy(paths.notebook(report), root / "notebooks")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "notebooks" / "01_size_inertia.ipynb").write_text(OTHER_NOTEBOOK)
    (root / "params" / "size_inertia.yaml").write_text("outputs: []\n")
    (root / ".venv").mkdir()
    (root / ".venv" / "ready").touch()
    for path in root.rglob("*"):
        touch(path, -3600)
    touch(root / ".venv" / "ready", -1800)


def test_jupyterlab_starts_on_the_ledger_with_the_environment_that_kernels_want():
    told = (
        subprocess.run(
            ["make", "-n", "--no-print-directory", "lab", f"VENV={sys.prefix}", "LAB=--no-browser"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        .stdout.replace("\\\n", " ")
        .splitlines()[-1]
    )
    assert dict(re.findall(r"([A-Z_]+)=(\S+)", told.partition(sys.prefix)[0])) == kernels.ENVIRONMENT
    assert told.split()[-1] == "--no-browser"
    assert "/lab/tree/notebooks/00_claims.ipynb" in told


@pytest.fixture
def clone(tmp_path, monkeypatch):
    copy_repository(tmp_path / "clone")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "clone"))
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "clone"))
    return tmp_path / "clone"


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """The rule that a run of each report leaves for make."""
    root = tmp_path_factory.mktemp("rules") / "clone"
    copy_repository(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_ROOT", str(root))
        patch.setenv("LABKIT_OUTPUT", str(root))
        for report in RUN:
            freshness.mark_done(report, "ci", freshness.input_hashes(report, "ci"), custom=False)
        return {report: (paths.runs("ci", report) / "done.d").read_text() for report in RUN}


def touch(path, seconds_from_now):
    os.utime(path, (time.time() + seconds_from_now,) * 2)


def make(root, *arguments, **variables):
    """Ask make; the environment of a make around these tests stays out."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=root, env=kept | {"LC_ALL": "C"} | variables, capture_output=True, text=True)


def would_run(root, *arguments, **variables):
    done = make(root, "-n", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("make: ")]


@pytest.fixture
def all_done(clone, rules):
    """The clone after runs of all reports on profile ci, just now, the ledger notebook last."""
    leave_done(rules)
    return clone


def leave_done(rules):
    for report, rule in rules.items():
        folder = paths.runs("ci", report)
        folder.mkdir(parents=True)
        (folder / "done.d").write_text(rule)
        (folder / "done").touch()
        touch(folder / "done", -1 if report == "claims" else -2)


def test_make_alone_lists_every_target(clone):
    done = make(clone)
    rules = (clone / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", rules, re.MULTILINE)[1]
    targets = set(re.sub(r"\$\(.*?\)+", "", targets).split())
    listed = set(re.findall(r"^  ([a-z-]+) {2,}\S", done.stdout, re.MULTILINE))
    assert done.returncode == 0
    assert listed == targets
    for name in [*RUN, *paths.profiles()]:
        assert re.search(rf"\b{name}\b", done.stdout)


def test_every_listed_target_has_something_to_do(clone):
    for name in re.findall(r"^  ([a-z-]+) {2,}\S", make(clone).stdout, re.MULTILINE):
        assert make(clone, "-n", name, "HW=ci").returncode == 0, name


def test_figures_runs_every_report_and_the_ledger_notebook_last(clone):
    assert would_run(clone, "figures", "HW=ci") == [RUN["size_inertia"], RUN["scaling_grid"], RUN["claims"]]
    assert would_run(clone, "scaling_grid", "HW=ci") == [RUN["scaling_grid"]]
    assert would_run(clone, "size-inertia", "HW=ci") == [RUN["size_inertia"]]
    assert would_run(clone, "figures")[0].endswith("--hw cpu")


def test_a_fresh_clone_installs_the_lock_first(clone):
    (clone / ".venv" / "ready").unlink()
    lines = would_run(clone, "figures", "HW=ci")
    install = next(i for i, line in enumerate(lines) if "pip install" in line)
    assert "-c constraints.txt -e '.[reports,lab,track,dev]'" in lines[install]
    assert "overrides.json" in lines[install + 1]
    assert "jupyter_server_config.json" in lines[install + 2]
    assert lines[install + 3].startswith("git config filter.labkit-notebook.clean ")
    assert lines[install + 4 :] == ["touch .venv/ready", RUN["size_inertia"], RUN["scaling_grid"], RUN["claims"]]


def test_a_changed_lock_installs_again_but_runs_nothing_again(all_done):
    touch(all_done / "constraints.txt", 0)
    lines = would_run(all_done, "figures", "HW=ci")
    assert any("pip install" in line for line in lines)
    assert not set(lines) & set(RUN.values())


def test_nothing_runs_again_when_nothing_changed(all_done):
    assert would_run(all_done, "figures", "HW=ci") == []


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        ("labkit/scaling/law.py", ["scaling_grid", "claims"]),
        ("labkit/corpora/revisions.py", ["scaling_grid", "claims"]),
        ("labkit/corpora/wiki.py", []),
        ("labkit/reports/scaling_grid/ledger.yaml", ["scaling_grid", "claims"]),
        ("params/scaling_grid.yaml", ["scaling_grid", "claims"]),
        ("params/size_inertia.yaml", ["size_inertia", "claims"]),
        ("notebooks/00_claims.ipynb", ["claims"]),
        ("labkit/base/units.py", ["size_inertia", "scaling_grid", "claims"]),
        ("params/hardware/ci.yaml", ["size_inertia", "scaling_grid", "claims"]),
        ("params/hardware/cpu.yaml", []),
        ("labkit/cli.py", []),
    ],
)
def test_a_touched_file_runs_what_depends_on_it_and_nothing_else(all_done, touched, expected):
    touch(all_done / touched, 0)
    assert would_run(all_done, "figures", "HW=ci") == [RUN[name] for name in expected]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: None, set()),
        (lambda root: touch(root / "params" / "claims.yaml", 0), {"claims"}),
        (lambda root: touch(paths.runs("ci", "scaling_grid") / "done", 0), {"claims"}),
        (lambda root: touch(root / "params" / "scaling_grid.yaml", 0), {"scaling_grid", "claims"}),
        (lambda root: (paths.runs("ci", "scaling_grid") / "done").unlink(), {"scaling_grid", "claims"}),
        (lambda root: (root / "params" / "hardware" / "ci.yaml").open("a").write("# x\n"), {"scaling_grid", "claims"}),
    ],
)
def test_status_says_what_make_would_run(all_done, change, expected):
    (all_done / "notebooks" / "01_size_inertia.ipynb").unlink()
    for report in ("scaling_grid", "claims"):
        folder = paths.figures("ci", report)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"inputs": freshness.input_hashes(report, "ci")}))
    change(all_done)
    assert {report for report, reasons in freshness.status("ci").items() if reasons} == expected
    assert set(would_run(all_done, "figures", "HW=ci")) == {RUN[report] for report in expected}


def test_a_module_that_vanished_runs_its_report_again_instead_of_stopping_make(all_done):
    (all_done / "labkit" / "scaling" / "law.py").unlink()
    assert would_run(all_done, "figures", "HW=ci") == [RUN["scaling_grid"], RUN["claims"]]


def test_a_custom_run_is_replaced_by_the_next_make(all_done):
    freshness.mark_done("scaling_grid", "ci", freshness.input_hashes("scaling_grid", "ci"), custom=True)
    assert would_run(all_done, "figures", "HW=ci") == [RUN["scaling_grid"], RUN["claims"]]


@pytest.mark.parametrize("output", ["elsewhere", "clone/below"])
def test_outputs_elsewhere_are_followed_too(clone, rules, tmp_path, monkeypatch, output):
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / output))
    leave_done(rules)
    assert would_run(clone, "figures", "HW=ci", LABKIT_OUTPUT=str(tmp_path / output)) == []
    touch(clone / "labkit" / "scaling" / "law.py", 0)
    again = would_run(clone, "figures", "HW=ci", LABKIT_OUTPUT=str(tmp_path / output))
    assert again == [RUN["scaling_grid"], RUN["claims"]]


def test_profiles_do_not_mix(all_done):
    assert len(would_run(all_done, "figures", "HW=h100")) == 3


def test_an_unknown_profile_is_named_with_those_that_exist(clone):
    done = make(clone, "-n", "figures", "HW=h10")
    assert done.returncode == 2
    assert done.stdout == ""
    told = re.search(r"unknown profile HW=h10; the profiles are: (.*)\.  Stop\.", done.stderr)
    assert sorted(told[1].split()) == paths.profiles()


def test_an_old_python_is_refused_in_words(clone, tmp_path):
    old = tmp_path / "python"
    pretend = "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    (clone / ".venv" / "ready").unlink()
    done = make(clone, "setup", f"PYTHON={old}")
    assert done.returncode == 2
    assert (
        f"labkit needs Python 3.11 or newer; found: {old}. Set PYTHON=/path/to/python3.11" in done.stdout + done.stderr
    )
