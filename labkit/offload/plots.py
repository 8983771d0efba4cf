"""Figures of report 001: seconds per sample, roofline, memory, learning.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.figures.save` publishes the pair.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.figures import style
from labkit.units import settled

Drawing = tuple[Figure, pd.DataFrame]

_GREY = "#777777"


def amortisation_panel(points: pd.DataFrame, law: Any, bounds: pd.DataFrame) -> Drawing:
    """Plot seconds per sample against samples a step, with the law L/B + c and the two bounds of this machine.

    Args:
        points: rows with series, batch, seconds_per_sample; the series "here" is what the law was fitted to.
        law: of a step, with intercept (L, s), slope (c, s per sample) and predict(batch).
        bounds: rows with "samples a step", "reading alone", "computing alone" (s a step).
    """
    fig, axes = plt.subplots(figsize=(8.0, 5.0))
    looks = style([*dict.fromkeys(points["series"])])
    for name, part in points.groupby("series", sort=False):
        axes.plot(part["batch"], part["seconds_per_sample"], label=name, **looks[name] | {"linestyle": "none"})
    batch = np.array([settled(n) for n in np.geomspace(1, points["batch"].max(), 60)])
    each = np.asarray(law.predict(batch)) / batch
    axes.plot(batch, each, color=looks["here"]["color"], label="L/B + c, fitted here")
    read = float(bounds["reading alone"].iloc[0])
    computed = bounds.iloc[-1]
    axes.plot(batch, read / batch, color=_GREY, linestyle=":", label="reading alone")
    axes.axhline(
        computed["computing alone"] / computed["samples a step"],
        color=_GREY,
        linestyle="--",
        label=f"computing alone, at batch {computed['samples a step']:.0f}",
    )
    axes.set(xscale="log", yscale="log", xlabel="samples for each pass over the weights", ylabel="seconds per sample")
    ticks = [2**k for k in range(int(np.log2(points["batch"].max())) + 1)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.minorticks_off()
    fig.legend(loc="outside lower center", ncols=2)
    fitted = pd.DataFrame({"series": "fitted here", "batch": batch, "seconds_per_sample": each})
    return fig, pd.concat([points, fitted], ignore_index=True)


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


def memory_panel(table: pd.DataFrame) -> Drawing:
    """Stack the planned memory of each step by part, with the measured peak, the limit, and the weights' size in words.

    Args:
        table: rows with step, part (one of them "measured peak", "limit" or "weights"), MiB.
    """
    marks = ("measured peak", "limit", "weights")
    steps = [*dict.fromkeys(table["step"])]
    parts = [part for part in dict.fromkeys(table["part"]) if part not in marks]
    wide = table.pivot_table(index="step", columns="part", values="MiB", sort=False).loc[steps]
    fig, axes = plt.subplots(figsize=(8.4, 0.5 * len(steps) + 2.0))
    left = np.zeros(len(steps))
    looks = style(parts)
    for part in parts:
        axes.barh(steps, wide[part], left=left, color=looks[part]["color"], label=part, height=0.6)
        left += wide[part].to_numpy()
    axes.plot(wide["measured peak"], steps, "k|", markersize=16, markeredgewidth=2.5, label="measured peak")
    axes.plot(wide["limit"], steps, "x", color=_GREY, markersize=8, label="limit of the kernel")
    for step, row in wide.iterrows():
        axes.annotate(f"  weights {row['weights']:,.0f} MiB", (row["limit"], step), va="center", fontsize=8)
    axes.set(xlabel="MiB of the whole process that no file backs", xlim=(0, wide["limit"].max() * 1.35))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    fig.legend(loc="outside lower center", ncols=4, fontsize=8)
    return fig, table


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
