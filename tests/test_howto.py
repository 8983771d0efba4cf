"""The how-to's snippets run as they are printed: Python in a process of its own, shell in a copy of the clone."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from labkit.base import paths

PAGE = (paths.root() / "docs" / "howto.md").read_text(encoding="utf-8")
BLOCK = r"^## ([^\n]+)\n(?:(?!^## ).)*?^```LANGUAGE\n(.*?)^```"
SNIPPETS = dict(re.findall(BLOCK.replace("LANGUAGE", "python"), PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = dict(re.findall(BLOCK.replace("LANGUAGE", "bash"), PAGE, re.MULTILINE | re.DOTALL))


def test_every_block_is_found_and_every_section_has_one():
    assert len(SNIPPETS) == PAGE.count("```python") >= 6
    assert len(COMMANDS) == PAGE.count("```bash") >= 3
    assert PAGE.count("```") == 2 * (len(SNIPPETS) + len(COMMANDS))
    assert set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == {*SNIPPETS, *COMMANDS}


@pytest.mark.parametrize("title", SNIPPETS)
def test_a_snippet_runs_and_says_something(title, tmp_path):
    """A budget of memory counts the process, so a snippet with one must not find what other tests have left in it."""
    (tmp_path / "snippet.py").write_text(SNIPPETS[title])
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("title", COMMANDS)
def test_commands_run_in_a_clone_and_say_something(title, tmp_path):
    clone = copy_of_the_clone(tmp_path / "clone")
    path = os.pathsep.join([str(clone / ".venv" / "bin"), os.environ["PATH"]])
    environment = os.environ | {"LABKIT_ROOT": str(clone), "LABKIT_OUTPUT": str(clone), "PATH": path}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", COMMANDS[title]], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def copy_of_the_clone(folder):
    """Copy what commands read and make writes to, with this environment for its own."""
    for name in ("labkit", "params", "notebooks", "tests"):
        shutil.copytree(paths.root() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "evidence.lock"):
        shutil.copy(paths.root() / name, folder)
    for own in (path.parent for path in paths.root().glob("figures/*/*/results.json")):
        shutil.copytree(own, folder / own.relative_to(paths.root()))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
