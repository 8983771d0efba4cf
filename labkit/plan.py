"""What a run would take, said before anything heavy starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit import params, units
from labkit.scaling.cost import Cost, plan_grid
from labkit.schema import Params

_PLANS: dict[str, Callable[[Any], Cost]] = {"scaling_grid": plan_grid}


def plan(resolved: Params) -> Cost | None:
    """Estimate what a run takes; None for a report that trains nothing."""
    estimate = _PLANS.get(resolved.report_id())
    return estimate(resolved) if estimate else None


def describe(resolved: Params, cost: Cost | None) -> str:
    """Say in a few lines what a run will do and take."""
    target = f"{resolved.report_id()} on {resolved.hardware}"
    if cost is None:
        return f"{target}: reads published results, trains nothing"
    head = f"{target}: {params.scale(resolved)} scale, {resolved.device}"
    rate = f"{cost.flops_per_second / 1e9:,.0f} GFLOP/s ({cost.basis})"
    return (
        f"{head}, {resolved.workers} workers x {resolved.threads} threads\n"
        f"  {cost.n_cells} models, {units.format_count(cost.tokens)} tokens, {cost.flops / 1e12:,.1f} TFLOP\n"
        f"  about {units.format_seconds(cost.seconds)} of training at {rate}\n"
        f"  up to {units.format_bytes(cost.peak_bytes)} of memory, {units.format_bytes(cost.disk_bytes)} of disk"
    )
