"""Divide one measurement by another, and refuse where more than the named factor differs between them.

A row is a mapping that holds its `conditions` and, under the name of a quantity, a number or a list of samples. Every
condition counts: type, threads, versions, device, adapters, tokens generated, sampler, state of the cache and whatever
else the row recorded. One that only one of two rows recorded counts as different, since nothing says that it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.stats import Interval, ratio_ci

Row = Mapping[str, Any]

FOLLOWS: dict[str, frozenset[str]] = {
    "model": frozenset({"parameters", "weight_bytes", "bytes_per_token", "n_layers", "trainable"}),
    "dtype": frozenset({"weight_bytes", "bytes_per_token"}),
    "weights": frozenset({"weight_bytes", "bytes_per_token"}),
}
"""Conditions that follow from a factor, so that they differ with it and confound nothing."""


class Confounded(ValueError):
    """Two rows differ in more than the factor that their ratio is about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """One measurement over another under the same conditions but one."""

    value: float
    """Geometric mean of the first row's samples over that of the second's."""
    interval: Interval | None
    """Student's interval of its logarithm, both rows on their own (Welch); None where a row has a single number."""
    quantity: str
    """What was measured."""
    factor: str
    """The condition whose effect this is."""
    levels: tuple[Any, Any]
    """Value of the factor in the first and in the second row."""

    def __str__(self) -> str:
        shown = f"{self.value:.3g}" if self.interval is None else str(self.interval)
        return f"{self.quantity}, {self.factor} {self.levels[0]} over {self.levels[1]}: {shown}"


def confounders(a: Row, b: Row, factor: str) -> tuple[str, ...]:
    """List every condition but `factor`, and what follows from it, that differs, each with both values.

    Raises:
        ValueError: a row has no conditions, or neither row records the factor.
    """
    left, right = _conditions(a), _conditions(b)
    if factor not in left and factor not in right:
        raise ValueError(f"no row records {factor!r}; they record {', '.join(sorted(left | right))}")
    allowed = {factor} | FOLLOWS.get(factor, frozenset())
    names = [name for name in dict.fromkeys([*left, *right]) if name not in allowed]
    return tuple(
        f"{name}: {_shown(left, name)} against {_shown(right, name)}"
        for name in names
        if left.get(name) != right.get(name)
    )


def ratio(a: Row, b: Row, quantity: str, factor: str, *, level: float = 0.95) -> Ratio:
    """Return a's quantity over b's, as the effect of one condition.

    Args:
        a: the row above the line.
        b: the row below it.
        quantity: key of the samples in both rows, such as `seconds_per_token`.
        factor: the one condition that may differ, such as `model`, `dtype` or `device`.
        level: nominal coverage of the interval.

    Raises:
        Confounded: another condition differs; the message lists every one of them with both values.
        ValueError: a row lacks the quantity or its conditions, or the factor does not differ.
    """
    found = confounders(a, b, factor)
    if found:
        raise Confounded(
            f"the ratio of {quantity} is no effect of {factor} alone; {len(found)} other conditions differ: "
            + "; ".join(found)
        )
    levels = (_conditions(a).get(factor), _conditions(b).get(factor))
    if levels[0] == levels[1]:
        raise ValueError(f"{factor} is {levels[0]} in both rows; the ratio would show the effect of nothing")
    above, below = _samples(a, quantity), _samples(b, quantity)
    value = float(np.exp(np.log(above).mean() - np.log(below).mean()))
    several = min(len(above), len(below)) > 1
    interval = ratio_ci(above, below, paired=False, level=level) if several else None
    return Ratio(value=value, interval=interval, quantity=quantity, factor=factor, levels=levels)


def _conditions(row: Row) -> dict[str, Any]:
    if not row.get("conditions"):
        raise ValueError(f"a row with the keys {', '.join(row)} has no conditions; without them no ratio is formed")
    return dict(row["conditions"])


def _shown(conditions: Mapping[str, Any], name: str) -> str:
    value = conditions.get(name)
    return "not recorded" if value is None else str(value)


def _samples(row: Row, quantity: str) -> np.ndarray:
    if quantity not in row:
        raise ValueError(f"a row with the keys {', '.join(row)} has no {quantity!r}")
    samples = np.atleast_1d(np.asarray(row[quantity], dtype=float)).reshape(-1)
    if not len(samples) or not (np.isfinite(samples) & (samples > 0)).all():
        raise ValueError(f"{quantity} must hold positive finite numbers; got {row[quantity]!r}")
    return samples
