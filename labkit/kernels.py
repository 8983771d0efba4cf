"""What a kernel of the notebooks finds in its environment, however it is started: by `labkit run`, Lab or nbval."""

from __future__ import annotations

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
