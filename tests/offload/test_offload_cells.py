"""The cells of report 001: what a study takes from the record where nothing may run, and what the goldens go through.

The reference is what was put on record by hand, and the parameters that say which cells there are.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from labkit.base.modes import RENDER
from labkit.offload.isolated import IN_PLACE
from labkit.reports.chunked_offload import goldens
from labkit.reports.chunked_offload.checks import CheckSpec, measure_checks
from labkit.reports.chunked_offload.learning import measure_learning
from labkit.reports.chunked_offload.rounds import measure_rounds
from labkit.reports.chunked_offload.speed import measure_speed
from labkit.reports.chunked_offload.study import learn_specs, rounds_spec, run_study
from labkit.workflow import params
from labkit.workflow.cells import Cells, MissingCells
from labkit.workflow.goldens import without

CFG = params.resolve("chunked_offload", "ci")
ARM = learn_specs(CFG)[0]
OWN, SLOWED = {"slowdown": 1, "batch": 8}, {"slowdown": 2, "batch": 8}
TIMED = {"rows": [OWN, SLOWED], "ablations": [SLOWED, OWN], "copies": [2]}


def recorded() -> Cells:
    cells = Cells.of(CFG.hardware, CFG.report_id())
    cells.keep(measure_rounds, rounds_spec(CFG), "speed", TIMED)
    cells.keep(measure_learning, ARM, "learning", {"loss": [2]})
    return cells


def test_a_study_that_may_run_nothing_names_every_cell_that_is_missing_and_writes_nothing(
    output_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RENDER, "1")
    with pytest.raises(MissingCells, match="3 cells are not on record") as caught:
        run_study(CFG)
    assert [name for name, _, _ in caught.value.cells.missing] == [
        "offload.rounds",
        "offload.learning",
        "offload.checks",
    ]
    assert not [*output_folder.iterdir()]


def test_a_study_that_may_run_nothing_is_what_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded().fail(measure_checks, CheckSpec(arm=ARM), "number types", RuntimeError("no float16 here"))
    monkeypatch.setenv(RENDER, "1")
    study = run_study(CFG)
    assert study.rounds == TIMED
    assert study.speed == {"rows": [OWN], "ablations": [OWN], "copies": [2]}, "the disk's own speed alone"
    assert study.learning == {ARM: {"loss": [2]}}
    assert study.checks is None
    assert study.cells.failures == {"number types": "RuntimeError: no float16 here"}
    assert len(study.cells.used) == 3


def test_steps_that_could_not_be_timed_count_as_missing_where_nothing_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Cells.of(CFG.hardware, CFG.report_id()).fail(measure_rounds, rounds_spec(CFG), "speed", MemoryError("too little"))
    monkeypatch.setenv(RENDER, "1")
    with pytest.raises(MissingCells, match=r"offload.rounds: speed, failed: MemoryError: too little"):
        run_study(CFG)


def test_the_golden_of_timed_steps_goes_through_micro_batches_and_pieces_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (spec,) = goldens.GOLDENS[measure_speed]
    found = measure_speed(spec)
    plans = {int(n): plan for n, plan in found["plans"].items()}
    assert {n: (plan["micro_batch"], plan["head_pieces"]) for n, plan in plans.items()} == {1: (1, 3), 5: (2, 3)}
    assert all(row["bytes_read"] == plans[row["batch"]]["bytes_read"] for row in found["rows"])
    assert len({row["loss"] for row in found["rows"]}) == len(found["rows"]), "every step changes the adapters"
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv(IN_PLACE, "1")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail("an interpreter is started"))
    in_place = json.loads(json.dumps(measure_speed(spec)))
    assert without(in_place, measure_speed.timing) == without(found, measure_speed.timing), "as goldens run it"
