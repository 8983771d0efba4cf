"""When a comparison of the deciding protocol says nothing (docs/protocols/003_predict_phase.md, "Void").

The conditions are read from the table of runs alone, so that a published table is judged as the run that made it was.
They hold where its rows say what is needed: `rate_inside` for every arm and budget, `bigram` for the floor.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from labkit.reports.predict_phase.arms import ARMS
from labkit.stats import Interval

DECIDES = "rate_inside"
"""Column that only runs of the deciding protocol have."""
CONTROLS = ("frozen", "random", "noise-matched")
"""Arms that must not be faster than the baseline."""


def of_comparison(runs: pd.DataFrame, base: str, intervals: Mapping[str, Interval | None]) -> list[str]:
    """Say why a whole comparison is void; nothing if it is not.

    Args:
        runs: one row a run.
        base: the baseline.
        intervals: of each arm's speed over the baseline.
    """
    if DECIDES not in runs:
        return []
    own = runs[(runs["arm"] == base) & (runs["steps"] == runs["steps"].max())]
    said = [f"the rate of {base} is at an edge at {steps} steps" for steps in _at_edge(runs, base)]
    if "bigram" in runs and own["loss"].mean() >= runs["bigram"].iloc[0]:
        said.append(
            f"{base} ends at {own['loss'].mean():.3f} nats, not below the bigram's {runs['bigram'].iloc[0]:.3f}"
        )
    found = {arm: intervals.get(arm) for arm in CONTROLS if arm in ARMS}
    return said + [f"the control {arm} reads {own} times {base}" for arm, own in found.items() if own and own.low > 1]


def of_arm(runs: pd.DataFrame, arm: str) -> list[str]:
    """Say why one arm is void; nothing if it is not."""
    if DECIDES not in runs:
        return []
    return [f"its rate is at an edge at {steps} steps" for steps in _at_edge(runs, arm)]


def _at_edge(runs: pd.DataFrame, arm: str) -> list[int]:
    own = runs[(runs["arm"] == arm) & ~runs[DECIDES].astype(bool)]
    return sorted({int(steps) for steps in own["steps"]})
