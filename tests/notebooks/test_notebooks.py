"""Each notebook narrates and the package computes: what a reader may rely on in every notebook of the repository.

The references are papermill's conventions, the resolved `ci` profile and the declared outputs
of params/<report>.yaml; code is judged by its syntax tree and never run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import nbformat
import pytest
from captions import captions, drawn_in
from nbformat import NotebookNode
from notebook_tools import KEPT, NOTEBOOKS, assignments, code_cells, parameters_cell, read, tags, tree

from labkit.base import paths, yaml12
from labkit.workflow import params
from labkit.workflow.notebook import ANSWER
from labkit.workflow.report import reports

LONGEST_DEF = 5
LONGEST_LOOP = 3
ABSOLUTE_PATH = re.compile(
    r"(?<![\w./])(?:~|/(?:home|Users|root|tmp|mnt|work|data|opt|usr|var|etc))/|\b[A-Za-z]:\\\\?\w"
)

pytestmark = pytest.mark.parametrize("report", paths.reports())


@pytest.fixture
def notebook(report: str) -> NotebookNode:
    return read(paths.notebook(report))


def test_is_valid_and_runs_on_any_python_kernel(report: str, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, "left behind by a tool; run `make format`"
    assert not [cell.id for cell in notebook.cells if "injected-parameters" in tags(cell)], "an executed copy was saved"


def test_keeps_no_output_but_those_that_are_compared(report: str, notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        kept = [tag for tag in KEPT if tag in tags(cell)]
        assert len(kept) in (0, len(KEPT)), f"cell {cell.id}: {KEPT} belong together"
        assert bool(cell.outputs) == bool(kept), f"cell {cell.id}: run `make format`"
        assert not kept or cell.execution_count, f"cell {cell.id}: nbval compares no cell without an execution count"


def test_opens_with_its_question_and_the_answer(report: str, notebook: NotebookNode) -> None:
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S+( \S+){3,}\n", first.source), "a heading that asks or claims something, not a label"
    assert re.search(r"^\*\*Question\.\*\* \S", first.source, re.MULTILINE)
    assert re.search(r"^\*\*Answer\.\*\* \S", notebook.cells[1].source, re.MULTILINE)
    assert [i for i, cell in enumerate(notebook.cells) if cell.id == ANSWER] == [1], "a run writes what came out there"
    titles = [line for cell in markdown(notebook) for line in cell.source.splitlines() if line.startswith("# ")]
    assert len(titles) == 1


def test_ends_with_what_holds_what_does_not_and_how_to_know_more(report: str, notebook: NotebookNode) -> None:
    last = " ".join(cell.source for cell in markdown(notebook)[-2:]).lower()
    assert [words for words in ("holds", "does not", "know more") if words not in last] == []
    made = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert report == "claims" or "conclusion.of(judged)" in made[-1], "the sentences are made from verdicts"


def test_has_one_parameters_cell_with_the_smoke_profile_and_no_value_of_its_own(
    report: str, notebook: NotebookNode
) -> None:
    assert sum("parameters" in tags(cell) for cell in notebook.cells) == 1
    set_there = assignments(parameters_cell(notebook))
    assert set_there == {"hardware": "ci"}, "values stand in params/ alone"
    assert params.collect(report, set_there) == params.resolve(report, "ci")


def test_sets_no_other_name_that_is_a_parameter(report: str, notebook: NotebookNode) -> None:
    names = [node for node in ast.walk(tree(notebook)) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert stored & set(reports()[report].params.model_fields) == {"hardware"}, "run again, it would set the parameter"


def test_hands_its_parameters_to_the_strict_gate_before_it_does_anything(report: str, notebook: NotebookNode) -> None:
    cells = code_cells(notebook)
    assert "parameters" in tags(cells[0])
    statements = [node for node in ast.parse(cells[1].source).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert ast.unparse(statements[0]) == f"cfg, out_dir, show = lab.begin('{report}', globals())"


def test_every_parameter_is_read_by_the_notebook_or_by_labkit(report: str, notebook: NotebookNode) -> None:
    ours = [path for path in paths.root().glob("labkit/**/*.py") if path.name != "schema.py"]
    trees = [tree(notebook), *(ast.parse(path.read_text(encoding="utf-8")) for path in ours)]
    read_there = {node.attr for each in trees for node in ast.walk(each) if is_read_from_parameters(node)}
    assert sorted(set(reports()[report].params.model_fields) - read_there) == []


def test_computes_nothing_itself(report: str, notebook: NotebookNode) -> None:
    for node in ast.walk(tree(notebook)):
        assert not isinstance(node, ast.ClassDef | ast.While | ast.AsyncFor), where(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert n_lines(node) <= LONGEST_DEF, where(node)
        if isinstance(node, ast.For):
            assert n_lines(node) <= LONGEST_LOOP, where(node)
            assert all(isinstance(step, ast.Expr) for step in node.body), f"loops only display: {where(node)}"


def test_every_figure_is_followed_by_what_to_see_in_it(report: str, notebook: NotebookNode) -> None:
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type == "code" and drawn_in(ast.parse(cell.source), report):
            assert following is not None, f"cell {cell.id} is the last"
            assert following.cell_type == "markdown", f"cell {cell.id} is followed by code"


def test_every_figure_is_the_last_thing_of_its_cell_so_that_it_is_shown(report: str, notebook: NotebookNode) -> None:
    for cell in code_cells(notebook):
        if drawn_in(ast.parse(cell.source), report):
            assert ast.unparse(ast.parse(cell.source).body[-1]).startswith("show("), cell.id


def test_writes_each_declared_output_by_its_name_and_no_other_figure(report: str, notebook: NotebookNode) -> None:
    declared = set(yaml12.read(paths.science_file(report))["outputs"])
    module = tree(notebook)
    files = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    if any(ast.unparse(call.func) == "conclude" for call in calls(module)):
        files |= {"results.json", "claims.json"}
    known = captions(report)
    drawn = [known[plot].name for plot in drawn_in(module, report)]
    assert sorted(drawn) == sorted(name for name in declared if "." not in name)
    assert declared - files - {*drawn} == set()


def test_names_no_place_of_one_machine(report: str, notebook: NotebookNode) -> None:
    found = {cell.id: match[0] for cell in notebook.cells if (match := ABSOLUTE_PATH.search(cell.source))}
    assert found == {}


def test_belongs_to_a_report_with_parameters(report: str) -> None:
    assert report in reports(), "labkit.workflow.schema knows no such report"
    assert paths.science_file(report).exists()
    assert {path.name for path in paths.notebook(report).parent.glob("*.ipynb")} == {path.name for path in NOTEBOOKS}


def markdown(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def calls(module: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module) if isinstance(node, ast.Call))


def is_read_from_parameters(node: ast.AST) -> bool:
    """Whether a node reads an attribute of something that holds parameters, under the names that labkit gives it."""
    holders = ("cfg", "params", "resolved", "spec", "config", "self")
    return isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in holders


def n_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def where(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]
