"""Know what a target was made from: for `make`, for `labkit status` and for the record of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from labkit.base import paths, units
from labkit.base.files import read_json, write_atomically
from labkit.ledger import OLD, claims
from labkit.workflow import evidence, params, record
from labkit.workflow.schema import Params
from labkit.workflow.sources import source_hash

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def inputs_of(report: str, hardware: str) -> list[Path]:
    """Return the files a target is made from: notebook, science, the labkit modules it uses, ledgers and profile."""
    ledgers = claims.ledgers(None if report == "claims" else report)
    return [*record.notebook_files(report), *ledgers, paths.profile_file(hardware)]


def input_hashes(report: str, hardware: str) -> dict[str, str]:
    """Return the hash of each input by its name within the repository, whatever a notebook's outputs are."""
    return {_name(path): source_hash(path) for path in inputs_of(report, hardware)}


def mark_done(report: str, hardware: str, inputs: Mapping[str, str], *, custom: bool) -> None:
    """Write what `make` looks at: a stamp, and the rule that says which files it depends on.

    The rule names its target by the Makefile's own variable, so that both mean the same file wherever outputs go. There
    is no stamp, and `make` runs the report again, after a custom run or if an input was edited meanwhile.

    Args:
        report: which report.
        hardware: which profile.
        inputs: `input_hashes` from before the run.
        custom: whether the run had overrides, or was none: a record that was only shown.
    """
    done, now = _stamp(report, hardware), input_hashes(report, hardware)
    lines = [f"$(OUT)/{report}/done: {' '.join(now)}", *(f"{name}:" for name in now)]
    write_atomically(done.with_name("done.d"), ("\n".join(lines) + "\n").encode())
    if custom or now != inputs:
        done.unlink(missing_ok=True)
    else:
        write_atomically(done, b"")


def states(hardware: str) -> Iterator[tuple[str, str]]:
    """Yield each report with one of three states: cells have to run, only the rendering is out of date, up to date.

    Raises:
        ValueError: unknown profile.
    """
    for report in paths.reports():
        yield report, _state(params.resolve(report, hardware))


def _state(resolved: Params) -> str:
    published = paths.figures(resolved.hardware, resolved.report_id()) / "results.json"
    if published.exists() and "evidence" not in read_json(published):
        return f"published as it was {OLD}"
    found = evidence.look(resolved)
    if why := found.why_run():
        took = f", about {units.format_seconds(found.seconds)} when they last ran" if found.seconds else ""
        return f"must run, {found.n_present} cells are on record: {'; '.join(why)}{took}"
    changed = _changed_inputs(resolved.report_id(), resolved.hardware)
    return f"rendering out of date, seconds to make: {'; '.join(changed)}" if changed else "up to date"


def status(hardware: str) -> dict[str, list[str]]:
    """Say for each report why `make` would run it again; an empty list means it is up to date.

    Raises:
        ValueError: unknown profile.
    """
    reasons = {report: _why_stale(report, hardware) for report in paths.reports()}
    if reasons.get("claims") == []:
        # The ledger notebook reads what the others published, so it runs after them.
        newer = [r for r in reasons if r != "claims" and (reasons[r] or _ran_after(r, "claims", hardware))]
        reasons["claims"] = [f"{report} runs again or ran since" for report in newer]
    return reasons


def _why_stale(report: str, hardware: str) -> list[str]:
    params.resolve(report, hardware)
    if not (paths.figures(hardware, report) / "run.json").exists():
        return ["never run here"]
    changed, done = _changed_inputs(report, hardware), _stamp(report, hardware)
    if not done.exists():
        return changed or ["the published figures come from another checkout or from a run with -p"]
    since = done.stat().st_mtime
    touched = [_name(path) for path in inputs_of(report, hardware) if path.stat().st_mtime > since]
    return changed + [f"{name} was touched (same contents)" for name in touched if f"{name} changed" not in changed]


def _changed_inputs(report: str, hardware: str) -> list[str]:
    """Say which files differ from those that the published figures were made from."""
    run_file = paths.figures(hardware, report) / "run.json"
    if not run_file.exists():
        return ["never run here"]
    recorded = read_json(run_file, "inputs")["inputs"]
    now = input_hashes(report, hardware)
    return [f"{name} changed" for name, digest in now.items() if digest != recorded.get(name)]


def was_run_here(report: str, hardware: str) -> bool:
    """Say whether `make` counts a report as done on this machine."""
    return _stamp(report, hardware).exists()


def _ran_after(report: str, other: str, hardware: str) -> bool:
    mine, its = _stamp(report, hardware), _stamp(other, hardware)
    return mine.exists() and its.exists() and mine.stat().st_mtime > its.stat().st_mtime


def _stamp(report: str, hardware: str) -> Path:
    return paths.runs(hardware, report) / "done"


def _name(path: Path) -> str:
    """Name a file within the repository; the package may be installed outside the clone that LABKIT_ROOT names."""
    root = paths.root()
    return str(path.relative_to(root if path.is_relative_to(root) else _PACKAGE_PARENT))
