"""What the parameters of every report have in common: strict models with a sentence for each value.

Every field is marked with the layer that may set it: the science (what the report set out to do), the scope (how much
of it) or the machine. `labkit.workflow.params` reads the files and enforces the layers.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

ModelName = Literal[
    "smollm2-135m",
    "gemma-3-270m",
    "qwen2.5-0.5b",
    "phi-2",
    "qwen2.5-7b",
    "gpt2",
    "phi-4",
    "bitnet-2b",
    "tiny-qwen2",
]
"""Pretrained models that labkit.models loads by name."""


class Layer(StrEnum):
    """Which file may set a value."""

    SCIENCE = "science"
    SCOPE = "scope"
    MACHINE = "machine"


class Params(BaseModel):
    """What every report has: the machine. Each report adds its science and scope."""

    report: ClassVar[str]
    """Name of the report."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    hardware: Annotated[str, Layer.MACHINE]
    """Name of the hardware profile: a file in params/hardware."""
    smoke: Annotated[bool, Layer.MACHINE] = False
    """Whether the profile only shows that everything runs; its numbers are never evidence."""
    device: Annotated[Literal["cpu", "cuda"], Layer.MACHINE] = "cpu"
    """Device that holds models and data."""
    dtype: Annotated[Literal["float32", "bfloat16"], Layer.MACHINE] = "float32"
    """Compute type of matrix products; parameters and optimizer state stay float32."""
    workers: Annotated[PositiveInt, Layer.MACHINE] = 1
    """Number of cells trained side by side, each in its own process."""
    threads: Annotated[PositiveInt, Layer.MACHINE] = 1
    """CPU threads of each worker."""
    memory_gib: Annotated[PositiveFloat, Layer.MACHINE] = 8.0
    """Memory the profile may use on its device, in GiB (2^30 bytes)."""
    assumed_tflops: Annotated[PositiveFloat, Layer.MACHINE] = 0.05
    """Sustained training rate in TFLOP/s assumed for a cost plan when the device is not here to be measured."""

    @classmethod
    def report_id(cls) -> str:
        """The report these parameters belong to."""
        return cls.report

    @classmethod
    def layer(cls, name: str) -> Layer:
        """Return which layer a field belongs to."""
        return next(mark for mark in cls.model_fields[name].metadata if isinstance(mark, Layer))

    @classmethod
    def float_fields(cls) -> set[str]:
        """Return the fields that hold floats or lists of floats; a whole number given there means a float."""
        return {name for name, field in cls.model_fields.items() if "float" in str(field.annotation)}


def check_lists(params: Params, *names: str) -> None:
    """Refuse a list that is empty or holds a value twice.

    Raises:
        ValueError: the message names the field.
    """
    for name in names:
        values = getattr(params, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must list at least one value, none of them twice; got {values}")
