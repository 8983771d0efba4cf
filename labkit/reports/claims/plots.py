"""The figure of the notebook of all claims."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from labkit.ledger import claims
from labkit.workflow.figures import bars, captioned


@captioned(
    "verdicts",
    caption="Verdicts on this profile.",
    alt="Horizontal bars: how many numbers of the reports have each verdict on this hardware profile.",
)
def verdicts(judged: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw how many rows of `judge` have each verdict; inputs have none."""
    counts = claims.summary(judged)
    counted = counts[counts["verdict"] != "input"]
    return bars(counted, "verdict", "claims"), counted
