"""What a kernel of the notebooks finds in its environment, however it is started: by `labkit run`, Lab or nbval."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

ENVIRONMENT = {
    # A kernel of the same name in the user's home must not win over this environment's.
    "JUPYTER_PREFER_ENV_PATH": "1",
    # glibc hands freed pages back at every step and faults them in again; keeping them saves a fifth of a step.
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables by name; `make lab` sets the same."""


@contextmanager
def inherited(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which the kernels that it starts inherit, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
