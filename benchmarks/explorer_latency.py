"""How long an explorer takes to answer a moved control, on published results.

    python benchmarks/explorer_latency.py [--repeats 5]

Every control of every explorer is moved in turn; what is timed is the kernel's part, from the new value to the HTML of
the answer. The goal is 200 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from labkit.reports import explore

GOAL_MS = 200
NAMES = ("inertia", "offload", "phases", "law", "ledger")


def moved(control: Any) -> Any:
    """Return another value of a control."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return values[(values.index(control.value) + 1) % len(values)]
    if isinstance(control.value, bool):
        return not control.value
    if isinstance(control.value, str):
        return "" if control.value else "a"
    step = 1 if isinstance(control.value, int) else 0.1 * control.value
    return control.value + step if control.value + step <= upper(control) else control.value - step


def upper(control: Any) -> float:
    """Return the largest value of a slider; that of a logarithmic one is an exponent."""
    return control.base**control.max if hasattr(control, "base") else control.max


def main() -> None:
    """Move everything and print the time of each explorer's answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name in NAMES:
        panel, taken = getattr(explore, name)(), {}
        for _ in range(repeats):
            for key, control in panel.controls.items():
                value, started = moved(control), time.perf_counter()
                control.value = value
                taken.setdefault(key, []).append(1e3 * (time.perf_counter() - started))
        every = [ms for values in taken.values() for ms in values]
        slowest = max(taken, key=lambda key: statistics.median(taken[key]))
        over = sum(ms > GOAL_MS for ms in every)
        print(
            f"{name:8s} median {statistics.median(every):4.0f} ms, most {max(every):4.0f} ms, {over} of {len(every)} "
            f"over {GOAL_MS} ms; slowest control {slowest}, median {statistics.median(taken[slowest]):.0f} ms"
        )


if __name__ == "__main__":
    main()
