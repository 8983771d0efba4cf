"""Only what a commit holds makes figures that git keeps: whoever reads them can check out what computed them.

Figures that git ignores (a smoke profile's), and those that LABKIT_OUTPUT sends elsewhere, may be made from anything.
"""

from __future__ import annotations

from pathlib import Path

from labkit.base import paths
from labkit.workflow.origin import git
from labkit.workflow.sources import written

MAKES_RESULTS = ("labkit", "params", "notebooks", "evidence.lock", "constraints.txt")
"""What a published number or sentence follows from; edited prose and tests change none."""
_SHOWN = 5


def refuse_uncommitted(folder: Path) -> None:
    """Refuse to publish into a folder that git keeps while files that make results differ from the commit.

    Args:
        folder: where the figures would go.

    Raises:
        ValueError: the message names the files and the ways out.
    """
    names = uncommitted(folder)
    if not names:
        return
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise ValueError(
        f"{folder} is committed, and no commit holds what would make it: {', '.join(names[:_SHOWN])}{more} "
        f"{'differs' if len(names) == 1 else 'differ'} from HEAD. Commit first; or have the figures elsewhere, "
        "LABKIT_OUTPUT=runs/own; or pass --uncommitted (make: UNCOMMITTED=1), which marks the record"
    )


def uncommitted(folder: Path) -> list[str]:
    """List the files that make results and differ from the commit; none where git does not keep the folder.

    A notebook of which only outputs differ is as committed: JupyterLab writes them on every save.
    """
    if not _is_kept(folder):
        return []
    listed = git("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", *MAKES_RESULTS)
    entries = [entry[3:] for entry in (listed or "").split("\0") if entry]
    return [name for name in entries if not (name.endswith(".ipynb") and _only_outputs(name))]


def _is_kept(folder: Path) -> bool:
    """Whether git would commit what lies in a folder: it is inside the checkout, and not ignored."""
    if not folder.resolve().is_relative_to(paths.root()) or git("rev-parse", "HEAD") is None:
        return False
    # A folder that is named by a rule with a slash at its end need not exist for its files to be ignored.
    return git("check-ignore", "--quiet", str(folder / "results.json")) is None


def _only_outputs(name: str) -> bool:
    """Whether a notebook's cells are those of the commit, outputs and counts aside."""
    committed, here = git("show", f"HEAD:{name}"), paths.root() / name
    if committed is None or not here.exists():
        return False
    try:
        return written(committed) == written(here.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError):
        return False  # it was damaged: that is a change, and git has the other one
