"""Recompute a formula over printed numbers, as intervals and without running code.

A number printed as 4.15M stands for everything that rounds to it, so arithmetic on printed numbers gives an interval.
Every operation here returns an interval that holds all results its arguments allow, ends pushed outward against
rounding. A name used twice counts as two independent quantities: the answer may be wider than the truth, never
narrower. The one exception is the x of a log-log fit, see `loglog_slope`.

A formula is a Python expression cut down to numbers, (dotted) names, + - * / **, unary minus, lists and the functions
in `FUNCTIONS`. It is parsed, never executed, and its size is bounded.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_CHARS = 4000
MAX_DEPTH = 60
_TOO_LARGE = "a number grows beyond what a double holds"
_ULPS = 4
"""Units in the last place by which an end moves outward: covers libm's error and a reciprocal before a product."""


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers from `low` to `high`, ends included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(
                f"{self.low} to {self.high} is not an interval: the low end comes first, and NaN is no end"
            )

    @classmethod
    def point(cls, x: float) -> Interval:
        """Return the interval that holds one number."""
        return cls(float(x), float(x))

    @property
    def middle(self) -> float:
        """The arithmetic mean of the ends."""
        return self.low / 2 + self.high / 2

    def meets(self, other: Interval) -> bool:
        """Say whether the two share a number."""
        return self.low <= other.high and other.low <= self.high

    def inside(self, other: Interval) -> bool:
        """Say whether all of this one lies in the other."""
        return other.low <= self.low and self.high <= other.high

    def __str__(self) -> str:
        low, high = format_number(self.low), format_number(self.high)
        if math.isinf(self.low) or math.isinf(self.high):
            return f"≤ {high}" if math.isinf(self.low) else f"≥ {low}"
        return low if low == high else f"{low} to {high}"

    def __add__(self, other: Interval) -> Interval:
        return _outward(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        products = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _outward(min(products), max(products))

    def __truediv__(self, other: Interval) -> Interval:
        if other.low <= 0 <= other.high:
            raise ValueError("division by a range that holds 0")
        return self * Interval(1 / other.high, 1 / other.low)

    def __pow__(self, other: Interval) -> Interval:
        n = other.low
        if n != other.high or not n.is_integer():
            return exp(other * log(self))
        if self.low <= 0 <= self.high and n < 0:
            raise ValueError("a negative power of a range that holds 0")
        ends = [self.low**n, self.high**n]
        if n % 2 == 0 and n and self.low <= 0 <= self.high:
            ends.append(0.0)
        return _outward(min(ends), max(ends))


def format_number(x: float) -> str:
    """Write a number for a reader: whole numbers in full, from 10,000 with separators; others with four digits."""
    if abs(x) < 1e15 and abs(x - round(x)) <= 1e-9 * abs(x):
        return f"{x:,.0f}" if abs(x) >= 1e4 else f"{x:.0f}"
    return f"{x:.4g}"


def _outward(low: float, high: float) -> Interval:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(_TOO_LARGE)
    return Interval(low - _ULPS * math.ulp(low), high + _ULPS * math.ulp(high))


def _rising(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    def apply(x: Interval) -> Interval:
        try:
            low, high = function(x.low), function(x.high)
        except ValueError:
            raise ValueError(f"{function.__name__} of a range that reaches {x.low:.4g}") from None
        return _outward(low, high)

    return apply


log, log10, exp, sqrt = (_rising(function) for function in (math.log, math.log10, math.exp, math.sqrt))


def ceil(x: Interval) -> Interval:
    """Return the least whole number not below; one that arithmetic left uncertain by an ulp may come out as a pair."""
    return Interval(float(math.ceil(x.low)), float(math.ceil(x.high)))


def mean(*xs: Interval) -> Interval:
    """Return the arithmetic mean."""
    return sum(xs[1:], xs[0]) / Interval.point(len(xs))


def span(*xs: Interval) -> Interval:
    """Return the range from the least to the greatest; for a claim that all of them lie in a range."""
    return Interval(min(x.low for x in xs), max(x.high for x in xs))


def loglog_slope(xs: list[Interval], ys: list[Interval]) -> Interval:
    """Return the least-squares slope b of log y = log a + b log x.

    x is taken at its printed value (a range at its middle); y is an interval. The slope is then linear in log y, so the
    sign of each weight picks the end of y, and the answer is exact. Rounding of x is left out: bounding it needs all
    2^n corners, and a ledger that relies on it should check them once (tests/test_audit.py does for report 004).

    Raises:
        ValueError: lengths differ, fewer than two different x, or a number that is not positive.
    """
    return _weighted(_weights(xs, ys)[0], ys)


def loglog_intercept(xs: list[Interval], ys: list[Interval]) -> Interval:
    """Return log a of the fit in `loglog_slope`, under the same conditions."""
    slope_weights, centre = _weights(xs, ys)
    return _weighted([1 / len(xs) - centre * w for w in slope_weights], ys)


def _weights(xs: list[Interval], ys: list[Interval]) -> tuple[list[float], float]:
    logs = [log(Interval.point(x.middle)).middle for x in xs]
    if len(xs) != len(ys) or len(set(logs)) < 2:
        raise ValueError("a fit needs as many x as y, and at least two different x")
    centre = math.fsum(logs) / len(logs)
    spread = math.fsum((u - centre) ** 2 for u in logs)
    return [(u - centre) / spread for u in logs], centre


def _weighted(weights: list[float], ys: list[Interval]) -> Interval:
    terms = [Interval.point(w) * log(y) for w, y in zip(weights, ys, strict=True)]
    return sum(terms[1:], terms[0])


_ON_LISTS = {"loglog_slope": loglog_slope, "loglog_intercept": loglog_intercept}
_ON_NUMBERS: dict[str, Callable[..., Interval]] = {
    "log": log,
    "log10": log10,
    "exp": exp,
    "sqrt": sqrt,
    "ceil": ceil,
    "min": lambda *xs: Interval(min(x.low for x in xs), min(x.high for x in xs)),
    "max": lambda *xs: Interval(max(x.low for x in xs), max(x.high for x in xs)),
    "mean": mean,
    "span": span,
}
_ON_ONE = ("log", "log10", "exp", "sqrt", "ceil")
FUNCTIONS = (*_ON_NUMBERS, *_ON_LISTS)
_OPERATORS: dict[type, Callable[[Interval, Interval], Interval]] = {
    ast.Add: Interval.__add__,
    ast.Sub: Interval.__sub__,
    ast.Mult: Interval.__mul__,
    ast.Div: Interval.__truediv__,
    ast.Pow: Interval.__pow__,
}


def evaluate(formula: str, values: Mapping[str, Interval]) -> Interval:
    """Return the interval a formula yields.

    Args:
        formula: the expression; see the module's docstring for the grammar.
        values: an interval for each name; a dotted name is one name.

    Raises:
        ValueError: the formula holds anything outside the grammar or an unknown name, is too long or too deep, divides
            by a range that holds 0, takes a log of one that reaches 0, or grows beyond a double.
    """
    tree = _parse(formula)
    try:
        return _value(tree, values)
    except OverflowError:
        raise ValueError(f"formula {_shorten(formula)!r}: {_TOO_LARGE}") from None
    except ValueError as error:
        raise ValueError(f"formula {_shorten(formula)!r}: {error}") from None


def names(formula: str) -> set[str]:
    """Return the (dotted) names a formula uses, function names left out.

    Raises:
        ValueError: the formula cannot be parsed.
    """
    found, pending = set(), [_parse(formula)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name | ast.Attribute):
            found.add(_dotted(node))
        else:
            pending += node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return found


def _parse(formula: str) -> ast.expr:
    if len(formula) > MAX_CHARS:
        raise ValueError(f"formula {_shorten(formula)!r} has {len(formula)} characters; at most {MAX_CHARS} are read")
    try:
        tree = ast.parse(formula.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"formula {_shorten(formula)!r} is not an expression") from None
    depth, layer = 0, [tree]
    while layer:
        depth, layer = depth + 1, [child for node in layer for child in ast.iter_child_nodes(node)]
    if depth > MAX_DEPTH:
        raise ValueError(f"formula {_shorten(formula)!r} is nested {depth} deep; at most {MAX_DEPTH} are read")
    return tree


def _value(node: ast.AST, values: Mapping[str, Interval]) -> Interval:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and math.isfinite(number):
            return Interval.point(number)
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            if name not in values:
                raise ValueError(f"unknown name {name!r}")
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _call(name, args, values)
    raise ValueError(f"{_shorten(ast.unparse(node))!r} is not allowed; {_GRAMMAR}")


_GRAMMAR = f"use numbers, names, + - * / **, lists as arguments, and {', '.join(FUNCTIONS)}"


def _call(name: str, args: list[ast.expr], values: Mapping[str, Interval]) -> Interval:
    lists = [[_value(x, values) for x in (arg.elts if isinstance(arg, ast.List) else [arg])] for arg in args]
    numbers = [x for xs in lists for x in xs]
    expected = 2 if name in _ON_LISTS else 1 if name in _ON_ONE else None
    if not numbers or len(lists if name in _ON_LISTS else numbers) != (expected or len(numbers)):
        raise ValueError(f"{name} takes {expected or 'one or more'} argument(s)")
    return _ON_LISTS[name](*lists) if name in _ON_LISTS else _ON_NUMBERS[name](*numbers)


def _dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=attribute):
            return f"{_dotted(owner)}.{attribute}"
    raise ValueError(f"{_shorten(ast.unparse(node))!r} is not a name")


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
