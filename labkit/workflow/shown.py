"""A table as a person reads it: names in words, three significant digits, prose wrapped, constants in a sentence."""

from __future__ import annotations

import html
import numbers
import re
from typing import Any

import pandas as pd

WORDS = {
    "lr": "learning rate",
    "d_model": "width",
    "n_layers": "layers",
    "n_total": "parameters",
    "non_embedding": "parameters without embedding",
    "bits_per_byte": "bits/byte",
    "tokens_per_second": "tokens/s",
    "word_perplexity": "perplexity per word",
    "of": "out of",
    "top1": "equal argmax tokens",
    "max_abs": "largest difference of a logit",
    "ms_per_token": "ms/token",
    "gb_per_s": "GB/s",
    "gib": "GiB",
}
"""Columns whose name in a CSV is not what a reader calls them."""
DIGITS = 3
"""Significant digits of a shown number."""
_PROSE = 60
"""Characters from which on a text has a column of some width to wrap in."""
_LIFTED = 300
"""Longest value that is said of all rows instead of in each."""
_BREAK = re.compile(r"(?<=\w[._/])(?=[A-Za-z])")
"""Where a name of several parts may go on in the next line."""
_NOTHING = ("", "–")
_CELL = "padding:2px 8px;vertical-align:top"
_RIGHT, _LEFT = f"{_CELL};text-align:right", f"{_CELL};text-align:left;white-space:normal"
_WIDE = f"{_LEFT};min-width:18em"


class Shown:
    """A table for a page, a kernel or a terminal."""

    def __init__(self, table: pd.DataFrame) -> None:
        """Take the constant columns out of a table with several rows.

        Args:
            table: any columns; the index is shown if it has a name.
        """
        named = any(name is not None for name in table.index.names)
        rows = table.reset_index() if named else table
        self.constant = {
            name: rows[name].iloc[0] for name in rows.columns if len(rows) > 1 and _is_constant(rows[name])
        }
        if len(self.constant) == len(rows.columns):
            self.constant = {}
        self.rows = rows.drop(columns=list(self.constant))

    @property
    def sentence(self) -> str:
        """What is the same in every row, and which columns hold nothing; empty if neither is."""
        held = {words(name): text(value) for name, value in self.constant.items()}
        same = "; ".join(f"{name} {value}" for name, value in held.items() if value not in _NOTHING)
        nothing = ", ".join(name for name, value in held.items() if value in _NOTHING)
        said = [f"In every row: {same}."] if same else []
        return " ".join([*said, *([f"Empty: {nothing}."] if nothing else [])])

    def _repr_html_(self) -> str:
        if self.rows.empty:
            return "<p>Nothing to show on this profile.</p>"
        heads = "".join(
            f'<th style="{_align(self.rows[name])};white-space:normal">{html.escape(words(name))}</th>'
            for name in self.rows
        )
        styles = [_align(self.rows[name]) for name in self.rows]
        body = "".join(f"<tr>{_cells(row, styles)}</tr>" for row in self.rows.itertuples(index=False))
        said = f"<p>{html.escape(self.sentence)}</p>" if self.sentence else ""
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        return f'{said}<div style="overflow-x:auto">{table}</div>'

    def __repr__(self) -> str:
        shown = self.rows.map(text).rename(columns=words)
        return "\n".join(filter(None, [self.sentence, shown.to_string(index=False)]))


def words(name: Any) -> str:
    """Return the name of a column in words."""
    return WORDS.get(str(name), str(name).replace("_", " "))


def text(value: Any) -> str:
    """Return a value as a reader wants it: counts in full, measured numbers with DIGITS significant digits.

    A list is one of settings, which stand as somebody wrote them.
    """
    if isinstance(value, list | tuple):
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    if value is None or (isinstance(value, float) and value != value) or value is pd.NA:
        return "–"
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    return _number(float(value)) if isinstance(value, numbers.Real) else str(value)


def _number(value: float) -> str:
    size = abs(value)
    if size >= 10**DIGITS - 0.5 or size == 0:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.{DIGITS - 1}e}"
    return f"{value:#.{DIGITS}g}".removesuffix(".")


def _is_constant(column: pd.Series) -> bool:
    first = text(column.iloc[0])
    return len(first) <= _LIFTED and all(text(value) == first for value in column)


def _align(column: pd.Series) -> str:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return _RIGHT
    return _WIDE if column.map(lambda value: len(text(value))).max() > _PROSE else _LEFT


def _cells(row: tuple[Any, ...], styles: list[str]) -> str:
    pairs = zip(row, styles, strict=True)
    return "".join(
        f'<td style="{style}">{_BREAK.sub("<wbr>", html.escape(text(value)))}</td>' for value, style in pairs
    )
