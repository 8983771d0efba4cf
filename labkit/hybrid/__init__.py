"""Report 003: train by predicting parameter updates, judged by what it costs to reach the same loss."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "REPORT": "config",
    "Hybrid": "engine",
    "HybridCallback": "callback",
    "HybridConfig": "config",
    "Phase": "phases",
    "PhaseMachine": "phases",
    "run_study": "study",
}
"""Module of each public name. They are imported when they are asked for: transformers' Trainer alone takes seconds."""
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
