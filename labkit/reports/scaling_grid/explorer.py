"""Report 004: the exponent of a scaling law, and how far it depends on choices that nobody states."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd

from labkit.scaling.law import fit_law
from labkit.workflow.figures import style
from labkit.workflow.panel import Answer, Explorer, axes, published

CONVENTIONS = {
    "all parameters": "n_total",
    "without embeddings": "n_non_embedding",
    "active for a token": "n_active",
}
"""Ways to count parameters, by the column of the grid."""


def law(hardware: str | None = None, folder: Path | None = None) -> Explorer:
    """Explore the fit of loss against size.

    Args:
        hardware: profile whose published grid is fitted; the largest published one where not given.
        folder: a notebook's own outputs, to be explored instead of published ones.
    """
    hardware, file = published("scaling_grid", "grid.csv", hardware, folder)
    grid = pd.read_csv(file)
    grid = grid[grid["lr_is_best"] & np.isfinite(grid["loss_nats"])]
    controls = {
        "mixer": widgets.Dropdown(options=sorted(set(grid["mixer"]))[::-1], description="architecture"),
        "convention": widgets.Dropdown(options=list(CONVENTIONS), description="N counts"),
        "floor": widgets.Checkbox(value=False, description="irreducible loss"),
        "skilled": widgets.Checkbox(value=False, description="only models below the bigram line"),
        "smallest": widgets.IntSlider(value=0, min=0, max=3, description="smallest models left out"),
    }

    def answer(mixer: str, convention: str, floor: bool, skilled: bool, smallest: int) -> Answer:
        column = CONVENTIONS[convention]
        beaten = ~grid["status"].str.contains("beats bigram") | (not skilled)
        rows = grid[(grid["mixer"] == mixer) & grid["admitted"] & beaten].sort_values(column)
        rows = (
            rows[rows[column] >= sorted(set(rows[column]))[min(smallest, rows[column].nunique() - 1)]]
            if len(rows)
            else rows
        )
        figure, panel = axes()
        panel.plot(rows[column], rows["loss_nats"], **style([mixer])[mixer] | {"linestyle": "none"})
        panel.set(xscale="log", xlabel=f"N: {convention}", ylabel="held-out loss, nats a token")
        return Answer(text=_fitted(rows, column, floor, panel), figure=figure)

    return Explorer("What is the exponent?", controls, answer)


def _fitted(rows: pd.DataFrame, column: str, floor: bool, panel: object) -> str:
    """Draw the law through the rows and say its exponent, or why there is none."""
    try:
        found = fit_law(rows[column], rows["loss_nats"], floor=floor, bootstrap=0)
    except ValueError as error:
        return f"{len(rows)} model{'s' * (len(rows) != 1)}, no law: {error}"
    sizes = np.geomspace(rows[column].min(), rows[column].max(), 60)
    panel.plot(sizes, found.E + found.A * sizes**-found.alpha, color="black")
    floored = f"above an irreducible {found.E:.3g} nats" if floor else "without an irreducible loss"
    return f"{len(rows)} models: loss falls as N to the power of -{found.alpha:.3g}, {floored}. " + " ".join(
        found.notes
    )
