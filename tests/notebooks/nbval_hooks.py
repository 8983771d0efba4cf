"""Pytest plugin for nbval (`-p nbval_hooks`): compare what is deterministic, and wait for a busy machine.

Figures and tables show themselves as HTML with random ids, progress goes to stderr, and the text form of most objects
holds a memory address: none of it says whether a cell is right. What is left is compared: printed lines, plain values.
"""

from __future__ import annotations

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

OUTPUT_TIMEOUT_SECONDS = 120
"""How long to wait for the output of a finished cell; nbval itself gives up after 5 s and has no option for it."""


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave stderr and HTML out of the comparison, and memory addresses out of plain text."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr", "text/html")
        collector.sanitize_patterns[r"\b0x[0-9a-fA-F]+"] = "ADDRESS"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a cell's output time to arrive."""
    if isinstance(item, IPyNbCell):
        item.output_timeout = OUTPUT_TIMEOUT_SECONDS
