"""Published numbers: seven digits, the same on every machine, and nothing else about a table changes."""

import numpy as np
import pandas as pd

from labkit.workflow.tables import rounded, to_csv


def test_neighbouring_floats_are_written_alike_and_different_measurements_are_not():
    value = 0.1234567890123
    bits = [value, np.nextafter(value, 1), np.nextafter(value, 0)]
    assert len({rounded(bit) for bit in bits}) == 1
    assert rounded(1.000001) != rounded(1.000002)


def test_floats_are_rounded_at_any_depth_and_nothing_else_is():
    given = {"a": [1 / 3, {"b": 2e-20 / 3}], "n": 12345678901, "text": "0.33333333333", "none": None, "yes": True}
    expected = {
        "a": [0.3333333, {"b": 6.666667e-21}],
        "n": 12345678901,
        "text": "0.33333333333",
        "none": None,
        "yes": True,
    }
    assert rounded(given) == expected


def test_a_count_that_is_kept_as_a_float_stays_exact():
    assert rounded(494_032_768.0) == 494_032_768.0
    assert to_csv(pd.DataFrame({"n": [494_032_768.0, None], "m": 1})) == b"n,m\n494032768.0,1\n,1\n"


def test_a_table_keeps_its_columns_integers_blanks_and_words():
    table = pd.DataFrame({"n": [12345678, 2], "x": [1 / 3, None], "word": ["a", "b, c"], "ok": [True, False]})
    assert to_csv(table) == b'n,x,word,ok\n12345678,0.3333333,a,True\n2,,"b, c",False\n'
    mixed = pd.DataFrame({"v": [1, 2.0 / 3, "none"]})
    assert to_csv(mixed) == b"v\n1\n0.6666667\nnone\n"
    named = pd.DataFrame({"x": [1.5]}, index=pd.Index([3], name="step"))
    assert to_csv(named, index=True) == b"step,x\n3,1.5\n"
