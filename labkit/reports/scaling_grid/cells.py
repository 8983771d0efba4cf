"""What a cell of the grid is trained with: its place in the grid says some of it, the parameters the rest."""

from __future__ import annotations

from typing import Any

from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.train import Cell


def cell_for(
    params: ScalingGrid, mixer: str, d_model: int, n_layers: int, seed: int, learning_rate: float, **more: Any
) -> Cell:
    """Take the shared values from a grid's parameters, and what is not at its default from `more`."""
    own = {"mixer": mixer, "d_model": d_model, "n_layers": n_layers, "seed": seed, "learning_rate": learning_rate}
    own |= {"steps": 0, "scorings": params.scorings, "potential_start": 1.0} | more
    own["dtype"] = params.dtype if params.training_dtype == "machine" else params.training_dtype
    shared = {name: getattr(params, name) for name in Cell.__dataclass_fields__ if name not in own}
    return Cell(**own, **shared)
