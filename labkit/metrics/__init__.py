"""What a run measures as it goes, a line of JSON for each step, for whoever follows it.

The process that measures appends to the file that LABKIT_METRICS names, and nothing else; another one reads the file
and talks to a tracker (`labkit.track`). So a tracker that is down, full or slow cannot stop or slow what it follows,
and the measured process holds none of the tracker's memory. Without LABKIT_METRICS nothing is written.

    {"run": "gpt2 tuned s0", "about": {"learning_rate": 0.001}}                          once
    {"run": "gpt2 tuned s0", "step": 3, "time": 1.7e9, "values": {"loss": 0.69}, "adapters": {"h.0.c_attn": 0.2}}
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

VARIABLE = "LABKIT_METRICS"
"""Environment variable that names the file; workers and child processes inherit it."""


def wanted() -> bool:
    """Say whether anybody follows."""
    return bool(os.environ.get(VARIABLE))


def begin(run: str, about: Mapping[str, Any]) -> None:
    """Tell what a run is.

    Args:
        run: its name, by which people find it.
        about: its settings, as plain JSON.
    """
    _append({"run": run, "about": dict(about)})


def emit(run: str, step: int, values: Mapping[str, Any], *, adapters: Mapping[str, float] | None = None) -> None:
    """Tell what a step of a run measured; what is not a finite number is left out.

    Args:
        run: its name.
        step: number of the step.
        values: numbers by name, such as loss or tokens_per_second; a text such as the phase is kept as it is.
        adapters: norm of the gradient of each adapter, by its name.
    """
    line = {"run": run, "step": step, "time": time.time(), "values": _kept(values)}
    _append(line | ({"adapters": _kept(adapters)} if adapters else {}))


def of_steps(run: str, **values: float) -> Callable[[Any], None]:
    """Return a callback for `StreamedLM`: it emits the report of every step.

    Args:
        run: its name.
        values: further numbers to go with each step.
    """

    def tell(report: Any) -> None:
        names = ("loss", "grad_norm", "tokens", "seconds", "stalled_seconds", "bytes_read", "peak_bytes")
        own = {name: getattr(report, name) for name in names} | {"tokens_per_second": report.tokens / report.seconds}
        emit(run, report.step, own | values, adapters=report.grad_norms)

    return tell


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, Real)}
    return texts | {name: value for name, value in numbers.items() if math.isfinite(value)}


def _append(line: Mapping[str, Any]) -> None:
    """Append a line at once, so that those of several processes do not mix.

    A full disk, or a setting that JSON cannot hold, costs the line and not the run.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
    except (OSError, TypeError, ValueError) as error:
        warnings.warn(f"{path}: {error}; what this line says of {line['run']} goes to no tracker", stacklevel=3)
