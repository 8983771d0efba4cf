"""What a run takes, in the terms a person decides by: work, time, memory, disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a run of a report takes."""

    n_cells: int
    """Cells: finished pieces of work, each kept as it ends."""
    kinds: str = "models trained"
    """What its cells are, for the reader of a plan."""
    tokens: float
    """Tokens they see together."""
    flops: float
    """Their FLOPs."""
    flops_per_second: float
    """Rate the time is computed with, all workers together."""
    basis: str
    """Where the rate comes from."""
    other_seconds: float = 0.0
    """Time that no FLOPs explain: weights streamed while decoding, random weights made, files read."""
    peak_bytes: float
    """Memory of the largest cells that run side by side."""
    disk_bytes: float
    """What is written: cell records, figures, the executed notebook, cached text and weights."""

    @property
    def seconds(self) -> float:
        """Time of the work itself; figures and tables add about half a minute."""
        return self.flops / self.flops_per_second + self.other_seconds


def side_by_side(seconds: Iterable[float], workers: int) -> float:
    """Return the least time in which workers finish some cells: an even share of all, and never less than the longest.

    Args:
        seconds: of every cell that a number stands on: each arm, each seed, each rate of a sweep.
        workers: how many run at a time; 1 where time is measured, for such cells run alone.
    """
    every = list(seconds)
    return max(sum(every) / workers, max(every))
