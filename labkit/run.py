"""Drive one notebook: parameters, plan, doctor, papermill, checks, publish.

A run either publishes everything it declared or leaves the last good figures as they were; the notebook of a failed run
is kept to be read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from labkit import device, params, paths, record, units
from labkit.files import disk_errors, write_atomically
from labkit.progress import describe as describe_beat
from labkit.progress import read_heartbeat
from labkit.scaling.cost import Cost, plan_grid
from labkit.schema import Params

_PLANS: dict[str, Callable[[Any], Cost]] = {"scaling_grid": plan_grid}
_HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a run needs."""

    name: str
    """What was looked at."""
    ok: bool
    """Whether it is as needed."""
    detail: str
    """What was found, and the remedy if it is not ok."""


def plan(resolved: Params) -> Cost | None:
    """Estimate what a run takes; None for a report that trains nothing."""
    estimate = _PLANS.get(resolved.report_id())
    return estimate(resolved) if estimate else None


def doctor(resolved: Params, cost: Cost | None) -> list[Check]:
    """Look at everything a run needs before it starts; nothing is changed but a missing corpus being fetched."""
    root = paths.output_root()
    needed = max(cost.disk_bytes if cost else 0, 50e6)
    free = device.free_disk_bytes(root)
    checks = [
        _device_check(resolved),
        Check("disk", free > needed, f"{units.format_bytes(free)} free, {units.format_bytes(needed)} needed in {root}"),
        _writable(root),
        _lock_check(),
    ]
    if cost and resolved.device == "cpu":
        have = min(device.memory_limit_bytes(), resolved.memory_gib * units.GIB)
        detail = f"{units.format_bytes(cost.peak_bytes)} planned, {units.format_bytes(have)} allowed here and by the profile"
        checks.append(Check("memory", cost.peak_bytes <= have, detail))
    if hasattr(resolved, "corpus"):
        checks.append(_corpus_check(resolved.corpus))
    return checks


def run(report: str, hardware: str, overrides: Mapping[str, Any] | None = None, say: Callable[[str], None] = print) -> Path:
    """Execute a report's notebook on a profile and publish its outputs.

    Args:
        report: which report.
        hardware: which profile.
        overrides: values for this run only; the run is then marked `custom` and `make` does not count it as done.
        say: receives the lines meant for people.

    Returns:
        the published folder.

    Raises:
        ValueError: bad parameters, a missing device or corpus, too little memory or disk, or a second run of the same
            target; nothing was started.
        record.RunFailed: the notebook raised or did not write a declared output; the last good figures are untouched.
    """
    resolved = params.resolve(report, hardware, overrides)
    cost = plan(resolved)
    say(describe(resolved, cost))
    _refuse(doctor(resolved, cost))
    with exclusive(report, hardware), _staging(report, hardware) as staging:
        started = time.time()
        executed = _execute(resolved, staging, say)
        _check_outputs(report, staging, started)
        stamp(resolved, staging, executed, time.time() - started, overrides)
        published = _publish(staging, paths.figures(hardware, report))
        _mark_done(report, hardware, custom=bool(overrides))
    say(f"published {published} in {units.format_seconds(time.time() - started)}")
    return published


def describe(resolved: Params, cost: Cost | None) -> str:
    """Say in a few lines what a run will do and take."""
    head = f"{resolved.report_id()} on {resolved.hardware}: {params.scale(resolved)} scale, {resolved.device}"
    if cost is None:
        return f"{head}; reads published results, trains nothing"
    return (
        f"{head}, {resolved.workers} workers x {resolved.threads} threads\n"
        f"  {cost.n_cells} models, {units.format_count(cost.tokens)} tokens, {cost.flops / 1e12:,.1f} TFLOP\n"
        f"  about {units.format_seconds(cost.seconds)} of training at {cost.flops_per_second / 1e9:,.0f} GFLOP/s ({cost.basis})\n"
        f"  up to {units.format_bytes(cost.peak_bytes)} of memory, {units.format_bytes(cost.disk_bytes)} of disk"
    )


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
            f"{report} on {hardware} is already running (process {who}, lock {path}); wait for it, or stop it and rerun: "
            "finished cells are kept"
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
    parent = paths.figures(hardware, report).parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{report}.new.*"):
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{report}.new."))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _execute(resolved: Params, staging: Path, say: Callable[[str], None]) -> Path:
    """Run the source notebook into a fresh file; keep it among the failed ones if it raises."""
    import papermill

    report, work = resolved.report_id(), paths.runs(resolved.hardware, resolved.report_id())
    executed = work / "running.ipynb"
    executed.unlink(missing_ok=True)
    heartbeat = work / "heartbeat.json"
    heartbeat.unlink(missing_ok=True)
    environment = {
        "LABKIT_STAGING": str(staging),
        "LABKIT_HEARTBEAT": str(heartbeat),
        "LABKIT_HEADLESS": "1",
        "MPLBACKEND": "agg",
        "TOKENIZERS_PARALLELISM": "false",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    try:
        with _environment(environment), _relay(heartbeat, say), disk_errors(executed):
            papermill.execute_notebook(
                paths.notebook(report),
                executed,
                parameters=resolved.model_dump(),
                kernel_name="python3",
                cwd=str(paths.root() / "notebooks"),
                progress_bar={"desc": report, "unit": "cell", "file": sys.stderr},
            )
    except papermill.PapermillExecutionError as error:
        kept = _keep_failed(executed, resolved)
        if error.ename in _BAD_INPUT:
            raise ValueError(f"{error.evalue}\n(executed notebook: {kept})") from None
        raise record.RunFailed(f"cell {error.exec_count} of {report} raised {error.ename}: {error.evalue}\nsee {kept}") from None
    return executed


_BAD_INPUT = {"ValueError", "DiskFull", "MissingData", "MissingDevice"}


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


@contextlib.contextmanager
def _relay(heartbeat: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Show the progress of long work inside the kernel, which writes a heartbeat."""
    over = threading.Event()

    def watch() -> None:
        last = None
        while not over.wait(_HEARTBEAT_SECONDS):
            beat = read_heartbeat(heartbeat)
            if beat is not None and beat.done != last:
                last = beat.done
                say(f"  {describe_beat(beat)}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _check_outputs(report: str, staging: Path, started: float) -> None:
    """Every declared file was written by this run and is not empty."""
    for name in params.declared_outputs(report):
        path = staging / name
        if not path.exists() or path.stat().st_size == 0 or path.stat().st_mtime < started - 1:
            raise record.RunFailed(f"the notebook of {report} ended without writing {name}, which {paths.science_file(report)} declares")


def stamp(
    resolved: Params, staging: Path, executed: Path, seconds: float, overrides: Mapping[str, Any] | None
) -> None:
    """Write run.json (what ran, from what, how long) and move the executed notebook to its place."""
    report = resolved.report_id()
    inputs = {str(p.relative_to(paths.root())): record.file_hash(p) for p in inputs_of(report, resolved.hardware)}
    document = {
        "report": report,
        "profile": resolved.hardware,
        "scale": params.scale(resolved),
        "overrides": dict(overrides or {}),
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "inputs": inputs,
        "outputs": {p.name: record.file_hash(p) for p in sorted(staging.iterdir())},
        "provenance": record.provenance(resolved.model_dump()),
    }
    write_atomically(staging / "run.json", record.dump_json(document))
    os.replace(executed, paths.runs(resolved.hardware, report) / "executed.ipynb")


def inputs_of(report: str, hardware: str) -> list[Path]:
    """Return the files a target is made from: notebook, science, profile and the labkit modules the notebook uses."""
    return [*record.notebook_files(report), paths.profile_file(hardware)]


def _publish(staging: Path, final: Path) -> Path:
    """Swap the new folder in; the old one is gone only once the new one stands."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and final.exists():
        shutil.rmtree(old)
    if final.exists():
        os.rename(final, old)
    os.chmod(staging, 0o755)
    os.rename(staging, final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def _mark_done(report: str, hardware: str, *, custom: bool) -> None:
    """Write what `make` looks at: a stamp, and the rule that says which files it depends on."""
    done = paths.runs(hardware, report) / "done"
    rule = done.with_name("done.d")
    if custom:
        done.unlink(missing_ok=True)
        return
    root = paths.root()
    files = [str(path.relative_to(root)) for path in inputs_of(report, hardware)]
    target = os.path.relpath(done, root)
    lines = [f"{target}: {' '.join(files)}", *(f"{file}:" for file in files)]
    write_atomically(rule, ("\n".join(lines) + "\n").encode())
    write_atomically(done, b"")


def _refuse(checks: list[Check]) -> None:
    if bad := [check for check in checks if not check.ok]:
        raise ValueError("\n".join(f"{check.name}: {check.detail}" for check in bad))


def _device_check(resolved: Params) -> Check:
    try:
        device.require(resolved.device)
    except ValueError as error:
        return Check("device", False, f"profile {resolved.hardware}: {error}")
    return Check("device", True, f"{resolved.device} is here")


def _writable(root: Path) -> Check:
    probe = root if root.exists() else root.parent
    return Check("output folder", os.access(probe, os.W_OK), f"{root} {'is' if os.access(probe, os.W_OK) else 'is not'} writable")


def _corpus_check(name: str) -> Check:
    from labkit import corpora

    try:
        corpus = corpora.load(name)
    except (ValueError, RuntimeError) as error:
        return Check("corpus", False, str(error))
    return Check("corpus", True, f"{corpus.protocol}, {sum(len(t.encode()) for t in corpus.train):,} training bytes")


def _lock_check() -> Check:
    """Compare what is installed with constraints.txt; a difference is told, not refused."""
    import importlib.metadata as metadata

    lock = paths.root() / "constraints.txt"
    pinned = dict(line.split("==", 1) for line in lock.read_text().split() if "==" in line) if lock.exists() else {}
    installed = {dist.name.lower().replace("_", "-"): dist.version.split("+")[0] for dist in metadata.distributions()}
    differ = [f"{n} {installed[n]} (lock {v})" for n, v in pinned.items() if n in installed and installed[n] != v]
    detail = f"differs from constraints.txt: {', '.join(differ)}" if differ else "installed versions equal constraints.txt"
    return Check("versions", True, detail)


def status(hardware: str) -> dict[str, list[str]]:
    """Say for each report why `make` would run it again; an empty list means it is up to date."""
    return {report: _why_stale(report, hardware) for report in paths.reports()}


def _why_stale(report: str, hardware: str) -> list[str]:
    done = paths.runs(hardware, report) / "done"
    run_file = paths.figures(hardware, report) / "run.json"
    if not run_file.exists():
        return ["never run here"]
    if not done.exists():
        return ["the published figures come from another checkout or from a run with -p"]
    recorded = json.loads(run_file.read_text())["inputs"]
    since = done.stat().st_mtime
    reasons = []
    for path in inputs_of(report, hardware):
        name = str(path.relative_to(paths.root()))
        if record.file_hash(path) != recorded.get(name):
            reasons.append(f"{name} changed")
        elif path.stat().st_mtime > since:
            reasons.append(f"{name} was touched (same contents)")
    return reasons
