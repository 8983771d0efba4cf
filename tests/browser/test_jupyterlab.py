"""JupyterLab in a real browser, started by the Makefile's own command: every notebook is opened and run as by a person.

What counts is what the page shows: every figure with its picture, the table of verdicts, an explorer whose picture
changes when a control is moved by the keyboard, and another profile chosen inside the running kernel. On the way each
notebook's long work is stopped and run again, and at the end the notebook is saved in a checkout.

Screenshots are kept in the test's temporary folder.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from captions import captions, drawn_in
from playwright.sync_api import Browser, Locator, Page, expect
from servers import free_port, wait_for

from labkit.base import paths

TOKEN = "only-for-this-test"
START_SECONDS, RUN_SECONDS = 60, 1500
"""Report 000's smoke run takes 130 s on one processor and 700 s on one without AVX-512: a limit is for what hangs."""
WHOLE_PAGE = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"}}
"""Cells out of view stay in the page, so that all of them can be looked at."""
STATES = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"""
LONG_WORK = {
    "claims": "",
    "size_inertia": "size inertia",
    "chunked_offload": "chunked offload",
    "predict_phase": "predict phase",
    "scaling_grid": "training the grid",
}
"""What the progress of each notebook's long work is called."""
NOISE = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
"""What a cell wrote to its error stream, or raised: JupyterLab shows both alike."""
SHOWN = '"output_type": "execute_result"'
"""What stands in a notebook that was saved after it had run, and in none of ours as git keeps them."""
RAISED = re.compile(r"Traceback|Error: |^stopped: ", re.MULTILINE)


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs."""

    url: str
    screenshots: Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium_path: str, ci_output: Path) -> Iterator[Lab]:
    """JupyterLab on a checkout of the notebooks: it saves what it opens."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(paths.root() / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    commit(root)
    for name, settings in WHOLE_PAGE.items():
        (root / "settings" / f"{name}.jupyterlab-settings").parent.mkdir(parents=True)
        (root / "settings" / f"{name}.jupyterlab-settings").write_text(json.dumps(settings))
    port = free_port()
    flags = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token={TOKEN}"
    log = (root / "server.log").open("w")
    server = subprocess.Popen(
        f"exec env {make_lab()} {flags} --ServerApp.root_dir={shlex.quote(str(root))}",
        shell=True,
        cwd=paths.root(),
        env=environment(root, ci_output),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        status = f"http://127.0.0.1:{port}/api/status?token={TOKEN}"
        wait_for(lambda: bool(urllib.request.urlopen(status, timeout=5)), server, root / "server.log", START_SECONDS)
        yield Lab(f"http://127.0.0.1:{port}", root)
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def commit(root: Path) -> None:
    """Make a repository of the notebooks, with the filter that `make setup` gives to git."""
    for name in (".gitattributes", ".gitignore"):
        shutil.copy(paths.root() / name, root)
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    clean = ["config", "filter.labkit-notebook.clean", f"{sys.executable} -m labkit.workflow.sources"]
    added = ["add", ".gitattributes", ".gitignore", "notebooks"]
    for given in (["init", "--quiet"], clean, added, [*who, "commit", "--quiet", "-m", "as they are"]):
        subprocess.run(["git", *given], cwd=root, check=True)


def make_lab() -> str:
    """Return the command of `make lab`, for the environment that runs the tests."""
    asked = ["make", "-n", "--no-print-directory", "lab", f"VENV={sys.prefix}"]
    done = subprocess.run(asked, cwd=paths.root(), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def environment(root: Path, output: Path) -> dict[str, str]:
    """Keep a user's own Jupyter out, and results in the folder that all smoke runs of the tests share."""
    own = {name: str(root / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces")}
    return {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own | {"LABKIT_OUTPUT": str(output)}


@pytest.fixture
def page(browser: Browser, lab: Lab, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    opened = context.new_page()
    yield opened
    opened.screenshot(path=lab.screenshots / f"{request.node.name}.png")
    context.close()
    stop_kernels(lab)


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    """Open a notebook in a workspace of its own and wait for its kernel."""
    page.goto(f"{lab.url}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token={TOKEN}")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)


def stop_kernels(lab: Lab) -> None:
    """End every kernel: each holds what its notebook has made."""
    with urllib.request.urlopen(f"{lab.url}/api/sessions?token={TOKEN}", timeout=30) as answer:
        for session in json.load(answer):
            url = f"{lab.url}/api/sessions/{session['id']}?token={TOKEN}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60)


def choose_from_menu(page: Page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


def run_all(page: Page) -> None:
    """Run the notebook from its menu; seen once: right after the kernel had connected, nothing came of the command."""
    stored = page.evaluate(STATES)
    for _ in range(3):
        choose_from_menu(page, "Run", "Run All Cells")
        page.wait_for_timeout(5_000)
        if page.evaluate(STATES) != stored:
            return
    pytest.fail("the notebook was told three times to run, and no cell began")


def errors(page: Page) -> Locator:
    return page.locator(NOISE).filter(has_text=RAISED)


def wait_until_run(page: Page) -> None:
    """Wait until every code cell has its number, or one has failed."""
    end = time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        prompts = page.evaluate(STATES)
        if errors(page).count() or all(re.search(r"\[\d+\]", prompt) for prompt in prompts):
            break
        page.wait_for_timeout(500)
    assert errors(page).count() == 0, errors(page).first.inner_text(timeout=1_000)
    assert all(re.search(r"\[\d+\]", prompt) for prompt in page.evaluate(STATES)), "the notebook did not finish"


def code_of(name: str) -> str:
    cells = nbformat.read(paths.root() / "notebooks" / f"{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.timeout(RUN_SECONDS + 100)
@pytest.mark.parametrize("report", paths.reports())
def test_a_notebook_is_run_stopped_run_again_and_saved_and_shows_its_figures_verdicts_and_explorer(
    report: str, lab: Lab, page: Page, ci_output: Path
) -> None:
    name = paths.notebook(report).stem
    leave_something_to_do(ci_output, report)
    open_notebook(page, lab, name)
    expect(page.locator(".jp-Toolbar-kernelName").first).to_contain_text("Python 3", timeout=60_000)
    run_all(page)
    if LONG_WORK[report]:
        stop(page, LONG_WORK[report])
        kept = cells_of(ci_output, report)
        run_all(page)
    wait_until_run(page)
    if LONG_WORK[report]:
        assert {path: cells_of(ci_output, report)[path] for path in kept} == kept, "what was kept was made again"
        assert len(cells_of(ci_output, report)) > len(kept)
    see_figures(page, [captions(report)[plot].name for plot in drawn_in(ast.parse(code_of(name)), report)])
    see_verdicts(page)
    see_progress(page, report)
    move_a_control(page)
    save(page, lab, name)


def cells_of(output: Path, report: str) -> dict[Path, int]:
    """Return the finished cells of a report, with the time at which each was written."""
    return {path: path.stat().st_mtime_ns for path in (output / "runs" / "ci" / report / "cells").glob("*.json")}


def leave_something_to_do(output: Path, report: str) -> None:
    """Take away the cells that took longest, where another test has run the notebook before."""
    seconds = {path: json.loads(path.read_text())["provenance"]["seconds"] or 0 for path in cells_of(output, report)}
    for path in sorted(seconds, key=seconds.get)[-4:]:
        path.unlink()


def stop(page: Page, work: str) -> None:
    """Press the stop button while long work is under way: one message, and nothing else of the notebook runs."""
    progress = page.locator(".widget-hbox .widget-html-content", has_text=re.compile(rf"{work}: (?!0/)\d+/"))
    expect(progress).to_have_count(1, timeout=RUN_SECONDS * 1000)
    page.locator("[data-command='notebook:interrupt-kernel']").first.click()
    said = errors(page)
    expect(said).to_have_count(1, timeout=60_000)
    expect(said).to_contain_text(re.compile(r"stopped: \d+ of \d+ are kept, run it again to go on"))
    assert "Traceback" not in said.inner_text()
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)


def save(page: Page, lab: Lab, name: str) -> None:
    """Save a notebook that has run: the file has its outputs, and for git nothing has changed."""
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name=re.compile(r"^Save Notebook(?! As)")).click()
    path, end = lab.screenshots / "notebooks" / f"{name}.ipynb", time.monotonic() + 60
    while SHOWN not in path.read_text() and time.monotonic() < end:
        page.wait_for_timeout(500)
    assert SHOWN in path.read_text(), "it was not saved"
    while changed(lab.screenshots) and time.monotonic() < end:
        page.wait_for_timeout(500)
    assert changed(lab.screenshots) == ""


def changed(root: Path) -> str:
    state = ["git", "status", "--porcelain", "notebooks"]
    return subprocess.run(state, cwd=root, check=True, capture_output=True, text=True).stdout


def see_figures(page: Page, names: list[str]) -> None:
    """Every figure that the notebook publishes is a picture with pixels and words."""
    pictures = page.locator(".jp-OutputArea figure img")
    assert names
    expect(pictures).to_have_count(len(names))
    shown = pictures.evaluate_all("images => images.map(image => [image.naturalWidth, image.alt, image.offsetHeight])")
    for name, (width, alt, height) in zip(names, shown, strict=True):
        assert width > 300, name
        assert height > 50, name
        assert len(alt) > 20, name


def see_verdicts(page: Page) -> None:
    table = page.locator(".jp-OutputArea table", has=page.locator("th", has_text=re.compile("^verdict$"))).first
    table.scroll_into_view_if_needed()
    assert table.locator("tbody tr").count() >= 1
    expect(table).to_contain_text(re.compile("not attempted|audited only|reproduced|inconsistent"))


def see_progress(page: Page, report: str) -> None:
    """The long work of a notebook has shown itself as a bar with words, and has come to its end."""
    words = page.locator(".widget-hbox .widget-html-content", has_text="(100%)")
    if LONG_WORK[report]:
        expect(words.filter(has_text=LONG_WORK[report])).to_have_count(1)
        assert page.locator(".widget-hprogress .progress-bar-success").count() >= 1


def move_a_control(page: Page) -> None:
    """Move the first slider by the keyboard, or choose the second entry where there is none: the answer changes."""
    explorer = page.locator(".widget-vbox", has=page.locator("b", has_text="?")).first
    explorer.scroll_into_view_if_needed()
    answer = explorer.locator(".widget-html-content").last
    before = answer.inner_html()
    slider = explorer.locator(".noUi-handle").first
    if slider.count():
        slider.focus()
        for _ in range(8):
            slider.press("ArrowRight")
    else:
        explorer.locator("select").first.select_option(index=2)
    expect(answer).not_to_have_text("", timeout=5_000)
    page.wait_for_function(
        "([element, before]) => element.innerHTML !== before", arg=[answer.element_handle(), before], timeout=20_000
    )
    assert answer.locator("img, table").count() >= 1
    expect(page.locator(".jp-CodeCell", has=explorer).locator(NOISE)).to_have_count(0)


def test_another_profile_is_chosen_in_the_running_kernel(lab: Lab, page: Page) -> None:
    open_notebook(page, lab, "04_scaling_grid")
    choose_from_menu(page, "Kernel", "Restart Kernel and Clear Outputs of All Cells…")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    cells = page.locator(".jp-CodeCell")
    expect(cells.first.locator(".jp-InputPrompt")).to_have_text("[ ]:", timeout=60_000)
    for i in range(2):
        run_cell(page, cells.nth(i))
    choice = cells.nth(1).locator("select")
    expect(choice).to_have_value("ci")
    choice.select_option("cpu")
    expect(cells.nth(1)).to_contain_text("The cells below run on cpu", timeout=30_000)
    expect(cells.nth(1)).to_contain_text("scaling_grid on cpu: reduced scale")
    run_cell(page, cells.nth(2))
    expect(cells.nth(2).locator("tr", has_text="d_model").locator("td").nth(1)).to_have_text(
        "32, 64, 96", timeout=60_000
    )


def run_cell(page: Page, cell: Locator) -> None:
    """Run a cell by the keyboard until it has its number.

    The keys are pressed again where nothing came of them: a page that settles takes the focus away, and a kernel that
    is still being restarted takes back what it had begun.
    """
    prompt, end = cell.locator(".jp-InputPrompt"), time.monotonic() + 120
    while not re.search(r"\[\d+\]", prompt.inner_text()) and time.monotonic() < end:
        if prompt.inner_text().strip() == "[ ]:":
            cell.locator(".jp-InputArea-editor").click()
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(2_000)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=1_000)


def test_a_notebook_has_a_table_of_contents(lab: Lab, page: Page) -> None:
    open_notebook(page, lab, "04_scaling_grid")
    page.get_by_role("tab", name=re.compile("Table of Contents")).click()
    contents = page.locator(".jp-TableOfContents-content")
    for heading in ("3. The grid", "5. The law", "7. Verdicts"):
        expect(contents).to_contain_text(heading)
