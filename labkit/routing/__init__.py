"""Routing queries between models: policies replayed on recorded answers, size from the query, price per query."""

from __future__ import annotations

from labkit.base.lazy import exports

_HOMES = {
    "energy_table": "economics",
    "replay": "replays",
}
"""Module of each public name, imported when it is asked for."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
