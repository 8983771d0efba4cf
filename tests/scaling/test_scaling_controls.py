"""Controls of protocol 004: a planted leak is caught, and planted laws come back within their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.reports.scaling_grid.findings import Fit
from labkit.reports.scaling_grid.gates import Untrained, gates_of
from labkit.reports.scaling_grid.results import _difference
from labkit.scaling.law import fit_law
from labkit.scaling.multiverse import fit_perplexity_power
from labkit.workflow import params

SIZES = np.geomspace(1e5, 1e7, 6)
EXPONENTS = {"resnet-bk": -0.15, "transformer": -0.25}
SCATTER = 0.05
"""Standard deviation of the logarithm of a perplexity between models on one law."""


@pytest.mark.parametrize(("mixer", "passes"), [("published", False), ("resnet-bk", True), ("transformer", True)])
def test_the_leak_of_the_published_mixer_is_caught_by_the_gate_of_the_grid(mixer: str, passes: bool) -> None:
    spec = Untrained.of(params.resolve("scaling_grid", "ci"), mixer, 16, 1)
    gates = {gate["name"]: gate["passed"] for gate in gates_of(spec)["gates"]}
    assert gates.pop("causality") is passes
    assert all(gates.values()), "nothing else is wrong with it"


def drawn_fits(rng: np.random.Generator, any_law: object) -> dict[str, Fit]:
    """Power fits of both mixers through models that scatter around their laws; the other law is not looked at."""
    return {
        mixer: Fit(
            power=fit_perplexity_power(SIZES, 300 * SIZES**b * rng.lognormal(0, SCATTER, len(SIZES))),
            law=any_law,
            held_out={},
        )
        for mixer, b in EXPONENTS.items()
    }


def test_the_difference_of_two_planted_exponents_comes_back_within_its_interval() -> None:
    """At least 92 of 100 intervals hold it, and most exclude that there is none."""
    rng, law = np.random.default_rng(0), fit_law(SIZES, 3 + SIZES**-0.2, bootstrap=0)
    found = [_difference(drawn_fits(rng, law), n_seeds=1)["ci"] for _ in range(400)]
    truth = EXPONENTS["resnet-bk"] - EXPONENTS["transformer"]
    assert np.mean([low <= truth <= high for low, high in found]) >= 0.92
    assert np.mean([low > 0 for low, high in found]) > 0.9
