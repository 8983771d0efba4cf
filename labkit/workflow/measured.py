"""A measured number as results.json holds it and the ledger judges it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.base.units import settled

Number = dict[str, Any]


def number(
    value: float | Sequence[float],
    unit: str,
    ci: Sequence[float] | None = None,
    *,
    n_seeds: int = 1,
    exact: bool = False,
    acted: int | None = None,
    seconds: float | None = None,
    note: str = "",
) -> Number:
    """Return a number with its unit; digits that depend on the processor are left out (`labkit.base.units.settled`).

    Args:
        value: the number, or both ends of a range.
        unit: as the ledger spells it; empty for a ratio.
        ci: both ends of its 95 % confidence interval.
        n_seeds: independent repetitions behind it.
        exact: whether no repetition could change it; see `labkit.ledger.verdict.Result`.
        acted: how often the mechanism that it is about acted, where that can be counted.
        seconds: what its repetitions took together, every arm of them, where that was measured.
        note: what a reader should know beside it.
    """
    plain = [settled(end) for end in value] if isinstance(value, Sequence) else settled(value)
    ends = None if ci is None else [settled(end) for end in ci]
    told = {"exact": exact} if exact else {}
    told |= {} if acted is None else {"acted": acted}
    told |= {} if seconds is None else {"seconds": settled(seconds)}
    return {"value": plain, "ci": ends, "unit": unit, "n_seeds": n_seeds, "note": note, **told}
