"""Figures of report 000 about running: time against bytes, the ladder, quantization, cost against quality.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the
pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from labkit.base.units import settled
from labkit.workflow.figures import captioned, style

Drawing = tuple[Figure, pd.DataFrame]

_GREY = "#777777"


@captioned(
    "affine_law",
    caption="Time against bytes: overhead, layers and bandwidth.",
    alt=(
        "Seconds per token against bytes of weights on logarithmic axes: the shapes timed here and the "
        "report's own times on its processor and GPU, each with its law: a line for each depth where a term "
        "per layer was fitted, else one line with its two regimes dotted."
    ),
)
def affine_law(points: pd.DataFrame, fits: Mapping[str, Any]) -> Drawing:
    """Plot seconds per token against bytes of weights, with the law of each series.

    A law t = t0 + bytes / bandwidth is one line with its two regimes dotted: left of the knee at t0 x bandwidth the
    time is overhead and hardly grows with size, right of it the time is that of reading the weights. A law with a term
    per layer is a line for each depth that was timed.

    Args:
        points: rows with series, bytes, seconds (per token), name, and n_layers where a law has a term per layer.
        fits: for some series, an object with intercept (s), slope (s per byte), predict(bytes), and per_layer (s) where
            its law has that term; predict then takes the layers as well.
    """
    looks = style(list(dict.fromkeys(points["series"])))
    fig, axes = plt.subplots(figsize=(8.0, 5.0))
    rows = [points.assign(kind="point")]
    for name, part in points.groupby("series", sort=False):
        axes.plot(
            part["bytes"],
            part["seconds"],
            label=_law_label(name, fits.get(name)),
            **looks[name] | {"linestyle": "none"},
        )
        if name in fits:
            draw = _draw_law if _per_layer(fits[name]) is None else _draw_depths
            rows.append(draw(axes, name, part, fits[name], looks[name]))
    axes.set(xscale="log", yscale="log", xlabel="bytes of weights read per token", ylabel="seconds per token")
    fig.legend(loc="outside lower center", ncols=1)
    return fig, pd.concat(rows, ignore_index=True)


def _per_layer(fit: Any) -> float | None:
    return getattr(fit, "per_layer", None)


def _law_label(name: str, fit: Any) -> str:
    if fit is None:
        return name
    terms = [f"t0 = {fit.intercept * 1e3:.3g} ms"]
    terms += [] if _per_layer(fit) is None else [f"{fit.per_layer * 1e3:.3g} ms per layer"]
    terms += [f"{1 / fit.slope / 1e9:.3g} GB/s"] if fit.slope > 0 else []
    return f"{name}: {', '.join(terms)}"


def _draw_law(axes: Axes, name: str, part: pd.DataFrame, fit: Any, look: dict[str, Any]) -> pd.DataFrame:
    x = np.geomspace(part["bytes"].min() / 1.5, part["bytes"].max() * 1.5, 80)
    x, y = (np.array([*map(settled, values)]) for values in (x, fit.predict(x)))
    axes.plot(x, y, **look | {"marker": ""})
    if fit.intercept > 0 and fit.slope > 0:
        axes.plot(x, np.full_like(x, fit.intercept), color=look["color"], linewidth=0.6, linestyle=":")
        above = x * fit.slope > y.min() / 3
        axes.plot(x[above], x[above] * fit.slope, color=look["color"], linewidth=0.6, linestyle=":")
    return pd.DataFrame({"series": name, "bytes": x, "seconds": y, "kind": "fit"})


def _draw_depths(axes: Axes, name: str, part: pd.DataFrame, fit: Any, look: dict[str, Any]) -> pd.DataFrame:
    """Draw a law with a term per layer as a line for each depth, over the sizes that were timed."""
    rows = []
    ends = part["bytes"].min() / 1.5, part["bytes"].max() * 1.5
    for depth in sorted(part["n_layers"].dropna().unique()):
        x = np.geomspace(*ends, 80)
        x, y = (np.array([*map(settled, values)]) for values in (x, fit.predict(x, np.full(len(x), depth))))
        axes.plot(x, y, color=look["color"], linewidth=0.8)
        where = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        where |= {"fontsize": 7, "color": look["color"]}
        axes.annotate(f"{depth:.0f} layers", (x[0], y[0]), **where)
        rows.append(pd.DataFrame({"series": name, "bytes": x, "seconds": y, "n_layers": depth, "kind": "fit"}))
    axes.update_datalim([(ends[0] / 1.5, part["seconds"].min())])  # room for the words
    return pd.concat(rows, ignore_index=True)


@captioned(
    "ladder",
    caption="The ladder of shapes: decoding, its floor, prefill and training step.",
    alt=(
        "For each shape dots on a logarithmic axis for the milliseconds per decoded token beside the time of "
        "moving its bytes at the bandwidth measured in the same run, and the milliseconds of a prefill and of "
        "a training step."
    ),
)
def ladder_panel(rungs: pd.DataFrame) -> Drawing:
    """Draw, by rung, the time per token beside its floor at the measured bandwidth, and the time of a training step.

    Dots, since a bar on a logarithmic axis starts nowhere; the line between two of them is their ratio.

    Args:
        rungs: rows with name, ms_per_token, roofline_ms (the bytes over the bandwidth measured in the same run),
            prefill_ms, train_ms (NaN where none was measured).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 0.5 * len(rungs) + 1.8), sharey=True)
    y = np.arange(len(rungs))
    names = ["decoding, with % of the bandwidth", "bytes over the measured bandwidth", "prefill"]
    looks = style([*names, "training step (adapters)"])
    columns = ("ms_per_token", "roofline_ms", "prefill_ms", "train_ms")
    for axes, name, column in zip((left, left, right, right), looks, columns, strict=True):
        axes.plot(rungs[column], y, label=name, **looks[name] | {"linestyle": "none"})
    left.hlines(y, rungs["roofline_ms"], rungs["ms_per_token"], color=_GREY, linewidth=0.8, zorder=0)
    right.hlines(y, rungs["prefill_ms"], rungs["train_ms"], color=_GREY, linewidth=0.8, zorder=0)
    for at, row in zip(y, rungs.itertuples(), strict=True):
        share = f"{row.roofline_ms / row.ms_per_token:.0%}"
        left.annotate(share, (row.ms_per_token, at), (6, 5), textcoords="offset points", fontsize=8)
    left.set_yticks(y, rungs["name"])
    left.set_ylim(len(rungs) - 0.5, -0.5)
    left.set(xscale="log", xlabel="ms per token")
    right.set(xscale="log", xlabel="ms")
    left.margins(x=0.15)
    for axes in (left, right):
        # Within a decade matplotlib labels every tick, one over the other.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    fig.legend(loc="outside lower center", ncols=4)
    return fig, rungs


@captioned(
    "quantization",
    caption="Weight-only quantization of two shapes.",
    alt=(
        "Milliseconds per token of two shapes for each weight type, with the bytes held and the ratio between "
        "the two shapes."
    ),
)
def quantization_panel(rows: pd.DataFrame) -> Drawing:
    """Draw the time per token of two sizes for each weight type, and the ratio between the sizes.

    Args:
        rows: rows with weights (type), name (rung), ms_per_token, gib, ratio (time of the larger over the smaller).
    """
    kinds, names = list(dict.fromkeys(rows["weights"])), list(dict.fromkeys(rows["name"]))
    looks = style(names)
    fig, axes = plt.subplots(figsize=(7.2, 4.0))
    for i, name in enumerate(names):
        part = rows[rows["name"] == name].set_index("weights")
        at = [kinds.index(kind) + 0.38 * (i - (len(names) - 1) / 2) for kind in part.index]
        drawn = axes.bar(at, part["ms_per_token"], 0.36, color=looks[name]["color"], label=name)
        axes.bar_label(
            drawn, [f"{row.ms_per_token:.3g} ms\n{row.gib:.2f} GiB" for row in part.itertuples()], fontsize=8
        )
    ratio = rows.groupby("weights", sort=False)["ratio"].first()
    axes.set_xticks(range(len(kinds)), [f"{kind}\nlarger / smaller: {ratio[kind]:.2f}" for kind in kinds])
    axes.set(ylabel="ms per token", ylim=(0, rows["ms_per_token"].max() * 1.2))
    axes.grid(visible=False, axis="x")
    fig.legend(loc="outside lower center", ncols=len(names))
    return fig, rows


@captioned(
    "frontier",
    caption="Quality against measured cost.",
    alt=(
        "Share of questions answered rightly against measured seconds per query for each routing policy with "
        "95 % intervals, and the line of random routing between the two models."
    ),
)
def frontier_panel(policies: pd.DataFrame, curve: pd.DataFrame) -> Drawing:
    """Plot quality against measured cost: each policy with 95 % intervals, and the line of random routing.

    Args:
        policies: rows with policy, quality, quality_low, quality_high, cost, cost_low, cost_high (seconds per query).
        curve: rows with cost, quality: what sending a random share of the queries to the dearer model gives.
    """
    names = list(dict.fromkeys(policies["policy"]))
    looks = style(names)
    fig, axes = plt.subplots(figsize=(8.0, 5.2))
    axes.plot(curve["cost"], curve["quality"], color=_GREY, linewidth=1, label="random share to the dearer model")
    for row in policies.itertuples():
        error = {
            "xerr": [[row.cost - row.cost_low], [row.cost_high - row.cost]],
            "yerr": [[row.quality - row.quality_low], [row.quality_high - row.quality]],
        }
        look = looks[row.policy] | {"linestyle": "none"}
        axes.errorbar([row.cost], [row.quality], label=row.policy, capsize=2, elinewidth=0.8, **error, **look)
    axes.set(xlabel="seconds per query (measured)", ylabel="share of questions answered rightly")
    fig.legend(loc="outside lower center", ncols=3)
    drawn = [policies.assign(kind="policy"), curve.assign(kind="random line")]
    return fig, pd.concat(drawn, ignore_index=True)
