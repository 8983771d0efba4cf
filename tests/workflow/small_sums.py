"""A small cell function of one frozen spec, which costs nothing and can fail."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.cell import cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """What is added."""

    name: str = "a sum"
    """For people."""
    terms: tuple[float, ...] = (1.0, 2.0)
    """Numbers."""
    device: str = "cpu"
    """Device."""
    fails: str = ""
    """Kind of failure, if any."""


FAILURES = {"mathematics": FloatingPointError, "machine": MemoryError, "input": ValueError}


@cell("demo.sum", version=1, data=lambda spec: {"corpus made-up": "r1"}, timing=("seconds",), labels=("name",))
def add(spec: Sum) -> dict:
    """Add."""
    if spec.fails:
        raise FAILURES[spec.fails]("no sum")
    return {"total": sum(spec.terms), "terms": spec.terms, "seconds": 0.5}
