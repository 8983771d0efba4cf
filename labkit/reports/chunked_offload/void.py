"""When rounds show nothing: the cache was warm, the machine was not the same throughout, or nothing held the limit.

The conditions stand in docs/protocols/001_chunked_offload.md, written before any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_OFF_PLAN = 0.01
"""Share by which the kernel's count of bytes from the disk may differ from the plan."""
MOST_DISTURBED = 0.20
"""Share by which the copy bandwidth after a round may differ from that before it."""


def why_void(timed: Mapping[str, Any]) -> list[str]:
    """Say why rounds show nothing; an empty list if they count.

    Args:
        timed: what `rounds.measure_rounds` returned.
    """
    return [*_off_plan(timed), *_disturbed(timed), *_without_limit(timed)]


def planned_bytes(timed: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Return what the plan says that a step reads: layers and head, embedding rows, hidden states kept in a file."""
    plan = timed["plans"][str(row["batch"])]
    return plan["bytes_read"] + row["row_bytes_read"] + plan["spilled_bytes"]


def _off_plan(timed: Mapping[str, Any]) -> list[str]:
    """Compare each step with its plan, and name the worst one."""
    both = [(row, planned_bytes(timed, row)) for row in timed["rows"]]
    off = [
        (row["disk_bytes"] / planned - 1, row)
        for row, planned in both
        if abs(row["disk_bytes"] - planned) > MOST_OFF_PLAN * planned
    ]
    if not off:
        return []
    share, row = max(off, key=lambda one: abs(one[0]))
    where = f"round {row['repeat'] + 1}, batch {row['batch']}"
    count = f"{len(off)} of {len(both)} steps"
    return [f"{count} took other bytes from the disk than planned, {where} {share:+.1%}: the cache was not cold"]


def _disturbed(timed: Mapping[str, Any]) -> list[str]:
    changes = {one["repeat"]: one["after"] / one["before"] - 1 for one in timed["copies"]}
    return [
        f"round {repeat + 1} was disturbed: after it memory was copied at a speed {change:+.0%} off that before it"
        for repeat, change in changes.items()
        if abs(change) > MOST_DISTURBED
    ]


def _without_limit(timed: Mapping[str, Any]) -> list[str]:
    return [] if timed["limits"]["cgroup"] else ["no memory cgroup held the limit"]
