"""The confirmatory run on record: published once from a larger profile, judged again by every notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from labkit.base import paths
from labkit.base.files import read_json

PROFILE = "cpu-24gb"
COMPARISONS = {"from scratch": "runs.csv", "fine-tuned": "finetune_runs.csv", "digits": "digits_runs.csv"}
"""Files of published runs, one row a run, by what was trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """The published runs of the confirmatory profile."""

    hardware: str
    """Profile."""
    commit: str
    """State of the code that published them."""
    runs: dict[str, pd.DataFrame] = field(repr=False)
    """One row a run, by what was trained."""

    def __str__(self) -> str:
        said = ", ".join(f"{len(own)} {name} over {own['seed'].nunique()} seeds" for name, own in self.runs.items())
        return f"confirmatory run on {self.hardware}, published at {self.commit[:7]}: {said}"


def confirmed_runs(folder: Path | None = None) -> Confirmed | None:
    """Read the confirmatory run's records; None where none are published.

    Args:
        folder: where its figures lie; where not given, those of PROFILE in LABKIT_OUTPUT, else in the repository.
    """
    roots = filter(None, (paths.output_root(), paths.repository()))
    places = [paths.figures_of(root, PROFILE, "predict_phase") for root in roots]
    folder = next((place for place in ([folder] if folder else places) if (place / "runs.csv").exists()), None)
    if folder is None:
        return None
    record = read_json(folder / "run.json", "provenance")
    found = {name: folder / file for name, file in COMPARISONS.items() if (folder / file).exists()}
    runs = {name: own for name, file in found.items() if len(own := pd.read_csv(file))}
    return Confirmed(hardware=PROFILE, commit=record["provenance"]["git"]["commit"], runs=runs)
