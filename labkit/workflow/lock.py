"""evidence.lock: the version, the code and the goldens that every cell function is held to.

    {"cells": {NAME: {"version": 1, "code": [HASH, ...], "goldens": [[RESULT, ...], ...]}}, "sha256": ...}

`code` lists every hash under which the version's behaviour was shown. A golden has one result for each numeric
environment in which it was signed: there floats are compared exactly, elsewhere within `goldens.TOLERANCE`, or
`goldens.COARSE` for types of 16 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.base import paths
from labkit.base.files import write_atomically
from labkit.cell import Json, digest
from labkit.workflow import goldens, reach

FILE = "evidence.lock"


@dataclass(frozen=True, slots=True)
class Drift:
    """A cell function whose code is not the one that was signed."""

    name: str
    """The cell function."""
    why: str
    """What differs: "code", "version" or "new"."""


def read(path: Path | None = None) -> dict[str, Json]:
    """Return what is signed, by cell function; nothing where there is no lock.

    Raises:
        ValueError: the file is damaged or was edited by hand.
    """
    path = path or (paths.repository() or Path()) / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] == digest(document["cells"]):
            return document["cells"]
        problem = "its contents do not match their checksum, as after an edit by hand"
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    raise ValueError(
        f"{path}: {problem}; `git checkout {path}` brings the signed one back, `labkit evidence sign` makes one"
    )


def drift(names: Iterable[str] | None = None) -> list[Drift]:
    """List the cell functions whose code or version is not the signed one, importing none of them."""
    signed, found = read(), []
    for name, one in reach.declared().items():
        if names is not None and name not in names:
            continue
        own = signed.get(name)
        if own is None:
            found.append(Drift(name, "new"))
        elif own["version"] != one.version:
            found.append(Drift(name, "version"))
        elif reach.code_hash(name) not in own["code"]:
            found.append(Drift(name, "code"))
    return found


def check(names: Iterable[str] | None = None, say: Callable[[str], None] = print) -> bool:
    """Run the goldens of what has drifted, and sign code whose behaviour is shown to be unchanged.

    Args:
        names: cell functions; all of them if not given.
        say: receives a line for each that drifted.

    Returns:
        whether every cell function is what its version promises.
    """
    drifted = drift(names)
    unsigned = [one for one in drifted if one.why != "code"]
    for one in unsigned:
        what = "is new" if one.why == "new" else "has another version"
        say(f"{one.name} {what}: `labkit evidence sign {one.name}` records its goldens")
    same = _unchanged([one.name for one in drifted if one.why == "code"], say)
    return not unsigned and same


def _unchanged(names: list[str], say: Callable[[str], None]) -> bool:
    if not names:
        return True
    signed, ran, good = read(), goldens.run(names), True
    for name in names:
        differs = _first_difference(signed[name], ran[name])
        if _specs(signed[name]) != {digest(one["spec"]) for one in ran[name]}:
            good = False
            say(f"{name} has other goldens than were signed: `labkit evidence sign {name}` records them")
        elif differs:
            good = False
            version = signed[name]["version"]
            say(
                f"{name} behaves differently: {differs}\n  if that is meant, raise its version to {version + 1} "
                f"and run `labkit evidence sign {name}`: its cells, and no others, are stale then"
            )
        else:
            signed[name]["code"].append(reach.code_hash(name))
            say(
                f"{name}: behaviour unchanged, shown by {len(ran[name])} goldens{_how(signed[name], ran[name])}; signed"
            )
    write(signed)
    return good


def _first_difference(signed: Json, ran: list[Json]) -> str:
    """Name the first field in which goldens differ from the signed ones of their specs; empty if none does."""
    by_spec = {digest(results[0]["spec"]): results for results in signed["goldens"]}
    for i, new in enumerate(ran, 1):
        results = by_spec.get(digest(new["spec"]))
        if results is None:
            continue
        if "error" in new:
            return f"golden {i} raises {new['error']}"
        exact = next((one for one in results if one["environment"] == new["environment"]), None)
        old = exact or results[0]
        dtype = new["spec"].get("dtype")
        found = next(goldens.differences(old["result"], new["result"], exact=exact is not None, dtype=dtype), "")
        if found:
            return f"golden {i}, {found}"
    return ""


def _specs(signed: Json) -> set[str]:
    return {digest(results[0]["spec"]) for results in signed["goldens"]}


def _how(signed: Json, ran: list[Json]) -> str:
    here = {digest(one["environment"]) for one in ran}
    known = {digest(one["environment"]) for results in signed["goldens"] for one in results}
    within = f"{goldens.TOLERANCE:.0%}, {goldens.COARSE:.0%} in 16 bits"
    return "" if here <= known else f" (within {within}: they were signed on another instruction set)"


def sign(names: Iterable[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Record the goldens of cell functions that are new or have a new version, and this machine's of the others.

    Raises:
        ValueError: a function with the signed version behaves differently; its version has to be raised first.
    """
    known = reach.declared()
    chosen = sorted(names if names else known)
    if strangers := sorted(set(chosen) - set(known)):
        raise ValueError(f"no cell function {', '.join(strangers)}; there are: {', '.join(sorted(known))}")
    signed, ran = read(), goldens.run(chosen)
    for name in chosen:
        own = signed.get(name)
        if errors := [one["error"] for one in ran[name] if "error" in one]:
            raise ValueError(f"{name}: a golden raises {errors[0]}; nothing is signed")
        if own is not None and own["version"] == known[name].version:
            if differs := _first_difference(own, ran[name]):
                raise ValueError(f"{name} behaves differently: {differs}; raise its version first")
            signed[name] = _joined(own, ran[name], reach.code_hash(name))
        else:
            fresh = [[one] for one in ran[name]]
            signed[name] = {"version": known[name].version, "code": [reach.code_hash(name)], "goldens": fresh}
        say(f"{name} v{known[name].version}: {len(ran[name])} goldens signed")
    write({name: own for name, own in signed.items() if name in known})


def _joined(own: Json, ran: list[Json], code: str) -> Json:
    """Add this machine's results to what is signed, new goldens, and the code's hash; goldens that are gone go."""
    by_spec = {digest(results[0]["spec"]): results for results in own["goldens"]}
    goldens_now = []
    for new in ran:
        results = by_spec.get(digest(new["spec"]), [])
        known = any(one["environment"] == new["environment"] for one in results)
        goldens_now.append(results if known else [*results, new])
    return own | {"code": list(dict.fromkeys([*own["code"], code])), "goldens": goldens_now}


def write(cells: dict[str, Any], path: Path | None = None) -> None:
    """Write the lock in one step.

    Raises:
        DiskFull: no room; the old lock is as it was.
    """
    document = {"cells": cells, "sha256": digest(cells)}
    text = json.dumps(document, sort_keys=True, indent=1, allow_nan=False)
    write_atomically(path or paths.root() / FILE, (_tight(text) + "\n").encode())


def _tight(text: str) -> str:
    """Put lists of numbers on one line each."""
    number = r"-?\d[\d.eE+-]*"
    return re.sub(
        rf"\[\s*({number}(?:,\s*{number})*)\s*\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text
    )
