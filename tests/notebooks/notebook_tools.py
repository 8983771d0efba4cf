"""Write small notebooks, read the repository's own, and run nbval on either."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.base import paths
from labkit.workflow import kernels

NOTEBOOKS = [paths.notebook(report) for report in paths.reports()]
KEPT = ("keep_output", "nbval-check-output")
"""Tags of a cell whose output stays in the source notebook and is compared."""


def code_cell(source: str, *tags: str) -> NotebookNode:
    """Return a code cell that was never run."""
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def printed(cell: NotebookNode, text: str, stream: str = "stdout") -> NotebookNode:
    """Return the cell as if it had been run and had printed a text."""
    ran = nbformat.from_dict(cell)
    ran.execution_count = 1
    ran.outputs = [nbformat.v4.new_output("stream", name=stream, text=text)]
    return ran


def write(path: Path, *cells: str | NotebookNode) -> Path:
    """Write a notebook for the default kernel; a string stands for a code cell."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nodes = [code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=nodes, metadata={"kernelspec": kernel}), path)
    return path


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells, in the order in which nbval numbers them."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def tree(notebook: NotebookNode) -> ast.Module:
    """Parse all code of a notebook as one module."""
    return ast.parse("\n".join(cell.source for cell in code_cells(notebook)))


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    """Return the one cell that papermill replaces."""
    (cell,) = (cell for cell in notebook.cells if "parameters" in tags(cell))
    return cell


def assignments(cell: NotebookNode) -> dict[str, object]:
    """Return what a cell of plain assignments sets, without running it."""
    found: dict[str, object] = {}
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign), f"not a plain assignment: {ast.unparse(node)}"
        (target,) = node.targets
        assert isinstance(target, ast.Name), f"not a plain name: {ast.unparse(target)}"
        found[target.id] = ast.literal_eval(node.value)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What one run of nbval found."""

    exit_code: int
    """Pytest's exit code."""
    cells: dict[tuple[str, int], str]
    """Outcome (PASSED or FAILED) by notebook file name and number of the code cell."""
    text: str
    """All that was printed."""

    def of(self, name: str) -> list[str]:
        """Return the outcomes of one notebook in order."""
        return [outcome for (notebook, _), outcome in sorted(self.cells.items()) if notebook == name]


def start_nbval(notebooks: Sequence[Path], folder: Path, *flags: str, hooks: bool = True) -> subprocess.Popen[str]:
    """Start nbval on some notebooks in a process of its own, with our plugin or bare."""
    plugins = ["-p", "nbval.plugin", *(["-p", "nbval_hooks"] if hooks else []), "-p", "no:cacheprovider"]
    settings = ["-c", os.devnull, f"--rootdir={folder}", "-rA", "--color=no", "--nbval-current-env"]
    here = str(Path(__file__).parent)
    environment = (
        {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
        | kernels.ENVIRONMENT
        | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        }
    )
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins, *settings, *flags, *map(str, notebooks)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def together(found: Sequence[Checked]) -> Checked:
    """Return what several runs found, as if it were one."""
    return Checked(
        exit_code=max(each.exit_code for each in found),
        cells={cell: outcome for each in found for cell, outcome in each.cells.items()},
        text="\n".join(each.text for each in found),
    )


def finish(process: subprocess.Popen[str]) -> Checked:
    """Wait for nbval and read its summary."""
    text, _ = process.communicate()
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (\S+?)::Cell (\d+)", text, re.MULTILINE)
    cells = {(Path(name).name, int(number)): outcome for outcome, name, number in outcomes}
    return Checked(exit_code=process.returncode, cells=cells, text=text)
