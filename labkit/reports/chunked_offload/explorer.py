"""Report 001: what a streamed step takes within a budget, and from which batch on computing is what counts."""

from __future__ import annotations

import ipywidgets as widgets

from labkit.base.units import GIB, MIB
from labkit.offload.planner import Plan, Rates, Request, TooSmall, choose
from labkit.reports.chunked_offload.shape_counts import MODELS, SEQ_LENS, recorded
from labkit.workflow.panel import Answer, Explorer, axes

BASE_BYTES = 350 * MIB
"""What a process holds that has imported torch and transformers."""
_LOOKS = {
    "seconds": {"label": "the step", "color": "#0173b2", "linewidth": 5, "alpha": 0.4},
    "io_seconds": {"label": "reading alone", "color": "black", "linestyle": "--"},
    "compute_seconds": {"label": "computing alone", "color": "black", "linestyle": ":"},
}
"""How each part of a plan is drawn; the step lies on the slower of the other two."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Samples of the steps that are drawn."""


def offload() -> Explorer:
    """Explore the plan of a streamed LoRA step: rank 8 on all linear maps, weights in bfloat16 on the disk."""
    log = {"base": 10, "continuous_update": False, "readout_format": ".3g"}
    controls = {
        "model": widgets.Dropdown(options=MODELS, description="model"),
        "memory_gib": widgets.FloatLogSlider(value=4, min=-0.3, max=1.6, description="memory, GiB", **log),
        "batch": widgets.SelectionSlider(
            options=BATCHES, value=32, description="samples a step", continuous_update=False
        ),
        "seq_len": widgets.SelectionSlider(
            options=SEQ_LENS, value=64, description="tokens a sample", continuous_update=False
        ),
        "disk": widgets.FloatLogSlider(value=2, min=-1, max=1.3, description="disk, GB/s", **log),
        "tflops": widgets.FloatLogSlider(value=4, min=-1.3, max=3, description="computing, TFLOP/s", **log),
    }

    def answer(model: str, memory_gib: float, batch: int, seq_len: int, disk: float, tflops: float) -> Answer:
        rates = Rates(bytes_per_second=1e9 * disk, flops_per_second=1e12 * tflops)
        plans = {n: found for n in BATCHES if (found := _plan(model, memory_gib, n, seq_len, rates))}
        words = _words(plans, model, memory_gib, batch, seq_len, rates)
        if not plans:
            return Answer(text=words)
        figure, panel = axes()
        for name, looks in _LOOKS.items():
            panel.plot(list(plans), [getattr(plan, name) / n for n, plan in plans.items()], **looks)
        panel.axvline(batch, color="#777777", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel="samples a step", ylabel="seconds a sample")
        panel.set_xticks(BATCHES, [str(n) for n in BATCHES])
        panel.legend(loc="upper right")
        return Answer(text=words, figure=figure)

    return Explorer("What does a streamed step take?", controls, answer)


def _plan(model: str, memory_gib: float, batch: int, seq_len: int, rates: Rates) -> Plan | None:
    """Return the plan of a step; None where the budget is too small for it."""
    try:
        return _chosen(model, memory_gib, batch, seq_len, rates)
    except TooSmall:
        return None


def _chosen(model: str, memory_gib: float, batch: int, seq_len: int, rates: Rates) -> Plan:
    shape, footprint = recorded(model, seq_len)
    request = Request(
        shape=shape, footprint=footprint, batch_size=batch, seq_len=seq_len, base_bytes=BASE_BYTES, rates=rates
    )
    return choose(request, int(memory_gib * GIB))


def _words(plans: dict[int, Plan], model: str, memory_gib: float, batch: int, seq_len: int, rates: Rates) -> str:
    """Describe the chosen step, and say why there is none; compare it with a step of one sample."""
    if batch not in plans:
        try:
            _chosen(model, memory_gib, batch, seq_len, rates)
        except TooSmall as error:
            return f"{model}: {error}"
    text = f"{model}, {plans[batch].describe()}"
    if 1 not in plans:
        return text
    gain = plans[1].seconds / (plans[batch].seconds / batch)
    return f"{text}\nA sample takes {gain:.3g} times less than in a step of one."
