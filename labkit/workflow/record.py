"""What a run leaves beside its figures: results.json with what it stands on, and the files a report is made from."""

from __future__ import annotations

import ast
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.base import paths
from labkit.base.files import read_json, sha256_of, write_atomically
from labkit.base.modes import rendering
from labkit.workflow.cells import Cells, store_of
from labkit.workflow.evidence import summary
from labkit.workflow.origin import gathered, git_state, origin
from labkit.workflow.params import scale
from labkit.workflow.schema import Params
from labkit.workflow.tables import rounded, to_csv


class RunFailed(RuntimeError):
    """A notebook raised, or did not write what it declared."""


def dump_json(value: Any) -> bytes:
    """Encode as readable JSON; NaN and infinity are refused, since JSON has none.

    Raises:
        ValueError: a value is not finite.
    """
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def source_files(modules: Iterable[str]) -> list[Path]:
    """Return the source of some labkit modules and of every labkit module they import, read off their imports.

    The `__init__` of a package counts only where it is itself imported from: it merely re-exports.
    """
    found: dict[str, Path] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        path = _module_path(name)
        if path is None or name in found:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        pending += _labkit_imports(ast.parse(path.read_text(encoding="utf-8")), package)
    return sorted(found.values())


def notebook_files(report: str) -> list[Path]:
    """Return every file a report depends on: notebook, science file and the labkit modules the notebook imports.

    The hardware profile is left out: it belongs to a run, not to the report.
    """
    notebook = paths.notebook(report)
    cells = read_json(notebook, "cells", remedy=f"`git checkout {notebook}` brings the committed one back")["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    modules = _labkit_imports(ast.parse(source))
    return [notebook, paths.science_file(report), *source_files(modules)]


def _labkit_imports(tree: ast.Module, package: str = "") -> list[str]:
    """List the labkit modules that a module of `package` imports, also inside its functions."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if _is_ours(alias.name)]
        elif isinstance(node, ast.ImportFrom) and _is_ours(source := _absolute(node, package)):
            submodules = [f"{source}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if _module_path(name)]
            names += found if len(found) == len(submodules) else [*found, source]
    return names


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == "labkit"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module an import reads from, with leading dots resolved against the importing package."""
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _module_path(name: str) -> Path | None:
    base = Path(__file__).resolve().parents[1].joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a published table as CSV, floats with as many digits as every machine agrees on.

    Raises:
        DiskFull: no room.
    """
    write_atomically(path, to_csv(table))


def provenance(params: Params) -> dict[str, Any]:
    """Say what produces results: parameters, and each commit and machine with its versions.

    While a report is rendered that is what produced the cells on record, so that figures come out the same anywhere.
    """
    if rendering():
        store = store_of(params.hardware, params.report_id())
        origins = [record.provenance for record in store.archived() or store.records()]
    else:
        origins = [origin()]
    return {"made_from": gathered(origins), "params": params.model_dump()}


def describe(provenance: Mapping[str, Any]) -> str:
    """Say in a line for each commit and machine what results come from."""
    return "\n".join(map(_origin_line, provenance["made_from"])) or "from what is published"


def _origin_line(one: Mapping[str, Any]) -> str:
    changed = " with local changes" if one["git"]["dirty"] else ""
    machine = one["machine"]
    where = f"{machine['cpu']}, {machine['n_cores']} cores"
    return f"commit {one['git']['commit']}{changed} | torch {one['versions']['torch']} | {where}"


def write_results(
    folder: Path,
    params: Params,
    cells: Cells,
    results: Mapping[str, Any],
    out_of_reach: Mapping[str, Any],
    failures: Sequence[str] = (),
) -> None:
    """Write results.json, what the ledger judges, and beside it the cells that it stands on.

    Args:
        folder: where they go.
        params: the resolved parameters.
        cells: the cells that the results were made from.
        results: measured numbers by key.
        out_of_reach: what a number that was not measured would take.
        failures: what has no result, beside the cells that failed.

    Raises:
        DiskFull: no room.
        ValueError: a number is not finite.
    """
    document = {
        "report": params.report_id(),
        "profile": params.hardware,
        "scale": str(scale(params)),
        "params": params.model_dump(),
        "evidence": summary(cells.used.values()),
        "made_from": gathered(record.provenance for record in cells.used.values()),
        "results": rounded(dict(results)),
        "out_of_reach": rounded(dict(out_of_reach)),
        "failures": [*failures, *(f"{label}: {error}" for label, error in cells.failures.items())],
    }
    write_atomically(folder / "results.json", dump_json(document))
    cells.pack(folder)


def files_in(folder: Path) -> dict[str, Path]:
    """Return every file below a folder by its name in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def this_run(seconds: float) -> dict[str, Any]:
    """Say what is on record of a run that ends now."""
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"seconds": round(seconds, 1), "finished": finished, "git": git_state()}


def last_run(report: str, hardware: str) -> dict[str, Any] | None:
    """Return what is on record of the run that computed what is now rendered again."""
    path = paths.figures(hardware, report) / "run.json"
    return read_json(path).get("run") if path.exists() else None


def write_run(
    folder: Path,
    params: Params,
    ran: Mapping[str, Any] | None,
    inputs: Mapping[str, str],
    overrides: Mapping[str, Any] | None,
    uncommitted: Sequence[str],
) -> None:
    """Write run.json: what ran, from what, and what came out.

    Args:
        folder: where it goes, beside everything that came out.
        params: the resolved parameters.
        ran: of `this_run`, or of `last_run` where a report is only rendered again.
        inputs: hashes of the files that it was made from, by name.
        overrides: values for this run only.
        uncommitted: files that no commit holds, of figures that git keeps.

    Raises:
        DiskFull: no room.
    """
    document = {
        "report": params.report_id(),
        "profile": params.hardware,
        "scale": scale(params),
        "overrides": dict(overrides or {}),
        "run": ran,
        "inputs": dict(inputs),
        "outputs": {name: sha256_of(path) for name, path in files_in(folder).items()},
    }
    document |= {"uncommitted": list(uncommitted)} if uncommitted else {}
    write_atomically(folder / "run.json", dump_json(document))
