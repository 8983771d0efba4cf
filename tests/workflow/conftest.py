"""A cell function for the tests of cells."""

from __future__ import annotations

import pytest
from small_sums import add

from labkit.cell import CellFunction


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> CellFunction:
    """The cell function, whose code hash is made up: it lies outside the package."""
    monkeypatch.setattr("labkit.workflow.reach.code_hash", lambda name: f"hash of {name}")
    return add
