"""Figures of report 001: seconds per sample, the law of the gain, roofline, memory, learning.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the
pair.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from labkit.base.units import settled
from labkit.workflow.figures import captioned, style

Drawing = tuple[Figure, pd.DataFrame]

_GREY = "#777777"


@captioned(
    "amortisation",
    caption="Many samples for each pass over the weights.",
    alt=(
        "Seconds per sample against samples for each pass over the weights on logarithmic axes: every timed "
        "step here with the law L/B + c, reading alone and computing alone at each batch size with bars over "
        "the range of the rounds, and the values of the report and of its notes."
    ),
)
def amortisation_panel(points: pd.DataFrame, law: Any, bounds: pd.DataFrame) -> Drawing:
    """Plot seconds per sample against samples a step, with the law L/B + c and the two bounds of this machine.

    Args:
        points: rows with series, batch, seconds_per_sample; the series "here" is what the law was fitted to.
        law: of a step, with intercept (L, s), slope (c, s per sample) and predict(batch).
        bounds: rows with series (reading alone, computing alone), batch, seconds_per_sample, least, most.
    """
    fig, axes = plt.subplots(figsize=(8.0, 5.0))
    looks = style([*dict.fromkeys(points["series"])])
    for name, part in points.groupby("series", sort=False):
        axes.plot(part["batch"], part["seconds_per_sample"], label=name, **looks[name] | {"linestyle": "none"})
    batch = np.array([settled(n) for n in np.geomspace(1, points["batch"].max(), 60)])
    each = np.asarray(law.predict(batch)) / batch
    axes.plot(batch, each, color=looks["here"]["color"], label="L/B + c, fitted here")
    for (name, part), line in zip(bounds.groupby("series", sort=False), (":", "--"), strict=True):
        middle = part["seconds_per_sample"]
        spread = [middle - part["least"], part["most"] - middle]
        axes.errorbar(part["batch"], middle, yerr=spread, color=_GREY, linestyle=line, capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="samples for each pass over the weights", ylabel="seconds per sample")
    ticks = [2**k for k in range(int(np.log2(points["batch"].max())) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.minorticks_off()
    fig.legend(loc="outside lower center", ncols=2)
    fitted = pd.DataFrame({"series": "fitted here", "batch": batch, "seconds_per_sample": each})
    return fig, pd.concat([points, fitted, bounds], ignore_index=True)


@captioned(
    "law",
    caption="Predicted and measured gains.",
    alt=(
        "Measured gain over a batch of one against the gain that reading alone and computing alone predict, "
        "each round, batch size and speed of the disk a point, with the diagonal and the tolerance around it."
    ),
)
def law_panel(points: pd.DataFrame) -> Drawing:
    """Plot measured gains against those that reading alone and computing alone predict, with 10 % on either side.

    Args:
        points: rows with slowdown, batch, measured, predicted.
    """
    fig, axes = plt.subplots(figsize=(6.4, 5.4))
    names = {n: "disk as it is" if n == 1 else f"reading takes {n} times as long" for n in points["slowdown"].unique()}
    looks = style([*names.values()])
    for n, part in points.groupby("slowdown", sort=False):
        axes.plot(part["predicted"], part["measured"], label=names[n], **looks[names[n]] | {"linestyle": "none"})
    every = points[["predicted", "measured"]].to_numpy()
    ends = np.array([every.min() / 1.3, every.max() * 1.3])
    axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color=_GREY, alpha=0.2, linewidth=0, label="within 10 %")
    axes.plot(ends, ends, color=_GREY, linestyle="--", label="as predicted")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="gain predicted from reading alone and computing alone", ylabel="gain measured")
    fig.legend(loc="outside lower center", ncols=2)
    return fig, points


@captioned(
    "roofline",
    caption="A whole step beside its two halves.",
    alt=(
        "Seconds of a whole step, of reading alone and of computing alone for each batch size that was also "
        "run in halves, with the share of the slower part in the whole step."
    ),
)
def roofline_panel(table: pd.DataFrame) -> Drawing:
    """Draw a whole step beside reading alone and computing alone, with the share of the slower one.

    Args:
        table: rows with "samples a step", "whole step", "reading alone", "computing alone" (s), "share of the bound".
    """
    names = ["whole step", "reading alone", "computing alone"]
    looks = style(names)
    fig, axes = plt.subplots(figsize=(7.2, 0.9 * len(table) + 1.6))
    y = np.arange(len(table))
    for i, name in enumerate(names):
        drawn = axes.barh(y + 0.26 * (i - 1), table[name], 0.24, color=looks[name]["color"], label=name)
        if name == "whole step":
            axes.bar_label(drawn, [f"{share:.0%} of the bound" for share in table["share of the bound"]], padding=3)
    axes.set_yticks(y, [f"batch {n}" for n in table["samples a step"]])
    axes.set_xlim(0, table["whole step"].max() * 1.3)
    axes.set_xlabel("seconds a step")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    fig.legend(loc="outside lower center", ncols=3)
    return fig, table


@captioned(
    "memory",
    caption="Planned and measured memory of a step.",
    alt=(
        "For each timed step the planned memory stacked by part, below the plans the measured peak as a bar, "
        "the limit that the kernel enforced as a line, and all of them with the size of the weights in words."
    ),
)
def memory_panel(table: pd.DataFrame) -> Drawing:
    """Stack the planned memory of each step by part; below the largest plan the measured peak, and the limit across.

    Args:
        table: rows with step, part (one of them "measured peak", "limit" or "weights"), MiB.
    """
    marks = ("measured peak", "limit", "weights")
    steps = [*dict.fromkeys(table["step"])]
    parts = [part for part in dict.fromkeys(table["part"]) if part not in marks]
    wide = table.pivot_table(index="step", columns="part", values="MiB", sort=False).loc[steps]
    fig, axes = plt.subplots(figsize=(8.4, 0.7 * len(steps) + 2.0))
    left, y = np.zeros(len(steps)), np.arange(len(steps))
    looks = style(parts)
    for part in parts:
        axes.barh(y - 0.12, wide[part], left=left, color=looks[part]["color"], label=part, height=0.4)
        left += wide[part].to_numpy()
    axes.barh(y + 0.22, wide["measured peak"], color="black", height=0.2, label="measured peak")
    axes.vlines(wide["limit"], y - 0.42, y + 0.42, color=_GREY, linestyle="--", label="limit of the kernel")
    for at, planned, (_, row) in zip(y, left, wide.iterrows(), strict=True):
        axes.annotate(_memory_words(planned, row), (row["limit"], at), (6, 0), "data", "offset points", va="center")
    axes.set_yticks(y, steps)
    axes.set(xlabel="MiB of the whole process that no file backs", xlim=(0, wide["limit"].max() * 1.5))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    fig.legend(loc="outside lower center", ncols=4, fontsize=8)
    return fig, table


def _memory_words(planned: float, row: pd.Series) -> str:
    peak = "" if np.isnan(row["measured peak"]) else f", peak {row['measured peak']:,.0f}"
    return f"plan {planned:,.0f}{peak}\nlimit {row['limit']:,.0f}, weights {row['weights']:,.0f}"


@captioned(
    "learning",
    caption="Streamed and resident training on real text.",
    alt=(
        "Left: training loss against optimizer step for each batch size, streamed as a line and resident as "
        "points on it. Right: the relative difference of the two losses at each step."
    ),
)
def learning_panel(curves: pd.DataFrame) -> Drawing:
    """Plot the loss of every step, streamed as lines and resident as points, and how far apart they are.

    Args:
        curves: rows with arm, kind ("streamed" or "resident"), step, loss.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.2))
    looks = style([*dict.fromkeys(curves["arm"])])
    for arm, part in curves.groupby("arm", sort=False):
        both = part.pivot_table(index="step", columns="kind", values="loss")
        color, marker = looks[arm]["color"], looks[arm]["marker"]
        left.plot(both.index, both["streamed"], color=color, label=f"{arm}, streamed")
        left.plot(both.index, both["resident"], color=color, marker=marker, linestyle="none", label=f"{arm}, resident")
        apart = (both["streamed"] - both["resident"]).abs() / both["resident"]
        right.plot(both.index, apart.clip(lower=1e-9), **looks[arm], label=arm)
    left.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    right.set(
        xlabel="optimizer step", ylabel="streamed and resident apart by (relative)", yscale="log", ylim=(1e-9, 1e-2)
    )
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig, curves


@captioned(
    "grad_norms",
    caption="Gradient norm of every adapter.",
    alt=(
        "Mean gradient norm of each adapter matrix against its layer, the matrices A on the left and B on the "
        "right, on a logarithmic axis."
    ),
)
def grad_norms_panel(norms: pd.DataFrame) -> Drawing:
    """Plot the gradient norm of each adapter matrix by layer, the mean over the steps of the first arm.

    Args:
        norms: rows with arm, layer, map, matrix, norm.
    """
    first = norms[norms["arm"] == norms["arm"].iloc[0]]
    fig, both = plt.subplots(1, 2, figsize=(10.0, 4.2), sharey=True)
    looks = style([*dict.fromkeys(first["map"])])
    for axes, matrix in zip(both, ("lora_A", "lora_B"), strict=True):
        for name, part in first[first["matrix"] == matrix].groupby("map", sort=False):
            axes.plot(part["layer"], part["norm"].clip(lower=1e-8), **looks[name] | {"linestyle": "none"}, label=name)
        axes.set(title=matrix.removeprefix("lora_"), xlabel="layer", yscale="log")
    both[0].set_ylabel("mean gradient norm")
    fig.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return fig, first
