"""Report 000: how long a token takes, as an overhead and a bandwidth, and from which size on size is what counts."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd

from labkit.base.units import GIB
from labkit.stats.affine import AffineFit
from labkit.workflow.figures import style
from labkit.workflow.panel import Answer, Explorer, axes, published

_LIKE = {"ci": {}, "ci_repeats": {}, "level": 0.95, "exact": True, "note": "", "n_sizes": 0}
"""A law that was chosen has no intervals."""


def inertia(hardware: str | None = None, folder: Path | None = None) -> Explorer:
    """Explore the affine law of decoding, beside the report's points and those measured here.

    Args:
        hardware: profile whose published points are shown; the largest published one where not given.
        folder: a notebook's own outputs, to be explored instead of published ones.
    """
    hardware, file = published("size_inertia", "affine_law.csv", hardware, folder)
    points = pd.read_csv(file)
    points = points[points["kind"] == "point"]
    log = {"base": 10, "continuous_update": False, "readout_format": ".3g"}
    controls = {
        "overhead_ms": widgets.FloatLogSlider(value=2.0, min=-1, max=3, description="overhead, ms a token", **log),
        "gb_per_second": widgets.FloatLogSlider(value=30, min=0, max=3.7, description="bandwidth, GB/s", **log),
        "size_gb": widgets.FloatLogSlider(value=1.0, min=-2, max=2, description="model, GB of weights", **log),
    }

    def answer(overhead_ms: float, gb_per_second: float, size_gb: float) -> Answer:
        law = AffineFit(
            intercept=1e-3 * overhead_ms,
            slope=1e-9 / gb_per_second,
            per_layer=None,
            leave_one_size_out={},
            median_error=None,
            **_LIKE,
        )
        figure, panel = axes()
        sizes = np.geomspace(points["bytes"].min() / 3, points["bytes"].max() * 2, 60)
        looks = style([*dict.fromkeys(points["series"])])
        for name, part in points.groupby("series", sort=False):
            panel.plot(part["bytes"], part["seconds"], label=name, **looks[name] | {"linestyle": "none"})
        panel.plot(sizes, law.predict(sizes), color="black", label="the law chosen")
        panel.axvline(1e9 * size_gb, color="#777777", linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel="bytes of weights", ylabel="seconds a token")
        panel.legend(fontsize="small", loc="upper left")
        seconds, share = law.predict(1e9 * size_gb), law.elasticity(1e9 * size_gb)
        text = (
            f"{size_gb:.3g} GB ({1e9 * size_gb / GIB:.3g} GiB) take {1e3 * seconds:.3g} ms a token; {share:.0%} of it "
            f"grows with size. Overhead and reading weigh the same at {overhead_ms * gb_per_second / 1e3:.3g} GB."
        )
        return Answer(text=text, figure=figure)

    return Explorer("How long does a token take?", controls, answer)
