"""Report 000: preference training, time against size, quantization, routing between sizes, energy."""

from __future__ import annotations

from labkit.lazy import exports

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

__getattr__, __dir__ = exports(__name__, _HOMES)
