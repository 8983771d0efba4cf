"""The exponent along the compute-optimal path: of made-up mixers with a known law, at the sizes and budgets in use.

Run with `pytest tests/scaling/test_frontier.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from labkit import params
from labkit.scaling import isoflop
from labkit.scaling.counts import parameter_counts
from labkit.scaling.frontier import Path, difference, offsets, path_of, slope
from labkit.scaling.train import model_config
from labkit.schema_scaling_grid import ScalingGrid
from labkit.stats import Interval

TOKENS = 957_000
BYTES_OF_A_WORD = 5.4
SCATTER = 0.003
"""Standard deviation of a loss between seeds, as a share of it."""
ALPHA = 0.12


def design(mixer: str) -> pd.DataFrame:
    """Return the sizes of `cpu-24gb` as rows: seed, budget, n_total, tokens."""
    own = isoflop.at_equal_flops(params.resolve("scaling_grid", "cpu-24gb"))
    assert isinstance(own, ScalingGrid)
    found = [size for budget in own.isoflop_budgets for size in isoflop.sizes(own, budget, mixer, TOKENS)]
    rows = [
        {"seed": seed, "budget": size.budget, "n_total": n_total(own, size), "tokens_seen": size.steps * 2048}
        for seed in own.seeds
        for size in found
    ]
    table = pd.DataFrame(rows).assign(admitted=True, status="ok")
    return table.assign(flops=table["budget"], n=table["budget"] / table["tokens_seen"] / 6)


def n_total(own: ScalingGrid, size: isoflop.Size) -> int:
    return parameter_counts(model_config(isoflop.cell_of(own, size, 0, 1e-3, 1.0))).total


def with_losses(
    rows: pd.DataFrame, bits: pd.Series, rng: np.random.Generator, scatter: float = SCATTER
) -> pd.DataFrame:
    noisy = bits * (1 + scatter * rng.standard_normal(len(rows)))
    return rows.assign(bits_per_byte=noisy, nats_per_word=noisy * math.log(2) * BYTES_OF_A_WORD)


def power_law(rows: pd.DataFrame, alpha: float = ALPHA, beta: float = 0.6) -> pd.Series:
    """Loss = A/N^alpha + B/D^beta: along its optimum the loss falls as N^-alpha, exactly.

    B puts the best size of the middle budget into the middle of those tried.
    """
    n, d = rows["n"] / rows["n"].median(), rows["tokens_seen"] / rows["tokens_seen"].median()
    return 1.6 * n**-alpha + 1.6 * alpha / beta * d**-beta


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_the_interval_of_a_made_up_mixer_holds_its_exponent(mixer: str) -> None:
    rows, rng = design(mixer), np.random.default_rng(3)
    held = inside = 0
    for _ in range(100):
        found = path_of(with_losses(rows, power_law(rows), rng))
        inside += found.alpha is not None
        held += found.alpha is not None and found.alpha.contains(ALPHA)
    assert (inside, held) == (100, held)
    assert held >= 92
