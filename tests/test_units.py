"""Checks labkit.base.units against numbers worked out by hand and against exact rational arithmetic.

Run: pytest tests/test_units.py
"""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.base import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.35, "350 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1.0 h"),
        (2.3 * 3600, "2.3 h"),
        (23.96 * 3600, "1.0 d"),
        (1.4 * 86400, "1.4 d"),
    ],
)
def test_durations_read_as_a_person_would_write_them(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"seconds is {seconds}")):
        units.format_seconds(seconds)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (512, "512 B"),
        (1536, "1.5 KiB"),
        (units.MIB - 1, "1.0 MiB"),
        (24 * units.GB, "22.4 GiB"),
        (24 * units.GIB, "24.0 GiB"),
        (3 * units.TIB, "3.0 TiB"),
    ],
)
def test_bytes_are_written_in_binary_units(n_bytes: int, text: str) -> None:
    assert units.format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (4_146_120, "4.15M"),
        (98_105_744, "98.1M"),
        (999_600, "1.00M"),
        (999_600_000, "1.00B"),
        (7e9, "7.00B"),
        (2e12, "2.00T"),
    ],
)
def test_counts_have_three_significant_digits(n: float, text: str) -> None:
    assert units.format_count(n) == text


@given(st.floats(min_value=1, max_value=9.9e14))
def test_written_count_is_within_half_a_unit_of_its_third_digit(n: float) -> None:
    text = units.format_count(n)
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMBT")) * scale == pytest.approx(n, rel=0.0051, abs=0.5)


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["GB", "GiB", "MB", "MiB", "kB", "TiB"]))
def test_parsed_size_is_the_exact_product(whole: int, thousandths: int, suffix: str) -> None:
    prefix = "kMGT".lower().index(suffix[0].lower()) + 1
    base = 1024 if "i" in suffix else 1000
    exact = (whole + Fraction(thousandths, 1000)) * base**prefix
    assert units.parse_bytes(f"{whole}.{thousandths:03d} {suffix}") == int(exact)


def test_gib_is_not_gb() -> None:
    assert units.parse_bytes("2GiB") == 2_147_483_648
    assert units.parse_bytes("2GB") == 2_000_000_000
    assert units.parse_bytes(4096) == 4096


@pytest.mark.parametrize("size", ["2", "2gb", "2Gb", "GiB", "-2GiB", "2 GiBs", "", "1e3MB", -5, 2.5, True])
def test_an_ambiguous_size_is_refused_with_the_suffixes_that_work(size: object) -> None:
    with pytest.raises(ValueError, match=r"B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"):
        units.parse_bytes(size)  # type: ignore[arg-type]
