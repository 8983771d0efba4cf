"""Report 001: train adapters of a model far larger than memory, a layer at a time, many samples a pass."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DamagedCheckpoint": "headers",
    "CannotStream": "skeleton",
    "NotFinite": "passes",
    "Plan": "planner",
    "ReadError": "readers",
    "StepReport": "step_report",
    "StreamedLM": "engine",
    "TooSmall": "planner",
    "plan": "planning",
    "run_isolated": "isolated",
    "write_random_checkpoint": "random_weights",
}
"""Module of each public name. They are imported when they are asked for: transformers and peft take seconds."""
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
