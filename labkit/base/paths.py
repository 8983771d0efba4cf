"""Where things live: the repository, its notebooks and params, and where a run may write.

Nothing here depends on the current directory, because papermill runs a notebook in the caller's folder, nbval and
JupyterLab in the notebook's own.
"""

from __future__ import annotations

import os
from pathlib import Path

_MARKER = "pyproject.toml"


def root() -> Path:
    """Return the repository: `LABKIT_ROOT`, else the folder above this package that holds pyproject.toml.

    Raises:
        FileNotFoundError: the package was installed without the repository around it.
    """
    if named := os.environ.get("LABKIT_ROOT"):
        return Path(named).resolve()
    folder = Path(__file__).resolve().parents[2]
    if not (folder / _MARKER).exists():
        raise FileNotFoundError(
            f"{folder} holds no {_MARKER}: labkit runs from a clone; install it there with `pip install -e .` "
            "or name the clone in LABKIT_ROOT"
        )
    return folder


def output_root() -> Path:
    """Return the folder that holds figures/ and runs/: `LABKIT_OUTPUT`, else the repository, else the present one."""
    return Path(os.environ.get("LABKIT_OUTPUT") or repository() or Path.cwd()).resolve()


def repository() -> Path | None:
    """Return the repository as `root` does, None where the package was installed without it."""
    try:
        return root()
    except FileNotFoundError:
        return None


def cache() -> Path:
    """Return the folder for downloads and tokenised text: `LABKIT_CACHE`, else ~/.cache/labkit."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LABKIT_CACHE") or base / "labkit")


def science_file(report: str) -> Path:
    """Return the file that holds a report's science."""
    return root() / "params" / f"{report}.yaml"


def profile_file(hardware: str) -> Path:
    """Return the file that holds a hardware profile."""
    return root() / "params" / "hardware" / f"{hardware}.yaml"


def profiles() -> list[str]:
    """List the hardware profiles the repository knows."""
    return sorted(path.stem for path in (root() / "params" / "hardware").glob("*.yaml"))


def notebook(report: str) -> Path:
    """Return the notebook that retells a report: notebooks/NN_<report>.ipynb.

    Raises:
        ValueError: no such notebook.
    """
    found = sorted((root() / "notebooks").glob(f"[0-9][0-9]_{report}.ipynb"))
    if not found:
        raise ValueError(f"notebooks/NN_{report}.ipynb does not exist; the reports are: {', '.join(reports())}")
    return found[0]


def reports() -> list[str]:
    """List the reports that have a notebook, in the notebooks' order."""
    return [path.stem[3:] for path in sorted((root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))]


def figures(hardware: str, report: str) -> Path:
    """Return the published folder of a report on a profile."""
    return figures_of(output_root(), hardware, report)


def custom(hardware: str, report: str) -> Path:
    """Return where a run with values of its own publishes: beside the work on it, not over the profile's figures."""
    return runs(hardware, report) / "custom"


def figures_of(folder: Path, hardware: str, report: str) -> Path:
    """Return the folder of a report's figures on a profile below the folder that holds figures/."""
    return folder / "figures" / hardware / report


def staging(hardware: str, report: str) -> Path:
    """Return where a notebook writes its outputs.

    Under `labkit run` that is a fresh folder (`LABKIT_STAGING`) which is published only when the whole run succeeded.
    A notebook opened by hand writes to runs/<profile>/<report>/draft, so that exploring touches no published figure.
    """
    return Path(os.environ.get("LABKIT_STAGING") or runs(hardware, report) / "draft")


def runs(hardware: str, report: str) -> Path:
    """Return the git-ignored working folder of a report on a profile: cell store, executed notebook, heartbeat."""
    return output_root() / "runs" / hardware / report


def failed(hardware: str) -> Path:
    """Return the folder that keeps the executed notebooks of failed runs."""
    return output_root() / "runs" / hardware / "failed"
