"""Drive one notebook: parameters, plan, doctor, papermill, checks, publish.

A run either publishes everything it declared or leaves the last good figures as they were; the notebook of a failed run
is kept to be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from labkit.base import paths, units
from labkit.base.files import DiskFull, disk_errors, read_json, write_atomically
from labkit.base.modes import RENDER
from labkit.ledger import OLD
from labkit.track import choose, follow
from labkit.workflow import committed, conclusion, kernels, lock, notebook, params, publish, record
from labkit.workflow.cells import store_of
from labkit.workflow.doctor import Check, doctor
from labkit.workflow.evidence import functions_of, look
from labkit.workflow.freshness import input_hashes, mark_done, status, was_run_here
from labkit.workflow.judged import rejudge
from labkit.workflow.plan import describe, plan
from labkit.workflow.schema import Params
from labkit.workflow.watch import cells, in_terminal, watch

__all__ = ["describe", "doctor", "exclusive", "plan", "render", "run", "status"]

_BAD_INPUT = {"DiskFull", "MissingCells", "MissingData", "MissingDevice", "MissingWeights", "TooLarge"}
# A kernel warns about its transport and calls the interrupt of every normal shutdown an error.
_QUIET_KERNEL = ["--IPKernelApp.log_level=CRITICAL"]


def run(
    report: str,
    hardware: str,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    *,
    track: str | None = None,
    uncommitted: bool = False,
    overwrite: bool = False,
) -> Path:
    """Execute a report's notebook on a profile and publish its outputs.

    A run with values of its own is marked `custom` and goes to a folder of its own, `paths.custom`.

    Args:
        report: which report.
        hardware: which profile.
        overrides: values for this run only.
        say: receives the lines meant for people.
        track: tracker that follows the run, "none" for no tracker; by default the profile's.
        uncommitted: publish figures that git keeps although no commit holds what makes them; the record then says so.
        overwrite: publish over the profile's figures what has values of its own; `make` does not count it as done.

    Returns:
        the published folder.

    Raises:
        ValueError: bad parameters, a missing device or corpus, too little memory, a full disk, code that no longer
            does what its version promises, changes that no commit holds, or a second run of the same target; the last
            good figures are untouched.
        record.RunFailed: the notebook raised, its kernel died or it did not write a declared output; the last good
            figures are untouched.
    """
    resolved, tracker = params.resolve(report, hardware, overrides), choose(track, params.track_of(hardware))
    place = paths.custom if overrides and not overwrite else paths.figures
    if not uncommitted:
        committed.refuse_uncommitted(place(hardware, report))
    cost = plan(resolved)
    say(describe(resolved, cost))
    _refuse(doctor(resolved, cost))
    _refuse_changed_behaviour(report, say)
    following = follow(tracker, report, hardware, say)
    with exclusive(report, hardware), following as board:
        published = _make(resolved, place(hardware, report), overrides, say, {})
        board.figures(published)
    return published


def render(report: str, hardware: str, say: Callable[[str], None] = print, *, uncommitted: bool = False) -> Path:
    """Make the figures, tables and verdicts of a published profile again from its cells on record, running none.

    A folder recorded before cells were kept cannot be rendered: its results are judged again, and nothing else changes.

    Args:
        report: which report.
        hardware: which profile.
        say: receives the lines meant for people.
        uncommitted: as for `run`.

    Returns:
        the published folder.

    Raises:
        ValueError: cells are missing, which are listed; changes that no commit holds; a second run of the same target.
        record.RunFailed: as `run`.
    """
    resolved = params.resolve(report, hardware)
    if not uncommitted:
        committed.refuse_uncommitted(paths.figures(hardware, report))
    if not any(store_of(hardware, report).records()) and (judged := _judge_again(report, hardware, say)):
        return judged
    state = look(resolved)
    if lacking := [*state.missing, *(f"{name} ({why})" for name, why in state.outdated.items())]:
        if judged := _judge_again(report, hardware, say):
            return judged
        listed = "\n".join(f"  {one}" for one in lacking)
        remedy = f"`labkit run {report} --hw {hardware}` computes them"
        raise ValueError(f"{report} on {hardware}: {len(lacking)} cells are not on record; {remedy}\n{listed}")
    with exclusive(report, hardware):
        return _make(resolved, paths.figures(hardware, report), None, say, {RENDER: "1"})


def _judge_again(report: str, hardware: str, say: Callable[[str], None]) -> Path | None:
    with exclusive(report, hardware):
        folder = rejudge(report, hardware)
    if folder:
        say(f"judged {folder} again; it was {OLD}, so that nothing else in it can be made again")
    return folder


def _make(
    resolved: Params,
    final: Path,
    overrides: Mapping[str, Any] | None,
    say: Callable[[str], None],
    environment: Mapping[str, str],
) -> Path:
    """Execute the notebook into a fresh folder and publish it in one step."""
    report, hardware = resolved.report_id(), resolved.hardware
    with publish.staging(final) as staging:
        started, inputs = time.time(), input_hashes(report, hardware)
        changed = committed.uncommitted(final)
        # Another machine's record that is shown here is no run: `make figures` still has to make one.
        counts = not environment or was_run_here(report, hardware)
        executed = _execute(resolved, staging, say, environment)
        _check_outputs(resolved, staging, executed)
        notebook.lead_with(executed, lambda: conclusion.lead(report, hardware, staging))
        _write_notebook(executed, staging)
        ran = record.last_run(report, hardware) if environment else record.this_run(time.time() - started)
        record.write_run(staging, resolved, ran, inputs, overrides, changed)
        published = publish.swap_in(staging, final)
        os.replace(executed, executed.with_name("executed.ipynb"))
        if final == paths.figures(hardware, report):
            mark_done(report, hardware, inputs, custom=bool(overrides) or not counts)
    for cell in _failed_cells(published):
        say(f"NOT MEASURED  {cell}")
    say(f"published {published} in {units.format_seconds(time.time() - started)}")
    return published


def _refuse_changed_behaviour(report: str, say: Callable[[str], None]) -> None:
    """Hold the code against its version before it computes cells under that version's name."""
    drifted = [one.name for one in lock.drift(functions_of(report)) if one.why == "code"]
    if drifted:
        say(f"code changed: running the goldens of {', '.join(drifted)}")
        told: list[str] = []
        if not lock.check(drifted, told.append):
            raise ValueError("\n".join(told))
        say("\n".join(told))


def _failed_cells(published: Path) -> list[str]:
    """List what the notebook went on without: its claims stay unjudged, and nobody should have to find out later."""
    results = published / "results.json"
    return read_json(results, "failures")["failures"] if results.exists() else []


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


def _execute(resolved: Params, staging: Path, say: Callable[[str], None], more: Mapping[str, str]) -> Path:
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
        **more,
    }
    try:
        with kernels.inherited(environment), watch(report, executed, heartbeat, say), disk_errors(executed):
            papermill.execute_notebook(
                paths.notebook(report),
                executed,
                parameters=params.given(resolved),
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


def _check_outputs(resolved: Params, staging: Path, executed: Path) -> None:
    """Every declared file was written by this run, into its fresh folder, and is not empty."""
    report = resolved.report_id()
    written = {name: path.stat().st_size for name, path in record.files_in(staging).items()}
    missing = [name for name in params.declared_outputs(report) if not written.get(name)]
    if missing:
        raise record.RunFailed(
            f"the notebook of {report} ended without writing {', '.join(missing)}, which {paths.science_file(report)} "
            f"declares\nsee {_keep_failed(executed, resolved)}"
        )


def _write_notebook(executed: Path, staging: Path) -> None:
    """Publish the notebook with its outputs, which a page of a code host shows."""
    places = [(staging, "."), (paths.output_root(), "."), (paths.root(), "."), (Path.home(), "~")]
    write_atomically(staging / notebook.NAME, notebook.published(executed, places))
