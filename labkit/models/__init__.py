"""Models by name: the reports' shapes with random weights, real weights with the bytes they came from, adapters."""

from .adapters import Coverage, lora_coverage
from .folders import MissingWeights, Weights, quiet_transformers
from .shapes import SHAPES, Shape, TooLarge, build, require_memory, shape_of, weight_bytes
from .weights import OFFLINE_PAIR, Loaded, licences, load, prepare

__all__ = [
    "OFFLINE_PAIR",
    "SHAPES",
    "Coverage",
    "Loaded",
    "MissingWeights",
    "Shape",
    "TooLarge",
    "Weights",
    "build",
    "licences",
    "load",
    "lora_coverage",
    "prepare",
    "quiet_transformers",
    "require_memory",
    "shape_of",
    "weight_bytes",
]
