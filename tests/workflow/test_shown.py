"""A shown table: what a reader sees of a number, a name, a long text, a column that never changes, and of nothing."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from labkit.workflow.shown import Shown, text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12_811_700.332, "12,811,700"),
        (494_032_768, "494,032,768"),
        (np.int64(1024), "1,024"),
        (0.123456, "0.123"),
        (999.7, "1,000"),
        (2.0, "2.00"),
        (100.0, "100"),
        (3.3, "3.30"),
        (0.00012345, "1.23e-04"),
        (-0.0567, "-0.0567"),
        (0.0, "0"),
        (float("nan"), "–"),
        (None, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ([1, 0.25, 1e12], "1, 0.25, 1e+12"),
        ("resnet-bk", "resnet-bk"),
    ],
)
def test_a_value_has_the_digits_that_a_reader_wants(value: object, expected: str) -> None:
    assert text(value) == expected


def table() -> pd.DataFrame:
    rows = {"mixer": ["resnet-bk"] * 2, "bits_per_byte": [2.34567, 2.1], "why": ["a long reason " * 5, "none <b>"]}
    return pd.DataFrame(rows | {"lr": [1e-3, 2e-3]})


def test_names_are_words_and_constants_are_a_sentence() -> None:
    shown = Shown(table())
    assert shown.sentence == "In every row: mixer resnet-bk."
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", shown._repr_html_())
    assert heads == ["bits/byte", "why", "learning rate"]
    assert "mixer" not in re.sub(r"<p>.*?</p>", "", shown._repr_html_())
    assert "2.35" in repr(shown)
    assert repr(shown).startswith("In every row: mixer resnet-bk.\n")


def test_prose_is_wrapped_and_numbers_stand_right() -> None:
    page = Shown(table())._repr_html_()
    (number, prose, rate), *_ = (re.findall(r'<td style="([^"]*)"', row) for row in page.split("<tr>")[2:])
    assert "text-align:right" in number
    assert "text-align:right" in rate
    assert "min-width" in prose
    assert "none &lt;b&gt;" in page


def test_a_single_row_keeps_its_columns_and_an_empty_table_says_so() -> None:
    assert Shown(table().head(1)).constant == {}
    assert "Nothing to show" in Shown(table().head(0))._repr_html_()
    same = pd.DataFrame({"a": [1, 1], "b": [2, 2]})
    assert list(Shown(same).rows) == ["a", "b"]


def test_a_column_that_holds_nothing_is_named_and_left_out() -> None:
    shown = Shown(pd.DataFrame({"a": [1, 2], "unit": ["", ""], "not_finite": [None, None], "b": [3, 3]}))
    assert list(shown.rows) == ["a"]
    assert shown.sentence == "In every row: b 3. Empty: unit, not finite."


def test_two_renderings_are_equal() -> None:
    assert Shown(table())._repr_html_() == Shown(table())._repr_html_()
