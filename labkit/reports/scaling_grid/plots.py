"""Figures of report 004: perplexity, time and learning rate against size, and how sure one may be of the exponent.

Each function takes measured rows and returns (figure, the rows it drew); `labkit.workflow.figures.save` publishes the
pair. Every run is a point and lines join means over seeds. A run that was not admitted is hollow and grey and in no
mean and no fit; one without the value asked for (it failed) stays in the returned rows, and the figure says how many
there are.

`runs` has one row per run with the columns mixer, d_model, n_layers, seed, lr, admitted (bool), status, and the columns
that the axes name: n_total, n_non_embedding, n_active, loss_nats, bits_per_byte, word_perplexity, token_perplexity,
seconds, tokens_per_second, flops, peak_gib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from labkit.scaling.multiverse import fit_perplexity_power
from labkit.workflow.figures import captioned, style

LABELS = {
    "n_total": "parameters, embeddings included",
    "n_non_embedding": "parameters without embeddings",
    "n_active": "parameters used per token",
    "d_model": "width (d_model)",
    "n_layers": "depth (n_layers)",
    "lr": "peak learning rate",
    "loss_nats": "validation loss (nats per token)",
    "bits_per_byte": "validation loss (bits per byte)",
    "word_perplexity": "validation perplexity per word",
    "token_perplexity": "validation perplexity per token",
    "seconds": "training time (s)",
    "tokens_per_second": "training speed (tokens per s)",
    "flops": "training FLOPs",
    "peak_gib": "peak memory (GiB)",
}
"""What a column is called on an axis, with its unit."""

REPORTED_EXPONENT = (-0.2, -0.1)
"""The exponent of perplexity that report 004 expects (section Scaling Law: "~-0.1 to -0.2")."""

_CONFIGURATION = ["mixer", "d_model", "n_layers"]
_REFUSED = {"color": "#808080", "markerfacecolor": "none", "linestyle": "none"}
_RING = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "color": "#222222", "linestyle": "none"}
_GREY = "#555555"
_BAND = "#e6e6e6"
_LEGEND_CHARS = 70
"""Characters of three entries that fit beside one another."""
_CONVENTIONS = {"n_total": "all parameters", "n_non_embedding": "without embeddings", "n_active": "used per token"}

Drawing = tuple[Figure, pd.DataFrame]
Curve = Callable[[np.ndarray], np.ndarray]


@captioned(
    "perplexity_vs_size",
    caption="Loss against size, with a power of N fitted to the admitted models.",
    alt=(
        "Bits per byte against total parameters on logarithmic axes for both mixers, with fitted power laws "
        "and the n-gram baselines as horizontal lines."
    ),
)
def perplexity_vs_size(
    runs: pd.DataFrame,
    fits: Mapping[str, Curve] | None = None,
    *,
    floors: Mapping[str, float] | None = None,
    x: str = "n_total",
    y: str = "word_perplexity",
) -> Drawing:
    """Plot quality against size on logarithmic axes, with a curve per mixer and the n-gram floors.

    Without `fits` the curve is the report's form, y = a N^b, fitted to the logarithms of the admitted runs; a mixer
    with fewer than three admitted sizes has none. Thin lines join the depths of one width. The returned rows are of
    kind run, mean, fit or floor.

    Args:
        runs: one row per run, one learning rate per width.
        fits: for some mixers, a function from sizes [K] to values of `y` [K] to draw instead.
        floors: values of `y` that take no neural network, by name: unigram, bigram, Kneser-Ney.
        x: the size column.
        y: the quality column.

    Raises:
        ValueError: a column is missing, or a configuration is there at several learning rates.
    """
    _check(runs, x, y)
    fig, (axes,) = _panels(1)
    drawn, handles = [], []
    for mixer, look in _styles(runs, "mixer").items():
        of_mixer = runs[runs["mixer"] == mixer]
        for _, of_width in of_mixer.groupby("d_model"):
            drawn.append(_draw_runs(axes, of_width, x, y, look | {"linestyle": "-", "linewidth": 0.7}))
        curve, label = _curve(of_mixer, x, y, (fits or {}).get(mixer))
        axes.plot(curve[x], curve[y], **look | {"marker": ""})
        drawn.append(curve.assign(kind="fit", mixer=mixer))
        handles.append(Line2D([], [], label=f"{mixer}{label}", **look))
    drawn.append(_draw_floors(axes, floors or {}, y))
    _set_log(axes, x, y)
    _name_floors(axes, floors or {})
    _finish(
        fig,
        [*handles, Line2D([], [], color=_GREY, linewidth=0.7, label="mean of one width")],
        runs,
        y,
        f"{_titled(y)} against size",
    )
    return fig, pd.concat(drawn, ignore_index=True)


@captioned(
    "perplexity_vs_width",
    caption="Loss against width.",
    alt="Bits per byte against d_model, one line per depth and one panel per mixer.",
)
def perplexity_vs_width(runs: pd.DataFrame, *, y: str = "word_perplexity") -> Drawing:
    """Plot quality against d_model, a line per depth and a panel per mixer, on logarithmic axes.

    Raises:
        ValueError: as perplexity_vs_size.
    """
    return _ladder(runs, "d_model", "n_layers", y)


@captioned(
    "perplexity_vs_depth",
    caption="Loss against depth.",
    alt="Bits per byte against n_layers, one line per width and one panel per mixer.",
)
def perplexity_vs_depth(runs: pd.DataFrame, *, y: str = "word_perplexity") -> Drawing:
    """Plot quality against n_layers, a line per width and a panel per mixer, on logarithmic axes.

    Raises:
        ValueError: as perplexity_vs_size.
    """
    return _ladder(runs, "n_layers", "d_model", y)


@captioned(
    "time_vs_size",
    caption="Training time against size.",
    alt=("Training seconds against total parameters on logarithmic axes, one panel per mixer and one line per depth."),
)
def time_vs_size(runs: pd.DataFrame, *, x: str = "n_total", y: str = "seconds") -> Drawing:
    """Plot training time (or speed, FLOPs, memory) against size, a line per depth and a panel per mixer.

    Raises:
        ValueError: as perplexity_vs_size.
    """
    return _ladder(runs, x, "n_layers", y)


@captioned(
    "learning_rate",
    caption="The rate of each width is the best of a sweep that was extended until the best lay inside it.",
    alt=(
        "Validation loss against peak learning rate on a logarithmic axis, one line per width and one panel "
        "per mixer, with the chosen rate of each width ringed."
    ),
)
def learning_rate_panel(runs: pd.DataFrame, *, y: str = "loss_nats") -> Drawing:
    """Plot validation loss against learning rate, a line per width and a panel per mixer, with the chosen rate ringed.

    Only configurations run at two rates or more are drawn. The chosen rate is the one that `lr_is_best` marks or,
    without that column, the one with the lowest mean of admitted runs. A ring at the end of its line is labelled,
    because the optimum may then lie outside the sweep.

    Raises:
        ValueError: a column is missing, or nothing was run at more than one learning rate.
    """
    _check(runs, "lr", y, several_rates=True)
    swept = runs[runs.groupby(_CONFIGURATION)["lr"].transform("nunique") > 1]
    if swept.empty:
        raise ValueError("no configuration was run at more than one learning rate: there is no sweep to draw")
    mixers, looks, drawn = list(dict.fromkeys(swept["mixer"])), _styles(swept, "d_model"), []
    fig, panels = _panels(len(mixers))
    for mixer, axes in zip(mixers, panels, strict=True):
        axes.set_title(mixer)
        for (_, width, _), part in swept[swept["mixer"] == mixer].groupby(_CONFIGURATION):
            rows = _draw_runs(axes, part, "lr", y, looks[str(width)])
            drawn += [rows, _ring_best(axes, part, rows[rows["kind"] == "mean"], y)]
        _set_log(axes, "lr", y, ticks=sorted(swept["lr"].unique()))
    handles = [Line2D([], [], label=f"d_model {width}", **look) for width, look in looks.items()]
    _finish(fig, [*handles, Line2D([], [], **_RING, label="chosen rate")], swept, y, "Learning rate of each width")
    return fig, pd.concat(drawn, ignore_index=True)


@captioned(
    "exponents",
    caption="One exponent for each defensible choice.",
    alt=(
        "Exponent with its 95 % interval for each combination of mixer, parameter count, floor, learning rate "
        "and seeds; where the runs do not determine it the reason stands instead."
    ),
)
def exponent_panel(multiverse: pd.DataFrame, *, of: Literal["loss", "perplexity"] = "loss") -> Drawing:
    """Plot every fitted exponent with its interval: a row per choice of size, floor, rate and seeds, a panel per mixer.

    A row whose exponent is NaN shows the reason as text; one with an exponent and a reason (a remark) is hollow. An
    interval that leaves the axis ends in an arrow. A row takes 5 mm, so select the choices to show beyond about 60.

    Args:
        multiverse: mixer, convention, floor, rate, seeds, exponent, low, high, reason, as `multiverse` returns it.
        of: "loss" for the alpha of loss = E + A/N^alpha; "perplexity" for the b of perplexity = a N^b. The report
            expects a value of the latter only, so only there its range is drawn.

    Raises:
        ValueError: a column is missing.
    """
    _require_columns(multiverse, ["mixer", "convention", "floor", "rate", "seeds", "exponent", "low", "high", "reason"])
    names = {
        "loss": r"exponent $\alpha$ of loss = $E + A / N^\alpha$",
        "perplexity": "exponent $b$ of perplexity = $a N^b$",
    }
    groups = list(multiverse.groupby("mixer", sort=False))
    fig = Figure(figsize=(7.2, 1.3 + 0.21 * len(multiverse)), layout="constrained")
    heights = [len(rows) + 0.5 for _, rows in groups]
    panels = fig.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    looks, limits = _styles(multiverse, "mixer"), _exponent_limits(multiverse, of)
    for (mixer, rows), axes in zip(groups, panels, strict=True):
        _draw_forest(axes, rows, looks[mixer], limits)
        axes.set_title(mixer, loc="left")
        if of == "perplexity":
            axes.axvspan(*REPORTED_EXPONENT, color=_BAND, zorder=0)
    panels[-1].set_xlabel(names[of])
    handles = [Line2D([], [], marker="o", color=_GREY, linestyle="-", label="exponent, 95 % interval")]
    if (multiverse["exponent"].notna() & (multiverse["reason"] != "")).any():
        hollow = {"marker": "o", "markerfacecolor": "white", "color": _GREY}
        handles.append(Line2D([], [], **hollow, label="with a remark (see the table)"))
    if of == "perplexity":
        handles.append(Line2D([], [], color=_BAND, linewidth=8, label="expected by the report"))
    _legend(fig, handles, "The exponent under each defensible choice")
    return fig, multiverse.reset_index(drop=True)


@captioned(
    "causality",
    caption="How far a later token reaches back.",
    alt=(
        "Change of earlier logits when a later token is replaced, against the distance to it, one line for "
        "the published mixer and one for the causal one."
    ),
)
def causality_panel(leak: pd.DataFrame) -> Drawing:
    """Plot how far the logits move when one token changes, by position relative to it, with a line per mixer.

    A causal model does not move at all before the token, so zero is part of the axis: it is linear from 0 to the
    smallest change seen and logarithmic above.

    Args:
        leak: mixer, offset (position minus that of the changed token), change (largest change of a logit).

    Raises:
        ValueError: a column is missing, or a change is negative or not finite.
    """
    _require_columns(leak, ["mixer", "offset", "change"])
    if not (np.isfinite(leak["change"]) & (leak["change"] >= 0)).all():
        raise ValueError("a change is negative or not finite; give the largest absolute change of a logit")
    fig, (axes,) = _panels(1)
    looks = _styles(leak, "mixer")
    for i, (mixer, look) in enumerate(looks.items()):
        rows = leak[leak["mixer"] == mixer].sort_values("offset")
        # Lines that coincide stay visible when the later ones are drawn smaller.
        axes.plot(rows["offset"], rows["change"], **look, markersize=4.5 + 3 * (len(looks) - 1 - i))
    _set_change_scale(axes, leak["change"])
    first, last = axes.get_xlim()
    axes.axvspan(first, -0.5, color=_BAND, alpha=0.6, zorder=0)
    axes.set_xlim(first, last)
    axes.annotate("earlier positions: a causal model stays at 0", (0.02, 0.97), xycoords="axes fraction", va="top")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("position relative to the changed token")
    axes.set_ylabel("largest change of a logit")
    handles = [Line2D([], [], label=mixer, **look) for mixer, look in looks.items()]
    _legend(fig, handles, "How far a later token reaches back")
    return fig, leak.reset_index(drop=True)


def _panels(n_panels: int) -> tuple[Figure, np.ndarray]:
    fig = Figure(figsize=(7.2, 4.5), layout="constrained")
    return fig, fig.subplots(1, n_panels, sharey=True, squeeze=False)[0]


def _styles(rows: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """Style the values of a column, numbers in their order and names as they appear."""
    values = rows[column].drop_duplicates()
    if pd.api.types.is_numeric_dtype(values):
        values = values.sort_values()
    return style([str(value) for value in values])


def _require_columns(rows: pd.DataFrame, columns: list[str]) -> None:
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}; there are {', '.join(map(str, rows.columns))}")


def _check(runs: pd.DataFrame, x: str, y: str, *, several_rates: bool = False) -> None:
    _require_columns(runs, [*_CONFIGURATION, "seed", "lr", "admitted", "status", x, y])
    key = [*_CONFIGURATION, "seed", *(["lr"] if several_rates else [])]
    twice = runs[runs.duplicated(key)]
    if len(twice):
        first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in key)
        raise ValueError(f"{first} is there more than once: keep one run of each, at the learning rate of its width")


def _usable(runs: pd.DataFrame, y: str) -> pd.Series:
    return runs["admitted"].astype(bool) & np.isfinite(runs[y])


def _draw_runs(axes: Axes, runs: pd.DataFrame, x: str, y: str, look: Mapping[str, Any]) -> pd.DataFrame:
    """Draw the runs of one series and the line of their means; return both as rows of kind run and mean."""
    columns = list(dict.fromkeys([*_CONFIGURATION, "seed", "lr", x, y, "admitted", "status"]))
    good, refused = runs[_usable(runs, y)], runs[~runs["admitted"].astype(bool)]
    means = good.groupby([*_CONFIGURATION, "lr"], as_index=False)[sorted({x, y} - {*_CONFIGURATION, "lr"})].mean()
    means = means.sort_values(x)
    axes.plot(refused[x], refused[y], marker=look["marker"], **_REFUSED)
    axes.plot(good[x], good[y], **look | {"linestyle": "none"}, markersize=4.5, markeredgewidth=0, alpha=0.75)
    axes.plot(means[x], means[y], **look | {"marker": ""})
    return pd.concat([runs[columns].assign(kind="run"), means.assign(kind="mean")])


def _titled(column: str) -> str:
    """Return what a column is called in a title: its label without the unit."""
    return LABELS.get(column, column).split(" (")[0].capitalize()


def _ladder(runs: pd.DataFrame, x: str, series: str, y: str) -> Drawing:
    _check(runs, x, y)
    mixers, looks, drawn = list(dict.fromkeys(runs["mixer"])), _styles(runs, series), []
    ticks = sorted(runs[x].unique()) if x in _CONFIGURATION else None
    fig, panels = _panels(len(mixers))
    for mixer, axes in zip(mixers, panels, strict=True):
        axes.set_title(mixer)
        for value, part in runs[runs["mixer"] == mixer].groupby(series):
            drawn.append(_draw_runs(axes, part, x, y, looks[str(value)]))
        _set_log(axes, x, y, ticks=ticks)
    handles = [Line2D([], [], label=f"{series} {name}", **look) for name, look in looks.items()]
    _finish(fig, handles, runs, y, f"{_titled(y)} against {_titled(x).lower()}")
    return fig, pd.concat(drawn, ignore_index=True)


def _curve(runs: pd.DataFrame, x: str, y: str, fit: Curve | None) -> tuple[pd.DataFrame, str]:
    """Return a mixer's curve between its smallest and largest admitted size, and its legend text."""
    good = runs[_usable(runs, y)]
    if good[x].nunique() < 3:
        return pd.DataFrame({x: [], y: []}), " (no fit: fewer than 3 admitted sizes)"
    sizes = np.geomspace(good[x].min(), good[x].max(), 50)
    if fit is not None:
        return pd.DataFrame({x: sizes, y: fit(sizes)}), ""
    power = fit_perplexity_power(good[x], good[y])
    low, high = power.b_ci
    return pd.DataFrame({x: sizes, y: power.predict(sizes)}), f" ($N^b$, b = {power.b:.2f} [{low:.2f}, {high:.2f}])"


def _draw_floors(axes: Axes, floors: Mapping[str, float], y: str) -> pd.DataFrame:
    for value in floors.values():
        axes.axhline(value, color=_GREY, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    return pd.DataFrame({"kind": "floor", "mixer": list(floors), y: list(floors.values())})


def _name_floors(axes: Axes, floors: Mapping[str, float]) -> None:
    """Write each floor's name right of its line, moved up where the one below is too close."""
    low, high = np.log(axes.get_ylim())
    label_at = -np.inf
    for name, value in sorted(floors.items(), key=lambda item: item[1]):
        label_at = max(np.log(value), label_at + 0.05 * (high - low))
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axes.annotate(f"{name} {_short(value)}", (1.01, np.exp(label_at)), fontsize=9, **where)


def _ring_best(axes: Axes, runs: pd.DataFrame, means: pd.DataFrame, y: str) -> pd.DataFrame:
    """Ring the chosen rate of one width and return it as a row of kind chosen."""
    if "lr_is_best" in runs.columns:
        at = runs[runs["lr_is_best"].astype(bool)].groupby([*_CONFIGURATION, "lr"], as_index=False)[y].mean()
    else:
        at = means.loc[means[y] == means[y].min()]
    axes.plot(at["lr"], at[y], **_RING)
    for lr, value in zip(at["lr"], at[y], strict=True):
        side = {runs["lr"].min(): "left", runs["lr"].max(): "right"}.get(lr)
        if side is not None:
            axes.annotate("end of sweep", (lr, value), (0, 9), textcoords="offset points", ha=side, fontsize=8)
    return at.assign(kind="chosen")


def _exponent_limits(multiverse: pd.DataFrame, of: str) -> tuple[float, float]:
    """Choose an axis that resolves the exponents: a single wide interval would squeeze all others."""
    shown = [*multiverse["exponent"].dropna(), 0.0, *(REPORTED_EXPONENT if of == "perplexity" else ())]
    pad = max(0.35 * (max(shown) - min(shown)), 0.05)
    return min(shown) - pad, max(shown) + pad


def _draw_forest(axes: Axes, rows: pd.DataFrame, look: Mapping[str, Any], limits: tuple[float, float]) -> None:
    for at, row in enumerate(rows.itertuples()):
        if not np.isfinite(row.exponent):
            text = {"va": "center", "fontsize": 8, "style": "italic", "color": _GREY}
            axes.annotate(_shorten(row.reason), (0.01, at), xycoords=("axes fraction", "data"), **text)
            continue
        axes.plot([row.low, row.high], [at, at], color=look["color"], linewidth=1.4)
        fill = "white" if row.reason else look["color"]
        axes.plot(row.exponent, at, color=look["color"], marker=look["marker"], markerfacecolor=fill)
        for end, edge, arrow in ((row.low, limits[0], "<"), (row.high, limits[1], ">")):
            if (end < edge) if arrow == "<" else (end > edge):
                axes.plot(edge, at, color=look["color"], marker=arrow, clip_on=False)
    axes.axvline(0.0, color=_GREY, linewidth=1.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_name_choice(row) for row in rows.itertuples()], fontsize=8)


def _name_choice(row: Any) -> str:
    floor = "floor" if row.floor else "no floor"
    seeds = "all seeds" if row.seeds == "all" else f"seed {row.seeds}"
    rate = "best rates" if row.rate == "best per width" else f"rate {row.rate}"
    return f"{_CONVENTIONS.get(row.convention, row.convention)}, {floor}, {rate}, {seeds}"


def _shorten(reason: str, n_chars: int = 62) -> str:
    return reason if len(reason) <= n_chars else f"{reason[: n_chars - 1]}…"


def _set_change_scale(axes: Axes, change: pd.Series) -> None:
    positive = change[change > 0]
    smallest, largest = (positive.min(), positive.max()) if len(positive) else (1e-6, 1.0)
    low, high = int(np.floor(np.log10(smallest))), int(np.ceil(np.log10(largest)))
    axes.set_yscale("symlog", linthresh=10.0**low)
    decades = range(low, high + 1, max(1, (high - low) // 6))
    axes.set_yticks([0.0, *(10.0**power for power in decades)], ["0", *(f"$10^{{{power}}}$" for power in decades)])
    axes.set_ylim(-0.25 * 10.0**low, 10.0 ** (high + 0.5))
    axes.yaxis.set_minor_locator(NullLocator())


def _set_log(axes: Axes, x: str, y: str, *, ticks: list[float] | None = None) -> None:
    """Make both axes logarithmic, name them, and put few, plainly written ticks on them."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(LABELS.get(x, x))
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel(LABELS.get(y, y))
    _set_ticks(axes.yaxis, axes.get_ylim())
    _set_ticks(axes.xaxis, axes.get_xlim())
    if ticks is not None:
        axes.xaxis.set_major_locator(FixedLocator(ticks))


def _set_ticks(axis: Axis, limits: tuple[float, float]) -> None:
    """Put at least three ticks on an axis: powers of ten, or 1-2-5 steps, or even steps where the range is short."""
    axis.set_major_locator(MaxNLocator(5))
    for subs in ([1.0, 2.0, 5.0], [1.0]):
        locator = LogLocator(subs=subs)
        if sum(limits[0] <= tick <= limits[1] for tick in locator.tick_values(*limits)) >= 3:
            axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.set_minor_locator(NullLocator())


def _finish(fig: Figure, handles: list[Line2D], runs: pd.DataFrame, y: str, title: str) -> None:
    """Print title and legend, with what hollow points are, and a note on means and on runs that have no point."""
    drawn = np.isfinite(runs[y])
    if (drawn & ~runs["admitted"].astype(bool)).any():
        handles = [*handles, Line2D([], [], marker="o", **_REFUSED, label="not admitted")]
    _legend(fig, handles, title)
    notes = ["points: single seeds, lines: their means"] if runs["seed"].nunique() > 1 else []
    notes += [] if drawn.all() else [f"{(~drawn).sum()} of {len(runs)} runs failed and have no point"]
    if notes:
        fig.supxlabel("; ".join(notes), fontsize=8, color=_GREY, x=0.99, ha="right")


def _legend(fig: Figure, handles: list[Line2D], title: str) -> None:
    """Put the title above the legend, as one block: the layout keeps no room between the two of its own."""
    wide = sum(len(handle.get_label()) for handle in handles[:3]) > _LEGEND_CHARS
    look = {"loc": "outside upper center", "title": title, "title_fontproperties": {"size": 11}}
    fig.legend(handles=handles, ncols=min(len(handles), 2 if wide else 3), **look)


def _short(value: float) -> str:
    """Write a number in at most four digits, with a prefix where it is large: 8.226, 245.1, 10.4k, 2.5M."""
    return f"{value:.4g}" if value < 1e4 else EngFormatter(sep="", places=None)(float(f"{value:.3g}"))
