"""Where a number comes from: commit, versions, machine. Shown with every result, hashed into no key."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any

from labkit.base import paths

_VERSIONS = ("labkit", "torch", "numpy", "scipy", "pandas", "tokenizers", "transformers", "trl", "peft", "papermill")


def origin() -> dict[str, Any]:
    """Say what is computing now: commit, versions, machine, lock of the dependencies, and when."""
    return {**_standing(), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


@functools.cache
def _standing() -> dict[str, Any]:
    """Return what does not change while a process lives: it goes on with the code that it began with."""
    from labkit import device

    changing = ("memory_available_bytes", "n_threads")
    return {
        "git": git_state(),
        "versions": {name: version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        "machine": {name: value for name, value in device.describe().items() if name not in changing},
        "lock_sha256": lock_hash(),
    }


def gathered(origins: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group where cells come from: each commit and machine once, with the number of cells and their first and last day.

    Nothing in it depends on who asks, so that a report made again from its record says the same.
    """
    groups: dict[str, dict[str, Any]] = {}
    for one in sorted(origins, key=lambda one: one["finished"]):
        own = {name: one[name] for name in ("git", "versions", "machine", "lock_sha256")}
        day = one["finished"][:10]
        group = groups.setdefault(json.dumps(own, sort_keys=True), own | {"cells": 0, "first": day, "last": day})
        group["cells"] += 1
        group["last"] = day
    return sorted(groups.values(), key=lambda group: (-group["cells"], group["first"]))


def lock_hash() -> str | None:
    """Return the sha256 of constraints.txt, the lock of every dependency."""
    root = paths.repository()
    lock = root / "constraints.txt" if root else None
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock and lock.exists() else None


def git_state() -> dict[str, Any]:
    """Return the commit and whether tracked files differ from it, figures aside; both None outside a checkout.

    A run replaces figures that are tracked: what computes the next report is still the commit.
    """
    commit = git("rev-parse", "HEAD")
    # Not `git status`: it takes a notebook that was saved with outputs for a changed one, whatever the filter strips.
    changed = git("diff", "--name-only", "HEAD", "--", ".", ":!figures") if commit else None
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def git(*args: str) -> str | None:
    """Return what git says in the repository; None where it fails, is not installed or takes longer than 20 s."""
    if paths.repository() is None:
        return None
    try:
        done = subprocess.run(["git", *args], cwd=paths.root(), capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def version(name: str) -> str | None:
    """Return a package's installed version, None where it is not here."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
