"""Figures of report 000 about training: adapters, loss, held-out preference, size of the data set.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the
pair.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labkit.workflow.figures import captioned, style

Drawing = tuple[Figure, pd.DataFrame]

LN2 = float(np.log(2.0))
_GREY = "#777777"
_ROUNDED_TO_ZERO = 5e-5
_MARGIN, _SUM, _PER_TOKEN = "margin", "sum", "per token"


@captioned(
    "coverage",
    caption="What the report's list of targets reaches in each model.",
    alt=(
        "Trainable adapter parameters for each model and list of target modules; bars are grey where a target "
        "matches nothing."
    ),
)
def coverage_panel(coverage: pd.DataFrame) -> Drawing:
    """Draw the adapter parameters of each model and target list, with the targets that matched nothing.

    Args:
        coverage: rows with model, targets (text), trainable, percent, unmatched (text, may be empty).
    """
    fig, axes = plt.subplots(figsize=(7.2, 0.5 * len(coverage) + 1.2))
    colors = ["#999999" if row.unmatched else style(["all"])["all"]["color"] for row in coverage.itertuples()]
    drawn = axes.barh([f"{row.model}: {row.targets}" for row in coverage.itertuples()], coverage["trainable"] / 1e6)
    for bar, color in zip(drawn, colors, strict=True):
        bar.set_color(color)
    axes.bar_label(drawn, [_coverage_label(row) for row in coverage.itertuples()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, coverage["trainable"].max() / 1e6 * 1.55)
    axes.set_xlabel("trainable parameters (million); grey: a target matches nothing in the model")
    axes.grid(visible=False, axis="y")
    return fig, coverage


def _coverage_label(row: tuple) -> str:
    missing = f", no {row.unmatched}" if row.unmatched else ""
    return f"{row.trainable:,} ({row.percent:.2f} %){missing}"


@captioned(
    "loss_curves",
    caption="Loss against step, and against margin.",
    alt=(
        "Left: DPO loss against optimizer step for the arms trained here and the report's two curves, with ln "
        "2 marked. Right: the same losses against the reward margin, with the curve of minus log sigmoid of "
        "the margin."
    ),
)
def loss_curves(steps: pd.DataFrame, published: pd.DataFrame) -> Drawing:
    """Plot training loss against step, and against the reward margin beside the saturation line.

    For one pair the loss is -log sigmoid(margin), so a batch whose pairs share one margin lies on that line; spread
    of the margins within a batch lifts it above (Jensen). A loss printed as 0.0000 is drawn at 0.00005, the
    largest that rounds to it.

    Args:
        steps: one row per optimizer step with series, step, loss, margin.
        published: the report's own curves with series, step, loss, and margin where the report states one.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.4))
    looks = style([*dict.fromkeys(steps["series"]), *dict.fromkeys(published["series"])])
    rows = pd.concat([steps.assign(source="measured here"), published.assign(source="report")], ignore_index=True)
    rows["loss"] = rows["loss"].replace(0.0, _ROUNDED_TO_ZERO)
    for name, part in rows.groupby("series", sort=False):
        look = looks[name] | {"markersize": 4}
        left.plot(part["step"], part["loss"], label=name, **look)
        known = part.dropna(subset=["margin"])
        right.plot(known["margin"], known["loss"], **look | {"linestyle": "none"})
    _saturation(right, rows["margin"])
    left.axhline(LN2, color=_GREY, linewidth=1, linestyle=":")
    left.annotate("ln 2", (rows["step"].max(), LN2), ha="right", va="bottom", color=_GREY, fontsize=8)
    left.set(xlabel="optimizer step", ylabel="DPO loss (nats)", yscale="log")
    right.set(xlabel="mean reward margin of the batch (nats)", yscale="log")
    fig.legend(loc="outside lower center", ncols=2)
    return fig, rows


def _saturation(axes: Axes, margins: pd.Series) -> None:
    m = np.linspace(min(-0.2, margins.min()), max(1.0, margins.max()), 200)
    axes.plot(m, np.logaddexp(0, -m), color=_GREY, linewidth=1)
    axes.annotate("−log σ(margin)", (m[120], np.logaddexp(0, -m[120])), color=_GREY, fontsize=8, va="top", ha="right")


@captioned(
    "held_out",
    caption="What training moved, and what the models prefer, on pairs they never saw.",
    alt=(
        "Two panels for each set of pairs: the share of pairs on which each arm prefers the chosen text, with "
        "95 % intervals and beside chance; left by the margin against the reference, right by the "
        "log-probabilities themselves, per token and by sum."
    ),
)
def held_out_panel(judged: pd.DataFrame) -> Drawing:
    """Draw how often arms prefer the chosen text with 95 % intervals, beside chance; a row for each set of pairs.

    Left: by the margin against the reference, which says whether training moved a model towards the chosen text. Right:
    by the log-probabilities of the texts themselves, per token (filled) and by sum (hollow), which say what it prefers.

    Args:
        judged: rows with model, arm, pairs_of, way (margin, sum, per token), accuracy, low, high, pairs.
    """
    sets, arms = list(dict.fromkeys(judged["pairs_of"])), list(dict.fromkeys(judged["arm"]))
    looks = style(list(dict.fromkeys(judged["model"])))
    size = (10.0, len(sets) * (0.42 * len(arms) + 0.9) + 0.9)
    fig, panels = plt.subplots(len(sets), 2, figsize=size, sharex=True, sharey=True, squeeze=False)
    for (left, right), name in zip(panels, sets, strict=True):
        part = judged[judged["pairs_of"] == name]
        for way, axes in ((_MARGIN, left), (_PER_TOKEN, right), (_SUM, right)):
            _draw_shares(axes, part[part["way"] == way], arms, looks, hollow=way == _SUM)
        left.set_yticks(range(len(arms)), arms)
        left.set(xlim=(0, 1), ylim=(len(arms) - 0.5, -0.5), ylabel=f"{part['pairs'].max()} {name}")
        for axes in (left, right):
            axes.axvline(0.5, color=_GREY, linewidth=1, linestyle=":")
            axes.grid(visible=False, axis="y")
    panels[-1][0].set(xlabel="share by margin against the reference")
    panels[-1][1].set(xlabel="share by log-probability: per token filled, by sum hollow")
    handles = [Line2D([], [], label=name, **looks[name] | {"linestyle": "none"}) for name in looks]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(looks))
    return fig, judged


def _draw_shares(axes: Axes, rows: pd.DataFrame, arms: list[str], looks: dict[str, dict], *, hollow: bool) -> None:
    """Put a point with its interval beside each arm; models and ways are moved apart a little."""
    names = list(looks)
    for row in rows.itertuples():
        y = arms.index(row.arm) + 0.18 * (names.index(row.model) - (len(names) - 1) / 2) + 0.09 * hollow
        look = looks[row.model] | {"linestyle": "none"} | ({"markerfacecolor": "white"} if hollow else {})
        error = [[row.accuracy - row.low], [row.high - row.accuracy]]
        axes.errorbar([row.accuracy], [y], xerr=error, capsize=2, elinewidth=0.8 if hollow else 1.2, **look)


@captioned(
    "dataset_size",
    caption="Subsets of the pairs, trained for equally many steps.",
    alt=(
        "Training loss of the last steps and held-out accuracy with 95 % intervals against the number of "
        "training pairs, at equal steps."
    ),
)
def dataset_size_panel(sizes: pd.DataFrame) -> Drawing:
    """Plot final training loss and held-out accuracy against the number of training pairs at equal steps.

    Args:
        sizes: rows with model, n_pairs, final_loss, accuracy, low, high.
    """
    looks = style(list(dict.fromkeys(sizes["model"])))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8))
    for name, part in sizes.sort_values("n_pairs").groupby("model", sort=False):
        left.plot(part["n_pairs"], part["final_loss"], label=name, **looks[name])
        error = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        right.errorbar(part["n_pairs"], part["accuracy"], yerr=error, capsize=3, **looks[name])
    right.axhline(0.5, color=_GREY, linewidth=1, linestyle=":")
    ticks = sorted(sizes["n_pairs"].unique())
    for axes in (left, right):
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xlabel("training pairs")
    left.set(ylabel="training loss, last five steps (nats)")
    right.set(ylabel="held-out accuracy, 95 % interval", ylim=(0, 1))
    fig.legend(loc="outside lower center", ncols=2)
    return fig, sizes
