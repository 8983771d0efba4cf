"""What a run would take, said before anything heavy starts."""

from __future__ import annotations

import importlib

from labkit import params, units
from labkit.cost import Cost
from labkit.schema import Params

# By name, not by import: a wing takes seconds to import, and who plans one report needs none of the others.
_PLANS = {
    "scaling_grid": ("labkit.scaling.cost", "plan_grid"),
    "size_inertia": ("labkit.inertia.cost", "plan_study"),
    "chunked_offload": ("labkit.offload.cost", "plan_study"),
    "predict_phase": ("labkit.hybrid.cost", "plan_study"),
}


def plan(resolved: Params) -> Cost | None:
    """Estimate what a run takes; None for a report that computes nothing."""
    if resolved.report_id() not in _PLANS:
        return None
    module, function = _PLANS[resolved.report_id()]
    return getattr(importlib.import_module(module), function)(resolved)


def describe(resolved: Params, cost: Cost | None) -> str:
    """Say in a few lines what a run will do and take."""
    target = f"{resolved.report_id()} on {resolved.hardware}"
    if cost is None:
        return f"{target}: reads published results, trains nothing"
    head = f"{target}: {params.scale(resolved)} scale, {resolved.device}"
    rate = f"{cost.flops_per_second / 1e9:,.0f} GFLOP/s ({cost.basis})"
    streamed = f", {units.format_seconds(cost.other_seconds)} of it not bound by FLOPs" if cost.other_seconds else ""
    tokens = units.format_count(cost.tokens)
    return (
        f"{head}, {resolved.workers} workers x {resolved.threads} threads\n"
        f"  {cost.n_cells} cells ({cost.kinds}), {tokens} tokens, {cost.flops / 1e12:,.1f} TFLOP\n"
        f"  about {units.format_seconds(cost.seconds)} of work at {rate}{streamed}\n"
        f"  up to {units.format_bytes(cost.peak_bytes)} of memory, {units.format_bytes(cost.disk_bytes)} of disk"
    )
