"""Do the goldens notice when code changes what it computes? Mutate numbers and operators, and run the goldens.

    python benchmarks/golden_mutants.py             # 80 mutants chosen by seed 0, some minutes
    python benchmarks/golden_mutants.py -n 200 --seed 1

A mutant changes one numeric constant or operator in what a cell function reaches, in a copy of the package. It is
noticed if a golden of that function, or of another one that reaches the same place, gives another result than the
signed one or does not end. Equivalent mutants stand in EQUIVALENT, each with its reason, and are counted apart; places
that are reached and compute no result stand in ELSEWHERE, with the tests that hold them, and are not mutated.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.workflow import goldens, lock, reach

PACKAGE = Path(reach.__file__).resolve().parent.parent
LIMIT_SECONDS = 180
EQUIVALENT: dict[str, str] = {}
"""Mutants that change no result, by file, line and change, with the reason."""
ELSEWHERE = {
    "models/shapes.py:SHAPES": "rows of models that no golden builds; tests/models/test_shapes.py counts each exactly",
    "models/shapes.py:_SHAPES": "the same",
    "models/tiny.py": "the goldens' own models",
    "units.py": "texts of sizes and times, and sizes as people write them; tests/test_units.py",
    "device/here.py": "which limits of memory and cores are found, so what is refused; tests/test_device.py",
    "progress.py": "what is shown of work under way; tests/test_progress.py",
    "faces.py": "the same",
    "metrics.py": "what is told to who follows; tests/test_trainer_metrics.py",
    "offload/isolated.py": "limits of a process, with a kernel's cgroup; tests/offload/test_isolated.py",
    "corpora/scores.py": "units of a score, which no cell returns; tests/test_corpora.py",
    "models/folders.py": "which files of a folder are refused; tests/models/test_weights.py",
}
"""Places that are reached and compute no result, by file, or file and definition: what they do, and what tests it."""
OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
}
SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True, order=True, slots=True)
class Mutant:
    """One changed place of the package."""

    file: str
    """Path relative to the package."""
    line: int
    """Line, counted from 1."""
    start: int
    """Byte within the line where what is replaced starts."""
    end: int
    """Byte after its end."""
    old: str
    """What stands there."""
    new: str
    """What stands there in the mutant."""

    @property
    def name(self) -> str:
        """The mutant for people, and its key in EQUIVALENT."""
        return f"{self.file}:{self.line}:{self.start} {self.old} -> {self.new}"


def mutants_of(name: str) -> list[Mutant]:
    """List the mutants of what a cell function reaches."""
    found = set()
    for module, own in reach.reached(reach.declared()[name].place):
        path = reach._path(module)
        file = path.relative_to(PACKAGE).as_posix()
        if file in ELSEWHERE or f"{file}:{own}" in ELSEWHERE:
            continue
        lines = path.read_text(encoding="utf-8").encode().splitlines()
        for statement in reach._statements((module, own)):
            for node in _numeric(statement):
                found |= {one for one in [_mutate(node, file, lines)] if one}
    return sorted(found)


def _numeric(statement: ast.AST) -> Iterator[ast.AST]:
    """Yield the constants and operations that compute.

    None in texts, messages, annotations or a cell's decorator, and none in what only decides whether to refuse: a
    golden is a spec that goes through, and what is refused stands in the tests of each function.
    """
    for name, value in ast.iter_fields(statement):
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.JoinedStr | ast.Raise) or name in ("annotation", "returns")
            skipped |= isinstance(child, ast.If) and [type(one) for one in child.body] == [ast.Raise]
            if not isinstance(child, ast.AST) or skipped or reach._is_cell(child):
                continue
            if isinstance(child, ast.Constant | ast.BinOp | ast.Compare | ast.AugAssign):
                yield child
            yield from _numeric(child)


def _mutate(node: ast.AST, file: str, lines: list[bytes]) -> Mutant | None:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float) or node.lineno != node.end_lineno:
            return None
        new = repr(node.value + 1) if isinstance(node.value, int) else repr(node.value * 1.5 or 1.0)
        old = lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode()
        return Mutant(file, node.lineno, node.col_offset, node.end_col_offset, old, new)
    left, kind, right = {
        ast.BinOp: lambda: (node.left, node.op, node.right),
        ast.AugAssign: lambda: (node.target, node.op, node.value),
        ast.Compare: lambda: (node.left, node.ops[0], node.comparators[0]),
    }[type(node)]()
    if type(kind) not in OPERATORS or left.end_lineno != right.lineno:
        return None
    between = lines[left.end_lineno - 1][left.end_col_offset : right.col_offset].decode()
    at = left.end_col_offset + len(between[: between.find(SIGNS[type(kind)])].encode())
    sign = SIGNS[type(kind)]
    if sign not in between:
        return None
    return Mutant(file, left.end_lineno, at, at + len(sign), sign, OPERATORS[type(kind)])


def choose(n: int, seed: int) -> list[tuple[str, Mutant]]:
    """Choose mutants, the same number for each cell function as far as it has so many, none twice."""
    rng, left = random.Random(seed), {name: mutants_of(name) for name in sorted(reach.declared())}
    for own in left.values():
        rng.shuffle(own)
    chosen: dict[Mutant, str] = {}
    while len(chosen) < n and any(left.values()):
        for name, own in left.items():
            if own and len(chosen) < n:
                chosen.setdefault(own.pop(), name)
    return [(name, mutant) for mutant, name in chosen.items()]


def notice(mutant: Mutant, first: str, copy: Path) -> str:
    """Say which golden notices a mutant, and how; empty if none does."""
    path, text = copy / "labkit" / mutant.file, (PACKAGE / mutant.file).read_bytes()
    lines = text.splitlines(keepends=True)
    line = lines[mutant.line - 1]
    lines[mutant.line - 1] = line[: mutant.start] + mutant.new.encode() + line[mutant.end :]
    path.write_bytes(b"".join(lines))
    try:
        others = [name for name in reach.declared() if name != first and mutant in mutants_of(name)]
        return next((said for name in (first, *others) if (said := _ask(name, copy))), "")
    finally:
        path.write_bytes(text)


def _ask(name: str, copy: Path) -> str:
    out = copy / "out.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "labkit.workflow.goldens", goldens.module_of(name), name, "--out", str(out)]
    own = os.environ | {"PYTHONPATH": str(copy), "LABKIT_ROOT": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=own, cwd=copy, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{name} does not end"
    if done.returncode:
        return f"{name} raises {(done.stderr.strip().splitlines() or ['nothing'])[-1][:100]}"
    differs = lock._first_difference(lock.read()[name], json.loads(out.read_text())[name])
    return f"{name}, {differs[:100]}" if differs else ""


def main() -> None:
    """Run the mutants and print what noticed each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=80, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    noticed, equivalent, missed = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(PACKAGE, copy / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "constraints.txt", lock.FILE):
            shutil.copy(PACKAGE.parent / name, copy / name)
        for i, (name, mutant) in enumerate(choose(given.n, given.seed), 1):
            said = "" if mutant.name in EQUIVALENT else notice(mutant, name, copy)
            noticed += bool(said)
            if mutant.name in EQUIVALENT:
                equivalent.append(mutant)
            elif not said:
                missed.append(mutant)
            print(f"{i:3} {name:18} {mutant.name}: {said or EQUIVALENT.get(mutant.name, 'NOT NOTICED')}", flush=True)
    tried = noticed + len(missed)
    print(f"{noticed} of {tried} mutants noticed ({noticed / tried:.0%}); {len(equivalent)} equivalent ones left out")


if __name__ == "__main__":
    main()
