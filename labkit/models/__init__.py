"""Models by name: the reports' shapes with random weights, real weights with the bytes they came from, adapters."""

from labkit.base.lazy import exports

_HOMES = {
    "OFFLINE_PAIR": "weights",
    "SHAPES": "shapes",
    "Coverage": "adapters",
    "Loaded": "weights",
    "MissingWeights": "folders",
    "Shape": "shapes",
    "TooLarge": "shapes",
    "Weights": "folders",
    "build": "shapes",
    "licences": "weights",
    "load": "weights",
    "lora_coverage": "adapters",
    "prepare": "weights",
    "quiet_transformers": "folders",
    "require_memory": "shapes",
    "shape_of": "shapes",
    "weight_bytes": "shapes",
}
"""Module of each public name. They are imported when they are asked for: torch, transformers and PEFT take seconds, and
what a model's bytes are (`labkit.models.revisions`) is told without them."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
