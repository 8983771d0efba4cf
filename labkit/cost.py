"""What a run takes, in the terms a person decides by: work, time, memory, disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a run of a report takes."""

    n_cells: int
    """Cells: finished pieces of work, each kept as it ends."""
    pieces: str = "models"
    """What a cell is, in the plural."""
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
