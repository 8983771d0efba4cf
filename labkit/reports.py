"""All reports by name, each with the model of its parameters."""

from __future__ import annotations

from labkit import schema
from labkit.schema import Params
from labkit.schema_chunked_offload import ChunkedOffload
from labkit.schema_predict_phase import PredictPhase

REPORTS: dict[str, type[Params]] = {
    **schema.REPORTS,
    "chunked_offload": ChunkedOffload,
    "predict_phase": PredictPhase,
}
