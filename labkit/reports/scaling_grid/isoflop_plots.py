"""The figure of the comparison at equal FLOPs: loss against size at each budget, with the parabolas and their vertices.

It takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the pair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from labkit.scaling.frontier import Path
from labkit.workflow.figures import captioned, style

_RING = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#222222", "linestyle": "none"}
_COLUMNS = ["kind", "mixer", "budget", "seed", "n", "bits_per_byte"]
Drawing = tuple[Figure, pd.DataFrame]


@captioned(
    "equal_flops",
    caption="Loss against size at equal training FLOPs.",
    alt=(
        "Bits per byte against size on a logarithmic axis, a panel per mixer and a parabola per budget of "
        "training FLOPs, with the size at the bottom of each seed's parabola ringed; where the profile has no "
        "budgets, a sentence that says so."
    ),
)
def equal_flops_panel(runs: pd.DataFrame | None, paths: Mapping[str, Path]) -> Drawing:
    """Plot bits per byte against cost-equivalent size, a panel per mixer and a parabola per budget through all seeds.

    A ring is the vertex of one seed's parabola where it lies inside the sizes tried. A model that is not admitted is
    hollow. The returned rows are of kind model, parabola or best.

    Args:
        runs: of `IsoFlop.runs`; None where the profile leaves the comparison out, which the figure then says.
        paths: of `isoflop_paths`.
    """
    if runs is None or not paths:
        return _left_out()
    sizes = runs[(runs["role"] == "size") & np.isfinite(runs["bits_per_byte"].astype(float))]
    sizes = sizes.assign(n=(sizes["flops"] / sizes["tokens_seen"] / 6).astype(float))
    looks = style([f"{budget:.3g} FLOP" for budget in sorted(runs["budget"].unique())])
    fig = Figure(figsize=(7.2, 4.5), layout="constrained")
    panels = fig.subplots(1, len(paths), sharey=True, squeeze=False)[0]
    drawn = []
    for (mixer, path), axes in zip(paths.items(), panels, strict=True):
        axes.set_title(mixer)
        own = sizes[sizes["mixer"] == mixer]
        for budget, part in own.groupby("budget"):
            drawn += _draw_budget(axes, part, looks[f"{budget:.3g} FLOP"])
        drawn.append(_draw_best(axes, path, mixer))
        _name_axes(axes)
    panels[0].set_ylabel("validation loss (bits per byte)")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    handles += [Line2D([], [], label="best size", **_RING)]
    if not sizes["admitted"].astype(bool).all():
        handles += [Line2D([], [], marker="o", color="#808080", markerfacecolor="none", linestyle="none")]
        handles[-1].set_label("hollow: not admitted")
    title = {"title": "Loss against size at equal training FLOPs", "title_fontproperties": {"size": 11}}
    fig.legend(handles=handles, loc="outside upper center", ncols=3, **title)
    table = pd.concat([part for part in drawn if len(part)], ignore_index=True) if any(map(len, drawn)) else _nothing()
    return fig, table.reindex(columns=_COLUMNS)


def _draw_budget(axes: Axes, models: pd.DataFrame, look: Mapping[str, object]) -> list[pd.DataFrame]:
    x, y = np.log(models["n"].to_numpy()), models["bits_per_byte"].to_numpy(float)
    for admitted, part in models.groupby(models["admitted"].astype(bool)):
        fill = {} if admitted else {"markerfacecolor": "none"}
        axes.plot(part["n"], part["bits_per_byte"], **look | {"linestyle": "none"} | fill)
    drawn = [models.assign(kind="model")]
    if len(np.unique(x)) >= 3:
        ends = np.linspace(x.min(), x.max(), 40)
        curve = np.polyval(np.polyfit(x - x.mean(), y, 2), ends - x.mean())
        axes.plot(np.exp(ends), curve, **look | {"marker": ""})
        about = {"kind": "parabola", "mixer": models["mixer"].iloc[0], "budget": models["budget"].iloc[0]}
        drawn.append(pd.DataFrame({"n": np.exp(ends), "bits_per_byte": curve}).assign(**about))
    return drawn


def _draw_best(axes: Axes, path: Path, mixer: str) -> pd.DataFrame:
    if path.points.empty:
        return path.points
    best = path.points[path.points["inside"]]
    axes.plot(best["n"], best["bits_per_byte"], **_RING)
    return best.assign(kind="best", mixer=mixer)


def _name_axes(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs per token / 6")
    axes.xaxis.set_major_locator(LogLocator(subs=[1.0, 3.0]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _left_out() -> Drawing:
    fig = Figure(figsize=(7.2, 1.4), layout="constrained")
    axes = fig.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, "This profile leaves the comparison at equal FLOPs out.", ha="center", va="center")
    return fig, _nothing()


def _nothing() -> pd.DataFrame:
    return pd.DataFrame([{"kind": "left out"}])
