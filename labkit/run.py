"""Drive one notebook: parameters, plan, doctor, papermill, checks, publish.

A run either publishes everything it declared or leaves the last good figures as they were; the notebook of a failed run
is kept to be read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from labkit import kernels, params, paths, record, units
from labkit.doctor import Check, doctor
from labkit.files import DiskFull, disk_errors, write_atomically
from labkit.freshness import input_hashes, mark_done, status
from labkit.plan import describe, plan
from labkit.schema import Params
from labkit.track import choose, follow
from labkit.watch import cells, in_terminal, watch

__all__ = ["describe", "doctor", "exclusive", "plan", "run", "status"]

_BAD_INPUT = {"DiskFull", "MissingData", "MissingDevice", "MissingWeights", "TooLarge"}
# A kernel warns about its transport and calls the interrupt of every normal shutdown an error.
_QUIET_KERNEL = ["--IPKernelApp.log_level=CRITICAL"]


def run(
    report: str,
    hardware: str,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    *,
    track: str | None = None,
) -> Path:
    """Execute a report's notebook on a profile and publish its outputs.

    Args:
        report: which report.
        hardware: which profile.
        overrides: values for this run only; the run is then marked `custom` and `make` does not count it as done.
        say: receives the lines meant for people.
        track: tracker that follows the run, "none" for no tracker; by default the profile's.

    Returns:
        the published folder.

    Raises:
        ValueError: bad parameters, a missing device or corpus, too little memory, a full disk, or a second run of the
            same target; the last good figures are untouched.
        record.RunFailed: the notebook raised, its kernel died or it did not write a declared output; the last good
            figures are untouched.
    """
    resolved, tracker = params.resolve(report, hardware, overrides), choose(track, hardware)
    cost = plan(resolved)
    say(describe(resolved, cost))
    _refuse(doctor(resolved, cost))
    following = follow(tracker, report, hardware, say)
    with exclusive(report, hardware), following as board, _staging(report, hardware) as staging:
        started, inputs = time.time(), input_hashes(report, hardware)
        executed = _execute(resolved, staging, say)
        _check_outputs(resolved, staging, executed)
        _write_record(resolved, staging, time.time() - started, inputs, overrides)
        published = _publish(staging, paths.figures(hardware, report))
        os.replace(executed, executed.with_name("executed.ipynb"))
        mark_done(report, hardware, inputs, custom=bool(overrides))
        board.figures(published)
    for piece in _failed_pieces(published):
        say(f"NOT MEASURED  {piece}")
    say(f"published {published} in {units.format_seconds(time.time() - started)}")
    return published


def _failed_pieces(published: Path) -> list[str]:
    """List what the notebook went on without: its claims stay unjudged, and nobody should have to find out later."""
    results = published / "results.json"
    return json.loads(results.read_text(encoding="utf-8"))["failures"] if results.exists() else []


def _refuse(checks: list[Check]) -> None:
    if bad := [check for check in checks if not check.ok]:
        raise ValueError("\n".join(f"{check.name}: {check.detail}" for check in bad))


@contextlib.contextmanager
def exclusive(report: str, hardware: str) -> Iterator[None]:
    """Hold the lock of one target.

    Raises:
        ValueError: another run holds it.
    """
    path = paths.runs(hardware, report) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name("lock.pid")
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        who = holder.read_text().strip() if holder.exists() else "unknown"
        raise ValueError(
            f"{report} on {hardware} is already running (process {who}, lock {path}); wait for it, or stop it and "
            "rerun: finished cells are kept"
        ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _staging(report: str, hardware: str) -> Iterator[Path]:
    """A fresh folder beside the published ones, removed whatever happens."""
    final = paths.figures(hardware, report)
    final.parent.mkdir(parents=True, exist_ok=True)
    _recover(final)
    folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{report}.new."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _recover(final: Path) -> None:
    """Clean up after a run that was killed: half-made folders go, figures caught between two renames come back."""
    for left in final.parent.glob(f".{final.name}.new.*"):
        shutil.rmtree(left)
    old = _set_aside(final)
    if old.exists() and final.exists():
        shutil.rmtree(old)
    elif old.exists():
        os.rename(old, final)


def _publish(staging: Path, final: Path) -> Path:
    """Swap the new folder in; the old one is gone only once the new one stands."""
    os.chmod(staging, 0o755)
    if final.exists():
        os.rename(final, _set_aside(final))
    os.rename(staging, final)
    shutil.rmtree(_set_aside(final), ignore_errors=True)
    return final


def _set_aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _execute(resolved: Params, staging: Path, say: Callable[[str], None]) -> Path:
    """Run the source notebook into a fresh file; keep it among the failed ones if it raises."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    report, work = resolved.report_id(), paths.runs(resolved.hardware, resolved.report_id())
    executed, heartbeat = work / "running.ipynb", work / "heartbeat.json"
    executed.unlink(missing_ok=True)
    heartbeat.unlink(missing_ok=True)
    environment = kernels.ENVIRONMENT | {
        # The kernel runs in another folder, where a relative path would mean another place.
        "LABKIT_ROOT": str(paths.root()),
        "LABKIT_OUTPUT": str(paths.output_root()),
        "LABKIT_CACHE": str(paths.cache().resolve()),
        "LABKIT_STAGING": str(staging),
        "LABKIT_HEARTBEAT": str(heartbeat),
        "LABKIT_HEADLESS": "1",
        "MPLBACKEND": "agg",
    }
    try:
        with _environment(environment), watch(report, executed, heartbeat, say), disk_errors(executed):
            papermill.execute_notebook(
                paths.notebook(report),
                executed,
                parameters=resolved.model_dump(),
                kernel_name="python3",
                cwd=str(paths.root() / "notebooks"),
                progress_bar=not in_terminal() and {"desc": report, "unit": "cell", "file": sys.stderr},
                extra_arguments=_QUIET_KERNEL,
            )
    except papermill.PapermillExecutionError as error:
        kept = _keep_failed(executed, resolved)
        raise _explain(f"cell [{error.exec_count}] of {report}", error.ename, error.evalue, kept) from None
    except DeadKernelError:
        cell, _ = cells(executed)
        kept = _keep_failed(executed, resolved)
        raise record.RunFailed(
            f"the kernel died in cell [{cell}] of {report}, as it does when memory runs out\nsee {kept}"
        ) from None
    return executed


def _explain(where: str, kind: str, text: str, kept: Path) -> Exception:
    """Say what a cell raised: as bad input if the remedy is outside the notebook, else as a failed run."""
    number = re.match(r"\[Errno (\d+)\]", text)
    if number and int(number[1]) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(f"{where}: {text}; free some space or set LABKIT_OUTPUT to another disk\nsee {kept}")
    if kind in _BAD_INPUT:
        return ValueError(f"{where}: {text}\nsee {kept}")
    return record.RunFailed(f"{where} raised {kind}: {text}\nsee {kept}")


def _keep_failed(executed: Path, resolved: Params) -> Path:
    folder = paths.failed(resolved.hardware)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{resolved.report_id()}-{time.strftime('%Y%m%dT%H%M%S')}.ipynb"
    os.replace(executed, kept)
    return kept


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_outputs(resolved: Params, staging: Path, executed: Path) -> None:
    """Every declared file was written by this run, into its fresh folder, and is not empty."""
    report = resolved.report_id()
    written = {name: path.stat().st_size for name, path in _files(staging).items()}
    missing = [name for name in params.declared_outputs(report) if not written.get(name)]
    if missing:
        raise record.RunFailed(
            f"the notebook of {report} ended without writing {', '.join(missing)}, which {paths.science_file(report)} "
            f"declares\nsee {_keep_failed(executed, resolved)}"
        )


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _write_record(
    resolved: Params, staging: Path, seconds: float, inputs: Mapping[str, str], overrides: Mapping[str, Any] | None
) -> None:
    """Write run.json: what ran, from what, how long, and what came out."""
    document = {
        "report": resolved.report_id(),
        "profile": resolved.hardware,
        "scale": params.scale(resolved),
        "overrides": dict(overrides or {}),
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "inputs": dict(inputs),
        "outputs": {name: record.file_hash(path) for name, path in _files(staging).items()},
        "provenance": record.provenance(resolved.model_dump()),
    }
    write_atomically(staging / "run.json", record.dump_json(document))
