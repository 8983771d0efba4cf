"""What kind of run this process is part of, as its environment says."""

import os

RENDER = "LABKIT_RENDER"
"""Variable that is 1 while a notebook is made again from its record."""


def rendering() -> bool:
    """Say whether this process only shows what is on record."""
    return os.environ.get(RENDER) == "1"
