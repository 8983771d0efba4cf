"""A factorial of widths and depths with random weights: does time grow with bytes, and with layers beside them?

Rungs of named sizes vary width, depth and vocabulary together, so that a time per layer can hardly be told from a
bandwidth. Here every width is timed at every depth, in rounds of a random order, so that what drifts while the machine
works falls on no shape more than on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit.decoding import ladder
from labkit.decoding.ladder import Rung
from labkit.reports.size_inertia.params import SizeInertia
from labkit.stats import mean_ci
from labkit.stats.affine import AffineFit
from labkit.workflow.measured import Number, number

SHAPE = "qwen2.5-0.5b"
"""The report's smallest model, whose family the shapes are of."""
VOCABULARY = 16_384
"""Words of every shape: few, so that the layers hold most of the bytes."""
HEAD_WIDTH = 64
REPEATS = 2
"""Decoding repeats, and training steps, of a shape in one round."""
QUANTITIES = {"decode": "seconds_per_token", "train": "train_seconds"}
"""Fields of a rung's result by the name that results have."""
INIT_VALUES_PER_SECOND = 8e7
"""Random weights that are made in a second, about."""
_LEAST_SIZES = 4

Results = Mapping[Rung, Mapping[str, Any]]


def shape(width: int, depth: int) -> tuple[tuple[str, int], ...]:
    """Return the values that make the report's smallest shape one of the factorial.

    Raises:
        ValueError: the width does not divide into heads.
    """
    if width % HEAD_WIDTH:
        raise ValueError(f"factorial_widths lists {width}, which is no multiple of {HEAD_WIDTH}")
    heads = width // HEAD_WIDTH
    # Two heads share a key head as long as that leaves whole ones; the feed-forward part is four times as wide.
    return ladder.qwen2(width, depth, heads, heads // 2 if heads % 2 == 0 else heads, 4 * width, VOCABULARY)


def rungs(params: SizeInertia) -> list[Rung]:
    """Return every shape in every type and round, in the order in which they are timed.

    A rung's seed is its round: weights and tokens are others in each.
    """
    shapes = [(width, depth) for width in params.factorial_widths for depth in params.factorial_depths]
    own = {"prompt_tokens": params.prompt_tokens, "new_tokens": params.new_tokens, "repeats": REPEATS}
    own |= {"threads": params.workers * params.threads, "device": params.device}
    return [
        Rung(name=f"w{width}-l{depth}", shape=SHAPE, overrides=shape(width, depth), dtype=dtype, seed=turn, **own)
        for dtype in params.factorial_dtypes
        for turn in range(params.factorial_rounds)
        for width, depth in _shuffled(shapes, turn)
    ]


def _shuffled(shapes: list[tuple[int, int]], turn: int) -> list[tuple[int, int]]:
    return [shapes[i] for i in np.random.default_rng(turn).permutation(len(shapes))]


def of_dtype(results: Results, dtype: str) -> list[Mapping[str, Any]]:
    """Return the results of one type."""
    return [done for spec, done in results.items() if spec.dtype == dtype]


def fit(found: Iterable[Mapping[str, Any]], quantity: str, *, n_resamples: int = 2000) -> AffineFit:
    """Fit t = t0 + layers tl + bytes / bandwidth through all rounds; errors on shapes left out are keyed by shape.

    Raises:
        ValueError: too few shapes, or one depth alone.
    """
    return ladder.fit_rungs(list(found), quantity, per_layer=True, n_resamples=n_resamples)


def by_round(results: Results, dtype: str, quantity: str) -> pd.DataFrame:
    """Fit the law to each round alone: a row each with round, t0 (s), per_layer (s) and slope (s per byte).

    A round in which a shape failed is left out, since its law would be one of other shapes.
    """
    rounds: dict[int, list[Mapping[str, Any]]] = {}
    for spec, done in results.items():
        if spec.dtype == dtype:
            rounds.setdefault(spec.seed, []).append(done)
    whole = max(map(len, rounds.values()), default=0)
    rows = []
    for turn, own in rounds.items():
        if len(own) == whole >= _LEAST_SIZES:
            law = fit(own, quantity, n_resamples=100)
            rows.append({"round": turn, "t0": law.intercept, "per_layer": law.per_layer, "slope": law.slope})
    return pd.DataFrame(rows, columns=["round", "t0", "per_layer", "slope"])


def results_of(results: Results, dtype: str) -> dict[str, Number]:
    """Return the coefficients of both laws with intervals over rounds: ms, ms per layer, GB/s."""
    out: dict[str, Number] = {}
    for key, quantity in QUANTITIES.items():
        found = by_round(results, dtype, quantity)
        if len(found) < 2:
            continue
        with np.errstate(divide="ignore"):
            rate = 1e-9 / found["slope"].to_numpy()
        columns = {"overhead": (1e3 * found["t0"], "ms"), "per_layer": (1e3 * found["per_layer"], "ms")}
        columns |= {"bandwidth": (pd.Series(rate), "GB/s")}
        for name, (values, unit) in columns.items():
            if np.isfinite(values).all():
                ends = mean_ci(values.to_numpy())
                out[f"law/{key}/{name}"] = number(ends.estimate, unit, [ends.low, ends.high], n_seeds=len(values))
    return out


def table(results: Results) -> pd.DataFrame:
    """Lay out the medians of each shape over all rounds: type, shape, width, layers, bytes, ms per token and step."""
    rows = []
    for dtype in dict.fromkeys(spec.dtype for spec in results):
        own = of_dtype(results, dtype)
        for name in dict.fromkeys(done["name"] for done in own):
            part = [done for done in own if done["name"] == name]
            row = {"type": dtype, "shape": name, "width": _width(part[0]), "layers": part[0]["n_layers"]}
            row |= {"bytes": part[0]["bytes_per_token"], "rounds": len(part)}
            for key, quantity in QUANTITIES.items():
                times = [seconds for done in part for seconds in done[quantity]]
                row[f"{key} (ms)"] = 1e3 * float(np.median(times)) if times else math.nan
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["type", "bytes"], ignore_index=True) if rows else pd.DataFrame()


def _width(done: Mapping[str, Any]) -> int:
    return int(dict(map(tuple, done["rung"]["overrides"]))["hidden_size"])


def largest(params: SizeInertia) -> float:
    """Return the parameters of the largest shape, about: it decides the memory that a run takes."""
    return max((parameters(w, d) for w in params.factorial_widths for d in params.factorial_depths), default=0.0)


def parameters(width: int, depth: int) -> float:
    """Return about how many parameters a shape has: 12 width^2 of feed-forward and 3 width^2 of attention a layer."""
    return 15.0 * depth * width**2 + VOCABULARY * width


def seconds(params: SizeInertia, bandwidth: float) -> float:
    """Return about the seconds that all rounds take: weights made, tokens decoded, training steps.

    Args:
        params: of the profile.
        bandwidth: bytes per second at which weights are read.
    """
    total = 0.0
    for spec in rungs(params):
        values = dict(spec.overrides)
        n = parameters(values["hidden_size"], values["num_hidden_layers"])
        n_bytes = n * (4 if spec.dtype == "float32" else 2)
        tokens = spec.new_tokens * (spec.repeats + spec.warmup)
        per_token = 2e-3 + 3e-4 * values["num_hidden_layers"] + n_bytes / bandwidth
        # A training step of 64 tokens takes about as long as ten decoded ones (published cells of profile cpu).
        total += n / INIT_VALUES_PER_SECOND + (tokens + 10 * (spec.repeats + spec.warmup)) * per_token
    return total
