"""Goldens: tiny specs whose results show that a cell function still does what its version promises.

A report whose cells are made here has a module `goldens` with one table:

    GOLDENS: dict[CellFunction, tuple[Spec, ...]]

They run in a process of their own, so that what one library asks of torch or oneDNN holds for no other:

    python -m labkit.workflow.goldens MODULE NAME ... --out FILE
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from labkit.cell import Json, digest
from labkit.workflow import reach

TOLERANCE = 0.01
"""Largest difference of a float computed by another instruction set or other versions of the packages.

It is relative to the largest number of that field in the result: one pair's margin of many may be near zero.
"""
COARSE = 0.1
"""The same for what was computed in a type of 16 bits: bfloat16 keeps eight of them, so a rounding alone is 0.4 %."""
_ABSOLUTE = 1e-4
_COARSE_TYPES = frozenset({"bfloat16", "float16"})
_SIDE_BY_SIDE = 2
_REPORTS = Path(__file__).resolve().parents[1] / "reports"


class GoldenFailed(RuntimeError):
    """Goldens could not be run."""


def module_of(name: str) -> str:
    """Return the module that holds the goldens of a cell function: the one that imports it.

    Raises:
        ValueError: no such cell function, or it has no goldens.
    """
    known = reach.declared()
    if name not in known:
        raise ValueError(f"no cell function {name!r}; there are: {', '.join(sorted(known))}")
    for path in sorted(_REPORTS.glob("*/goldens.py")):
        module = f"labkit.reports.{path.parent.name}.goldens"
        if known[name].place in reach.imported(module):
            return module
    raise ValueError(f"cell function {name!r} has no goldens; add a row to those of its report")


def run(names: Iterable[str]) -> dict[str, list[Json]]:
    """Run the goldens of cell functions, and return for each function spec, environment and result of its goldens.

    Raises:
        ValueError: no such cell function, or one without goldens.
        GoldenFailed: a process of goldens was killed or did not start; its error output has been shown.
    """
    wanted: dict[str, list[str]] = {}
    for name in sorted(names):
        wanted.setdefault(module_of(name), []).append(name)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_SIDE_BY_SIDE) as threads:
        outs = {module: Path(folder) / f"{module}.json" for module in wanted}
        done = list(threads.map(lambda module: _run_module(module, wanted[module], outs[module]), wanted))
        if any(done):
            raise GoldenFailed("the goldens did not run to their end; what they said stands above")
        found = {name: own for out in outs.values() for name, own in json.loads(out.read_text()).items()}
    if without_any := [name for own in wanted.values() for name in own if not found.get(name)]:
        raise ValueError(f"no goldens of {', '.join(without_any)}; add specs to {module_of(without_any[0])}")
    return found


def _run_module(module: str, names: list[str], out: Path) -> int:
    """Run a process of goldens; what it said is shown only if it did not come to its end."""
    command = [sys.executable, "-m", __name__, module, *names, "--out", str(out)]
    done = subprocess.run(command, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
    return done.returncode


def differences(old: Json, new: Json, *, exact: bool, dtype: str | None = None) -> Iterator[str]:
    """Yield each field that differs, as "path: old -> new".

    Floats must be equal, or if not `exact` within TOLERANCE, or COARSE where the golden's type, or that which stands
    beside them in the result, has 16 bits.
    """
    before, after = dict(_leaves(old, dtype)), dict(_leaves(new, dtype))
    largest = _largest(before)
    for path in dict.fromkeys([*before, *after]):
        one, kind = before.get(path, ("nothing", None))
        other, _ = after.get(path, ("nothing", None))
        near = _ABSOLUTE + (COARSE if kind in _COARSE_TYPES else TOLERANCE) * largest.get(_field(path), 0.0)
        if not _agree(one, other, 0.0 if exact else near):
            yield f"{path}: {one!r} -> {other!r}"


def _agree(one: Any, other: Any, near: float) -> bool:
    if near and _is_number(one) and _is_number(other) and float in (type(one), type(other)):
        return math.isclose(one, other, rel_tol=0.0, abs_tol=near)
    return type(one) is type(other) and one == other


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _field(path: str) -> str:
    """Return a path without the places in its lists, which all entries of a table share."""
    return re.sub(r"\[\d+\]", "", path)


def _largest(leaves: Mapping[str, tuple[Any, str | None]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for path, (value, _) in leaves.items():
        if _is_number(value):
            found[_field(path)] = max(found.get(_field(path), 0.0), abs(value))
    return found


def _leaves(value: Any, dtype: str | None, path: str = "") -> Iterator[tuple[str, tuple[Any, str | None]]]:
    """Yield the path of each field, its value and the type it was computed in, as far as that is told."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or (not value and path):
        yield path or "result", (value, dtype)
        return
    dtype = value.get("dtype", dtype) if isinstance(value, dict) else dtype
    for name, inner in items:
        own = f"{path}.{name}".lstrip(".") if isinstance(value, dict) else f"{path}[{name}]"
        yield from _leaves(inner, dtype, own)


def without(value: Any, names: Iterable[str]) -> Any:
    """Return a JSON value without some fields, at any depth."""
    left_out = frozenset(names)
    if isinstance(value, dict):
        return {name: without(inner, left_out) for name, inner in value.items() if name not in left_out}
    return [without(inner, left_out) for inner in value] if isinstance(value, list) else value


def specs_of(module: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return the cell functions of a module of goldens by name, each with its specs."""
    table: Mapping[Any, tuple[Any, ...]] = importlib.import_module(module).GOLDENS
    return {work.name: (work, specs) for work, specs in table.items()}


def _run_here(module: str, names: list[str]) -> dict[str, list[Json]]:
    chosen = {name: pair for name, pair in specs_of(module).items() if name in names}
    return {name: [_golden(work, spec) for spec in specs] for name, (work, specs) in chosen.items()}


def _golden(work: Any, spec: Any) -> Json:
    """Return the result of one golden, or what it raised: a change that breaks the code is told like any other."""
    environment = {name: value for name, value in work.environment(spec).items() if name != "machine"}
    about = {"spec": work.spec(spec), "environment": environment}
    try:
        result = json.loads(json.dumps(without(work(spec), work.timing), allow_nan=False))
    except Exception as error:
        return about | {"error": f"{type(error).__name__}: {error}"}
    return about | {"digest": digest(result), "result": result}


def main() -> None:
    """Run the goldens of one module and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    # See labkit.offload.isolated: work that would start an interpreter of its own stays in this one.
    os.environ["LABKIT_IN_PLACE"] = "1"
    given.out.write_text(json.dumps(_run_here(given.module, given.names)))


if __name__ == "__main__":
    main()
