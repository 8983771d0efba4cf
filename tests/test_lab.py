"""What a notebook has for whoever sits before it, in real kernels: another profile, edited code, help on a name."""

from __future__ import annotations

import json
import os
import textwrap

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from labkit.base import paths
from labkit.workflow import lab, params

COLLECT = 'from labkit.workflow import lab, params\ncfg = params.collect("scaling_grid", globals())'


def parameters_of(hardware: str) -> str:
    return f"hardware = {hardware!r}"


def run(*cells: str) -> list[str]:
    """Run cells in a kernel and return what each printed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]


def test_a_choice_sets_what_the_parameters_cell_and_the_gate_behind_it_set() -> None:
    namespace = {"hardware": "ci"}
    namespace["cfg"] = params.collect("scaling_grid", namespace)
    panel = lab.controls("scaling_grid", namespace)
    assert panel.choice.value == "ci"
    assert panel.choice.options == tuple(paths.profiles())
    assert "run on ci" in str(panel)
    panel.choice.value = "cpu"
    chosen = params.resolve("scaling_grid", "cpu")
    assert namespace["cfg"] == params.collect("scaling_grid", namespace) == chosen
    assert namespace["out_dir"] == paths.staging("cpu", "scaling_grid")
    assert "The cells below run on cpu" in str(panel)
    assert "scaling_grid on cpu: reduced scale" in str(panel)


def test_a_page_without_a_kernel_has_the_words() -> None:
    namespace = {"cfg": params.resolve("claims", "cpu")}
    bundle = lab.controls("claims", namespace)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] in bundle["text/html"]
    assert "run on cpu" in bundle["text/plain"]


@pytest.mark.parametrize("headless", [False, True])
def test_edited_code_is_reloaded_where_somebody_sits_and_not_in_a_headless_run(headless, tmp_path, monkeypatch) -> None:
    if headless:
        monkeypatch.setenv("LABKIT_HEADLESS", "1")
    module = tmp_path / "edited_module.py"
    module.write_text("def answer():\n    return 'old'\n")
    edit = f"""
        import os, pathlib
        path = pathlib.Path({str(module)!r})
        _ = path.write_text("def answer():\\n    return 'new, longer'\\n")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 10))
    """
    printed = run(
        parameters_of("ci"),
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{COLLECT}",
        'panel = lab.controls("scaling_grid", globals())',
        "import edited_module\nprint(edited_module.answer())",
        textwrap.dedent(edit),
        "print(edited_module.answer())",
    )
    assert printed[3] == "old\n"
    assert printed[5] == ("old\n" if headless else "new, longer\n")


def test_the_inspector_shows_what_a_function_takes_and_raises() -> None:
    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
    try:
        client.execute(
            "from labkit import offload, scaling; from labkit.reports import scaling_grid", reply=True, timeout=60
        )
        for name in ("offload.plan", "scaling.fit_law", "scaling_grid.run_grid"):
            reply = client.inspect(name, reply=True, timeout=60)["content"]
            assert reply["found"], name
            text = reply["data"]["text/plain"]
            assert "Args:" in text, name
            assert "Raises:" in text, name
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_jupyterlab_asks_no_question_at_its_first_start() -> None:
    settings = json.loads((paths.root() / "notebooks" / "jupyterlab_settings.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false", "checkForUpdates": False}
    assert (
        "jupyterlab_settings.json $(VENV)/share/jupyter/lab/settings/overrides.json"
        in (paths.root() / "Makefile").read_text()
    )


def run_all(namespace: dict, hardware: str, **edited: object) -> lab.Controls:
    """Run the cells down to the control, as "Run All" does, with the parameters cell of a profile."""
    namespace |= {"hardware": hardware} | edited
    namespace["cfg"] = params.collect("scaling_grid", namespace)
    return lab.controls("scaling_grid", namespace)


def test_run_all_does_not_go_back_behind_the_readers_back() -> None:
    namespace: dict = {}
    run_all(namespace, "ci").choice.value = "cpu"
    panel = run_all(namespace, "ci")
    assert namespace["cfg"].hardware == panel.choice.value == "cpu"
    assert str(panel).startswith("cpu was chosen before and is kept.")
    panel.choice.value = "ci"
    assert run_all(namespace, "ci").choice.value == "ci"


def test_an_edited_parameters_cell_wins_over_an_earlier_choice() -> None:
    namespace: dict = {}
    run_all(namespace, "ci").choice.value = "cpu"
    panel = run_all(namespace, "ci", workers=1)
    assert (namespace["cfg"].hardware, namespace["cfg"].workers, panel.choice.value) == ("ci", 1, "ci")


WORK = """
import time
from labkit.progress import Progress
with Progress(3, "grid", resumable=True) as progress:
    progress.advance()
    print("at work")
    time.sleep(60)
"""


def test_the_stop_button_shows_one_line() -> None:
    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
    seen: list = []

    def look(message: dict) -> None:
        seen.append(message)
        if message["msg_type"] == "stream" and "at work" in message["content"]["text"]:
            manager.interrupt_kernel()

    try:
        client.execute_interactive(WORK, timeout=60, output_hook=look)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    (error,) = (message["content"] for message in seen if message["msg_type"] == "error")
    assert error["traceback"] == ["stopped: 1 of 3 are kept, run it again to go on"]
