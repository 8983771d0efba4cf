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
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from labkit.workflow import goldens, lock, reach

PACKAGE = Path(reach.__file__).resolve().parent.parent
LIMIT_SECONDS = 180
_AROUND = 16
"""Bytes of code on either side that name a mutant."""
EQUIVALENT: dict[str, str] = {
    "hybrid/momentum.py `ta, gradients, [0] * len(pairs)).` 0 -> 1": "all tensors under one number, then summed",
    "routing/deciding.py `RT_CHARACTERS = 20` 20 -> 21": "no shipped question is sent to the larger model",
    "routing/deciding.py `ession(max_iter=2000))` 2000 -> 2001": "the fit ends long before its most iterations",
    "routing/deciding.py `.perf_counter() - start)` - -> +": "times, which goldens leave out",
    "dpo/preferences.py `(pairs)) % 2 == 0` 0 -> 1": "turns every sign; no intercept is fitted",
    "dpo/preferences.py `len(pairs)) % 2 == 0` == -> !=": "the same",
    'models/shapes.py `e == "cpu" else 1) as pool:` 1 -> 2': "chunks drawn side by side; each has a seed of its own",
    'models/shapes.py `del.device.type == "cpu" else 1) a` == -> !=': "the same",
    "models/shapes.py `32, seed: int = 0, device: str =` 0 -> 1": "a default, and cells give every seed",
    'models/shapes.py `es"] = [types[i % len(types)] for` % -> //': "kinds of layers; tests/models/test_shapes.py",
    "offload/engine.py `seed: int = 0,` 0 -> 1": "a default, and cells give every seed",
    "offload/batches.py `ed_fill(mask == 0, IGNORED)` 0 -> 1": "labels of who gives a mask and none; tests/offload",
    "offload/headers.py `tart, entry.end - _PAGE)):` - -> +": "what a checkpoint is known by",
    "offload/passes.py `0], work.hidden[0][:, -1:], self.` 0 -> 1": "what generates text, which no cell does",
    "decoding/decode.py `, tuple(seconds[1:]), tuple(torch` 1 -> 2": "times, which goldens leave out",
    "hybrid/modal.py `t) / (k - 1) or 1.0` 1.0 -> 1.5": "the scale of a ridge where nothing moved; every product is 0",
    "offload/passes.py `if i == lowest:` == -> !=": "which hidden states are kept for a later pass, or computed again",
    "offload/planner.py `for _ in range(2):` 2 -> 3": "a third step is counted, and nobody asks for it",
    "corpora/tokens.py `ab_size <= 1 << 16 else np.uint32` 16 -> 17": "stored in a wider type, and the same numbers",
    'corpora/tokens.py `in", stacklevel=3)` 3 -> 4': "the line that a warning names",
    "offload/readers.py `, -(-(end - at) // PAGE) * PAGE)` // -> *": "asks for more, and gets what is left",
    "reports/size_inertia/matrix.py `okenizer, asked[0].prompt, spec.m` 0 -> 1": "asked once before, and thrown away",
    "device/pagecache.py `return here / total if total` / -> *": "shares of files in memory, left out",
}
"""Mutants that change no result, by file, code and change, with the reason."""
ELSEWHERE = {
    "models/shapes.py:SHAPES": "rows of models that no golden builds; tests/models/test_shapes.py counts each exactly",
    "models/shapes.py:_SHAPES": "the same",
    "models/tiny.py": "the goldens' own models",
    "models/shapes.py:require_memory": "what is refused; tests/models/test_shapes.py",
    "base/units.py": "texts of sizes and times, and sizes as people write them; tests/test_units.py",
    "device/here.py": "which limits of memory and cores are found, so what is refused; tests/test_device.py",
    "device/energy.py": "readings of sensors, which goldens leave out; tests/test_device.py",
    "device/sensors.py": "the same",
    "device/measure.py": "rates and peaks of memory, which goldens leave out; tests/test_device.py",
    "models/pins.py": "where weights come from, each under its sha256; tests/models/test_packed.py",
    "offload/head.py:likeliest": "what generates text, which no cell does; tests/offload/test_generate.py",
    "models/revisions.py:own_folder": "folders of the user's own, which no golden has; tests/models/test_revisions.py",
    "progress/__init__.py": "what is shown of work under way; tests/test_progress.py",
    "progress/faces.py": "the same",
    "metrics/__init__.py": "what is told to who follows; tests/test_trainer_metrics.py",
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
    around: str
    """The code that it stands in, which says where it is when lines have moved."""

    @property
    def name(self) -> str:
        """The mutant for people, and its key in EQUIVALENT."""
        return f"{self.file} `{self.around}` {self.old} -> {self.new}"


def mutants_of(name: str) -> list[Mutant]:
    """List the mutants of what a cell function reaches."""
    found = set()
    for module, own in _working(reach.declared()[name].place):
        path = reach._path(module)
        file = path.relative_to(PACKAGE).as_posix()
        if file in ELSEWHERE or f"{file}:{own}" in ELSEWHERE:
            continue
        lines = path.read_text(encoding="utf-8").encode().splitlines()
        for statement in reach._statements((module, own)):
            for node in _numeric(statement):
                found |= {one for one in [_mutate(node, file, lines)] if one}
    return sorted(found)


class _Working(reach._Names):
    """Names that work is done with: none that only a refusal names, to say why."""

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_If(self, node: ast.If) -> None:
        self._visit_parts(node, [node.test] if _refuses(node) else [node.test, *node.body, *node.orelse])


def _refuses(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and not node.orelse


@functools.cache
def _working(start: reach.Place) -> tuple[reach.Place, ...]:
    """Return the definitions that a cell function computes with, itself included."""
    seen: dict[reach.Place, None] = {}
    pending = [start]
    while pending:
        place = pending.pop(0)
        if place in seen:
            continue
        seen[place] = None
        module = reach._module(place[0])
        for statement in reach._statements(place):
            local = {a: target for node in ast.walk(statement) for a, target in reach._imports(node, module.name)}
            _Working(module, module.imported | local, pending).visit(statement)
        pending.append((place[0], ""))
    return tuple(seen)


def _numeric(statement: ast.AST) -> Iterator[ast.AST]:
    """Yield the constants and operations that compute.

    None in texts, messages, annotations or a cell's decorator, and none in what only decides whether to refuse: a
    golden is a spec that goes through, and what is refused stands in the tests of each function.
    """
    for name, value in ast.iter_fields(statement):
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.JoinedStr | ast.Raise) or name in ("annotation", "returns")
            if not isinstance(child, ast.AST) or skipped or _refuses(child) or reach._is_cell(child):
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
        return _mutant(file, lines, node.lineno, node.col_offset, node.end_col_offset, old, new)
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
    return _mutant(file, lines, left.end_lineno, at, at + len(sign), sign, OPERATORS[type(kind)])


def _mutant(file: str, lines: list[bytes], line: int, start: int, end: int, old: str, new: str) -> Mutant:
    around = lines[line - 1][max(0, start - _AROUND) : end + _AROUND].decode(errors="ignore").strip()
    return Mutant(file, line, start, end, old, new, around)


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
        modules = {
            module: [n for n in others if goldens.module_of(n) == module] for module in map(goldens.module_of, others)
        }
        asked = [(goldens.module_of(first), [first]), *modules.items()]
        return next((said for module, names in asked if (said := _ask(module, names, copy))), "")
    finally:
        path.write_bytes(text)


def _ask(module: str, names: list[str], copy: Path) -> str:
    out = copy / "out.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "labkit.workflow.goldens", module, *names, "--out", str(out)]
    own = os.environ | {"PYTHONPATH": str(copy), "LABKIT_ROOT": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=own, cwd=copy, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{module} does not end"
    if done.returncode:
        return f"{module} raises {(done.stderr.strip().splitlines() or ['nothing'])[-1][:100]}"
    ran = json.loads(out.read_text())
    found = ((name, lock._first_difference(lock.read()[name], ran[name])) for name in names)
    return next((f"{name}, {differs[:100]}" for name, differs in found if differs), "")


def main() -> None:
    """Run the mutants and print what noticed each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=80, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried side by side")
    given = parser.parse_args()
    chosen = choose(given.n, given.seed)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as threads:
        copies = Queue()
        for i in range(given.jobs):
            copies.put(_copy(Path(folder) / str(i)))
        said = list(threads.map(lambda one: _try(*one, copies), chosen))
    equivalent = sum(mutant.name in EQUIVALENT for _, mutant in chosen)
    noticed, tried = sum(map(bool, said)), len(chosen) - equivalent
    print(f"{noticed} of {tried} mutants noticed ({noticed / tried:.0%}); {equivalent} equivalent ones left out")


def _copy(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", lock.FILE):
        shutil.copy(PACKAGE.parent / name, folder / name)
    return folder


def _try(name: str, mutant: Mutant, copies: Queue[Path]) -> str:
    """Try a mutant in a free copy, and say at once what came out."""
    copy = copies.get()
    said = "" if mutant.name in EQUIVALENT else notice(mutant, name, copy)
    copies.put(copy)
    print(f"{name:18} {mutant.line}: {mutant.name}: {said or EQUIVALENT.get(mutant.name, 'NOT NOTICED')}", flush=True)
    return said


if __name__ == "__main__":
    main()
