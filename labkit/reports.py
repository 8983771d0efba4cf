"""All reports by name: the model of the parameters of each, and the function that walks through its cells."""

from __future__ import annotations

from labkit.schema import Params
from labkit.schema_chunked_offload import ChunkedOffload
from labkit.schema_predict_phase import PredictPhase
from labkit.schema_scaling_grid import ScalingGrid
from labkit.schema_size_inertia import SizeInertia


class Claims(Params):
    """The ledger notebook: it only reads what other reports have published for the profile."""

    report = "claims"


REPORTS: dict[str, type[Params]] = {
    model.report: model for model in (Claims, SizeInertia, ScalingGrid, ChunkedOffload, PredictPhase)
}
STUDIES = {
    "size_inertia": ("labkit.inertia.study", "run_study"),
    "chunked_offload": ("labkit.offload.study", "run_study"),
    "predict_phase": ("labkit.hybrid.study", "run_study"),
    "scaling_grid": ("labkit.scaling.grid", "run_grid"),
}
"""Module and function by name: importing a study takes seconds, and most who read a report's parameters run nothing."""
