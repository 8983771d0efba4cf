"""Checks the figures of report 004 by reading the drawn artists back and comparing them with their rows.

Fits are checked against exact power laws, means against a plain loop, and every figure is measured after layout:
nothing may stick out of the page.

Run: pytest tests/scaling/test_plots.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from labkit.reports.scaling_grid import plots
from labkit.reports.scaling_grid.plots import Drawing
from labkit.workflow import figures

MIXERS = ("resnet-bk", "transformer")
EXPONENTS = {"resnet-bk": -0.15, "transformer": -0.25}
FLOORS = {"unigram": 950.0, "bigram": 330.0, "Kneser-Ney": 320.0}


@pytest.fixture
def runs() -> pd.DataFrame:
    """An exact power law per mixer with two seeds 4 % apart, one cell refused far off the law and one failed."""
    rows = []
    for mixer, width, depth, seed in itertools.product(MIXERS, (64, 128, 256), (4, 8), (0, 1)):
        n_total = 60_000 * width + 16 * width**2 * depth
        perplexity = 4000.0 * n_total ** EXPONENTS[mixer] * (1.02 if seed else 1 / 1.02)
        admitted = (mixer, width, depth) != ("resnet-bk", 256, 8)
        rows.append(
            {"mixer": mixer, "d_model": width, "n_layers": depth, "seed": seed, "lr": 1e-3, "n_total": n_total}
            | {"word_perplexity": perplexity if admitted else 3.0, "seconds": n_total * 1e-5 * depth}
            | {"loss_nats": np.log(perplexity), "admitted": admitted, "status": "ok" if admitted else "causality"}
        )
    rows[-1] |= {"word_perplexity": np.nan, "seconds": np.nan, "admitted": False, "status": "failed: OutOfMemory"}
    return pd.DataFrame(rows)


@pytest.fixture
def sweep() -> pd.DataFrame:
    """A parabola in log learning rate whose minimum is 2e-3 at width 64 and at the end of the sweep at width 128."""
    rows = []
    for mixer, (width, best), lr in itertools.product(MIXERS, ((64, 2e-3), (128, 8e-3)), (1e-3, 2e-3, 4e-3, 8e-3)):
        loss = 5.0 + width / 1000 + 0.05 * np.log2(lr / best) ** 2
        rows.append(
            {"mixer": mixer, "d_model": width, "n_layers": 4, "seed": 0, "lr": lr, "loss_nats": loss}
            | {"lr_is_best": lr == best, "admitted": True, "status": "ok"}
        )
    return pd.DataFrame(rows)


@pytest.fixture
def multiverse() -> pd.DataFrame:
    rows = []
    for i, (mixer, convention, floor) in enumerate(itertools.product(MIXERS, ("n_total", "n_active"), (True, False))):
        row = {"mixer": mixer, "convention": convention, "floor": floor, "rate": "best per width", "seeds": "all"}
        rows.append(row | {"exponent": 0.1 + i / 50, "low": 0.08 + i / 50, "high": 0.12 + i / 50, "reason": ""})
    rows[1] |= {"high": 9.0, "reason": "covers 5 of 6 configurations"}
    rows[2] |= {"exponent": np.nan, "low": np.nan, "high": np.nan, "reason": "3 distinct N; a law needs 4" + "!" * 99}
    return pd.DataFrame(rows)


@pytest.fixture
def leak() -> pd.DataFrame:
    rows = [
        {
            "mixer": mixer,
            "offset": offset,
            "change": 0.0 if mixer == "causal" and offset < 0 else 0.9 * 0.3 ** abs(offset),
        }
        for mixer, offset in itertools.product(("published", "causal"), range(-6, 5))
    ]
    return pd.DataFrame(rows)


def lines(axes: Axes, **look: object) -> list[Line2D]:
    return [line for line in axes.lines if all(getattr(line, f"get_{key}")() == value for key, value in look.items())]


def points(drawn: list[Line2D]) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for line in drawn for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}


def texts(fig: Figure) -> list[str]:
    legend = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    ticks = [tick.get_text() for axes in fig.axes for tick in axes.get_yticklabels()]
    return legend + ticks + [text.get_text() for axes in fig.axes for text in axes.texts]


def every_figure(
    runs: pd.DataFrame, sweep: pd.DataFrame, multiverse: pd.DataFrame, leak: pd.DataFrame
) -> Iterator[tuple[str, Drawing]]:
    yield "perplexity_vs_size", plots.perplexity_vs_size(runs, floors=FLOORS)
    yield "perplexity_vs_width", plots.perplexity_vs_width(runs)
    yield "perplexity_vs_depth", plots.perplexity_vs_depth(runs, y="loss_nats")
    yield "time_vs_size", plots.time_vs_size(runs)
    yield "learning_rate", plots.learning_rate_panel(sweep)
    yield "exponents", plots.exponent_panel(multiverse)
    yield "exponents_of_perplexity", plots.exponent_panel(multiverse, of="perplexity")
    yield "causality", plots.causality_panel(leak)


def test_every_figure_can_be_published_and_nothing_sticks_out_of_it(
    runs: pd.DataFrame, sweep: pd.DataFrame, multiverse: pd.DataFrame, leak: pd.DataFrame, tmp_path: Path
) -> None:
    figures.use_theme()
    for name, (fig, data) in every_figure(runs, sweep, multiverse, leak):
        alt = f"{name} of a made-up grid of runs"
        figures.save(fig, name, data=data, alt=alt, caption=name, out_dir=tmp_path, provenance={})
        page, ink = fig.bbox_inches, fig.get_tightbbox()
        assert page.x0 <= ink.x0 + 0.02, name
        assert page.y0 <= ink.y0 + 0.02, name
        assert ink.x1 <= page.x1 + 0.02, name
        assert ink.y1 <= page.y1 + 0.02, name


def test_inputs_are_left_as_they_were(
    runs: pd.DataFrame, sweep: pd.DataFrame, multiverse: pd.DataFrame, leak: pd.DataFrame
) -> None:
    given = (runs, sweep, multiverse, leak)
    before = [rows.copy(deep=True) for rows in given]
    list(every_figure(*given))
    for rows, copy in zip(given, before, strict=True):
        pd.testing.assert_frame_equal(rows, copy)


def test_size_figure_fits_the_exponent_of_the_admitted_runs_only(runs: pd.DataFrame) -> None:
    fig, data = plots.perplexity_vs_size(runs)
    for mixer, exponent in EXPONENTS.items():
        fit = data[(data["kind"] == "fit") & (data["mixer"] == mixer)]
        slopes = np.diff(np.log(fit["word_perplexity"])) / np.diff(np.log(fit["n_total"]))
        assert slopes == pytest.approx(exponent, abs=0.005)
        assert any(text.startswith(f"{mixer} ($N^b$, b = {exponent:.2f} [") for text in texts(fig))


def test_curve_stays_between_the_admitted_sizes(runs: pd.DataFrame) -> None:
    _, data = plots.perplexity_vs_size(runs)
    admitted = runs[runs["admitted"] & (runs["mixer"] == "resnet-bk")]
    fit = data[(data["kind"] == "fit") & (data["mixer"] == "resnet-bk")]
    assert (fit["n_total"].min(), fit["n_total"].max()) == pytest.approx(
        (admitted["n_total"].min(), admitted["n_total"].max())
    )


def test_a_given_fit_replaces_the_straight_line(runs: pd.DataFrame) -> None:
    _, data = plots.perplexity_vs_size(runs, {"transformer": lambda n: 100 + n / 1e6})
    fit = data[(data["kind"] == "fit") & (data["mixer"] == "transformer")]
    assert fit["word_perplexity"].to_numpy() == pytest.approx(100 + fit["n_total"].to_numpy() / 1e6)


def test_a_mixer_with_one_admitted_size_has_no_fit_and_says_so(runs: pd.DataFrame) -> None:
    fig, data = plots.perplexity_vs_size(runs.assign(admitted=runs["n_total"] == runs["n_total"].min()))
    assert not (data["kind"] == "fit").any()
    assert sum("no fit" in text for text in texts(fig)) == len(MIXERS)


def test_floors_are_drawn_at_their_values_and_named(runs: pd.DataFrame) -> None:
    fig, data = plots.perplexity_vs_size(runs, floors=FLOORS)
    heights = [line.get_ydata()[0] for line in fig.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert set(FLOORS.values()) <= set(heights)
    for name, value in FLOORS.items():
        assert any(name in text and f"{value:g}" in text for text in texts(fig))
    assert dict(data.loc[data["kind"] == "floor", ["mixer", "word_perplexity"]].to_numpy()) == FLOORS


def test_names_of_floors_do_not_overlap(runs: pd.DataFrame) -> None:
    fig, _ = plots.perplexity_vs_size(runs, floors=FLOORS)
    fig.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in fig.axes[0].texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))


def test_every_run_is_a_point_and_refused_ones_are_hollow_and_grey(runs: pd.DataFrame) -> None:
    fig, data = plots.perplexity_vs_size(runs)
    has_value = runs[runs["word_perplexity"].notna()]
    hollow = points(lines(fig.axes[0], markerfacecolor="none", color="#808080"))
    refused = has_value[~has_value["admitted"]]
    admitted = has_value[has_value["admitted"]]
    drawn = points(lines(fig.axes[0], markersize=4.5))
    xy = ["n_total", "word_perplexity"]
    assert {point for point in hollow if np.isfinite(point[1])} == set(refused[xy].itertuples(index=False, name=None))
    assert drawn == set(admitted[xy].itertuples(index=False, name=None))
    assert "not admitted" in texts(fig)
    assert len(data[data["kind"] == "run"]) == len(runs)


def test_failed_runs_are_counted_on_the_figure_and_kept_in_the_table(runs: pd.DataFrame) -> None:
    fig, data = plots.perplexity_vs_width(runs)
    assert f"1 of {len(runs)} runs failed" in fig.get_supxlabel()
    assert data.loc[data["status"] == "failed: OutOfMemory", "word_perplexity"].isna().all()
    complete, _ = plots.perplexity_vs_width(runs[runs["word_perplexity"].notna()])
    assert "failed" not in complete.get_supxlabel()


@pytest.mark.parametrize(("x", "series"), [("d_model", "n_layers"), ("n_layers", "d_model")])
def test_ladders_draw_the_mean_over_seeds_for_every_series(runs: pd.DataFrame, x: str, series: str) -> None:
    draw = {"d_model": plots.perplexity_vs_width, "n_layers": plots.perplexity_vs_depth}[x]
    fig, data = draw(runs)
    assert [axes.get_title() for axes in fig.axes] == list(MIXERS)
    for mixer, axes in zip(MIXERS, fig.axes, strict=True):
        means = set()
        for width, depth in itertools.product((64, 128, 256), (4, 8)):
            cell = runs[(runs["mixer"] == mixer) & (runs["d_model"] == width) & (runs["n_layers"] == depth)]
            values = [row.word_perplexity for row in cell.itertuples() if row.admitted]
            if values:
                means.add(({"d_model": width, "n_layers": depth}[x], round(sum(values) / len(values), 9)))
        joined = [line for line in axes.lines if line.get_marker() == "" and line.get_linestyle() != "None"]
        assert {(at, round(value, 9)) for at, value in points(joined)} == means
        assert len(joined) == runs[series].nunique()
        assert all((np.diff(line.get_xdata()) > 0).all() for line in joined)
    assert set(data["kind"]) == {"run", "mean"}


def test_time_is_in_seconds_against_size_with_a_panel_per_mixer(runs: pd.DataFrame) -> None:
    fig, _ = plots.time_vs_size(runs)
    assert [axes.get_title() for axes in fig.axes] == list(MIXERS)
    assert (fig.axes[0].get_ylabel(), fig.axes[0].get_xscale(), fig.axes[0].get_yscale()) == (
        "training time (s)",
        "log",
        "log",
    )


def test_series_keep_their_look_from_panel_to_panel(runs: pd.DataFrame) -> None:
    fig, _ = plots.perplexity_vs_width(runs)
    looks = [{(line.get_color(), line.get_marker()) for line in lines(axes, markersize=4.5)} for axes in fig.axes]
    assert looks[0] == looks[1]
    assert len({color for color, _ in looks[0]}) == len({marker for _, marker in looks[0]}) == 2


def test_several_learning_rates_of_one_cell_are_not_averaged(runs: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="mixer resnet-bk, d_model 64, n_layers 4, seed 0 is there more than once"):
        plots.perplexity_vs_width(pd.concat([runs, runs.assign(lr=2e-3)]))


def test_missing_columns_are_named(
    runs: pd.DataFrame, sweep: pd.DataFrame, multiverse: pd.DataFrame, leak: pd.DataFrame
) -> None:
    with pytest.raises(ValueError, match="columns are missing: n_active"):
        plots.perplexity_vs_size(runs, x="n_active")
    with pytest.raises(ValueError, match="columns are missing: admitted"):
        plots.learning_rate_panel(sweep.drop(columns="admitted"))
    with pytest.raises(ValueError, match="columns are missing: reason"):
        plots.exponent_panel(multiverse.drop(columns="reason"))
    with pytest.raises(ValueError, match="columns are missing: offset"):
        plots.causality_panel(leak.drop(columns="offset"))


@pytest.mark.parametrize("marked", [True, False])
def test_chosen_rate_is_ringed_and_an_optimum_at_the_end_is_named(sweep: pd.DataFrame, marked: bool) -> None:
    fig, data = plots.learning_rate_panel(sweep if marked else sweep.drop(columns="lr_is_best"))
    for axes in fig.axes:
        assert sorted(points(lines(axes, markersize=12))) == pytest.approx(np.array([(2e-3, 5.064), (8e-3, 5.128)]))
        assert [text.get_text() for text in axes.texts] == ["end of sweep"]
    assert sorted(data.loc[data["kind"] == "chosen", "lr"]) == [2e-3, 2e-3, 8e-3, 8e-3]


def test_mark_decides_which_rate_is_ringed_not_the_lowest_loss(sweep: pd.DataFrame) -> None:
    fig, _ = plots.learning_rate_panel(sweep.assign(lr_is_best=sweep["lr"] == 4e-3))
    assert {x for axes in fig.axes for x, _ in points(lines(axes, markersize=12))} == {4e-3}


def test_depths_that_ran_at_one_rate_only_stay_out_of_the_sweep(sweep: pd.DataFrame) -> None:
    deeper = sweep[sweep["lr_is_best"]].assign(n_layers=8, loss_nats=1.0)
    _, data = plots.learning_rate_panel(pd.concat([sweep, deeper]))
    assert set(data["n_layers"]) == {4}
    with pytest.raises(ValueError, match="no sweep"):
        plots.learning_rate_panel(deeper)


def test_every_choice_has_a_row_with_its_interval_or_its_reason(multiverse: pd.DataFrame) -> None:
    fig, data = plots.exponent_panel(multiverse)
    pd.testing.assert_frame_equal(data, multiverse)
    intervals = {
        (float(line.get_xdata()[0]), float(line.get_xdata()[1]))
        for axes in fig.axes
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    }
    fitted = multiverse[multiverse["exponent"].notna()]
    assert intervals == set(fitted[["low", "high"]].itertuples(index=False, name=None))
    assert [len(axes.get_yticks()) for axes in fig.axes] == [4, 4]
    assert any(text.startswith("3 distinct N; a law needs 4!") and text.endswith("…") for text in texts(fig))
    assert "all parameters, no floor, best rates, all seeds" in texts(fig)


def test_a_row_with_a_remark_is_hollow_and_a_cut_interval_ends_in_an_arrow(multiverse: pd.DataFrame) -> None:
    fig, _ = plots.exponent_panel(multiverse)
    remarked = multiverse.loc[1, "exponent"]
    assert points(lines(fig.axes[0], markerfacecolor="white")) == {(remarked, 1.0)}
    arrows = lines(fig.axes[0], marker=">")
    assert points(arrows) == {(fig.axes[0].get_xlim()[1], 1.0)}
    assert fig.axes[0].get_xlim()[1] < 1


def test_the_reports_range_is_drawn_only_for_the_exponent_it_speaks_of(multiverse: pd.DataFrame) -> None:
    of_loss, _ = plots.exponent_panel(multiverse)
    of_perplexity, _ = plots.exponent_panel(multiverse, of="perplexity")
    bands = [(band.get_x(), band.get_x() + band.get_width()) for axes in of_perplexity.axes for band in axes.patches]
    assert [len(axes.patches) for axes in of_loss.axes] == [0, 0]
    assert bands == [pytest.approx((-0.2, -0.1))] * 2
    assert "expected by the report" in texts(of_perplexity)
    assert "expected by the report" not in texts(of_loss)


def test_no_change_is_a_place_on_the_axis_below_every_change(leak: pd.DataFrame) -> None:
    fig, data = plots.causality_panel(leak)
    axes = fig.axes[0]
    heights = axes.transData.transform([(0, value) for value in sorted(leak["change"].unique())])[:, 1]
    bottom = axes.transAxes.transform((0, 0))[1]
    assert np.isfinite(heights).all()
    assert (np.diff(heights) > 3).all()
    assert heights[0] > bottom
    assert axes.get_yticklabels()[0].get_text() == "0"
    assert points(axes.lines) == set(leak[["offset", "change"]].itertuples(index=False, name=None))
    pd.testing.assert_frame_equal(data, leak)


def test_a_model_that_never_leaks_can_be_drawn(leak: pd.DataFrame) -> None:
    fig, _ = plots.causality_panel(leak[(leak["mixer"] == "causal") & (leak["offset"] < 0)])
    fig.draw_without_rendering()
    assert fig.axes[0].get_yticklabels()[0].get_text() == "0"


@pytest.mark.parametrize("change", [-0.1, float("nan"), float("inf")])
def test_a_change_that_is_no_distance_is_refused(leak: pd.DataFrame, change: float) -> None:
    with pytest.raises(ValueError, match="negative or not finite"):
        plots.causality_panel(leak.assign(change=change))


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e9])
@pytest.mark.parametrize("draw", [plots.perplexity_vs_size, plots.perplexity_vs_width])
def test_axes_have_few_plain_ticks_in_any_range(
    runs: pd.DataFrame, factor: float, draw: Callable[..., Drawing]
) -> None:
    fig, _ = draw(runs.assign(word_perplexity=runs["word_perplexity"] * factor))
    for axis in (fig.axes[0].xaxis, fig.axes[0].yaxis):
        shown = shown_ticks(axis)
        assert 3 <= len(set(shown.values())) < 12
        assert all(len(text) <= 6 and "e" not in text for text in shown.values())
        assert len(axis.get_minorticklocs()) == 0


def test_a_wide_range_is_divided_in_steps_of_1_2_5(runs: pd.DataFrame) -> None:
    fig, _ = plots.perplexity_vs_size(runs.assign(n_total=runs["n_total"] * runs["d_model"] ** 2 / 64**2))
    assert list(shown_ticks(fig.axes[0].xaxis).values()) == ["5M", "10M", "20M", "50M", "100M", "200M"]


def shown_ticks(axis: Axis) -> dict[float, str]:
    axis.figure.draw_without_rendering()
    low, high = axis.get_view_interval()
    labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return {at: label.get_text() for at, label in labels if low <= at <= high}
