"""Report 003: train by predicting parameter updates, judged by what it costs to reach the same loss."""

from __future__ import annotations

from labkit.base.lazy import exports

_HOMES = {
    "REPORT": "config",
    "Hybrid": "engine",
    "HybridCallback": "callback",
    "HybridConfig": "config",
    "Phase": "phases",
    "PhaseMachine": "phases",
}
"""Module of each public name. They are imported when they are asked for: transformers' Trainer alone takes seconds."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
