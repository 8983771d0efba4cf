"""One place for threads and seeds."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from .here import require


def set_threads(n: int) -> None:
    """Let torch use n CPU threads.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; at least one thread is needed")
    torch.set_num_threads(n)


def set_determinism(seed: int, device: str = "cpu") -> dict[str, Any]:
    """Seed python, numpy and torch, ask CUDA for deterministic algorithms, and return what was set, for the record.

    Limits: PYTHONHASHSEED (the order of sets of strings) has no effect in a running interpreter, so it is only
    reported; CUBLAS_WORKSPACE_CONFIG counts only before the first CUDA call; operations that have no deterministic form
    warn and go on; and the same seed gives other numbers on another device, thread count or torch version.

    Raises:
        MissingDevice: the device is not here.
    """
    require(device)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that still draw from numpy's global state)
    torch.manual_seed(seed)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return {
        "seed": seed,
        "device": device,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "python_hash_seed": os.environ.get("PYTHONHASHSEED", "random"),
        "n_threads": torch.get_num_threads(),
    }
