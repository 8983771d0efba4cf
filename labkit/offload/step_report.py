"""What one pass over the weights did and took: the one thing that callbacks and trackers are given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from labkit.offload.memory import PeakAnonymous
from labkit.offload.passes import Passes
from labkit.offload.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Number of the step, from 0."""
    loss: float
    """Mean over all labelled tokens of the pass, in nats."""
    tokens: int
    """Labelled tokens."""
    grad_norms: Mapping[str, float]
    """Norm of each adapter's gradient before clipping."""
    seconds: float
    """Wall time."""
    stalled_seconds: float
    """Time of it spent waiting for a layer to be read."""
    loads: int
    """Layers and pieces of the head that were read."""
    bytes_read: int
    """Bytes of layers and head that were read."""
    row_bytes_read: int
    """Bytes of embedding rows that were read."""
    peak_bytes: int
    """Largest memory that no file backs: of the process on a CPU, of torch on a GPU."""
    plan: Plan
    """What was planned."""

    @property
    def grad_norm(self) -> float:
        """Norm of the whole gradient before clipping."""
        return sum(norm**2 for norm in self.grad_norms.values()) ** 0.5


@dataclass(slots=True)
class Meter:
    """Measures a block: time, reads, and the peak of memory."""

    passes: Passes
    """What is measured."""
    seconds: float = 0.0
    """Wall time of the block."""
    peak_bytes: int = 0
    """Largest memory within it."""
    _began: float = 0.0
    _before: tuple[float, ...] = ()
    _peak: PeakAnonymous = field(default_factory=PeakAnonymous)

    def __enter__(self) -> Meter:
        if self.passes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.passes.device)
        self._peak.__enter__()
        self._before, self._began = self._counts(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._peak.__exit__(None, None, None)
        cuda = self.passes.device.type == "cuda"
        self.peak_bytes = torch.cuda.max_memory_allocated(self.passes.device) if cuda else self._peak.bytes

    def report(self, *, step: int, loss: float, tokens: int, norms: Mapping[str, float], plan: Plan) -> StepReport:
        """Return what the block did, with what it computed."""
        loads, n_bytes, row_bytes, stalled = (b - a for a, b in zip(self._before, self._counts(), strict=True))
        return StepReport(
            step=step,
            loss=loss,
            tokens=tokens,
            grad_norms=norms,
            seconds=self.seconds,
            stalled_seconds=stalled,
            loads=int(loads),
            bytes_read=int(n_bytes),
            row_bytes_read=int(row_bytes),
            peak_bytes=self.peak_bytes,
            plan=plan,
        )

    def _counts(self) -> tuple[float, ...]:
        counts, passes = self.passes.pool.counts, self.passes
        return counts.loads, passes.store.reader.n_bytes, passes.by_row.n_bytes, counts.stalled_seconds
