"""What a run leaves: writes that fail leave what was there, and results say what they stand on.

Checked against the files themselves, also on a filesystem that is full.
"""

import json
import os
import resource
import subprocess
import sys

import pytest

from labkit.base import files, paths
from labkit.base.files import DiskFull
from labkit.workflow import params, record


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "cell.json"
    files.write_atomically(path, b"old")
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from labkit.base import files\n"
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


def test_the_files_of_a_module_are_its_own_and_those_it_imports():
    names = {path.name for path in record.source_files(["labkit.workflow.params"])}
    assert {"params.py", "paths.py", "yaml12.py", "report.py", "schema.py", "scale.py"} <= names
    assert not {"study.py", "cli.py", "cells.py"} & names


def test_a_report_depends_on_its_notebook_its_science_and_its_modules():
    files = record.notebook_files("scaling_grid")
    assert files[0] == paths.notebook("scaling_grid")
    assert files[1] == paths.science_file("scaling_grid")
    assert {"study.py", "params.py", "law.py", "claims.py", "figures.py"} <= {path.name for path in files}
    assert "cli.py" not in {path.name for path in files}


def test_provenance_names_the_commit_versions_and_machine():
    resolved = params.resolve("scaling_grid", "ci")
    stamp = record.provenance(resolved)
    (own,) = stamp["made_from"]
    assert own["versions"]["torch"]
    assert own["machine"]["n_cores"] >= 1
    assert set(own["git"]) == {"commit", "dirty"}
    assert own["lock_sha256"]
    assert stamp["params"] == resolved.model_dump()
    json.dumps(stamp, allow_nan=False)
    assert own["versions"]["torch"] in record.describe(stamp)
