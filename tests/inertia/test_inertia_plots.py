"""Checks the figures of report 000 by reading the drawn artists back and comparing them with the rows they came from.

The saturation line is checked against -log sigmoid computed here, the affine law against its two asymptotes, and every
figure is measured after layout: nothing may stick out of the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from labkit.reports.size_inertia import plots, training_plots
from labkit.workflow import figures


@dataclass(frozen=True)
class Line:
    intercept: float
    slope: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.intercept + self.slope * np.asarray(x)


@pytest.fixture
def steps() -> pd.DataFrame:
    margins = np.linspace(0, 9, 10)
    loss = np.logaddexp(0, -margins)
    return pd.DataFrame({"series": "small, here", "step": range(1, 11), "loss": loss, "margin": margins})


@pytest.fixture
def published() -> pd.DataFrame:
    rows = [("Qwen, report", 5, 0.6918, np.nan), ("Qwen, report", 75, 0.0, 10.82)]
    return pd.DataFrame(rows, columns=["series", "step", "loss", "margin"])


@pytest.fixture
def coverage() -> pd.DataFrame:
    rows = [("qwen", "q,k,v,o", 2_162_688, 0.44, ""), ("phi-2", "q,k,v,o", 7_864_320, 0.28, "o_proj")]
    return pd.DataFrame(rows, columns=["model", "targets", "trainable", "percent", "unmatched"])


@pytest.fixture
def held_out() -> pd.DataFrame:
    held, balanced = "held-out pairs", "word-balanced pairs"
    rows = [("small", "tuned", held, "margin", 0.7, 0.55, 0.82), ("large", "tuned", held, "margin", 0.8, 0.65, 0.9)]
    rows += [("small", "tuned", held, way, share, 0.1, 0.5) for way, share in (("sum", 0.3), ("per token", 0.25))]
    rows += [("small", "untrained", balanced, "sum", 0.45, 0.35, 0.65)]
    columns = ["model", "arm", "pairs_of", "way", "accuracy", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(pairs=40)


@pytest.fixture
def sizes() -> pd.DataFrame:
    rows = [("small", n, 0.6 - n / 1000, 0.5 + n / 1000, 0.4, 0.9) for n in (29, 57, 115)]
    return pd.DataFrame(rows, columns=["model", "n_pairs", "final_loss", "accuracy", "low", "high"])


@pytest.fixture
def points() -> pd.DataFrame:
    size = np.array([1e7, 1e8, 1e9])
    return pd.DataFrame({"series": "here", "bytes": size, "seconds": 1e-3 + size / 2e10, "name": ["a", "b", "c"]})


@pytest.fixture
def rungs() -> pd.DataFrame:
    rows = [("a", 1.5, 0.5, 3.0, 20.0), ("b", 10.0, 8.0, 30.0, np.nan)]
    return pd.DataFrame(rows, columns=["name", "ms_per_token", "roofline_ms", "prefill_ms", "train_ms"])


@pytest.fixture
def quantized() -> pd.DataFrame:
    rows = [("bfloat16", "a", 2.0, 0.1, 4.0), ("bfloat16", "b", 8.0, 0.9, 4.0), ("int8", "a", 3.0, 0.05, 3.0)]
    rows += [("int8", "b", 9.0, 0.5, 3.0)]
    return pd.DataFrame(rows, columns=["weights", "name", "ms_per_token", "gib", "ratio"])


@pytest.fixture
def policies() -> pd.DataFrame:
    rows = [("small", 0.3, 0.25, 0.35, 0.2, 0.18, 0.22), ("large", 0.5, 0.4, 0.6, 0.5, 0.45, 0.55)]
    names = ["policy", "quality", "quality_low", "quality_high", "cost", "cost_low", "cost_high"]
    return pd.DataFrame(rows, columns=names)


CURVE = pd.DataFrame({"cost": [0.2, 0.5], "quality": [0.3, 0.5]})


def test_every_figure_can_be_published_and_nothing_sticks_out_of_it(
    steps: pd.DataFrame,
    published: pd.DataFrame,
    coverage: pd.DataFrame,
    held_out: pd.DataFrame,
    sizes: pd.DataFrame,
    points: pd.DataFrame,
    rungs: pd.DataFrame,
    quantized: pd.DataFrame,
    policies: pd.DataFrame,
    tmp_path: Path,
) -> None:
    figures.use_theme()
    drawn = {
        "loss_curves": training_plots.loss_curves(steps, published),
        "coverage": training_plots.coverage_panel(coverage),
        "held_out": training_plots.held_out_panel(held_out),
        "dataset_size": training_plots.dataset_size_panel(sizes),
        "affine_law": plots.affine_law(points, {"here": Line(1e-3, 5e-11)}),
        "ladder": plots.ladder_panel(rungs),
        "quantization": plots.quantization_panel(quantized),
        "frontier": plots.frontier_panel(policies, CURVE),
    }
    for name, (fig, data) in drawn.items():
        figures.save(fig, name, data=data, alt=f"{name} of made-up rows", caption=name, out_dir=tmp_path, provenance={})
        page, ink = fig.bbox_inches, fig.get_tightbbox()
        assert page.x0 <= ink.x0 + 0.02, name
        assert page.y0 <= ink.y0 + 0.02, name
        assert ink.x1 <= page.x1 + 0.02, name
        assert ink.y1 <= page.y1 + 0.02, name


def test_the_saturation_line_is_minus_log_sigmoid_of_the_margin(steps: pd.DataFrame, published: pd.DataFrame) -> None:
    fig, data = training_plots.loss_curves(steps, published)
    line = next(line for line in fig.axes[1].lines if len(line.get_xdata()) == 200)
    for m, loss in zip(line.get_xdata()[::40], line.get_ydata()[::40], strict=True):
        assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-m))))
    assert (data["loss"] > 0).all(), "a loss printed as 0.0000 has a place on a logarithmic axis"
    assert set(data["source"]) == {"measured here", "report"}


def test_a_model_without_one_of_the_targets_is_grey_and_says_which(coverage: pd.DataFrame) -> None:
    fig, _ = training_plots.coverage_panel(coverage)
    bars = fig.axes[0].patches
    assert bars[1].get_facecolor()[:3] == pytest.approx((0.6, 0.6, 0.6))
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert "7,864,320 (0.28 %), no o_proj" in [text.get_text() for text in fig.axes[0].texts]


def test_margins_stand_left_and_preferences_right_each_beside_chance(held_out: pd.DataFrame) -> None:
    fig, _ = training_plots.held_out_panel(held_out)
    drawn = [sorted(float(c.lines[0].get_xdata()[0]) for c in axes.containers) for axes in fig.axes]
    assert drawn == [[0.7, 0.8], [0.25, 0.3], [], [0.45]]
    by_sum = next(c for c in fig.axes[1].containers if c.lines[0].get_xdata()[0] == 0.3)
    assert by_sum.lines[0].get_markerfacecolor() == "white"
    for axes in fig.axes:
        assert 0.5 in [line.get_xdata()[0] for line in axes.lines if list(line.get_xdata()) == [0.5, 0.5]]


@dataclass(frozen=True)
class Layered:
    intercept: float
    per_layer: float
    slope: float

    def predict(self, x: np.ndarray, layers: np.ndarray) -> np.ndarray:
        return self.intercept + self.per_layer * layers + self.slope * np.asarray(x)


def test_a_law_with_a_term_per_layer_is_a_line_for_each_depth(points: pd.DataFrame) -> None:
    fig, data = plots.affine_law(points.assign(n_layers=[6, 6, 24]), {"here": Layered(1e-3, 2e-4, 5e-11)})
    fit = data[data["kind"] == "fit"]
    assert sorted(fit["n_layers"].unique()) == [6, 24]
    np.testing.assert_allclose(fit["seconds"], 1e-3 + 2e-4 * fit["n_layers"] + fit["bytes"] / 2e10, rtol=1e-5)
    assert "t0 = 1 ms, 0.2 ms per layer, 20 GB/s" in legend(fig)[0]
    assert [text.get_text() for text in fig.axes[0].texts] == ["6 layers", "24 layers"]


def test_the_law_is_drawn_with_its_two_regimes(points: pd.DataFrame) -> None:
    fig, data = plots.affine_law(points, {"here": Line(1e-3, 5e-11)})
    dotted = [line for line in fig.axes[0].lines if line.get_linestyle() == ":"]
    assert {float(np.ptp(line.get_ydata())) == 0.0 for line in dotted} == {True, False}
    fit = data[data["kind"] == "fit"]
    np.testing.assert_allclose(fit["seconds"], 1e-3 + fit["bytes"] / 2e10)
    assert "t0 = 1 ms, 20 GB/s" in legend(fig)[0]


def test_a_series_without_a_fit_keeps_its_points_and_has_no_line(points: pd.DataFrame) -> None:
    fig, data = plots.affine_law(points, {})
    assert set(data["kind"]) == {"point"}
    assert legend(fig) == ["here"]


def test_each_rung_shows_the_share_of_the_roofline(rungs: pd.DataFrame) -> None:
    fig, _ = plots.ladder_panel(rungs)
    assert [text.get_text().strip() for text in fig.axes[0].texts] == ["33%", "80%"]
    assert fig.axes[0].get_xscale() == "log"
    assert not any(axes.patches for axes in fig.axes), "dots: a bar on a logarithmic axis starts nowhere"


def test_each_weight_type_shows_its_ratio_between_the_sizes(quantized: pd.DataFrame) -> None:
    fig, _ = plots.quantization_panel(quantized)
    labels = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert labels == ["bfloat16\nlarger / smaller: 4.00", "int8\nlarger / smaller: 3.00"]


def test_each_policy_is_a_point_at_its_cost_and_quality(policies: pd.DataFrame) -> None:
    fig, data = plots.frontier_panel(policies, CURVE)
    drawn = {(float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0])) for c in fig.axes[0].containers}
    assert drawn == set(zip(policies["cost"], policies["quality"], strict=True))
    assert set(data["kind"]) == {"policy", "random line"}


def legend(fig: Figure) -> list[str]:
    return [text.get_text() for each in fig.legends for text in each.get_texts()]
