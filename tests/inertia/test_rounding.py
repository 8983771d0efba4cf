"""A row of a product in bfloat16 is what it is, however many rows stand beside it: the reference of a pair is scored
alone, and the pair is trained in a batch.
"""

from __future__ import annotations

import os
import subprocess
import sys

PRODUCT = """
import labkit.inertia
import torch
from torch.nn.functional import linear

torch.manual_seed(0)
rows, weight = torch.randn(8, 96, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
alone = torch.stack([linear(own, weight) for own in rows])
print((linear(rows, weight) != alone).sum().item())
"""


def test_rows_are_rounded_alike_alone_and_in_a_batch() -> None:
    own = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run([sys.executable, "-c", PRODUCT], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
