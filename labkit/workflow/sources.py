"""What of a notebook somebody wrote, whatever JupyterLab saves beside it: for hashes, for git, for `make lint`.

    python -m labkit.workflow.sources < saved.ipynb > kept.ipynb     git's filter of notebooks/ (`make setup` sets it)
    python -m labkit.workflow.sources FILES                          strip files in place
    python -m labkit.workflow.sources --verify FILES                 name those that are not stripped; exit code 1

Outputs, counts and the kernel's version go. The outputs of cells tagged `keep_output` stay, which nbval compares; it
looks at no cell without a count, so theirs is always 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.base.files import sha256_of

_KEPT = "keep_output"
_OF_THE_KERNEL = ["metadata.language_info", "metadata.widgets"]


def source_hash(path: Path) -> str:
    """Return the sha256 of what was written in a file by hand: of a notebook its cells, of another file its bytes."""
    if path.suffix != ".ipynb":
        return sha256_of(path)
    return hashlib.sha256(json.dumps(written(path.read_text(encoding="utf-8"))).encode()).hexdigest()


def written(notebook: str) -> list[tuple[str, str, list[str]]]:
    """Return kind, source and tags of each cell of a notebook's JSON."""
    cells = json.loads(notebook)["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def stripped(notebook: str) -> str:
    """Return a notebook's JSON as git keeps it."""
    import nbformat
    from nbstripout import strip_output

    document = nbformat.reads(notebook, as_version=4)
    strip_output(document, keep_output=False, keep_count=False, keep_id=True, extra_keys=_OF_THE_KERNEL)
    for cell in document.cells:
        if _KEPT in cell.metadata.get("tags", []) and cell.outputs:
            cell.execution_count = 1
    return nbformat.writes(document).rstrip("\n") + "\n"


def after_save(*, model: Mapping[str, Any], os_path: str, **about: Any) -> None:
    """Tell git that a notebook of which only outputs changed is as it was; Jupyter calls it after every save.

    Git takes a file of another size for a changed one until it is added, whatever its filter makes of it.
    """
    path = Path(os_path)
    if model["type"] == "notebook" and _git(path, "diff", "--quiet"):
        _git(path, "update-index")


def _git(path: Path, *command: str) -> bool:
    """Say whether git does something with a file, and does it without a fault."""
    try:
        done = subprocess.run(["git", *command, "--", path.name], cwd=path.parent, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def main() -> int:
    """Strip what comes in or what is named."""
    parser = argparse.ArgumentParser(description="Keep of notebooks what somebody wrote.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--verify", action="store_true", help="change nothing, name the files that would change")
    given = parser.parse_args()
    if not given.files:
        sys.stdout.write(stripped(sys.stdin.read()))
        return 0
    changed = [path for path in given.files if stripped(text := path.read_text("utf-8")) != text]
    for path in changed:
        if given.verify:
            print(f"{path} holds more than what somebody wrote: run `make format`")
        else:
            path.write_text(stripped(path.read_text("utf-8")), "utf-8")
    return int(given.verify and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
