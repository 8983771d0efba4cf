"""What a room of the package may import: the lines that ARCHITECTURE.md draws, read off the imports of every module."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.base import paths
from labkit.workflow import reach
from labkit.workflow.report import reports

SHARED = {"base", "cell", "corpora", "device", "metrics", "models", "progress", "stats", "track", "training"}
LIBRARIES = {"offload", "hybrid", "scaling", "dpo", "decoding", "routing"}


def room(module: str) -> str:
    """Return the folder of a module below the package, empty for the command line and the package itself."""
    inside = module.split(".")[1:]
    return inside[0] if inside and (paths.root() / "labkit" / inside[0]).is_dir() else ""


def report_of(module: str) -> str:
    return module.split(".")[2] if module.count(".") > 1 else ""


def may(importer: str, imported: str) -> bool:
    """Say whether a module may import another one."""
    own, other = room(importer), room(imported)
    if not own or not other:
        return not own
    if own == "reports":
        same = report_of(importer) == report_of(imported)
        return other != "reports" or same
    if own == other:
        return True
    if own == "ledger":
        return other in ("base", "stats")
    if own == "workflow":
        return other in SHARED | {"ledger"}
    return other in SHARED


def modules() -> list[str]:
    package = paths.root() / "labkit"
    return sorted(reach.name_of(path) for path in package.rglob("*.py"))


def crossings() -> set[tuple[str, str]]:
    return {(name, other) for name in modules() for other in reach.imports_of(name) if not may(name, other)}


def test_no_import_crosses_a_line() -> None:
    told = [f"{name} imports {other}, and {room(name)} may not" for name, other in sorted(crossings())]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("labkit.offload.engine", "labkit.device.memory", True),
        ("labkit.offload.engine", "labkit.hybrid.engine", False),
        ("labkit.hybrid.engine", "labkit.workflow.cells", False),
        ("labkit.scaling.law", "labkit.ledger.audit", False),
        ("labkit.dpo.arm", "labkit.reports.size_inertia.study", False),
        ("labkit.stats", "labkit.workflow.measured", False),
        ("labkit.device", "labkit.offload.engine", False),
        ("labkit.ledger.audit", "labkit.base.units", True),
        ("labkit.ledger.audit", "labkit.models", False),
        ("labkit.ledger.audit", "labkit.workflow.cells", False),
        ("labkit.workflow.run", "labkit.ledger.claims", True),
        ("labkit.workflow.params", "labkit.reports", False),
        ("labkit.workflow.params", "labkit.reports.size_inertia.params", False),
        ("labkit.workflow.run", "labkit.offload.engine", False),
        ("labkit.reports.size_inertia.study", "labkit.workflow.cells", True),
        ("labkit.reports.size_inertia.study", "labkit.reports.scaling_grid.params", False),
        ("labkit.reports.explore", "labkit.reports.scaling_grid.params", False),
        ("labkit.offload.engine", "labkit.cli", False),
        ("labkit.cli", "labkit.workflow.run", True),
    ],
)
def test_the_lines_are_those_that_are_written_down(importer: str, imported: str, allowed: bool) -> None:
    assert may(importer, imported) is allowed


@pytest.mark.parametrize("report", [name for name in reports() if name != "claims"])
def test_no_module_outside_the_reports_names_one(report: str) -> None:
    package = paths.root() / "labkit"
    outside = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] != "reports"]
    naming = {str(path.relative_to(package)) for path in outside if report in path.read_text(encoding="utf-8")}
    # Files that cells named before they moved are found by a table of both names.
    assert naming <= {"cell/data.py"}


def test_the_root_holds_the_command_line_and_folders() -> None:
    package: Path = paths.root() / "labkit"
    assert {path.name for path in package.iterdir() if path.is_file()} == {"__init__.py", "cli.py", "py.typed"}
