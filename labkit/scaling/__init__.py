"""ResNet-BK and Transformer language models of a grid, what admits them to a fit, and scaling laws."""

from labkit.scaling.admission import Admission, Gate, admit
from labkit.scaling.law import Law, TooFewRuns, fit_law
from labkit.scaling.multiverse import fit_perplexity_power, leave_largest_out, multiverse
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.resolvent import resolvent_diagonal
from labkit.scaling.transformer import Transformer, TransformerConfig

__all__ = [
    "Admission",
    "Gate",
    "Law",
    "ResNetBK",
    "ResNetBKConfig",
    "TooFewRuns",
    "Transformer",
    "TransformerConfig",
    "admit",
    "fit_law",
    "fit_perplexity_power",
    "leave_largest_out",
    "multiverse",
    "resolvent_diagonal",
]
