"""What happened in a hybrid run, one row for each real step and each decision, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from labkit.hybrid.gate import Verdict
from labkit.hybrid.phases import Phase

COLUMNS = {
    "step": "Nominal steps done when the row was written.",
    "phase": "Phase of the step, or predict.",
    "accepted": "Whether a jump was made; for one that was undone later, False.",
    "horizon": "Nominal steps a jump stands for; 0 for a real step and for a jump that was refused.",
    "jump_norm": "Length of the change that a jump made to all weights together.",
    "probe_before": "Mean loss of the probed batches before the jump.",
    "probe_after": "The same after it.",
    "confidence": "The predictor's confidence in [0, 1].",
    "overshoot": "Share of the jump that was kept after its first gradient, where it had gone too far.",
    "loss": "Training loss of a real step.",
    "seconds": "Time of the step or decision.",
    "remark": "Why a jump did not stay.",
}
"""Columns of the table, with what they hold."""


class History:
    """Rows of a run, in order."""

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.rows = [dict(row) for row in rows]

    def real(self, step: int, phase: Phase, loss: float, seconds: float) -> None:
        """Add a step with a backward pass."""
        self.rows.append({"step": step, "phase": str(phase), "horizon": 0, "loss": loss, "seconds": seconds})

    def predicted(
        self, step: int, kept: int, confidence: float, length: float, verdict: Verdict | None, seconds: float
    ) -> None:
        """Add a Predict phase that started at `step`."""
        probes = {} if verdict is None else {"probe_before": verdict.before, "probe_after": verdict.after}
        own = {"accepted": bool(kept), "horizon": kept, "jump_norm": length if kept else 0.0, "confidence": confidence}
        remark = {} if kept else {"remark": "the probe did not show the gain"}
        self.rows.append({"step": step, "phase": str(Phase.PREDICT), "seconds": seconds} | own | probes | remark)

    def refused(self, step: int, confidence: float) -> None:
        """Add a Predict phase that did not start because the predictor was not sure enough."""
        own = {"accepted": False, "horizon": 0, "jump_norm": 0.0, "confidence": confidence, "seconds": 0.0}
        self.rows.append({"step": step, "phase": str(Phase.PREDICT), "remark": "not confident"} | own)

    def undone(self, step: int, losses: Sequence[float], bound: float) -> None:
        """Mark the last jump as undone."""
        why = f"undone at step {step}: mean loss {sum(losses) / len(losses):.4g} after it, bound {bound:.4g}"
        self.amend(accepted=False, remark=why)

    def amend(self, **values: Any) -> None:
        """Change the row of the last jump that was made."""
        jump = next(row for row in reversed(self.rows) if row["phase"] == Phase.PREDICT and row["horizon"])
        jump.update(values)

    def table(self) -> pd.DataFrame:
        """Return all rows with the columns of COLUMNS."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def summary(self) -> str:
        """Say in a few lines how many steps were real and predicted, what came of each jump, and what took the time."""
        steps, seconds = self.phase_steps(), Counter()
        for row in self.rows:
            seconds["decisions" if row["phase"] == Phase.PREDICT else "real steps"] += row["seconds"]
        predicted = steps[str(Phase.PREDICT)]
        real = sum(steps.values()) - predicted
        by_phase = ", ".join(f"{n} {phase}" for phase, n in steps.items() if n and phase != Phase.PREDICT)
        asked = [row for row in self.rows if row["phase"] == Phase.PREDICT]
        lines = [f"{real + predicted} steps: {real} real ({by_phase or 'none'}), {predicted} predicted"]
        lines.append(f"{len(asked)} jumps asked for, {sum(bool(row['accepted']) for row in asked)} kept")
        why = Counter(row["remark"].partition(" at step")[0] for row in asked if row.get("remark"))
        lines += [f"  {n} not: {remark}" for remark, n in why.most_common()]
        lines.append(f"{seconds['real steps']:.3g} s in real steps, {seconds['decisions']:.3g} s in decisions on jumps")
        return "\n".join(lines)

    def phase_steps(self) -> dict[str, int]:
        """Return nominal steps by phase; jumps that were undone do not count."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            kept = row["horizon"] if row.get("accepted") else 0
            counts[row["phase"]] += kept if row["phase"] == Phase.PREDICT else 1
        return {str(phase): counts[str(phase)] for phase in Phase}
