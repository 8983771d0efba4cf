"""Report 000: preference training, time against size, quantization, routing between sizes, energy."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DpoArm": "dpo",
    "energy_table": "economics",
    "fit_rungs": "ladder",
    "measure_decode": "decode",
    "measure_rung": "ladder",
    "replay": "routing",
    "run_study": "study",
    "train_arm": "dpo",
}
"""Module of each public name. They are imported when they are asked for: trl alone takes seconds."""
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
