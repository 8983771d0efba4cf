"""Numbers as they are published: with so many digits that every machine writes the same ones.

A logarithm or a sum of the same recorded numbers differs in its last bits between processors. Seven significant digits,
what a float32 holds, are more than any measurement here has, and far fewer than such a difference reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from labkit.base.units import settled

SIGNIFICANT = 7
"""Digits of a published float."""


def rounded(value: Any) -> Any:
    """Return a JSON value with every float at SIGNIFICANT digits; a whole number is a count, and stays exact."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return settled(value, SIGNIFICANT) if isinstance(value, float | np.floating) else value


def to_csv(table: pd.DataFrame, *, index: bool = False) -> bytes:
    """Return a table as CSV, floats as the shortest decimals of their SIGNIFICANT digits."""
    kept = table.copy()
    for i in range(kept.shape[1]):
        column = kept.iloc[:, i]
        if not pd.api.types.is_integer_dtype(column) and not pd.api.types.is_bool_dtype(column):
            kept.isetitem(i, column.map(rounded, na_action="ignore"))
    return kept.to_csv(index=index, lineterminator="\n").encode("utf-8")
