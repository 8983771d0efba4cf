"""What the comparison at equal FLOPs says: tables, sentences, and the numbers that the ledger judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from labkit.reports.scaling_grid.isoflop import CONTROLS
from labkit.reports.scaling_grid.isoflop_study import IsoFlop
from labkit.scaling.frontier import Path, difference, offsets, path_of
from labkit.stats import Interval, mean_ci
from labkit.workflow.measured import number

BK, TF = "resnet-bk", "transformer"
EDGE = "a best size lies at the edge of those tried, and the lowest loss seen stands for it"
NOTE = "along the compute-optimal path of models trained at equal FLOPs"


def isoflop_paths(study: IsoFlop | None) -> dict[str, Path]:
    """Follow the best size of each budget, mixer by mixer; nothing where the profile leaves the comparison out."""
    if study is None:
        return {}
    runs = study.runs()
    sizes = runs[runs["role"] == "size"]
    paths = {mixer: path_of(sizes[sizes["mixer"] == mixer]) for mixer in study.params.mixers}
    return {mixer: _with_void(path, _missing(study, sizes, mixer)) for mixer, path in paths.items()}


def _missing(study: IsoFlop, sizes: pd.DataFrame, mixer: str) -> list[str]:
    """Say which budgets or seeds a mixer has no model for, because no rate was found or the study was stopped."""
    own = sizes[(sizes["mixer"] == mixer) & np.isfinite(sizes["loss_nats"].astype(float))]
    wanted = {(seed, budget) for seed in study.params.seeds for budget in study.params.isoflop_budgets}
    lacking = wanted - set(own[["seed", "budget"]].itertuples(index=False, name=None))
    return [f"{len(lacking)} of {len(wanted)} parabolas have no model"] if lacking else []


def _with_void(path: Path, more: list[str]) -> Path:
    return replace(path, void=(*more, *path.void))


def isoflop_table(paths: Mapping[str, Path]) -> pd.DataFrame:
    """Lay the exponents out: a row per mixer and unit, with interval, budgets left out and why it is void, if it is."""
    rows = []
    for mixer, path in paths.items():
        for form, found in (("word perplexity = a N^b", path.b), ("bits per byte = A / N^alpha", path.alpha)):
            ends = (found.estimate, found.low, found.high) if found else (np.nan, np.nan, np.nan)
            row = dict(zip(("exponent", "low", "high"), ends, strict=True))
            rows.append({"mixer": mixer, "form": form, **row, "left out": _listed(path), "void": "; ".join(path.void)})
    return pd.DataFrame(rows, columns=["mixer", "form", "exponent", "low", "high", "left out", "void"])


def _listed(path: Path) -> str:
    """Name the budgets that are left out of a path."""
    return ", ".join(f"{budget:.3g}" for budget in path.left_out)


def start_table(study: IsoFlop) -> pd.DataFrame:
    """List the starts of ResNet-BK's potential that were tried, each with the loss at its best rate."""
    rows = [
        {"start of the potential": f"x{start:g}", "nats per token": loss, "used": start == study.start}
        for start, loss in sorted(study.start_losses.items())
    ]
    return pd.DataFrame(rows)


def control_table(study: IsoFlop) -> pd.DataFrame:
    """Hold the controls against ResNet-BK of the same shape and budget, seed by seed.

    Returns:
        a row per control: mean bits per byte above those of ResNet-BK, its interval (NaN for one seed), seeds.
    """
    runs = study.runs()
    control = runs[runs["role"] == "control"]
    same = ["budget", "d_model", "n_layers", "seed"]
    own = runs[(runs["role"] == "size") & (runs["mixer"] == BK)][[*same, "bits_per_byte"]]
    both = control.merge(own, on=same, suffixes=("", "_own"))
    rows = []
    for name in CONTROLS:
        part = both[both["mixer"] == name]
        gaps = (part["bits_per_byte"] - part["bits_per_byte_own"]).astype(float).dropna()
        found = mean_ci(gaps) if len(gaps) > 1 else None
        ends = {"low": found.low, "high": found.high} if found else {"low": np.nan, "high": np.nan}
        rows.append({"control": name, "bits per byte above": gaps.mean(), **ends, "seeds": len(gaps)})
    return pd.DataFrame(rows)


def isoflop_numbers(study: IsoFlop | None, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Collect the numbers of the comparison; those that the ledger asks for only where nothing makes them void."""
    if study is None:
        return {}
    n_seeds, out = len(study.params.seeds), {}
    for mixer, path in paths.items():
        if not path.void and path.b and path.alpha:
            out |= _exponents(mixer, path.b, path.alpha, n_seeds)
    if BK in paths and TF in paths:
        out |= _offsets(paths)
        if f"exponent/{BK}" in out and f"exponent/{TF}" in out:
            for key, which in (("exponent_difference", "b"), ("bits_exponent_difference", "alpha")):
                found = difference(getattr(paths[BK], which), getattr(paths[TF], which))
                out[key] = _number(found, "", n_seeds)
    for row in control_table(study).itertuples(index=False) if BK in paths else ():
        if np.isfinite(row[1]):
            ends = [row.low, row.high] if np.isfinite(row.low) else None
            out[f"control/{row.control}"] = number(row[1], "bits per byte", ends, n_seeds=row.seeds)
    return out


def _exponents(mixer: str, b: Interval, alpha: Interval, n_seeds: int) -> dict[str, dict[str, Any]]:
    out = {
        f"exponent/{mixer}": _number(b, "", n_seeds),
        f"bits_exponent/{mixer}": _number(alpha, "", n_seeds),
    }
    for sizes in (10, 100):
        ends = [float(sizes) ** -b.high, float(sizes) ** -b.low]
        out[f"ppl_ratio_{sizes}x/{mixer}"] = number(sizes**-b.estimate, "", ends, n_seeds=n_seeds, note=NOTE)
    return out


def _offsets(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    out = {}
    for row in offsets(paths[BK], paths[TF]).itertuples(index=False):
        ends = [row.low, row.high] if np.isfinite(row.low) else None
        note = "" if row.inside else EDGE
        about = {"n_seeds": row.seeds, "note": note}
        out[f"offset/{row.budget:.3g}"] = number(row.difference, "bits per byte", ends, **about)
    return out


def _number(found: Interval, unit: str, n_seeds: int) -> dict[str, Any]:
    return number(found.estimate, unit, [found.low, found.high], n_seeds=n_seeds, note=NOTE)


def isoflop_void(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Say of each number that the ledger asks for why this comparison does not give it."""
    out: dict[str, dict[str, Any]] = {}
    for mixer, path in paths.items():
        why = "; ".join(path.void) or ("" if path.b else "too few budgets and seeds for an interval")
        if why:
            needs = {"why": f"void at equal FLOPs ({mixer}): {why}", "seconds": None, "gib": None}
            keys = ("exponent", "ppl_ratio_10x", "ppl_ratio_100x")
            out |= {f"{key}/{mixer}": needs for key in keys} | {"exponent_difference": needs}
    return out


def isoflop_conclusions(study: IsoFlop | None, paths: Mapping[str, Path]) -> list[str]:
    """Say in a sentence each what came out at equal FLOPs."""
    if study is None:
        return []
    lines = [_exponent_line(mixer, path) for mixer, path in paths.items()]
    if study.start_losses:
        limit = "" if study.start_is_interior else ", at the end of those tried: the limit of what was tuned"
        lines.append(f"ResNet-BK's potential starts at x{study.start:g} of the published one{limit}.")
    numbers = isoflop_numbers(study, paths)
    if "exponent_difference" in numbers:
        found = numbers["exponent_difference"]
        low, high = found["ci"]
        told = "is" if low * high > 0 else "is not"
        lines.append(
            f"The exponents of word perplexity differ by {found['value']:.3f} [{low:.3f}, {high:.3f}], which {told} "
            "told from zero."
        )
    offset = {key: value for key, value in numbers.items() if key.startswith("offset/")}
    lines += [
        f"At {key.removeprefix('offset/')} training FLOPs the best ResNet-BK is {value['value']:+.3f} bits per byte "
        f"from the best Transformer{_ends(value)}{'; ' * bool(value['note'])}{value['note']}."
        for key, value in offset.items()
    ]
    return lines


def _exponent_line(mixer: str, path: Path) -> str:
    if path.void or path.b is None or path.alpha is None:
        return f"{mixer} at equal FLOPs: void, since {'; '.join(path.void) or 'there is no interval'}."
    return (
        f"{mixer} at equal FLOPs: word perplexity goes as N^{path.b.estimate:.3f} "
        f"[{path.b.low:.3f}, {path.b.high:.3f}], bits per byte as N^-{path.alpha.estimate:.3f} "
        f"[{path.alpha.low:.3f}, {path.alpha.high:.3f}]{_without(path)}."
    )


def _without(path: Path) -> str:
    return (
        f"; without {_listed(path)} FLOPs, where the best size lies at the edge of those tried" if path.left_out else ""
    )


def _ends(value: Mapping[str, Any]) -> str:
    return f" [{value['ci'][0]:+.3f}, {value['ci'][1]:+.3f}]" if value["ci"] else " (one seed)"
