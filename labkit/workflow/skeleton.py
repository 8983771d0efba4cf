"""A working report to begin with: a folder, a notebook, parameters and a test, made from templates.

    labkit new my_report && make my_report HW=ci

Its claim is a toy that is measured in a second; every file says what to put in its place. Nothing else changes: the
framework finds the report by its folder.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

import nbformat
from nbformat import NotebookNode, v4

from labkit.base import paths
from labkit.base.files import write_atomically

_TEMPLATES = Path(__file__).with_name("new_report")
_MODULES = ("__init__", "params", "cells", "study", "cost", "results", "plots", "goldens")
_CELL = re.compile(r"^%% (markdown|code) (\S+)(?: (\S+))?\n(.*?)(?=^%% |\Z)", re.MULTILINE | re.DOTALL)


def new(name: str) -> list[Path]:
    """Write a report's files.

    Args:
        name: a Python name in lower case, such as `my_report`.

    Returns:
        the files that were written.

    Raises:
        ValueError: no such name, or files of that name are there.
        FileNotFoundError: labkit was installed without the repository around it.
        DiskFull: no room.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name of a report: lower-case letters, digits and _, a letter first")
    contents = _contents(name)
    if there := [path for path in contents if path.exists()]:
        raise ValueError(f"{there[0]} is there already; choose another name, or delete it")
    for path, content in contents.items():
        write_atomically(path, content.encode())
    return list(contents)


def _contents(name: str) -> dict[Path, str]:
    """Return the text of each file of a report by its path."""
    root, words = paths.root(), name.replace("_", " ")
    said = {"name": name, "class": "".join(map(str.capitalize, name.split("_"))), "words": words}
    folder = root / "labkit" / "reports" / name
    found = {folder / f"{module}.py": _filled(f"{module}.py", said) for module in _MODULES}
    found[folder / "ledger.yaml"] = _filled("ledger.yaml", said)
    found[root / "params" / f"{name}.yaml"] = _filled("params.yaml", said)
    found[root / "notebooks" / f"{_next_number():02}_{name}.ipynb"] = _notebook(_filled("notebook.md", said))
    found[root / "tests" / "reports" / f"test_{name}.py"] = _filled("test.py", said)
    return found


def _filled(template: str, said: dict[str, str]) -> str:
    return Template((_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(said)


def _next_number() -> int:
    """Return the number of the next notebook, which `make` and the pages order reports by."""
    return 1 + max((int(path.name[:2]) for path in (paths.root() / "notebooks").glob("[0-9][0-9]_*.ipynb")), default=-1)


def _notebook(text: str) -> str:
    """Make a notebook of cells that are headed by `%% KIND ID [TAG]`."""
    cells = [_cell(*found.groups()) for found in _CELL.finditer(text)]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return nbformat.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})) + "\n"


def _cell(kind: str, name: str, tag: str | None, source: str) -> NotebookNode:
    make = v4.new_markdown_cell if kind == "markdown" else v4.new_code_cell
    return make(source.strip("\n"), id=name, metadata={"tags": [tag]} if tag else {})
