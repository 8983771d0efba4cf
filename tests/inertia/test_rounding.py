"""A row of a product in bfloat16 is what it is, however many rows stand beside it: the reference of a pair is scored
alone, and the pair is trained in a batch.

oneDNN reads what it is kept to once, at a process's first product. So whatever of the report multiplies first, its plan
or its cells, has to keep it from AMX when it is imported; the product itself shows it on a processor with AMX only.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from labkit.cell.environment import WITHOUT_AMX

PRODUCT = """
import importlib, os, sys
importlib.import_module(sys.argv[1])
import torch
from torch.nn.functional import linear

torch.manual_seed(0)
rows, weight = torch.randn(8, 96, 576).bfloat16(), torch.randn(1536, 576).bfloat16()
alone = torch.stack([linear(own, weight) for own in rows])
print((linear(rows, weight) != alone).sum().item(), os.environ["ONEDNN_MAX_CPU_ISA"])
"""


@pytest.mark.parametrize("module", ["reports.size_inertia.cost", "dpo.arm", "reports.size_inertia.study"])
def test_rows_are_rounded_alike_alone_and_in_a_batch(module: str) -> None:
    own = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    command = [sys.executable, "-c", PRODUCT, f"labkit.{module}"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", WITHOUT_AMX]
