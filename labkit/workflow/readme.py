"""The parts of README.md that say what came out: made from what is published, between markers.

    python -m labkit.workflow.readme         # what `make readme` calls

A part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; a test holds README against what would stand there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from labkit.base import paths
from labkit.base.files import write_atomically
from labkit.ledger import claims
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


PARTS: dict[str, Callable[[], str]] = {
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
