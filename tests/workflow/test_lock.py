"""evidence.lock: drift is seen, shown to be harmless or named by its first field, and nothing else asks for a version.

The package's own cell functions are edited in a copy, and the command line is run there as a person would; results of
goldens are compared field by field with made-up ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from labkit.base import paths
from labkit.cell import digest
from labkit.workflow import goldens, lock, reach

REPOSITORY = paths.root()


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with what is signed."""
    root = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "labkit", root / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "params", root / "params")
    for name in (lock.FILE, "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root / name)
    return root


def evidence(root, *arguments):
    own = os.environ | {"PYTHONPATH": str(root), "LABKIT_ROOT": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    own.pop("LABKIT_OUTPUT", None)
    command = [sys.executable, "-m", "labkit.cli", "evidence", *arguments]
    return subprocess.run(command, env=own, cwd=root, capture_output=True, text=True)


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))


def test_what_is_committed_is_signed():
    assert lock.drift() == [], "run `labkit evidence check` and commit evidence.lock"
    assert lock.read().keys() == reach.declared().keys()


def test_a_check_without_drift_runs_no_golden(copy):
    (copy / "labkit" / "workflow" / "goldens.py").open("a").write("\nrun = None\n")
    done = evidence(copy, "check")
    assert (done.returncode, done.stdout) == (0, "every cell function does what its version promises\n"), done.stderr


def test_a_rename_is_shown_to_change_nothing_and_is_signed(copy):
    path = copy / "labkit" / "scaling" / "train.py"
    path.write_text(path.read_text().replace("_thin", "_points_of"))
    done = evidence(copy, "check")
    assert done.returncode == 0, done.stderr
    assert "scaling.train: behaviour unchanged, shown by" in done.stdout
    assert "evidence check" not in evidence(copy, "check").stdout
    assert evidence(copy, "check").stdout == "every cell function does what its version promises\n"


def test_a_changed_constant_is_named_by_its_first_field_and_asks_for_a_version(copy):
    path = copy / "labkit" / "scaling" / "train.py"
    assert evidence(copy, "sign", "scaling.train").returncode == 0, "so that this machine's own rounding is signed"
    edit(path.with_name("schedule.py"), "0.5 * (1 + math.cos(math.pi", "0.25 * (1 + math.cos(math.pi")
    signed = (copy / lock.FILE).read_text()
    done = evidence(copy, "check")
    assert done.returncode == 1
    assert "scaling.train behaves differently: golden 1, " in done.stdout
    assert " -> " in done.stdout
    assert "raise its version to 3 and run `labkit evidence sign scaling.train`" in done.stdout
    assert (copy / lock.FILE).read_text() == signed
    refused = evidence(copy, "sign", "scaling.train")
    assert (refused.returncode, "raise its version first" in refused.stderr) == (2, True)
    edit(path, '"scaling.train",\n    version=2', '"scaling.train",\n    version=3')
    assert evidence(copy, "sign", "scaling.train").returncode == 0
    assert evidence(copy, "check").returncode == 0


def test_a_golden_that_raises_is_told_in_a_line_and_signs_nothing(copy):
    edit(
        copy / "labkit" / "scaling" / "train.py", "    counts = parameter_counts(config)\n", "    counts = config / 0\n"
    )
    signed = (copy / lock.FILE).read_text()
    done = evidence(copy, "check")
    assert done.returncode == 1
    assert "scaling.train behaves differently: golden 1 raises TypeError" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert (copy / lock.FILE).read_text() == signed


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"version": 1', '"version": 2', 1),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_lock_edited_by_hand_or_damaged_is_one_line_with_its_remedy(copy, damage):
    path = copy / lock.FILE
    path.write_text(damage(path.read_text()))
    done = evidence(copy, "check")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"labkit: {path}: ")
    assert f"`git checkout {path}`" in line


def test_a_new_cell_function_asks_to_be_signed(copy):
    signed = lock.read(copy / lock.FILE)
    del signed["scaling.train"]
    lock.write(signed, copy / lock.FILE)
    done = evidence(copy, "check")
    assert done.returncode == 1
    assert "scaling.train is new: `labkit evidence sign scaling.train` records its goldens" in done.stdout


def test_the_first_field_that_differs_is_named_with_both_values():
    old, new = {"a": [1, {"b": 2.0}], "c": "x"}, {"a": [1, {"b": 2.5}], "c": "y"}
    assert list(goldens.differences(old, new, exact=True)) == ["a[1].b: 2.0 -> 2.5", "c: 'x' -> 'y'"]
    assert list(goldens.differences({"a": 1}, {}, exact=True)) == ["a: 1 -> 'nothing'"]


def test_floats_are_exact_on_the_same_instruction_set_and_near_elsewhere():
    old, near, far = {"a": 1.0, "n": 3}, {"a": 1.005, "n": 3}, {"a": 1.02, "n": 3}
    assert list(goldens.differences(old, near, exact=True))
    assert not list(goldens.differences(old, near, exact=False))
    assert list(goldens.differences(old, far, exact=False))
    assert list(goldens.differences(old, {"a": 1.0, "n": 4}, exact=False)), "numbers of things are exact everywhere"


def test_elsewhere_a_float_may_differ_by_a_share_of_the_largest_of_its_field_and_more_in_16_bits():
    old = {"pairs": [{"margin": 50.0}, {"margin": 0.1}], "types": [{"dtype": "bfloat16", "loss": 2.0}], "loss": 2.0}
    near = {"pairs": [{"margin": 50.4}, {"margin": 0.5}], "types": [{"dtype": "bfloat16", "loss": 2.1}], "loss": 2.0}
    assert not list(goldens.differences(old, near, exact=False))
    assert list(goldens.differences(old, near | {"loss": 2.1}, exact=False)) == ["loss: 2.0 -> 2.1"]
    assert not list(goldens.differences(old, near | {"loss": 2.1}, exact=False, dtype="float16"))
    assert list(goldens.differences({"held": True}, {"held": False}, exact=False)) == ["held: True -> False"]


def test_a_result_of_this_machine_is_preferred_to_one_of_another():
    def golden(where, value):
        return {"spec": {"x": 1}, "environment": {"instruction_set": where}, "digest": "", "result": {"loss": value}}

    signed = {"goldens": [[golden("one", 1.0), golden("other", 1.001)]]}
    assert lock._first_difference(signed, [golden("one", 1.001)]) == "golden 1, loss: 1.0 -> 1.001"
    assert lock._first_difference(signed, [golden("other", 1.001)]) == ""
    assert lock._first_difference(signed, [golden("a third", 1.001)]) == ""


def test_what_no_two_runs_share_is_left_out_at_any_depth():
    result = {"loss": 1.0, "seconds": 2.0, "rows": [{"seconds": 3.0, "n": 1}]}
    assert goldens.without(result, ("seconds",)) == {"loss": 1.0, "rows": [{"n": 1}]}


def test_every_golden_is_signed_with_its_digest():
    for name, own in lock.read().items():
        assert own["goldens"], name
        for result in (result for results in own["goldens"] for result in results):
            assert result["digest"] == digest(result["result"]), name
    json.dumps(lock.read(), allow_nan=False)
