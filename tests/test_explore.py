"""The explorers: every control changes the answer, the words say what the picture shows, nothing needs a kernel."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from labkit.base import paths
from labkit.base.units import GIB
from labkit.hybrid.phases import Phase
from labkit.ledger import claims
from labkit.offload.headers import open_checkpoint
from labkit.offload.hollow import write_hollow_checkpoint
from labkit.offload.planner import Rates, Request, choose
from labkit.reports import explore
from labkit.reports.chunked_offload import explorer as offload_plan
from labkit.reports.chunked_offload import shape_counts as shapes
from labkit.reports.predict_phase.explorer import TOTAL, timeline
from labkit.reports.scaling_grid.explorer import CONVENTIONS
from labkit.scaling.law import fit_law

OTHERS = {
    "inertia": {"overhead_ms": 50.0, "gb_per_second": 5.0, "size_gb": 12.0},
    "offload": {"model": "phi-2", "memory_gib": 8.0, "batch": 8, "seq_len": 256, "disk": 0.5, "tflops": 5.0},
    "phases": {"arm": "muon", "full": 30, "horizon": 15, "gate": "never"},
    "law": {"mixer": None, "convention": "without embeddings", "floor": True, "skilled": True, "smallest": 1},
    "ledger": {"report": "predict_phase", "verdict": "inconsistent in source", "words": "memory", "row": 3},
}
"""For each explorer, another value of every control; None takes the second option."""
PROFILE = {"inertia": "cpu-24gb"}
"""Profiles that published what an explorer shows, where it is not cpu."""


def panel_of(name):
    own = getattr(explore, name)
    return own() if name == "offload" else own(PROFILE.get(name, "cpu"))


@pytest.mark.parametrize("name", OTHERS)
def test_every_control_is_named_and_changes_the_answer(name):
    panel = panel_of(name)
    assert list(panel.controls) == list(OTHERS[name])
    for key, value in OTHERS[name].items():
        control, before = panel.controls[key], panel.shown
        assert control.description
        control.value = control.options[1] if value is None else value
        assert panel.shown != before, key


@pytest.mark.parametrize("name", OTHERS)
def test_the_words_stand_for_the_picture_and_a_terminal_has_them(name):
    panel = panel_of(name)
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == str(panel) == f"{panel.title}\n{panel.answer.text}"
    assert panel.shown in bundle["text/html"]
    pictures = re.findall(r'<img alt="([^"]*)"', panel.shown)
    assert all(len(alt) > 40 for alt in pictures)
    assert bool(pictures) == (panel.answer.figure is not None)
    assert pictures or "<table" in panel.shown


@pytest.mark.parametrize("name", sorted(set(OTHERS) - {"offload"}))
def test_what_is_not_published_is_said_with_the_command_that_publishes_it(name):
    with pytest.raises(FileNotFoundError, match=r"labkit run \w+ --hw jetson-thor"):
        getattr(explore, name)("jetson-thor")


def test_the_law_is_the_notebooks_law():
    panel = explore.law("cpu")
    panel.controls["mixer"].value = "transformer"
    grid = pd.read_csv(paths.root() / "figures/cpu/scaling_grid/grid.csv")
    rows = grid[grid["lr_is_best"] & (grid["mixer"] == "transformer") & np.isfinite(grid["loss_nats"])]
    for label, column in CONVENTIONS.items():
        panel.controls["convention"].value = label
        found = fit_law(rows[column], rows["loss_nats"], floor=False, bootstrap=0)
        assert f"power of -{found.alpha:.3g}," in panel.answer.text


def test_the_recorded_shape_of_a_model_is_what_counting_finds():
    found = shapes.count("smollm2-135m")
    assert json.loads(shapes.RECORD.read_text())["smollm2-135m"] == json.loads(json.dumps(found))


def test_the_plan_is_the_engines_and_a_budget_too_small_is_said():
    panel = explore.offload()
    shape, footprint = shapes.recorded("phi-4", 64)
    rates = Rates(bytes_per_second=2e9, flops_per_second=4e12)
    request = Request(
        shape=shape, footprint=footprint, batch_size=32, seq_len=64, base_bytes=offload_plan.BASE_BYTES, rates=rates
    )
    assert choose(request, 4 * GIB).describe() in panel.answer.text
    panel.controls["memory_gib"].value = 0.6
    assert "need at least" in panel.answer.text


def test_a_hollow_checkpoint_is_as_long_as_the_real_one_and_takes_no_room(tmp_path):
    n_bytes = write_hollow_checkpoint(tmp_path, "phi-4")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.n_bytes == n_bytes == 2 * 14_659_507_200
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 1_000_000
    with pytest.raises(ValueError, match="no type of a checkpoint"):
        write_hollow_checkpoint(tmp_path, "phi-4", dtype=torch.int8)


def test_too_few_models_are_no_law():
    panel = explore.law("cpu")
    panel.controls["smallest"].value = 3
    panel.controls["floor"].value = True
    assert "no law" in panel.answer.text


def test_half_the_time_of_a_token_is_overhead_where_the_panel_says_so():
    panel = explore.inertia()
    for key, value in {"overhead_ms": 10.0, "gb_per_second": 20.0, "size_gb": 0.2}.items():
        panel.controls[key].value = value
    assert "take 20 ms a token; 50% of it" in panel.answer.text
    assert "weigh the same at 0.2 GB" in panel.answer.text


@pytest.mark.parametrize(("full", "horizon"), [(16, 8), (2, 1), (10, 40), (40, 40)])
def test_a_timeline_is_whole_and_skips_only_where_jumps_are_believed(full, horizon):
    for believed in (True, False):
        spans = timeline(full, horizon, believed)
        assert [start for _, start, _ in spans] == [sum(n for *_, n in spans[:i]) for i in range(len(spans))]
        assert sum(steps for *_, steps in spans) == TOTAL
        jumps = [steps for phase, _, steps in spans if phase is Phase.PREDICT]
        assert bool(jumps) == believed
        assert all(steps <= horizon for steps in jumps)


def test_the_ledger_counts_what_the_filters_leave():
    panel = explore.ledger("cpu")
    judged = pd.read_csv(paths.root() / "figures/cpu/claims/claims.csv")
    assert panel.answer.text.startswith(f"{len(judged)} claims")
    panel.controls["report"].value = "predict_phase"
    ids = {claim.id for claim in claims.load("predict_phase")}
    assert panel.answer.text.startswith(f"{judged['claim'].isin(ids).sum()} claims")
    panel.controls["words"].value = "no such name"
    assert panel.answer.text == "No claim on cpu is like that."
