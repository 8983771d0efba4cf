"""Report 004: a d_model x n_layers grid of ResNet-BK language models and its scaling law."""

from labkit.scaling.admission import Admission, Gate, admit
from labkit.scaling.findings import (
    conclusions,
    early_stopped_slopes,
    exponent_choices,
    fit_all,
    fit_table,
    floors_table,
    gates_table,
    grid_runs,
    leak_table,
    misaligned_targets,
    published_parameters,
    scored_table,
)
from labkit.scaling.grid import Grid, run_grid
from labkit.scaling.isoflop_results import control_table, isoflop_paths, isoflop_table, start_table
from labkit.scaling.law import Law, TooFewRuns, fit_law
from labkit.scaling.multiverse import fit_perplexity_power, leave_largest_out, multiverse
from labkit.scaling.prices import out_of_reach
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.resolvent import resolvent_diagonal
from labkit.scaling.results import grid_seconds, results
from labkit.scaling.transformer import Transformer, TransformerConfig

__all__ = [
    "Admission",
    "Gate",
    "Grid",
    "Law",
    "ResNetBK",
    "ResNetBKConfig",
    "TooFewRuns",
    "Transformer",
    "TransformerConfig",
    "admit",
    "conclusions",
    "control_table",
    "early_stopped_slopes",
    "exponent_choices",
    "fit_all",
    "fit_law",
    "fit_perplexity_power",
    "fit_table",
    "floors_table",
    "gates_table",
    "grid_runs",
    "grid_seconds",
    "isoflop_paths",
    "isoflop_table",
    "leak_table",
    "leave_largest_out",
    "misaligned_targets",
    "multiverse",
    "out_of_reach",
    "published_parameters",
    "resolvent_diagonal",
    "results",
    "run_grid",
    "scored_table",
    "start_table",
]
