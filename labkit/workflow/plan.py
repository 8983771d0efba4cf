"""What a run would take, said before anything heavy starts."""

from __future__ import annotations

from labkit.base import units
from labkit.workflow import params
from labkit.workflow.cost import Cost
from labkit.workflow.report import reports
from labkit.workflow.schema import Params


def plan(resolved: Params) -> Cost | None:
    """Estimate what a run takes; None for a report that computes nothing."""
    report = reports()[resolved.report_id()]
    return report.function(report.cost)(resolved) if report.cost else None


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
