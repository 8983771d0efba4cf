"""How far to trust a scaling law: held-out sizes, the report's own form, and the choices behind an exponent.

A high R^2 over a decade or two says nothing about the floor, and one exponent says nothing about the others that the
same runs give under equally common conventions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from labkit.scaling.law import NO_TOKEN_TERM, Law, check_columns, check_inside, fit_law
from labkit.scaling.resample import TooFewRuns

_CONFIGURATION = ["d_model", "n_layers"]
_COLUMNS = ["mixer", *_CONFIGURATION, "seed", "lr", "lr_is_best", "loss_nats"]
BEST_RATE = "best per width"
ALL_SEEDS = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerFit:
    """Perplexity = a N^b, the form of report 004 (section Scaling Law)."""

    a: float
    """Perplexity at N = 1."""
    b: float
    """Exponent; negative where perplexity falls with N."""
    r2: float
    """R^2 of the perplexities, as the report's code computes it."""
    r2_log: float
    """R^2 of the log perplexities, which is what the fit maximises."""
    b_ci: tuple[float, float]
    """The ends of the 95 % Student interval of b; the runs of one N, which share its deviation, count as one point."""
    n_range: tuple[float, float]
    """Smallest and largest N fitted."""

    def predict(self, n: ArrayLike, *, extrapolate: bool = False) -> Any:
        """Return the perplexity at n parameters: a float for a number, an array for an array.

        Raises:
            ValueError: outside the fitted range without extrapolate=True.
        """
        if not extrapolate:
            check_inside("n", n, self.n_range)
        perplexity = self.a * np.asarray(n, dtype=float) ** self.b
        return float(perplexity) if perplexity.ndim == 0 else perplexity


def fit_perplexity_power(n: ArrayLike, perplexity: ArrayLike) -> PowerFit:
    """Fit perplexity = a N^b by least squares on log axes.

    Raises:
        TooFewRuns: fewer than 3 distinct N.
        ValueError: a value that is not finite and positive, named by its row; lengths that differ.
    """
    size, observed = check_columns(n=n, perplexity=perplexity)
    sizes, of_size = np.unique(size, return_inverse=True)
    if len(sizes) < 3:
        raise TooFewRuns(f"{len(sizes)} distinct N; a power law with an interval needs 3")
    line = scipy_stats.linregress(np.log(size), np.log(observed))
    means = np.bincount(of_size, np.log(observed)) / np.bincount(of_size)
    half = scipy_stats.t.ppf(0.975, len(sizes) - 2) * scipy_stats.linregress(np.log(sizes), means).stderr
    fitted = np.exp(line.intercept) * size**line.slope
    return PowerFit(
        a=float(np.exp(line.intercept)),
        b=float(line.slope),
        r2=_r2(observed, fitted),
        r2_log=_r2(np.log(observed), np.log(fitted)),
        b_ci=(float(line.slope - half), float(line.slope + half)),
        n_range=(float(size.min()), float(size.max())),
    )


def _r2(observed: NDArray[np.float64], fitted: NDArray[np.float64]) -> float:
    return float(1 - ((observed - fitted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOut:
    """What a law fitted to the smaller sizes says about the largest ones."""

    predicted: tuple[float, ...]
    """Predicted loss of each held-out run, in nats."""
    observed: tuple[float, ...]
    """Its observed loss, in nats."""
    relative_error: float
    """Mean of predicted / observed - 1 over the held-out runs; negative where the law promises too much."""
    n_held_out: int
    """Number of held-out runs."""
    law: Law
    """The law fitted to the others, without intervals."""


def leave_largest_out(
    n: ArrayLike,
    loss: ArrayLike,
    tokens: ArrayLike | None = None,
    *,
    floor: bool = True,
    n_sizes: int = 1,
    delta: float = 1e-3,
) -> LeaveOut:
    """Refit a law without the runs of the largest n_sizes distinct N and predict them; compare floor=True and False.

    Raises:
        TooFewRuns: what is left does not determine the law.
        ValueError: as fit_law, or n_sizes below 1.
    """
    if n_sizes < 1:
        raise ValueError(f"n_sizes is {n_sizes}; hold out at least 1 size")
    size, observed = check_columns(n=n, loss=loss)
    amount = None if tokens is None else check_columns(n=n, tokens=tokens)[1]
    held = np.isin(size, np.unique(size)[-n_sizes:])
    law = fit_law(size[~held], observed[~held], _at(amount, ~held), floor=floor, bootstrap=0, delta=delta)
    at = _at(amount, held) if law.B is not None else None
    predicted = law.predict(size[held], at, extrapolate=True)
    return LeaveOut(
        predicted=tuple(map(float, predicted)),
        observed=tuple(map(float, observed[held])),
        relative_error=float(np.mean(predicted / observed[held] - 1)),
        n_held_out=int(held.sum()),
        law=law,
    )


def _at(values: NDArray[np.float64] | None, rows: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    return None if values is None else values[rows]


def multiverse(
    runs: pd.DataFrame,
    *,
    conventions: Sequence[str] = ("n_total", "n_non_embedding", "n_active"),
    floors: Sequence[bool] = (True, False),
    bootstrap: int = 400,
    seed: int = 0,
    delta: float = 1e-3,
) -> pd.DataFrame:
    """Fit the exponent once per combination of defensible choices, for each mixer.

    Args:
        runs: one row per run: mixer, d_model, n_layers, seed, lr, lr_is_best (bool), loss_nats, and the conventions'
            columns. A failed run has NaN in them.
        conventions: columns that count parameters.
        floors: whether the law has an irreducible term.
        bootstrap: resamples per fit, clustered by (d_model, n_layers).
        seed: of the bootstrap.
        delta: of fit_law.

    Returns:
        One row per combination of mixer, convention, floor, rate ("best per width", or one rate for all widths) and
        seeds ("all", or one seed): exponent, low and high (95 %), n_points and reason. Where the runs do not determine
        the exponent it is NaN and reason says why; else reason says what limits the row, or is empty.

    Raises:
        ValueError: a column is missing, lr_is_best is not boolean, a selection holds a run twice, or no run is best.
    """
    _check_runs(runs, conventions)
    options = {"bootstrap": bootstrap, "seed": seed, "delta": delta}
    rows = []
    for (mixer, rate, seeds, chosen), convention, floor in itertools.product(_selections(runs), conventions, floors):
        finite = chosen[np.isfinite(chosen[["loss_nats", convention]]).all(axis=1)]
        limits = _limits(finite, chosen, runs[runs["mixer"] == mixer])
        found = _exponent(finite, convention, limits, floor=floor, **options)
        rows.append({"mixer": mixer, "convention": convention, "floor": floor, "rate": rate, "seeds": seeds} | found)
    return pd.DataFrame(rows)


def _selections(runs: pd.DataFrame) -> list[tuple[Any, str, str, pd.DataFrame]]:
    """List mixer, rate and seeds of every selection with its runs."""
    found = []
    for mixer, of_mixer in runs.groupby("mixer"):
        rates, seeds = of_mixer["lr"].map("{:g}".format), of_mixer["seed"].astype(str)
        by_rate = {BEST_RATE: of_mixer["lr_is_best"]}
        by_rate |= {rate: rates == rate for rate in sorted(rates.unique(), key=float)}
        by_seed = {ALL_SEEDS: seeds.notna()} | {seed: seeds == seed for seed in sorted(seeds.unique())}
        for (rate, at_rate), (seed, of_seed) in itertools.product(by_rate.items(), by_seed.items()):
            chosen = of_mixer[at_rate & of_seed]
            _check_unique(chosen, f"mixer {mixer}, rate {rate}")
            found.append((mixer, rate, seed, chosen))
    return found


def _exponent(finite: pd.DataFrame, convention: str, limits: list[str], **options: Any) -> dict[str, Any]:
    """Fit one combination; runs that do not determine a law give NaN and the reason."""
    clusters = finite.groupby(_CONFIGURATION).ngroup().to_numpy()
    exponent, (low, high) = np.nan, (np.nan, np.nan)
    try:
        law = fit_law(finite[convention], finite["loss_nats"], clusters=clusters, **options)
    except TooFewRuns as error:
        reasons = [*limits, str(error)]
    else:
        exponent, (low, high) = law.alpha, law.ci.get("alpha", (np.nan, np.nan))
        reasons = [*limits, *(note for note in law.notes if note != NO_TOKEN_TERM)]
    return {"exponent": exponent, "low": low, "high": high, "n_points": len(finite), "reason": "; ".join(reasons)}


def _limits(finite: pd.DataFrame, chosen: pd.DataFrame, of_mixer: pd.DataFrame) -> list[str]:
    covered, wanted = len(finite.groupby(_CONFIGURATION)), len(of_mixer.groupby(_CONFIGURATION))
    limits = []
    if len(finite) < len(chosen):
        limits.append(f"{len(chosen) - len(finite)} of {len(chosen)} runs have no finite loss or N and are left out")
    if covered < wanted:
        limits.append(f"covers {covered} of {wanted} configurations")
    return limits


def _check_runs(runs: pd.DataFrame, conventions: Sequence[str]) -> None:
    missing = [name for name in [*_COLUMNS, *conventions] if name not in runs.columns]
    if missing:
        raise ValueError(f"runs lacks the columns {missing}; it has {list(runs.columns)}")
    if runs["lr_is_best"].dtype != bool:
        raise ValueError(f"lr_is_best has dtype {runs['lr_is_best'].dtype}; it must be bool, without missing values")
    if not runs["lr_is_best"].any():
        raise ValueError("lr_is_best is False in every run; mark the runs at the rate chosen for their width")


def _check_unique(chosen: pd.DataFrame, what: str) -> None:
    twice = chosen[chosen.duplicated([*_CONFIGURATION, "seed"])]
    if len(twice):
        first = twice.iloc[0]
        raise ValueError(
            f"{what}: d_model {first['d_model']}, n_layers {first['n_layers']}, seed {first['seed']} is there twice; "
            "keep one run of each, and mark one rate per width as best"
        )
