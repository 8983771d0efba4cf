"""Know what a target was made from: for `make`, for `labkit status` and for the record of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from labkit import params, paths, record
from labkit.files import write_atomically

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent


def inputs_of(report: str, hardware: str) -> list[Path]:
    """Return the files a target is made from: notebook, science, profile and the labkit modules the notebook uses."""
    return [*record.notebook_files(report), paths.profile_file(hardware)]


def input_hashes(report: str, hardware: str) -> dict[str, str]:
    """Return the sha256 of each input by its name within the repository."""
    return {_name(path): record.file_hash(path) for path in inputs_of(report, hardware)}


def mark_done(report: str, hardware: str, started: float, *, custom: bool) -> None:
    """Write what `make` looks at: a stamp as old as the run's start, and the rule that says which files it depends on.

    The rule names its target by the Makefile's own variable, so that both mean the same file wherever outputs go. A
    custom run takes the stamp away instead, so that `make` replaces what it published.
    """
    done = _stamp(report, hardware)
    if custom:
        done.unlink(missing_ok=True)
        return
    names = [_name(path) for path in inputs_of(report, hardware)]
    lines = [f"$(OUT)/{report}/done: {' '.join(names)}", *(f"{name}:" for name in names)]
    write_atomically(done.with_name("done.d"), ("\n".join(lines) + "\n").encode())
    write_atomically(done, b"")
    os.utime(done, (started, started))


def status(hardware: str) -> dict[str, list[str]]:
    """Say for each report why `make` would run it again; an empty list means it is up to date.

    Raises:
        ValueError: unknown profile.
    """
    return {report: _why_stale(report, hardware) for report in paths.reports()}


def _why_stale(report: str, hardware: str) -> list[str]:
    params.resolve(report, hardware)
    done = _stamp(report, hardware)
    run_file = paths.figures(hardware, report) / "run.json"
    if not run_file.exists():
        return ["never run here"]
    if not done.exists():
        return ["the published figures come from another checkout or from a run with -p"]
    recorded = json.loads(run_file.read_text(encoding="utf-8"))["inputs"]
    since = done.stat().st_mtime
    reasons = []
    for path in inputs_of(report, hardware):
        name = _name(path)
        if record.file_hash(path) != recorded.get(name):
            reasons.append(f"{name} changed")
        elif path.stat().st_mtime > since:
            reasons.append(f"{name} was touched (same contents)")
    return reasons


def _stamp(report: str, hardware: str) -> Path:
    return paths.runs(hardware, report) / "done"


def _name(path: Path) -> str:
    """Name a file within the repository; the package may be installed outside the clone that LABKIT_ROOT names."""
    root = paths.root()
    return str(path.relative_to(root if path.is_relative_to(root) else _PACKAGE_PARENT))
