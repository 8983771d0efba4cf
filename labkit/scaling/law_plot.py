"""A fitted law as a curve over the sizes it was fitted on, with the interval of the law itself."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from labkit.scaling.law import Law

_POINTS = 100


def draw(law: Law, tokens: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw a law on logarithmic sizes; see `Law.plot`."""
    axes = ax or plt.subplots(figsize=(6, 4), layout="constrained")[1]
    sizes = np.geomspace(*law.n_range, _POINTS)
    amount = law.token_range[1] if law.token_range and tokens is None else tokens
    at = () if amount is None else (np.full(_POINTS, float(amount)),)
    (line,) = axes.plot(sizes, law.predict(sizes, *at), label=_label(law, amount))
    if law.draws:
        low, high = law.interval(sizes, *at)
        axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0, label="95 % interval")
    axes.set(xscale="log", xlabel="parameters N", ylabel="loss (nats per token)")
    axes.legend()
    return axes


def _label(law: Law, tokens: float | None) -> str:
    return str(law) if tokens is None else f"{law}, at D = {tokens:.3g}"
