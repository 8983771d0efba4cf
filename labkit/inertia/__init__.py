"""Report 000: preference training, time against size, quantization, routing between sizes, energy.

To import it keeps oneDNN from AMX, unless ONEDNN_MAX_CPU_ISA says otherwise: a pair that is scored alone has to get the
log-probabilities that it gets in a batch. A processor without AMX computes as it does anyway.
"""

from __future__ import annotations

import os

from labkit.lazy import exports

# AMX kernels round a row by how many stand beside it: in bfloat16 the first DPO loss was 0.66 instead of ln 2, with
# pairs 1.3 nats apart. oneDNN reads this once, at a process's first product, and workers inherit it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")

_HOMES = {
    "DpoArm": "dpo",
    "energy_table": "economics",
    "fit_rungs": "ladder",
    "measure_decode": "decode",
    "measure_rung": "ladder",
    "replay": "routing",
    "run_study": "study",
    "train_arm": "dpo",
}
"""Module of each public name. They are imported when they are asked for: trl alone takes seconds."""
__all__ = [*_HOMES]

__getattr__, __dir__ = exports(__name__, _HOMES)
