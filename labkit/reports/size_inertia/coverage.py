"""What a list of target names reaches in the reports' models, counted by PEFT itself on shapes without weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from labkit import models
from labkit.cell import cell, environment
from labkit.reports.size_inertia.arms import reached
from labkit.reports.size_inertia.cost import REPORTED
from labkit.reports.size_inertia.params import SizeInertia


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageSpec:
    """A shape and the linear maps of it that are to get an adapter."""

    model: str
    """Key of `labkit.models.SHAPES`."""
    targets: tuple[str, ...]
    """Names of linear maps; one that matches nothing is counted as such."""
    rank: int
    """Rank of the adapters."""


@cell("inertia.coverage", version=1, packages=("transformers", "peft"), onednn=environment.WITHOUT_AMX)
def measure_coverage(spec: CoverageSpec) -> dict[str, Any]:
    """Count adapters and parameters.

    Returns:
        plain JSON: what `labkit.models.Coverage` holds with its `percent`, the `published` number of parameters, and
        `config`, the published values that the shape was built from.
    """
    config = LoraConfig(r=spec.rank, target_modules=list(spec.targets))
    found, shape = reached(spec.model, config, spec.targets), models.shape_of(spec.model)
    counts = dataclasses.asdict(found) | {"percent": found.percent, "published": shape.parameters}
    return counts | {"config": {"model_type": shape.model_type, **shape.values}}


def coverage_specs(params: SizeInertia) -> list[CoverageSpec]:
    """Return what is counted: the report's targets in its models and in the profile's, and Phi-2 with its own names."""
    listed = tuple(params.lora_targets)
    own = tuple("dense" if target == "o_proj" else target for target in listed)
    wanted = [(name, listed) for name in dict.fromkeys((*REPORTED, *params.models))]
    wanted.insert(2, ("phi-2", own))
    return [CoverageSpec(model=name, targets=targets, rank=params.lora_rank) for name, targets in wanted]
