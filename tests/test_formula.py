"""Formulas over intervals, against plain float arithmetic at points drawn inside the intervals, against numpy.polyfit,
and, for what must be refused, against the list of things Python would happily run.
"""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labkit.ledger import formula
from labkit.ledger.formula import Interval

small = st.floats(-50, 50, allow_nan=False)
positive = st.floats(0.01, 50)
ranges = st.tuples(small, small) | st.tuples(positive, positive)


@st.composite
def expressions(draw, depth=3):
    """Draw an expression over x, y, z in the grammar."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["x", "y", "z", "2", "0.5", "1e-3"]))
    kind = draw(st.sampled_from(["binary", "power", "minus", "call", "many"]))
    inner = expressions(depth=depth - 1)
    if kind == "binary":
        return f"({draw(inner)} {draw(st.sampled_from(['+', '-', '*', '/']))} {draw(inner)})"
    if kind == "power":
        return f"({draw(inner)} ** {draw(st.sampled_from(['2', '3', '-1', '-2', '0', '0.5', 'x']))})"
    if kind == "minus":
        return f"-{draw(inner)}"
    name = draw(st.sampled_from(["log", "log10", "exp", "sqrt", "ceil"] if kind == "call" else ["min", "max", "mean"]))
    return f"{name}({draw(inner)})" if kind == "call" else f"{name}({draw(inner)}, {draw(inner)})"


PYTHON = {
    "log": math.log,
    "log10": math.log10,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "mean": lambda *xs: math.fsum(xs) / len(xs),
    "__builtins__": {},
}


@settings(max_examples=200)
@given(expressions(), st.lists(ranges, min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3))
def test_interval_holds_every_value_that_plain_arithmetic_gives_inside_the_inputs(text, ends, shares):
    boxes = {name: Interval(min(pair), max(pair)) for name, pair in zip("xyz", ends, strict=True)}
    inside = {
        name: min(max(box.low + share * (box.high - box.low), box.low), box.high)
        for (name, box), share in zip(boxes.items(), shares, strict=False)
    }
    try:
        found = formula.evaluate(text, boxes)
    except ValueError:
        assume(False)
    value = eval(text, PYTHON, inside)
    assert found.low <= value <= found.high


@given(*[st.tuples(positive, positive).map(sorted)] * 2, st.sampled_from("+-*/"), st.booleans())
def test_each_operation_on_ranges_gives_the_extremes_of_its_corners(x, y, sign, negative):
    x = [-x[1], -x[0]] if negative else x
    boxes = {"x": Interval(*x), "y": Interval(*y)}
    corners = [eval(f"a {sign} b", {"a": a, "b": b}) for a in x for b in y]
    found = formula.evaluate(f"x {sign} y", boxes)
    assert (found.low, found.high) == pytest.approx((min(corners), max(corners)), abs=1e-9)


@pytest.mark.parametrize("ends", [(-1, 2), (0, 2), (-2, 0), (0, 0)])
def test_division_by_a_range_that_holds_zero_is_refused(ends):
    with pytest.raises(ValueError, match="holds 0"):
        formula.evaluate("1 / x", {"x": Interval(*ends)})


def test_length_is_checked_before_anything_is_parsed():
    with pytest.raises(ValueError, match="characters"):
        formula.names("1" * (formula.MAX_CHARS + 1))


@given(positive, positive, positive)
def test_points_give_what_python_gives(x, y, z):
    text = "2*x + y**2 - x/y + sqrt(z)*log(x + 1) - -min(x, y, z)*max(x, y) + mean([x, y, z])**0.5"
    found = formula.evaluate(text, {"x": Interval.point(x), "y": Interval.point(y), "z": Interval.point(z)})
    assert found.middle == pytest.approx(eval(text.replace("[", "").replace("]", ""), PYTHON, {"x": x, "y": y, "z": z}))
    assert found.high - found.low < 1e-9 * (1 + abs(found.middle))


def test_a_square_of_a_range_across_zero_starts_at_zero_and_a_product_does_not():
    box = {"x": Interval(-2, 3)}
    assert formula.evaluate("x**2", box).low == pytest.approx(0, abs=1e-12)
    assert formula.evaluate("x*x", box).low == pytest.approx(-6)


def test_whole_batches_are_counted_upwards():
    values = {"n": Interval.point(115), "x": Interval(3.2, 4.0)}
    whole = formula.evaluate("ceil(ceil(n / 2) / 4)", values)
    assert (whole.low, whole.high) == (15, 15)
    assert formula.evaluate("ceil(x)", values) == Interval(4, 4)
    assert formula.evaluate("ceil(-x)", values) == Interval(-4, -3)


def test_a_whole_quotient_is_never_counted_too_low():
    assert formula.evaluate("ceil(n / 2)", {"n": Interval.point(116)}).low == 58


@given(st.lists(st.tuples(small, small).map(sorted), min_size=1, max_size=4))
def test_a_span_holds_every_argument_and_ends_at_two_of_them(ends):
    boxes = {f"x{i}": Interval(*pair) for i, pair in enumerate(ends)}
    found = formula.evaluate(f"span({', '.join(boxes)})", boxes)
    assert all(box.inside(found) for box in boxes.values())
    assert {found.low, found.high} <= {end for pair in ends for end in pair}


@given(st.lists(st.tuples(positive, positive, positive), min_size=3, max_size=8))
def test_loglog_fit_of_points_is_numpys(rows):
    xs, ys, _ = (np.array(column) for column in zip(*rows, strict=True))
    assume(np.ptp(np.log(xs)) > 0.1)
    names = {f"x{i}": Interval.point(x) for i, x in enumerate(xs)} | {
        f"y{i}": Interval.point(y) for i, y in enumerate(ys)
    }
    columns = ", ".join(f"[{', '.join(f'{axis}{i}' for i in range(len(xs)))}]" for axis in "xy")
    slope, intercept = np.polyfit(np.log(xs), np.log(ys), 1)
    assert formula.evaluate(f"loglog_slope({columns})", names).middle == pytest.approx(slope, abs=1e-8)
    assert formula.evaluate(f"loglog_intercept({columns})", names).middle == pytest.approx(intercept, abs=1e-8)


def test_loglog_fit_of_ranges_is_exactly_the_extremes_over_all_corners():
    xs = [1.0, 2.0, 5.0, 30.0]
    ys = [Interval(9, 12), Interval(6, 9), Interval(6, 7), Interval(2, 4)]
    names = {f"x{i}": Interval.point(x) for i, x in enumerate(xs)} | {f"y{i}": y for i, y in enumerate(ys)}
    corners = np.array(np.meshgrid(*[(y.low, y.high) for y in ys])).reshape(4, -1)
    fits = np.polyfit(np.log(xs), np.log(corners), 1)
    for text, column in (("slope", fits[0]), ("intercept", fits[1])):
        found = formula.evaluate(f"loglog_{text}([x0, x1, x2, x3], [y0, y1, y2, y3])", names)
        assert (found.low, found.high) == pytest.approx((column.min(), column.max()))


def test_dotted_names_are_single_names():
    text = "scaling.d64_l4.parameters * b ** 2 + log(max(scaling.a.b, b))"
    assert formula.names(text) == {"scaling.d64_l4.parameters", "scaling.a.b", "b"}
    values = {"scaling.d64_l4.parameters": Interval.point(3), "scaling.a.b": Interval.point(1), "b": Interval.point(2)}
    assert formula.evaluate("scaling.d64_l4.parameters * b", values).middle == pytest.approx(6)


REFUSED = [
    "__import__('os').system('true')",
    "x.__class__.__base__",
    "(1).real",
    "(lambda: 1)()",
    "[1, 2]",
    "[1 for _ in x]",
    "x if x else x",
    "x[0]",
    "x @ x",
    "x // 2",
    "x % 2",
    "+x",
    "x < 2",
    "x and x",
    "True",
    "1j",
    "'a' * 9",
    "f'{x}'",
    "max(x, key=abs)",
    "max(*x)",
    "open('f')",
    "x.max(1)",
    "log(x, 2)",
    "ceil(x, 2)",
    "span()",
    "mean([])",
    "min()",
    "loglog_slope([1, 2])",
    "loglog_slope([1, 1], [1, 2])",
    "loglog_slope([1, 2, 3], [1, 2])",
    "(x := 3)",
    "x; x",
    "",
    "x\0",
]
TOO_LARGE = [
    "9**9**9**9",
    "2**100000",
    "exp(1000)",
    "1e308*10",
    "1e999",
    "9" * 400,
    "-" * 3999 + "1",
    "(" * 1900 + "1" + ")" * 1900,
    "+".join("1" * 1500),
    "x." * 1500 + "x",
    "1" + "+1" * 10**6,
]
UNDEFINED = [
    "1/(x - x)",
    "log(x - x)",
    "sqrt(-x)",
    "(x - x)**-1",
    "(-x)**0.5",
    "unknown",
    "loglog_slope([1, 2], [x - x, 1])",
]


@pytest.mark.parametrize("text", REFUSED + TOO_LARGE + UNDEFINED, ids=lambda text: text[:30])
def test_refuses_all_but_bounded_arithmetic_and_names_the_formula(text):
    with pytest.raises(ValueError, match="formula"):
        formula.evaluate(text, {"x": Interval.point(3)})


@pytest.mark.parametrize(("low", "high"), [(2, 1), (math.nan, 1), (1, math.nan)])
def test_an_interval_has_ordered_ends(low, high):
    with pytest.raises(ValueError, match="not an interval"):
        Interval(low, high)


def test_numbers_are_written_for_readers():
    texts = [
        str(Interval.point(98105744)),
        str(Interval(1.2589, 1.5849)),
        str(Interval(100, math.inf)),
        str(Interval.point(0)),
    ]
    assert texts == ["98,105,744", "1.259 to 1.585", "≥ 100", "0"]
