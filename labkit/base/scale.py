"""How much of a report's own experiment a run holds."""

from enum import StrEnum


class Scale(StrEnum):
    """How much of the report's own experiment a run holds."""

    SMOKE = "smoke"
    CUSTOM = "custom"
    REDUCED = "reduced"
    STATED = "stated"
