"""A measured number as results.json holds it and the ledger judges it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.units import settled

Number = dict[str, Any]


def number(
    value: float | Sequence[float], unit: str, ci: Sequence[float] | None = None, *, n_seeds: int = 1, note: str = ""
) -> Number:
    """Return a number with its unit; digits that depend on the processor are left out (`labkit.units.settled`).

    Args:
        value: the number, or both ends of a range.
        unit: as the ledger spells it; empty for a ratio.
        ci: both ends of its confidence interval.
        n_seeds: seeds behind it.
        note: what a reader should know beside it.
    """
    plain = [settled(end) for end in value] if isinstance(value, Sequence) else settled(value)
    ends = None if ci is None else [settled(end) for end in ci]
    return {"value": plain, "ci": ends, "unit": unit, "n_seeds": n_seeds, "note": note}
