"""Figures of report 003: loss against time, time to an equal loss, phases, oracle, the report's protocol, memory.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the
pair.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.hybrid.config import MEMORY_OPTIMIZED_BATCH, UPDATES
from labkit.reports.predict_phase.arms import ARMS
from labkit.reports.predict_phase.protocol import Judgement
from labkit.reports.predict_phase.speed import BASELINE
from labkit.workflow.figures import captioned, style

Drawing = tuple[Figure, pd.DataFrame]

SHOWN = (
    "adamw",
    "adamw-x2",
    "block-trend",
    "ema-nesterov",
    "last-update",
    "frozen",
    "random",
    "muon",
    "muon-block-trend",
)
"""Arms drawn as lines; more could not be told apart. All are in the table and in runs.csv."""
DECIDING = (
    "adamw",
    "adamw-cosine",
    "constant-ema",
    "constant-rre",
    "wsd",
    "ema-nesterov",
    "muon",
    "muon-constant-ema",
    "muon-ema-nesterov",
    "block-trend-tuned",
)
"""The same of the deciding protocol."""
_GREY = "#777777"


@captioned(
    "loss_against_time",
    caption="Final loss against training time.",
    alt=(
        "Held-out loss at the end of completed schedules against seconds of training, on a logarithmic axis "
        "of time, one line for each way to train, with standard errors over seeds; a dotted line marks the "
        "final loss of tuned AdamW, dashed ones n-gram predictors."
    ),
)
def loss_against_time(points: pd.DataFrame, per: str = "token", floors: Mapping[str, float] | None = None) -> Drawing:
    """Plot the final loss of completed schedules against their training time, with standard errors over seeds.

    Args:
        points: rows with arm, steps, seconds, loss, seconds_sem, loss_sem.
        per: what the loss is a mean over.
        floors: losses of n-gram predictors of the same text, by name.
    """
    chosen = DECIDING if set(DECIDING[1:4]) & set(points["arm"]) else SHOWN
    drawn = points[points["arm"].isin(chosen)]
    fig, axes = plt.subplots(figsize=(8.0, 5.2))
    looks = style(chosen)
    for arm in [name for name in chosen if name in set(drawn["arm"])]:
        part = drawn[drawn["arm"] == arm].sort_values("seconds")
        errors = {"xerr": part["seconds_sem"], "yerr": part["loss_sem"], "capsize": 2}
        axes.errorbar(part["seconds"], part["loss"], label=arm, **errors, **looks[arm])
    base = drawn[drawn["arm"] == BASELINE]
    if len(base):
        axes.axhline(base["loss"].min(), color=_GREY, linewidth=0.8, linestyle=":", label="AdamW's final loss")
    for name, nats in (floors or {}).items():
        axes.axhline(nats, color=_GREY, linewidth=0.8, linestyle="--")
        axes.annotate(name, (1.0, nats), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_GREY)
    axes.set(xlabel="seconds of training, probes included", ylabel=f"held-out loss at the end, nats per {per}")
    ratio_axis(axes, drawn["seconds"])
    fig.legend(loc="outside lower center", ncols=4)
    return fig, drawn.assign(**(floors or {}))


@captioned(
    "finetune_loss_against_time",
    caption="Fine-tuning: final loss against training time.",
    alt=(
        "Held-out loss of a fine-tuned pretrained model at the end of completed schedules against seconds of "
        "training, one line for each way to train, with standard errors over seeds."
    ),
)
def finetune_loss_against_time(points: pd.DataFrame) -> Drawing:
    """Draw the same as `loss_against_time` for another task."""
    return tuple(loss_against_time(points))


@captioned(
    "digits_loss_against_time",
    caption="Digits: final loss against training time.",
    alt=(
        "Held-out loss of a small convolutional network on handwritten digits at the end of completed "
        "schedules against seconds of training, one line for each way to train, with standard errors over "
        "seeds."
    ),
)
def digits_loss_against_time(points: pd.DataFrame) -> Drawing:
    """Draw the same as `loss_against_time` for another task."""
    return tuple(loss_against_time(points, per="digit"))


def ratio_axis(axes: Axes, values: pd.Series) -> None:
    """Draw x on a logarithmic scale with plain numbers at its ticks; values too close for that stay on a linear one.

    Args:
        axes: what is drawn on.
        values: all x that are drawn, above 0.
    """
    low, high = float(values.min()), float(values.max())
    ticks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 3, 5) if low / 1.2 <= m * 10.0**k <= high * 1.2]
    if len(ticks) < 2:
        return
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


@captioned(
    "time_to_loss",
    caption="Speed at equal final loss.",
    alt=(
        "Speed of each way to train at the lowest final loss that it and tuned AdamW both reach, as a ratio "
        "with its 95 percent interval over seeds; arrows where the budgets give only a bound."
    ),
)
def time_to_loss(judgements: Sequence[Judgement]) -> Drawing:
    """Draw each arm's speed at an equal final loss with its interval, and the jumps it kept; bounds as arrows."""
    rows = pd.DataFrame(
        [
            {
                "arm": own.arm,
                "speed": own.reach.ratio,
                "low": own.reach.interval.low if own.reach.interval else np.nan,
                "high": own.reach.interval.high if own.reach.interval else np.nan,
                "bound": own.reach.bound,
                "jumps": own.acted,
            }
            for own in judgements
        ]
    )
    fig, axes = plt.subplots(figsize=(9.0, 0.44 * len(rows) + 1.6))
    marks = {"": "o", "at least": ">", "at most": "<"}
    for place, row in enumerate(rows.itertuples()):
        axes.plot([row.low, row.high], [place, place], color=_GREY, linewidth=2)
        axes.plot([row.speed], [place], marker=marks[row.bound], linestyle="none", color="#0173b2")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="times the speed of tuned AdamW at an equal final loss\n(< at most, > at least)")
    axes.set_yticks(range(len(rows)), [_with_jumps(row.arm, row.jumps) for row in rows.itertuples()], fontsize=9)
    axes.set_xticks(ticks := _ticks(rows), [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_yaxis()
    return fig, rows


def _with_jumps(arm: str, jumps: float | None) -> str:
    told = f"{arm} ({ARMS[arm].words})"
    told += "" if jumps is None or np.isnan(jumps) else f", {jumps:.0f} jumps"
    return textwrap.fill(told, 44)


def _ticks(rows: pd.DataFrame) -> list[float]:
    values = rows[["speed", "low", "high"]].to_numpy().ravel()
    low, high = np.nanmin([*values, 1.0]), np.nanmax([*values, 1.0])
    return [tick for tick in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6) if low / 1.3 <= tick <= high * 1.3]


@captioned(
    "phase_timeline",
    caption="What the gate was asked and what it said.",
    alt=(
        "For one run of the gated hybrid: the change of the probe's loss by each proposed jump against the "
        "step at which it was proposed, jumps that were kept and jumps that were refused."
    ),
)
def phase_timeline(decisions: pd.DataFrame) -> Drawing:
    """Plot what each decision of one run did to the probe's loss, against the step it was taken at.

    Args:
        decisions: rows with step, horizon, accepted, probe_before, probe_after, remark.
    """
    fig, axes = plt.subplots(figsize=(7.6, 3.6))
    columns = ["step", "horizon", "accepted", "probe_before", "probe_after", "confidence", "remark"]
    drawn = decisions.reindex(columns=columns)
    change = (drawn["probe_after"] - drawn["probe_before"]).astype(float)
    looks = style(["accepted", "refused"])
    for name, chosen in (("accepted", drawn["accepted"] == True), ("refused", drawn["accepted"] != True)):  # noqa: E712
        axes.plot(drawn["step"][chosen], change[chosen], label=name, **looks[name] | {"linestyle": "none"})
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="nominal step", ylabel="loss of fresh training text after\nthe jump less that before, nats")
    fig.legend(loc="outside lower center", ncols=2)
    return fig, drawn


@captioned(
    "oracle",
    caption="What a jump along the drift delivers.",
    alt=(
        "Left: change of the held-out loss after jumps along the drift against their length, at some points "
        "of the run. Right: how much of the skipped steps' progress the jump delivered at the end of the "
        "schedule, with the extremes over seeds."
    ),
)
def oracle_panel(losses: pd.DataFrame, table: pd.DataFrame) -> Drawing:
    """Plot the held-out loss along the drift at each point, and how much of the skipped progress is left at the end.

    Args:
        losses: rows with seed, step, length, change; means over seeds are drawn.
        table: rows with step, delivered in percent and its extremes over seeds.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8))
    looks = style([f"step {step}" for step in dict.fromkeys(losses["step"])])
    for step, part in losses.groupby("step"):
        mean = part.groupby("length")["change"].mean()
        left.plot(mean.index, mean, label=f"step {step}", **looks[f"step {step}"])
    left.axhline(0.0, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel="steps jumped", ylabel="change of the held-out loss, nats")
    left.set_xticks(ticks := sorted(set(losses["length"])), [str(n) for n in ticks])
    left.minorticks_off()
    left.legend()
    ends = [table["delivered, %"] - table["least, %"], table["greatest, %"] - table["delivered, %"]]
    names = [f"step {step}" for step in table["step"]]
    right.bar(names, table["delivered, %"], color="#0173b2")
    right.errorbar(names, table["delivered, %"], yerr=np.maximum(ends, 0.0), color="black", linestyle="none", capsize=3)
    right.axhline(100.0, color=_GREY, linestyle=":")
    right.axhline(0.0, color="black", linewidth=0.8)
    right.set(ylabel="% of the skipped steps' progress\nstill there at the end")
    return fig, losses.merge(table[["step", "delivered, %", "least, %", "greatest, %"]], on="step")


@captioned(
    "original",
    caption="The report's own protocol.",
    alt=(
        "Loss of the report's protocol against steps and against seconds, with the published and with a usual "
        "initialisation: the baseline, the original hybrid, and the floor ln V."
    ),
)
def original_panel(curves: pd.DataFrame, floor: float) -> Drawing:
    """Plot the loss of the report's protocol against steps and against seconds, for both initialisations.

    Args:
        curves: rows with initialisation, arm, step, seconds, loss.
        floor: ln V, which no model can beat on random targets.
    """
    kinds = list(dict.fromkeys(curves["initialisation"]))
    fig, axes = plt.subplots(len(kinds), 2, figsize=(9.0, 3.0 * len(kinds)), squeeze=False)
    cut = f"{UPDATES} updates"
    words = {
        "baseline": f"baseline, {curves['step'].max()} updates",
        "hybrid": f"original hybrid, {cut}",
        "memory_optimized": f"original, batch {MEMORY_OPTIMIZED_BATCH}, {cut}",
    }
    looks = style(words)
    for row, kind in zip(axes, kinds, strict=True):
        for panel, x in zip(row, ("step", "seconds"), strict=True):
            for arm, part in curves[curves["initialisation"] == kind].groupby("arm", sort=False):
                panel.plot(part[x], part["loss"], label=words[arm], **looks[arm] | {"markevery": 5})
            panel.axhline(floor, color=_GREY, linestyle=":", label="ln V, the least any model can reach")
            own = curves.loc[curves["initialisation"] == kind, "loss"]
            scale = "log" if own.max() > 2 * own.min() else "linear"
            panel.set(xlabel=x, ylabel=f"loss, {kind} init", yscale=scale)
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2)
    return fig, curves


@captioned(
    "noise",
    caption="Speed of jumps against the noise of the gradient.",
    alt=(
        "Speed of jumps at an equal final loss, with 95 percent intervals over seeds, against the batch size "
        "divided by the noise scale of the gradient; one line for jumps with a gate, one without, one for the "
        "last update."
    ),
)
def noise_panel(rows: pd.DataFrame) -> Drawing:
    """Plot the speed of jumps at an equal loss against the batch size over the noise scale, with intervals.

    Args:
        rows: what `sweeps.noise_table` returns.
    """
    fig, axes = plt.subplots(figsize=(7.2, 4.0))
    names = list(dict.fromkeys(rows["arm"]))
    looks = style(names)
    for arm in names:
        part = rows[rows["arm"] == arm].sort_values("batch over noise scale")
        ends = np.abs(part[["low", "high"]].to_numpy().T - part["speed"].to_numpy())
        look = looks[arm] | ({} if len(part) > 2 else {"linestyle": "none"})  # two points are no trend
        axes.errorbar(part["batch over noise scale"], part["speed"], yerr=ends, capsize=3, label=arm, **look)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="windows of a step over the gradient's noise scale", ylabel="times the speed of tuned AdamW")
    if names:  # none where a profile leaves batch sizes out
        ratio_axis(axes, rows["batch over noise scale"])
        fig.legend(loc="outside lower center", ncols=len(names))
    return fig, rows


@captioned(
    "memory",
    caption="Memory against predicted steps.",
    alt=(
        "Memory of the process above its start against predicted steps, one line for the hybrid trainer of "
        "this package, one for a loop that keeps the graph of every loss."
    ),
)
def memory_panel(points: pd.DataFrame) -> Drawing:
    """Plot memory above its start against predicted steps.

    Args:
        points: rows with run, step, mib.
    """
    fig, axes = plt.subplots(figsize=(7.2, 3.8))
    looks = style(["ours", "leak"])
    words = {"ours": "labkit", "leak": "graphs kept on purpose"}
    for name, part in points.groupby("run", sort=False):
        axes.plot(part["step"], part["mib"], label=words[name], **looks[name] | {"markersize": 3})
    axes.set(xlabel="predicted steps", ylabel="MiB above the start")
    axes.legend()
    return fig, points
