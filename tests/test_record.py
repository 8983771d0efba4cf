"""Records: an equal key means the work is not done again, and no damage or crash can pass for a result.

Checked against the files themselves: they are truncated, altered, and written to a filesystem that is full.
"""

import json
import os
import resource
import subprocess
import sys

import pytest

from labkit import files, paths, record
from labkit.files import DiskFull
from labkit.record import Store, cell_key, source_files, source_hash

INPUTS = {"mixer": "transformer", "seed": 0, "lr": 1e-3}


def test_work_is_done_once_for_equal_inputs_in_any_order(tmp_path):
    store, calls = Store(tmp_path), []
    for inputs in (INPUTS, dict(reversed(INPUTS.items()))):
        assert store.run_or_load(inputs, lambda: calls.append(1) or {"loss": 0.1 + 0.2}) == {"loss": 0.1 + 0.2}
    assert len(calls) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1.0000001e-3}, {"extra": None}])
def test_any_changed_input_is_another_cell(change):
    assert cell_key(INPUTS) != cell_key(INPUTS | change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("0.5", "0.4"),
        lambda text: "[]",
        lambda text: json.dumps({"key": "other", "result": {}, "sha256": ""}),
    ],
)
def test_a_damaged_cell_is_set_aside_with_a_warning_and_runs_again(tmp_path, damage):
    store = Store(tmp_path)
    store.run_or_load(INPUTS, lambda: {"loss": 0.5})
    path = store.path(cell_key(INPUTS))
    path.write_text(damage(path.read_text()))
    with pytest.warns(UserWarning, match="is damaged .* set aside as .*corrupt, the cell runs again"):
        assert store.run_or_load(INPUTS, lambda: {"loss": 0.25}) == {"loss": 0.25}
    assert path.with_suffix(".corrupt").exists()
    assert store.run_or_load(INPUTS, lambda: {"loss": 9.0}) == {"loss": 0.25}


def test_nan_is_refused_because_json_has_none(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path).run_or_load(INPUTS, lambda: {"loss": float("nan")})
    assert not list(tmp_path.glob("*.json"))


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "cell.json"
    files.write_atomically(path, b"old")
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from labkit import files\n"
        "try: files.write_atomically(Path(sys.argv[1]), b'x' * 5000)\n"
        "except files.DiskFull as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{path}: no room for 5000 bytes" in done.stdout
    assert "what was finished is kept" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["cell.json"]


def test_disk_errors_of_other_writers_are_named_too(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DiskFull, match="no room"), files.disk_errors(tmp_path):
            (tmp_path / "big").write_bytes(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_source_of_a_module_includes_what_it_imports_and_nothing_else():
    names = {path.name for path in source_files(["labkit.params"])}
    ours = {"reports.py", "schema.py", "schema_chunked_offload.py", "schema_predict_phase.py"}
    assert names == {"params.py", "paths.py", "yaml12.py", *ours}


def test_a_cells_key_follows_the_code_that_trains_it_and_not_the_code_that_fits():
    names = {path.name for path in source_files(["labkit.scaling.train"])}
    assert {"train.py", "resnet_bk.py", "resolvent.py", "transformer.py", "optim.py", "data.py"} <= names
    assert {"tokens.py", "markup.py", "wiki.py", "settings.py"} <= names, "imports with leading dots are followed too"
    assert not names & {"law.py", "grid.py", "figures.py", "claims.py", "cli.py"}
    assert source_hash(["labkit.scaling.train"]) != source_hash(["labkit.scaling.law"])


def test_a_report_depends_on_its_notebook_its_science_and_its_modules():
    files = record.notebook_files("scaling_grid")
    assert files[0] == paths.notebook("scaling_grid")
    assert files[1] == paths.science_file("scaling_grid")
    assert {"grid.py", "law.py", "claims.py", "figures.py"} <= {path.name for path in files}
    assert "cli.py" not in {path.name for path in files}


def test_a_better_sentence_makes_nothing_stale_but_code_and_parameters_do(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        for path in (paths.root() / folder).glob("*.*"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    before = record.fingerprint("scaling_grid", "a")
    notebook = paths.notebook("scaling_grid")
    document = json.loads(notebook.read_text())
    prose = next(cell for cell in document["cells"] if cell["cell_type"] == "markdown")
    prose["source"] = ["Better."]
    notebook.write_text(json.dumps(document))
    assert record.fingerprint("scaling_grid", "a") == before
    assert record.fingerprint("scaling_grid", "b") != before
    next(cell for cell in document["cells"] if cell["cell_type"] == "code")["source"] = ["x = 1"]
    notebook.write_text(json.dumps(document))
    assert record.fingerprint("scaling_grid", "a") != before


def test_provenance_names_the_commit_versions_machine_and_data():
    stamp = record.provenance({"seed": 0}, "abc")
    assert stamp["data_revision"] == "abc"
    assert stamp["versions"]["torch"]
    assert stamp["machine"]["n_cores"] >= 1
    assert set(stamp["git"]) == {"commit", "dirty"}
    assert stamp["lock_sha256"]
    json.dumps(stamp, allow_nan=False)
