"""Look at everything a run needs before it starts: device, disk, memory, versions, text and weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from labkit import device
from labkit.base import paths, units
from labkit.workflow.cost import Cost
from labkit.workflow.report import reports
from labkit.workflow.schema import Params

_LEAST_DISK_BYTES = 50e6


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a run needs."""

    name: str
    """What was looked at."""
    ok: bool
    """Whether it is as needed."""
    detail: str
    """What was found, and the remedy if it is not ok."""


def doctor(resolved: Params, cost: Cost | None) -> list[Check]:
    """Look at everything a run needs before it starts; missing text and weights are fetched if all else is in order."""
    root = paths.output_root()
    checks = [_device(resolved), _disk(root, cost), _writable(root), _versions()]
    if cost and resolved.device == "cpu":
        checks.append(_memory(resolved, cost))
    report = reports()[resolved.report_id()]
    if all(check.ok for check in checks):
        checks += map(_corpus, report.texts(resolved))
    if all(check.ok for check in checks):
        checks += report.function(report.needs)(resolved) if report.needs else []
        checks += map(_weights, report.weights(resolved))
    return checks


def _device(resolved: Params) -> Check:
    try:
        device.require(resolved.device)
    except device.MissingDevice as error:
        return Check("device", False, f"profile {resolved.hardware}: {error}")
    return Check("device", True, f"{resolved.device} is here")


def _disk(root: Path, cost: Cost | None) -> Check:
    needed = max(cost.disk_bytes if cost else 0, _LEAST_DISK_BYTES)
    free = device.free_disk_bytes(root)
    detail = f"{units.format_bytes(free)} free, {units.format_bytes(needed)} needed in {root}"
    return Check("disk", free > needed, detail if free > needed else f"{detail}; set LABKIT_OUTPUT to another disk")


def _writable(root: Path) -> Check:
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    ok = nearest.is_dir() and os.access(nearest, os.W_OK)
    detail = f"{root} is writable" if ok else f"{nearest} is no writable folder; set LABKIT_OUTPUT to one"
    return Check("output folder", ok, detail)


def _memory(resolved: Params, cost: Cost) -> Check:
    have = min(device.memory_limit_bytes(), resolved.memory_gib * units.GIB)
    ok = cost.peak_bytes <= have
    planned, allowed = units.format_bytes(cost.peak_bytes), units.format_bytes(have)
    detail = f"{planned} planned, {allowed} allowed here and by the profile"
    return Check("memory", ok, detail if ok else f"{detail}; use fewer workers (-p workers=1) or a smaller profile")


def _corpus(name: str) -> Check:
    from labkit import corpora

    try:
        corpus = corpora.load(name)
    except corpora.MissingData as error:
        return Check("corpus", False, str(error))
    return Check("corpus", True, f"{corpus.protocol}, {corpus.n_bytes('train'):,} training bytes")


def _weights(name: str) -> Check:
    from labkit import models

    try:
        _, weights = models.prepare(name)
    except ValueError as error:
        return Check("weights", False, str(error))
    return Check("weights", True, f"{name}: {weights.format}, {weights.licence}, sha256 {weights.sha256[:12]}")


def _versions() -> Check:
    """Compare what is installed with constraints.txt; a difference is told, not refused."""
    lock = paths.root() / "constraints.txt"
    pinned = dict(line.split("==", 1) for line in lock.read_text().split() if "==" in line) if lock.exists() else {}
    installed = {dist.name.lower().replace("_", "-"): dist.version.split("+")[0] for dist in metadata.distributions()}
    differ = [f"{n} {installed[n]} (lock {v})" for n, v in pinned.items() if n in installed and installed[n] != v]
    told = f"differs from constraints.txt: {', '.join(differ)}" if differ else "installed as in constraints.txt"
    return Check("versions", True, told)
