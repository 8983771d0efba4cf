"""Time of a decoded token: real models, shapes of every size, quantized weights, loading."""

from __future__ import annotations

from labkit.base.lazy import exports

_HOMES = {
    "fit_rungs": "ladder",
    "measure_decode": "decode",
    "measure_rung": "ladder",
}
"""Module of each public name. They are imported when they are asked for: transformers alone takes seconds."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
