"""The parts of README.md that say what came out: made from what is published, between markers.

    python -m labkit.workflow.readme         # what `make readme` calls

A part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test holds README against what would stand there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from labkit.base import paths
from labkit.base.files import read_json, write_atomically
from labkit.ledger import claims
from labkit.ledger.audit import report_of
from labkit.workflow import conclusion
from labkit.workflow.judged import judge_profile

PROFILES = ("cpu", "cpu-24gb")
"""Profiles whose results README shows."""
GRAVEST = 2
"""Defects of a report that README names; the notebook of claims has all."""


def verdict_counts() -> str:
    """Return the number of rows with each verdict on the first profile; inputs stand apart, since none can come out."""
    counts = claims.summary(judge_profile(PROFILES[0])).set_index("verdict")["claims"]
    inputs = counts.pop("input")
    lines = ["| verdict | numbers |", "|---|---|", *(f"| {name} | {n} |" for name, n in counts.items())]
    return "\n".join(
        [*lines, "", f"{inputs} more are inputs of the reports: settings and counts, which no run decides."]
    )


def answers() -> str:
    """Return for each report its question, with how many of its headlines hold, do not, and are not decided."""
    judged = claims.headlines(judge_profile(PROFILES[0])).set_index("claim")["verdict"]
    lines = [f"| question | hold on `{PROFILES[0]}` | do not hold | not decided |", "|---|---|---|---|"]
    for report in map(report_of, claims.ledgers()):
        ids = [claim.id for claim in claims.load(report) if claim.headline]
        groups = [conclusion.group_of(judged[name]) for name in ids]
        holds, fails = (groups.count(heading) for heading in (conclusion.HOLDS, conclusion.FAILS))
        page = paths.figures_of(Path("."), PROFILES[0], report) / "notebook.ipynb"
        lines.append(f"| [{_question(report)}]({page}) | {holds} | {fails} | {len(ids) - holds - fails} |")
    return "\n".join(lines)


def _question(report: str) -> str:
    """Return the heading of a report's notebook, which asks what it answers."""
    first = read_json(paths.notebook(report), "cells", remedy="`git checkout` brings it back")["cells"][0]
    return "".join(first["source"]).splitlines()[0].removeprefix("# ")


PARTS: dict[str, Callable[[], str]] = {
    "reports": answers,
    "headlines": lambda: conclusion.table(PROFILES),
    "defects": lambda: conclusion.defect_list(GRAVEST),
    "verdicts": verdict_counts,
}
"""What makes each part."""


def fill(text: str) -> str:
    """Return README's text with every part made anew.

    Raises:
        ValueError: a part has no markers.
    """
    for name, make in PARTS.items():
        part = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not part.search(text):
            raise ValueError(f"README.md has no part between <!-- {name}:begin --> and <!-- {name}:end -->")
        made = make()
        text = part.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    return text


def main() -> None:
    """Write README.md with its parts made anew."""
    path = paths.root() / "README.md"
    write_atomically(path, fill(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
