"""What quantized weights do to a pretrained model on real text: likeliest tokens changed, likelihood lost.

Random weights cannot tell: with them many tokens are nearly equally likely. Speed is measured on shapes
(`labkit.decoding.quantize`); what it costs in quality is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from labkit import device, models
from labkit.cell import cell, data, environment
from labkit.decoding import quantize
from labkit.dpo import preferences


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelitySpec:
    """A pretrained model that is quantized and reads the chosen texts of the held-out pairs."""

    model: str
    """A name or folder that `labkit.models.load` takes."""
    weights: str
    """`int8` or `int4`."""
    dtype: str
    """Type of the model before, and of its activations after."""
    n_tokens: int
    """Tokens read."""
    threads: int
    """CPU threads."""
    device: str = "cpu"
    """Where it runs."""
    text_sha256: str = field(default_factory=lambda: preferences.revision(preferences.load("held-out")))
    """The pairs, so that numbers from another text are kept apart."""


@cell(
    "inertia.fidelity",
    version=1,
    data=lambda spec: data.weights(spec.model) | data.shipped(*preferences.shipped("held-out")),
    packages=("transformers", "tokenizers", "torchao"),
    labels=("text_sha256",),  # the files' revisions are among the data
    onednn=environment.WITHOUT_AMX,
)
def measure_fidelity(spec: FidelitySpec) -> dict[str, Any]:
    """Quantize a pretrained model and compare it with itself on real text.

    Returns:
        plain JSON: what `quantize.quantize_and_compare` returns, the model's weights, `supported` and, if not, `why`.

    Raises:
        MissingWeights, TooLarge, MissingDevice: as `labkit.models.load`.
    """
    device.set_threads(spec.threads)
    loaded = models.load(spec.model, dtype=getattr(torch, spec.dtype), device=spec.device)
    text = "\n\n".join(pair.chosen for pair in preferences.load("held-out"))
    tokens = loaded.tokenizer(text, return_tensors="pt").input_ids[:, : spec.n_tokens].to(spec.device)
    head = {"model": spec.model, "weights": spec.weights, "bytes_from": loaded.weights.as_dict()}
    try:
        found = quantize.quantize_and_compare(loaded.model, tokens, spec.weights, text="chosen held-out texts")
    except quantize.Unsupported as error:
        return head | {"supported": False, "why": str(error)}
    return head | {"supported": True, "why": ""} | found


def fidelity_table(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out, per model and weight type, equal likeliest tokens and perplexity before and after."""
    return pd.DataFrame(
        [
            {
                "model": found["model"],
                "weights": found["weights"],
                "tokens": found["tokens"],
                "same likeliest token": found["top1"],
                "perplexity before": math.exp(found["nats_before"]),
                "perplexity after": math.exp(found["nats_after"]),
            }
            for found in results
            if found["supported"]
        ]
    )
