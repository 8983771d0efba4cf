"""Preference training (DPO) of adapters: one arm through trl and PEFT, packed pairs, scores."""

from __future__ import annotations

from labkit.base.lazy import exports

_HOMES = {
    "DpoArm": "arm",
    "train_arm": "arm",
}
"""Module of each public name. They are imported when they are asked for: trl alone takes seconds."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
