"""Tables of what was timed: points and laws of this machine and of the report, load times, quantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.decoding import ladder
from labkit.reports.size_inertia import factorial, published
from labkit.reports.size_inertia.study import Study
from labkit.stats.affine import AffineFit

HERE = "this machine, decoding"
TRAINED = "this machine, training step"


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A fitted law of one series of times."""

    series: str
    """What was timed, and where."""
    form: str
    """The law as a formula."""
    fit: AffineFit
    """Its coefficients, intervals and held-out errors."""


def law_points(study: Study) -> pd.DataFrame:
    """Return the median time per token of each shape: here, and on the report's processor and GPU at full length."""
    here = [ladder.points(study.rungs.values()).assign(series=HERE)]
    for dtype in study.params.factorial_dtypes:
        here.append(ladder.points(factorial.of_dtype(study.factorial, dtype)).assign(series=_of_factorial(dtype)))
    parts = [*here, *(published.decode_points(device) for device in ("cpu", "cuda"))]
    samples = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return samples.groupby(["series", "name"], sort=False, as_index=False)[["n_layers", "bytes", "seconds"]].median()


def _of_factorial(dtype: str, trained: bool = False) -> str:
    return f"factorial in {dtype}, {'training step' if trained else 'decoding'}"


def laws(study: Study) -> list[Law]:
    """Fit every form to every series that has enough sizes for it."""
    timed = {HERE: ("seconds_per_token", list(study.rungs.values()))}
    timed[TRAINED] = ("train_seconds", timed[HERE][1])
    for dtype in study.params.factorial_dtypes:
        own = factorial.of_dtype(study.factorial, dtype)
        timed[_of_factorial(dtype)] = ("seconds_per_token", own)
        timed[_of_factorial(dtype, trained=True)] = ("train_seconds", own)
    found = []
    for series, (quantity, results) in timed.items():
        for per_layer in (False, True):
            if len({done["name"] for done in results}) >= (4 if per_layer else 3):
                fit = ladder.fit_rungs(results, quantity, per_layer=per_layer, n_resamples=study.params.bootstrap)
                found.append(Law(series=series, form=_form(per_layer), fit=fit))
    names = {"cpu": "report, cpu", "cuda": "report, cuda", "training": "report, training step"}
    return found + [Law(series=names[key], form=_form(False), fit=fit) for key, fit in published.fits().items()]


def _form(per_layer: bool) -> str:
    return "t0 + layers·tl + bytes/BW" if per_layer else "t0 + bytes/BW"


def law_curves(found: list[Law]) -> dict[str, AffineFit]:
    """Return the law of each series that the figure draws: the one with a term per layer where it was fitted."""
    return {law.series: law.fit for law in sorted(found, key=lambda law: law.fit.per_layer is not None)}


def law_table(found: list[Law]) -> pd.DataFrame:
    """Lay out overhead, time per layer and bandwidth with intervals, and the errors on sizes left out of the fit."""
    return pd.DataFrame([_law_row(law) for law in found])


def _law_row(law: Law) -> dict[str, Any]:
    fit = law.fit
    errors = [abs(error) for error in fit.leave_one_size_out.values()]
    return {
        "series": law.series,
        "form": law.form,
        "sizes": fit.n_sizes,
        "t0 (ms)": _with_interval(1e3 * fit.intercept, fit.ci.get("intercept"), lambda x: 1e3 * x),
        "ms per layer": _layer_term(fit),
        "GB/s": _with_interval(_inverse(fit.slope), fit.ci.get("slope"), _inverse),
        "median held-out error": "" if fit.median_error is None else f"{fit.median_error:.0%}",
        "largest": f"{max(errors):.0%}" if errors else "",
        "note": fit.note,
    }


def _layer_term(fit: AffineFit) -> str:
    if fit.per_layer is None:
        return ""
    return _with_interval(1e3 * fit.per_layer, fit.ci.get("per_layer"), lambda x: 1e3 * x)


def _inverse(slope: float) -> float:
    return 1 / slope / 1e9 if slope > 0 else np.inf


def _with_interval(value: float, ends: tuple[float, float] | None, unit: Callable[[float], float]) -> str:
    if ends is None:
        return f"{value:.3g}"
    low, high = sorted(map(unit, ends))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def load_table(study: Study) -> pd.DataFrame:
    """Lay out cold and warm load times of each model, beside the report's."""
    rows = []
    for model, result in study.loads.items():
        cold = result["cold_seconds"]
        row = {"model": model, "cold (s)": f"{np.median(cold):.2f}" if cold else result["cold_unavailable"]}
        rows.append(row | {"warm (s)": float(np.median(result["warm_seconds"])), "file GB": result["file_bytes"] / 1e9})
    return pd.DataFrame(rows)


def unsupported(study: Study) -> list[str]:
    """Say which weight types this machine cannot multiply by, and why."""
    refused = {r["weights"]: r["why"] for r in study.quantized.values() if not r["supported"]}
    return [f"{weights}: {why}" for weights, why in refused.items()]
