"""Eleven ways in which papermill, nbval, nbstripout and nbconvert let a wrong number through without a word.

Where it is quick a test first shows the trap with the tool itself on a small notebook, which is the independent
reference: if a later version of a tool behaves better, the test says so. Then it shows that labkit is safe against it.
"""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from click.testing import CliRunner, Result
from nbconvert import HTMLExporter
from notebook_tools import (
    KEPT,
    NOTEBOOKS,
    Checked,
    assignments,
    code_cell,
    finish,
    parameters_cell,
    printed,
    read,
    start_nbval,
    tags,
    write,
)
from papermill.cli import papermill as papermill_command

from labkit import cli, stats
from labkit.base import paths
from labkit.workflow import figures, params, run
from labkit.workflow.report import reports
from labkit.workflow.sources import stripped

each_report = pytest.mark.parametrize("report", paths.reports())


def run_papermill(*arguments: str | Path) -> Result:
    """Run papermill's command line in this process; with --prepare-only it injects parameters and starts no kernel."""
    return CliRunner().invoke(papermill_command, [*map(str, arguments), "--no-progress-bar"])


def nbstripout(*arguments: str | Path) -> int:
    """Run nbstripout and return its exit code."""
    return subprocess.run([sys.executable, "-m", "nbstripout", *arguments], check=False).returncode


def injected(path: Path) -> dict[str, object]:
    """Return what papermill has injected into a notebook."""
    (cell,) = (cell for cell in read(path).cells if "injected-parameters" in tags(cell))
    return assignments(cell)


# 1. A rate without a dot is text in YAML 1.1.


def test_papermill_injects_a_rate_without_a_dot_as_text(tmp_path: Path) -> None:
    source = write(tmp_path / "in.ipynb", code_cell("lr = 1e-3", "parameters"))
    (tmp_path / "params.yaml").write_text("lr: 1e-5\n")
    done = run_papermill(source, tmp_path / "out.ipynb", "-f", tmp_path / "params.yaml", "--prepare-only")
    assert done.exit_code == 0
    assert injected(tmp_path / "out.ipynb") == {"lr": "1e-5"}


def test_labkit_reads_the_same_rates_as_numbers_and_refuses_the_text() -> None:
    with paths.science_file("scaling_grid").open() as file:
        bare = yaml.safe_load(file)["scope"]["learning_rates"]
    resolved = params.resolve("scaling_grid", "h100")
    assert "5e-4" in bare
    assert resolved.learning_rates == [float(rate) for rate in bare]
    with pytest.raises(ValueError, match=r"learning_rates: .*got '5e-4' as text"):
        params.collect("scaling_grid", resolved.model_dump() | {"learning_rates": bare})


# 2. A misspelt parameter is a warning.


def test_papermill_accepts_a_parameter_that_nothing_reads(tmp_path: Path) -> None:
    source = write(tmp_path / "in.ipynb", code_cell("steps = 1", "parameters"), "print(steps)")
    done = run_papermill(source, tmp_path / "out.ipynb", "-p", "stepz", "5")
    assert done.exit_code == 0, done.output
    assert read(tmp_path / "out.ipynb").cells[-1].outputs[0].text == "1\n"


@each_report
def test_a_misspelt_name_given_to_plain_papermill_stops_the_notebook_by_name(report: str, tmp_path: Path) -> None:
    nearest = list(reports()[report].params.model_fields)[-1]
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            paths.notebook(report),
            tmp_path / "out.ipynb",
            parameters={f"{nearest}z": 5},
            cwd=str(tmp_path),
            progress_bar=False,
        )
    assert caught.value.evalue == f"injected-parameters: unknown key '{nearest}z'; did you mean '{nearest}'?"
    assert "lab.begin" in caught.value.source


def test_a_misspelt_name_given_to_labkit_exits_with_2_before_anything_starts(
    output_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["labkit", "run", "scaling_grid", "--hw", "ci", "-p", "epoch=5"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "labkit: -p: unknown key 'epoch'; did you mean 'epochs'?\n"
    assert list(output_folder.iterdir()) == []


# 3. papermill reads declarations with a pattern, not with Python.


@pytest.mark.parametrize("declaration", ["steps: int | None = None", "rule = 'a=b'", "sizes = dict(a=1)"])
def test_papermill_does_not_see_every_declaration(declaration: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.ipynb", code_cell(f"width = 1\n{declaration}", "parameters"))
    assert declaration.split()[0].rstrip(":") not in papermill.inspect_notebook(source)


@each_report
def test_papermill_sees_the_profile_with_its_value_and_its_help(report: str) -> None:
    seen = papermill.inspect_notebook(paths.notebook(report))
    assert set(seen) == {"hardware"}
    values = {name: ast.literal_eval(parameter["default"]) for name, parameter in seen.items()}
    assert values == assignments(parameters_cell(read(paths.notebook(report))))
    assert [name for name, parameter in seen.items() if not parameter["help"]] == []


# 4. Parameter files are merged key by key at the top only.


def test_papermill_drops_what_a_second_file_does_not_repeat(tmp_path: Path) -> None:
    source = write(tmp_path / "in.ipynb", code_cell("model = {}", "parameters"))
    (tmp_path / "science.yaml").write_text("model: {width: 64, heads: 4}\n")
    (tmp_path / "hardware.yaml").write_text("model: {width: 16}\n")
    files = ["-f", tmp_path / "science.yaml", "-f", tmp_path / "hardware.yaml"]
    assert run_papermill(source, tmp_path / "out.ipynb", *files, "--prepare-only").exit_code == 0
    assert injected(tmp_path / "out.ipynb") == {"model": {"width": 16}}


@each_report
def test_a_profile_changes_what_it_names_and_nothing_else(report: str) -> None:
    stated = params.stated_scope(report)
    with paths.profile_file("ci").open() as file:
        named = set((yaml.safe_load(file).get("scope") or {}).get(report) or {})
    resolved = params.resolve(report, "ci").model_dump()
    assert {key for key, value in stated.items() if resolved[key] != value} <= named
    assert [name for name, value in resolved.items() if isinstance(value, dict)] == [], "nested values"
    one = params.resolve(report, "ci", {"workers": 7}).model_dump()
    assert {key for key in resolved if one[key] != resolved[key]} == {"workers"}


# 5. and 6. An executed notebook carries its old parameters along, and the current folder depends on who runs it.

PROBE = """\
import json
import os
from labkit.workflow import params; from labkit.base import paths
cfg = params.collect("claims", globals())
folder = paths.staging(cfg.hardware, "claims")
folder.mkdir(parents=True, exist_ok=True)
seen = {"workers": cfg.workers, "cwd": os.getcwd(), "root": str(paths.root()), "output": str(paths.output_root())}
for name in params.declared_outputs("claims"):
    (folder / name).write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose only notebook writes where it runs and with what."""
    root = tmp_path_factory.mktemp("clone")
    for path in paths.root().glob("params/**/*.yaml"):
        target = root / path.relative_to(paths.root())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (root / "notebooks").mkdir()
    write(root / "notebooks" / "00_claims.ipynb", parameters_cell(read(paths.notebook("claims"))), PROBE)
    return root


@pytest.fixture(scope="module")
def two_runs(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the notebook saw under `labkit run`, first with `-p workers=3` and then without, from two folders."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_ROOT", str(clone))
        patch.setenv("LABKIT_OUTPUT", str(clone))
        for folder, overrides in ((tmp_path_factory.mktemp("elsewhere"), {"workers": 3}), (clone, None)):
            patch.chdir(folder)
            published = run.run("claims", "ci", overrides, say=lambda line: None)
            seen.append(json.loads((published / "claims.csv").read_text()) | {"published": str(published)})
    return seen


def test_papermill_keeps_old_parameters_in_an_executed_notebook(tmp_path: Path) -> None:
    source = write(tmp_path / "in.ipynb", code_cell("steps = 1", "parameters"))
    first, second = tmp_path / "first.ipynb", tmp_path / "second.ipynb"
    assert run_papermill(source, first, "-p", "steps", "5", "--prepare-only").exit_code == 0
    assert run_papermill(first, second, "--prepare-only").exit_code == 0
    assert injected(second) == {"steps": 5}
    assert read(second).metadata.papermill.parameters == {"steps": 5}


def test_labkit_runs_the_source_notebook_each_time_and_leaves_it_alone(
    clone: Path, two_runs: list[dict[str, object]]
) -> None:
    assert [seen["workers"] for seen in two_runs] == [3, 2]
    executed = clone / "runs" / "ci" / "claims" / "executed.ipynb"
    source = clone / "notebooks" / "00_claims.ipynb"
    assert injected(executed) == {"hardware": "ci"}
    assert read(executed).metadata.papermill.input_path == str(source)
    assert [tags(cell) for cell in read(source).cells] == [["parameters"], []]
    assert "papermill" not in read(source).metadata


def test_papermill_runs_a_notebook_in_the_callers_folder_and_nbval_in_the_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbval: Nbval
) -> None:
    (tmp_path / "notebooks").mkdir()
    source = write(tmp_path / "notebooks" / "in.ipynb", NOISY["folder"])
    monkeypatch.chdir(tmp_path)
    assert run_papermill(source, "out.ipynb").exit_code == 0
    assert read(tmp_path / "out.ipynb").cells[0].outputs[0].text == f"{tmp_path.name}\n"
    assert nbval.bare.cells[noisy("folder")] == "PASSED", "its kept output is the notebook's own folder"


def test_labkit_finds_its_places_from_any_folder(clone: Path, two_runs: list[dict[str, object]]) -> None:
    places = [(seen["cwd"], seen["root"], seen["output"], seen["published"]) for seen in two_runs]
    published = (clone / "runs" / "ci" / "claims" / "custom", clone / "figures" / "ci" / "claims")
    assert places == [(str(clone / "notebooks"), str(clone), str(clone), str(folder)) for folder in published]


# 7. to 9. nbval compares no stripped cell, and takes a progress bar for a result.

PLAIN = printed(code_cell("print('plain')"), "plain\n")
RIGHT = printed(code_cell("print(6 * 7)", *KEPT), "42\n")
WRONG = printed(code_cell("print(6 * 7)", *KEPT), "43\n")
LATE = """\
import sys
import time
sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0
get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))
"""
BAR = "100%|██████████| 3/3 [00:00<00:00, 41943.04it/s]\n"
NOISY = {
    "raises": code_cell("raise ValueError('expected')", "raises-exception"),
    "folder": printed(code_cell("import os; print(os.path.basename(os.getcwd()))", *KEPT), "notebooks\n"),
    "bar": printed(code_cell("import tqdm\nfor _ in tqdm.tqdm(range(3)): pass", *KEPT), BAR, "stderr"),
    "address": printed(code_cell("print(object())", *KEPT), "<object object at 0x7f0000000000>\n"),
    "late": code_cell(LATE),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Nbval:
    """The same notebooks under nbval in two ways."""

    bare: Checked
    """Strict and without a plugin: every cell that has been run is compared."""
    ours: Checked
    """The way our own notebooks are checked: marked cells only, with the plugin."""


def noisy(name: str) -> tuple[str, int]:
    return "noisy.ipynb", list(NOISY).index(name)


@pytest.fixture(scope="module")
def nbval(tmp_path_factory: pytest.TempPathFactory) -> Nbval:
    folder = tmp_path_factory.mktemp("nbval") / "notebooks"
    folder.mkdir()
    stripped = write(folder / "stripped.ipynb", PLAIN, RIGHT)
    counted = write(folder / "counted.ipynb", PLAIN, RIGHT, WRONG)
    loud = write(folder / "noisy.ipynb", *NOISY.values())
    assert nbstripout(stripped) == nbstripout(counted, "--keep-count") == 0
    bare = start_nbval([stripped, counted, loud], folder, "--nbval", hooks=False)
    ours = start_nbval([counted, loud], folder, "--nbval-lax")
    return Nbval(bare=finish(bare), ours=finish(ours))


def test_nbval_compares_no_stripped_cell_and_refuses_a_kept_output_without_a_count(nbval: Nbval) -> None:
    assert nbval.bare.of("stripped.ipynb") == ["PASSED", "FAILED"], nbval.bare.text
    assert "Unrun reference cell has outputs" in nbval.bare.text


def test_strict_nbval_refuses_a_stripped_cell_with_a_count(nbval: Nbval) -> None:
    assert nbval.bare.of("counted.ipynb") == ["FAILED", "PASSED", "FAILED"], nbval.bare.text
    assert "Unexpected output fields from running code: {'stdout'}" in nbval.bare.text


def test_lax_nbval_compares_the_kept_outputs_of_a_notebook_with_counts_and_nothing_else(nbval: Nbval) -> None:
    assert nbval.ours.of("counted.ipynb") == ["PASSED", "PASSED", "FAILED"], nbval.ours.text
    assert "mismatch 'stdout'" in nbval.ours.text


def test_our_notebooks_are_stripped_in_the_one_way_that_works() -> None:
    for path in NOTEBOOKS:
        assert stripped(path.read_text("utf-8")) == path.read_text("utf-8"), f"{path}: run `make format`"


def test_an_expected_error_passes_in_nbval_and_fails_in_papermill(tmp_path: Path, nbval: Nbval) -> None:
    source = write(tmp_path / "in.ipynb", NOISY["raises"], "print('later')")
    done = run_papermill(source, tmp_path / "out.ipynb")
    assert done.exit_code == 1
    assert isinstance(done.exception, papermill.PapermillExecutionError)
    assert read(tmp_path / "out.ipynb").cells[-1].outputs[0].text == "later\n"
    assert nbval.bare.cells[noisy("raises")] == "PASSED"


def test_no_cell_of_ours_expects_an_error_or_is_left_out_by_some_runner() -> None:
    found = {tag for path in NOTEBOOKS for cell in read(path).cells for tag in tags(cell)}
    assert found <= {"parameters", *KEPT}


def test_progress_and_addresses_are_no_results_for_ours(nbval: Nbval) -> None:
    assert nbval.bare.cells[noisy("bar")] == nbval.bare.cells[noisy("address")] == "FAILED", nbval.bare.text
    assert "mismatch 'stderr'" in nbval.bare.text
    assert nbval.ours.cells[noisy("bar")] == nbval.ours.cells[noisy("address")] == "PASSED", nbval.ours.text


def test_output_may_take_longer_than_five_seconds_for_ours(nbval: Nbval) -> None:
    assert nbval.bare.cells[noisy("late")] == "FAILED", nbval.bare.text
    assert "Timeout of 5 seconds exceeded waiting for output" in nbval.bare.text
    assert nbval.ours.cells[noisy("late")] == "PASSED", nbval.ours.text


# 10. A seed that is accepted is not a seed that is used.


def test_a_bootstrap_interval_depends_on_its_seed_alone() -> None:
    sample = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.3]
    assert stats.bootstrap_ci(sample, seed=7) == stats.bootstrap_ci(sample, seed=7)


# 11. nbconvert drops the alt text of a plain image.


def test_nbconvert_drops_the_alt_text_of_an_image_and_keeps_that_of_our_figures(tmp_path: Path) -> None:
    alt = "A line rises from 1 to 2."
    fig, axes = plt.subplots()
    axes.plot([1, 2])
    table = pd.DataFrame({"y": [1, 2]})
    ours = figures.save(fig, "line", data=table, alt=alt, caption="A line.", out_dir=tmp_path, provenance={})
    png = base64.b64encode(ours.png.read_bytes()).decode()
    plain = {"data": {"image/png": png}, "metadata": {"image/png": {"alt": alt}}}
    assert f'alt="{alt}"' not in page(**plain)
    assert f'alt="{alt}"' in page(data={"text/html": ours._repr_html_()})


def page(**output: object) -> str:
    """Return the HTML page of a notebook with one output."""
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", **output)])
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    return html
