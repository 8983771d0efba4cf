"""Report 001: train adapters of a model far larger than memory, a layer at a time, many samples a pass."""

from __future__ import annotations

from labkit.base.lazy import exports

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

__getattr__, __dir__ = exports(__name__, _HOMES)
