"""The names that other projects import, where ARCHITECTURE.md says they are."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "labkit.workflow.params": ["resolve"],
    "labkit.models": ["build", "lora_coverage", "load"],
    "labkit.corpora": ["load"],
    "labkit.stats": ["fit_affine", "bootstrap_ci"],
    "labkit.scaling": ["resolvent_diagonal", "ResNetBK", "Transformer", "admit", "fit_law"],
    "labkit.decoding": ["measure_decode"],
    "labkit.routing": ["replay"],
    "labkit.dpo": ["train_arm"],
    "labkit.reports.scaling_grid": ["run_grid"],
    "labkit.offload": ["plan", "StreamedLM", "StepReport", "run_isolated", "write_random_checkpoint"],
    "labkit.hybrid": ["HybridConfig", "HybridCallback", "Hybrid", "PhaseMachine"],
    "labkit.ledger.claims": ["load", "judge"],
    "labkit.ledger.audit": ["audit"],
}


@pytest.mark.parametrize("name", [f"{module}.{name}" for module, names in NAMES.items() for name in names])
def test_a_public_name_is_where_it_is_said_to_be(name: str) -> None:
    module, _, own = name.rpartition(".")
    found = getattr(importlib.import_module(module), own)
    assert callable(found)
    assert found.__doc__


def test_a_name_that_is_nowhere_is_an_attribute_error() -> None:
    library = importlib.import_module("labkit.routing")
    with pytest.raises(AttributeError, match="no attribute 'measure_nothing'"):
        _ = library.measure_nothing


@pytest.mark.parametrize(
    ("library", "name"), [("routing", "replay"), ("dpo", "train_arm"), ("offload", "StreamedLM"), ("hybrid", "Hybrid")]
)
def test_importing_a_library_imports_no_trainer(library: str, name: str) -> None:
    code = f"import sys, labkit.{library} as own; assert {name!r} in dir(own); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
