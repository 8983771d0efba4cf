"""What a finished grid says: the tables that the notebook shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from labkit.reports.scaling_grid.isoflop_results import isoflop_conclusions, isoflop_paths
from labkit.reports.scaling_grid.leak import Leak, measure_leak
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.reports.scaling_grid.study import LEAK, Grid, needed
from labkit.scaling.counts import parameter_counts
from labkit.scaling.law import Law, TooFewRuns, fit_law
from labkit.scaling.multiverse import (
    ALL_SEEDS,
    BEST_RATE,
    LeaveOut,
    PowerFit,
    fit_perplexity_power,
    leave_largest_out,
    multiverse,
)
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.workflow.cells import Cells

PUBLISHED_VOCABULARY = 30_000
"""Vocabulary of the report's code at revision 600c44a."""
PUBLISHED_GRID = [(d, layers) for d in (64, 128, 256, 512) for layers in (4, 8, 12, 16)]
"""The report's widths and depths."""
_ROUNDING = 1e-14
"""Largest change of a logit of order 1 that two float64 sums of the same numbers may show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Both laws of one mixer, through its admitted runs at the best rate of each width."""

    power: PowerFit
    """The report's form: word perplexity = a N^b."""
    law: Law
    """The law with a floor: nats = E + A / N^alpha."""
    held_out: dict[str, LeaveOut]
    """Prediction of the two largest sizes by each form fitted to the others, by `floor` and `no floor`; of the largest
    alone where fewer sizes would not determine the form."""


def grid_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep the grid's own runs: one rate per width, the sweep's other rates left out."""
    return runs[runs["lr_is_best"]].reset_index(drop=True)


def fit_all(grid: Grid) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fit every mixer's admitted runs.

    Returns:
        fits by mixer, and for each mixer without one the reason.
    """
    runs = grid_runs(grid.runs())
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for mixer in grid.params.mixers:
        admitted = runs[(runs["mixer"] == mixer) & runs["admitted"]]
        try:
            fits[mixer] = _fit(admitted, grid.params.bootstrap)
        except TooFewRuns as error:
            refused[mixer] = f"{len(admitted)} of {sum(runs['mixer'] == mixer)} runs admitted; {error}"
    return fits, refused


def _fit(runs: pd.DataFrame, bootstrap: int) -> Fit:
    n, loss = runs["n_total"].to_numpy(float), runs["loss_nats"].to_numpy(float)
    clusters = runs.groupby(["d_model", "n_layers"]).ngroup().to_numpy()
    held_out = {}
    for name, floor in (("floor", True), ("no floor", False)):
        spare = len(np.unique(n)) - (4 if floor else 3)
        if spare > 0:
            held_out[name] = leave_largest_out(n, loss, floor=floor, n_sizes=min(2, spare))
    return Fit(
        power=fit_perplexity_power(n, runs["word_perplexity"].to_numpy(float)),
        law=fit_law(n, loss, bootstrap=bootstrap, clusters=clusters),
        held_out=held_out,
    )


def fit_table(fits: dict[str, Fit]) -> pd.DataFrame:
    """Lay both laws out, a row per mixer and form, with intervals and the error on the largest sizes held out."""
    rows = []
    for mixer, fit in fits.items():
        power, law = fit.power, fit.law
        errors = {name: f"{out.relative_error:+.1%}" for name, out in fit.held_out.items()}
        rows.append(
            {"mixer": mixer, "form": "perplexity = a N^b", "exponent": power.b}
            | {"low": power.b_ci[0], "high": power.b_ci[1]}
            | {"fit": f"a = {power.a:,.0f}, R² = {power.r2:.3f}", "largest held out": errors.get("no floor", "")}
        )
        low, high = law.ci["alpha"]
        rows.append(
            {"mixer": mixer, "form": "nats = E + A / N^alpha", "exponent": law.alpha, "low": low, "high": high}
            | {"fit": f"E = {law.E:.2f} [{law.ci['E'][0]:.2f}, {law.ci['E'][1]:.2f}]"}
            | {"largest held out": errors.get("floor", "")}
        )
    return pd.DataFrame(rows)


def exponent_choices(runs: pd.DataFrame, bootstrap: int = 200) -> pd.DataFrame:
    """Fit one exponent per defensible choice (see `multiverse`), leaving out choices that this grid did not make.

    A single rate for all widths counts as a choice only if every width of the mixer was run at it; with one seed there
    is no choice of seed. A mixer without an admitted run has one row that says so. Exponents have four digits: where a
    floor is not resolved, the fits of two processors differ in the seventh.
    """
    tables = [_choices_of(part, mixer, bootstrap) for mixer, part in runs.groupby("mixer")]
    choices = pd.concat(tables, ignore_index=True)
    numbers = ["exponent", "low", "high"]
    return choices.assign(**choices[numbers].astype(float).map(lambda value: float(f"{value:.4g}")))


def _choices_of(runs: pd.DataFrame, mixer: str, bootstrap: int) -> pd.DataFrame:
    admitted = runs[runs["admitted"]]
    if not admitted["lr_is_best"].any():
        none = {"exponent": np.nan, "low": np.nan, "high": np.nan, "n_points": 0, "reason": "no run is admitted"}
        choice = {"mixer": mixer, "convention": "n_total", "floor": True, "rate": BEST_RATE, "seeds": ALL_SEEDS}
        return pd.DataFrame([choice | none])
    n_widths = admitted.groupby("lr")["d_model"].nunique()
    shared = n_widths[n_widths == admitted["d_model"].nunique()].index
    choices = multiverse(admitted, bootstrap=bootstrap)
    kept = choices["rate"].isin([BEST_RATE, *(f"{rate:g}" for rate in shared)])
    if runs["seed"].nunique() == 1:
        kept &= choices["seeds"] == ALL_SEEDS
    return choices[kept]


def floors_table(grid: Grid) -> pd.DataFrame:
    """List the n-gram floors and each mixer's best admitted run, in every unit of the same protocol."""
    rows = [_score_row(name.replace("_", "-"), grid.data.score(nats)) for name, nats in grid.data.floors.items()]
    runs = grid.runs()
    for mixer in grid.params.mixers:
        cells = [cell for cell in grid.results if cell.mixer == mixer and grid.admission(cell).ok]
        if cells:
            best = min(cells, key=lambda cell: grid.results[cell]["loss_nats"])
            rows.append(_score_row(f"best {best.name}", grid.data.score(np.asarray(grid.results[best]["block_nats"]))))
    assert len(runs) == len(grid.results) + len(grid.failures), "every cell has a row"
    return pd.DataFrame(rows)


def scored_table(grid: Grid) -> pd.DataFrame:
    """List the early-stopped and the final loss of each model of the grid that was scored while it trained.

    Returns:
        mixer, d_model, n_layers, seed, steps of the lowest loss and of all, bits per byte at both, the rise between.
    """
    rows = []
    for cell, result in grid.results.items():
        if grid.best_rate.get((cell.mixer, cell.d_model)) == cell.learning_rate and "scorings" in result:
            scored = result["scorings"]
            bits = [grid.data.score(np.asarray(one["block_nats"])).bits_per_byte for one in scored]
            best = int(np.argmin(bits))
            row = {name: getattr(cell, name) for name in ("mixer", "d_model", "n_layers", "seed")}
            row |= {"lowest at step": scored[best]["step"], "of": scored[-1]["step"], "lowest": bits[best]}
            rows.append(row | {"final": bits[-1], "rise": bits[-1] - bits[best]})
    columns = ["mixer", "d_model", "n_layers", "seed", "lowest at step", "of", "lowest", "final", "rise"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:4], ignore_index=True)


def early_stopped_slopes(grid: Grid) -> pd.DataFrame:
    """Fit bits per byte = a N^b to the early-stopped losses of each mixer, with Student's 95 % interval over the sizes.

    Of a floor and a term in tokens it says nothing: all sizes saw the same tokens, so that E, B and beta are one sum.
    """
    table = scored_table(grid)
    sizes = {(c.mixer, c.d_model, c.n_layers): result["n_total"] for c, result in grid.results.items()}
    rows = []
    for mixer, own in table.groupby("mixer"):
        n = [sizes[row.mixer, row.d_model, row.n_layers] for row in own.itertuples()]
        if len(set(n)) >= 3:
            power = fit_perplexity_power(n, own["lowest"])
            rows.append({"mixer": mixer, "exponent": power.b, "low": power.b_ci[0], "high": power.b_ci[1]})
    return pd.DataFrame(rows, columns=["mixer", "exponent", "low", "high"])


def _score_row(name: str, score: Any) -> dict[str, Any]:
    return {
        "predictor": name,
        "bits per byte": round(score.bits_per_byte, 3),
        "word perplexity": round(score.word_perplexity, 1),
        "token perplexity": round(score.token_perplexity, 2),
    }


def conclusions(grid: Grid, fits: dict[str, Fit], refused: dict[str, str]) -> list[str]:
    """Say in a sentence for each mixer how far its models got and whether they follow a law."""
    floors = {name: grid.data.score(nats).bits_per_byte for name, nats in grid.data.floors.items()}
    runs = grid_runs(grid.runs())
    lines = []
    for mixer in grid.params.mixers:
        own = runs[runs["mixer"] == mixer]
        best = own["bits_per_byte"].min()
        beaten = [name.replace("_", "-") for name, floor in floors.items() if best < floor]
        got = f"below {', '.join(beaten)}" if beaten else "below no n-gram predictor"
        missed = [f"{name.replace('_', '-')} is at {floor:.2f}" for name, floor in floors.items() if best >= floor]
        lines.append(
            f"{mixer}: the best of {len(own)} models reaches {best:.2f} bits per byte, {'; '.join([got, *missed])}. "
            f"{int(own['admitted'].sum())} are admitted. {_law_sentence(mixer, fits, refused)}"
        )
    return lines + isoflop_conclusions(grid.isoflop, isoflop_paths(grid.isoflop))


def _law_sentence(mixer: str, fits: dict[str, Fit], refused: dict[str, str]) -> str:
    if mixer not in fits:
        return f"No law is fitted: {refused[mixer]}."
    b, (low, high) = fits[mixer].power.b, fits[mixer].power.b_ci
    told = "is told from zero" if low * high > 0 else "is not told from zero"
    return f"Perplexity goes as N^{b:.2f}, 95 % interval [{low:.2f}, {high:.2f}], which {told}."


def gates_table(grid: Grid) -> pd.DataFrame:
    """Count for each mixer and gate how many of the grid's runs pass, with the first failure in words.

    What decides is validity; what a run has learned stands below it, and refuses none.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    best = [cell for cell in grid.results if grid.best_rate.get((cell.mixer, cell.d_model)) == cell.learning_rate]
    for cell in sorted(best, key=lambda cell: (cell.mixer, cell.d_model, cell.n_layers, cell.seed)):
        found = grid.admission(cell)
        for kind, gate in [*(("validity", one) for one in found.gates), *(("skill", one) for one in found.skill)]:
            row = rows.setdefault((cell.mixer, gate.name), {"kind": kind, "passed": 0, "of": 0, "first failure": ""})
            row["of"] += 1
            row["passed"] += gate.passed
            if not gate.passed and not row["first failure"]:
                row["first failure"] = f"d{cell.d_model} l{cell.n_layers}: {gate.detail}"
    return pd.DataFrame([{"mixer": mixer, "gate": name} | row for (mixer, name), row in rows.items()])


def misaligned_targets(batch: int, length: int) -> tuple[int, int]:
    """Count targets that sit beside their own input when time-major targets and batch-major logits are flattened.

    This is how the published loop pairs them (original code, revision 600c44a, `get_batch` and the training loop).

    Returns:
        rightly paired targets, all targets.
    """
    position = np.arange(length)[:, None] * batch + np.arange(batch)[None, :]
    time_major, batch_major = position.reshape(-1), position.T.reshape(-1)
    return int((time_major == batch_major).sum()), batch * length


def leak_table(params: ScalingGrid, n_positions: int = 12) -> pd.DataFrame:
    """Measure how far a later token reaches back into earlier logits, in the published mixer and in ours.

    Returns:
        columns mixer, offset (position minus that of the first changed token, so negative), change (largest change of a
        logit; 0 where it is rounding, which depends on how the tokens fall to the experts).

    Raises:
        MissingCells: nothing may run, and the measurement is not on record.
    """
    cells = Cells.of(params.hardware, params.report_id())
    moved = needed(cells, measure_leak, Leak.of(params), LEAK)
    cells.require()
    rows = []
    for mixer in ("published", "causal"):
        for offset in range(-min(n_positions, len(moved[mixer])), 0):
            change = moved[mixer][offset]
            rows.append({"mixer": mixer, "offset": offset, "change": change if change > _ROUNDING else 0.0})
    return pd.DataFrame(rows)


def published_parameters() -> pd.DataFrame:
    """Count the parameters of each model of the report's grid, built at its own vocabulary on the meta device."""
    rows = []
    for d_model, n_layers in PUBLISHED_GRID:
        config = ResNetBKConfig(vocab_size=PUBLISHED_VOCABULARY, d_model=d_model, n_layers=n_layers, context=128)
        with torch.device("meta"):
            counted = sum(p.numel() for p in ResNetBK(config).parameters())
        counts = parameter_counts(config)
        rows.append({"cell": f"d{d_model}_l{n_layers}", "counted": counted, "formula": counts.total} | _share(counts))
    return pd.DataFrame(rows)


def _share(counts: Any) -> dict[str, float]:
    share = (counts.embedding + counts.head) / counts.total
    return {"embedding and head": share, "non_embedding": counts.non_embedding}
