"""Records of heavy work: one JSON file per cell, written atomically, found again by what went into it.

A cell's key is the sha256 of its parameters, its seed, the source of the labkit modules that compute it and the
revision of its data. Nothing else may influence a cell, so an equal key means an equal result and the work is not done
twice. A run killed at any moment loses at most the cells under way.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import device, paths
from labkit.files import write_atomically
from labkit.schema import Params

_VERSIONS = ("labkit", "torch", "numpy", "scipy", "pandas", "tokenizers", "transformers", "trl", "peft", "papermill")


class RunFailed(RuntimeError):
    """A notebook raised, or did not write what it declared."""


def dump_json(value: Any) -> bytes:
    """Encode as readable JSON; NaN and infinity are refused, since JSON has none.

    Raises:
        ValueError: a value is not finite.
    """
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Store:
    """A folder of finished cells."""

    folder: Path

    def path(self, key: str) -> Path:
        """Return the file of a cell."""
        return self.folder / f"{key[:32]}.json"

    def load(self, key: str) -> dict[str, Any] | None:
        """Return a finished cell's result, or None; a damaged file is set aside with a warning."""
        path = self.path(key)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["key"] != key or document["sha256"] != _digest(document["result"]):
                raise ValueError("the contents do not match their checksum")
            return document["result"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            aside = path.with_suffix(".corrupt")
            os.replace(path, aside)
            warnings.warn(f"{path} is damaged ({error}); set aside as {aside.name}, the cell runs again", stacklevel=2)
            return None

    def save(self, key: str, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Write a finished cell beside what went into it.

        Raises:
            DiskFull: no room.
        """
        document = {"key": key, "inputs": dict(inputs), "result": dict(result), "sha256": _digest(result)}
        write_atomically(self.path(key), dump_json(document))

    def run_or_load(self, inputs: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the stored result for these inputs, computing and storing it first if there is none."""
        key = cell_key(inputs)
        found = self.load(key)
        if found is None:
            self.save(key, inputs, work())
            found = self.load(key)
            assert found is not None, "a cell just written can be read"
        return found


def cell_key(inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of a cell's inputs: params, seed, source hash and data revision, whatever their order."""
    return _digest(inputs)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


def source_hash(modules: Iterable[str]) -> str:
    """Return the sha256 over `source_files`, names and contents."""
    digest = hashlib.sha256()
    for path in source_files(modules):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def notebook_files(report: str) -> list[Path]:
    """Return every file a report depends on: notebook, science file and the labkit modules the notebook imports.

    The hardware profile is left out: it belongs to a run, not to the report.
    """
    notebook = paths.notebook(report)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    modules = _labkit_imports(ast.parse(source))
    return [notebook, paths.science_file(report), *source_files(modules)]


def fingerprint(report: str, params_digest: str) -> str:
    """Return the sha256 of all that determines a report's results on one profile: the mark of stale results.

    Of the notebook only its code counts, so that a better sentence makes nothing stale.
    """
    notebook, _, *sources = notebook_files(report)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    digest = hashlib.sha256(params_digest.encode())
    for cell in cells:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode() + b"\0")
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    base = Path(__file__).resolve().parent.joinpath(*name.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def provenance(params: Mapping[str, Any], data_revision: str | None = None) -> dict[str, Any]:
    """Say what produced a result: commit, versions, machine, threads, parameters, data, lock.

    Args:
        params: the resolved parameters.
        data_revision: content hash of the corpus, if the run read one.
    """
    return {
        "git": git_state(),
        "versions": {name: _version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        "machine": {k: v for k, v in device.describe().items() if k != "memory_available_bytes"},
        "params": dict(params),
        "data_revision": data_revision,
        "lock_sha256": lock_hash(),
    }


def write_results(
    folder: Path,
    params: Params,
    results: Mapping[str, Any],
    out_of_reach: Mapping[str, Any],
    failures: Sequence[str],
    scale: str,
    data_revision: str | None = None,
) -> None:
    """Write results.json, what the ledger judges: measured numbers by key, what was out of reach, what failed.

    Raises:
        DiskFull: no room.
        ValueError: a number is not finite.
    """
    report = params.report_id()
    document = {
        "report": report,
        "profile": params.hardware,
        "scale": str(scale),
        "fingerprint": fingerprint(report, params.digest()),
        "provenance": provenance(params.model_dump(), data_revision),
        "results": dict(results),
        "out_of_reach": dict(out_of_reach),
        "failures": list(failures),
    }
    write_atomically(folder / "results.json", dump_json(document))


def lock_hash() -> str | None:
    """Return the sha256 of constraints.txt, the lock of every dependency."""
    lock = paths.root() / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None


def git_state() -> dict[str, Any]:
    """Return the commit and whether tracked files differ from it; both None outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=paths.root(), capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
