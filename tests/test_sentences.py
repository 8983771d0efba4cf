"""Sentences about results come from verdicts: nobody types a number or a comparison into a notebook's question, answer
or conclusion, nor into a caption, and what a notebook quotes from its report stands in the ledger.

Checked against the source notebooks, the ledgers and the figures that are committed; changes are planted in copies.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from captions import captions
from nbformat import NotebookNode

from labkit.base import paths
from labkit.ledger import claims
from labkit.ledger.audit import Claim
from labkit.reports.predict_phase.protocol import ALPHA
from labkit.workflow import conclusion, notebook, params

FIGURES = paths.root() / "figures"
PUBLISHED = sorted(path.parent for path in FIGURES.glob(f"*/*/{notebook.NAME}"))
WINGS = [report for report in paths.reports() if report != "claims"]
NUMBER = re.compile(r"(?<![A-Za-z]-)(?<![\w.])\d[\d,]*(?:\.\d+)?")
"""Numbers of a text; the 2 of Phi-2 is a name."""
COMPARISON = re.compile(
    r"\b(?:more|less|fewer|most|least|times|percent|(?:fast|slow|larg|small|high|low|great|cheap|dear|short|long)(?:er|est)"
    r"|better|worse|best|worst|half|twice|double|reproduced|contradicted|outperforms?|beats?|wins?|loses?)\b|%",
    re.IGNORECASE,
)
"""Words that say how two things compare or what came out."""
SCALES = {0.0, 1.0, 2.0, 100.0}
"""Ends of a scale, the 2 of ln 2 and the neighbour i + 2."""


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def prose(text: str) -> str:
    """A text without code, headings, tables, emphasised words, and the numbers of reports and sections."""
    lines = [line for line in text.splitlines() if not line.startswith(("|", "# ", "## "))]
    plain = re.sub(r"`[^`]*`|(?<!\*)\*[A-Za-z ]+\*(?!\*)", "", "\n".join(lines))
    return re.sub(
        r"[Rr]eport 0\d\d|Qwen2\.5-0\.5B|[Ss]ections? \d+|\*\*To know more\*\*|\*\*to know more\*\*", "", plain
    )


def framing(document: NotebookNode) -> dict[str, str]:
    """The markdown that asks, answers and concludes: what stands above the parameters, and the last two texts."""
    cells = document.cells
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    texts = [cell for cell in cells if cell.cell_type == "markdown"]
    opening = [cell for cell in cells[:first] if not cell.source.startswith("## ")]
    return {cell.id: prose(cell.source) for cell in [*opening, *texts[-2:]]}


def typed(text: str) -> list[str]:
    return NUMBER.findall(text) + COMPARISON.findall(text)


@pytest.mark.parametrize("report", paths.reports())
def test_question_answer_and_conclusion_hold_no_typed_number_and_no_typed_comparison(report: str) -> None:
    assert {name: typed(text) for name, text in framing(read(paths.notebook(report))).items() if typed(text)} == {}


@pytest.mark.parametrize(
    "planted", ["Training is 7 times as fast.", "The smaller model converges faster.", "It gains 3 %.", "Jumps win."]
)
def test_a_planted_number_or_direction_is_noticed(planted: str) -> None:
    document = read(paths.notebook("size_inertia"))
    document.cells[0].source += f"\n\n{planted}"
    assert typed(framing(document)[document.cells[0].id])


PLACED = re.compile(r"\b(?:first|second|third|fourth|last|left|right)(?:most)? columns?\b", re.IGNORECASE)


@pytest.mark.parametrize("report", paths.reports())
def test_prose_names_a_column_by_its_name(report: str) -> None:
    """What is the same in every row is said above a table, so that no column has a place of its own."""
    prose = {cell.id: cell.source for cell in read(paths.notebook(report)).cells if cell.cell_type == "markdown"}
    assert {name: PLACED.findall(text) for name, text in prose.items() if PLACED.search(text)} == {}


def described(report: str) -> dict[str, str]:
    """What each figure of a report is said to show: its caption and alt text."""
    return {said.name: f"{said.caption} {said.alt}" for said in captions(report).values()}


SAID_OF_AXES = re.compile(
    r"95 (?:%|percent) intervals?|best of a sweep|share of the slower part|the best lay|lowest final loss|\bln 2\b"
)
"""What a figure may say of how it was drawn."""
RESULTS = re.compile(r"(?:stays?|falls?|rises?|grows?|reacts?|receives?|reach(?:es)? further|improves?) ")


@pytest.mark.parametrize("report", paths.reports())
def test_captions_say_what_is_drawn_and_not_what_came_out(report: str) -> None:
    found = {}
    for name, text in described(report).items():
        plain = SAID_OF_AXES.sub("", text)
        strong = [word for word in COMPARISON.findall(plain) if word.lower() not in ("smallest", "times", "lower")]
        if bad := NUMBER.findall(plain) + strong + RESULTS.findall(plain):
            found[name] = bad
    assert found == {}


def known_to(report: str) -> set[float]:
    """Numbers that a notebook may quote: values of the ledger's rows, what they are about, the report's settings."""
    rows = claims.load(report)
    found = {x for row in rows for x in _values(row)}
    settings = [params.resolve(report, name).model_dump() for name in ("ci", "cpu", "h100")]
    found |= {x for each in settings for value in each.values() for x in _flat(value)}
    return found | {ALPHA} | SCALES


def _values(row: Claim) -> list[float]:
    return [*_flat(row.value), *_flat([*row.conditions.values()]), *row.where.values()]


def _flat(value: object) -> list[float]:
    if isinstance(value, list):
        return [x for inner in value for x in _flat(inner)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def stands_in(number: float, known: set[float]) -> bool:
    return any(abs(number - x / unit) <= 1e-9 * max(1.0, number) for x in known for unit in (1, 1e9))


def quoted(report: str) -> list[tuple[str, str]]:
    """Numbers that the notebook of a report and README's line on it quote, each with the place."""
    texts = [cell for cell in read(paths.notebook(report)).cells if cell.cell_type == "markdown"]
    found = [(cell.id, number) for cell in texts for number in NUMBER.findall(prose(cell.source))]
    table = (paths.root() / "README.md").read_text(encoding="utf-8").partition("## The four reports")[2]
    (line,) = re.findall(rf"^\| 0\d\d {report.replace('_', ' ')} \| ([^|]+) \|", table, re.MULTILINE)
    return found + [("README.md", number) for number in NUMBER.findall(line)]


def test_every_number_that_is_quoted_from_a_report_stands_in_its_ledger_or_its_settings() -> None:
    planted = caught = 0
    for report in WINGS:
        known = known_to(report)
        for place, text in quoted(report):
            number, step = float(text.replace(",", "")), 10.0 ** -len(text.rstrip(",").partition(".")[2])
            assert stands_in(number, known), (report, place, text)
            if number not in SCALES:
                planted += 1
                caught += not stands_in(number + 3 * step, known)
    assert caught / planted > 0.75, "a wrong digit is noticed"


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: "/".join(folder.parts[-2:]))
def test_a_published_page_opens_with_the_answer_that_its_verdicts_give(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_OUTPUT", str(paths.root()))
    made = read(folder / notebook.NAME)
    place = [i for i, cell in enumerate(made.cells) if cell.id == notebook.ANSWER]
    assert place == [1], "below the question"
    assert made.cells[1].source == conclusion.lead(folder.name, folder.parent.name, folder)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"ci": [7.01, 8.97], "value": 8.0}, "**reproduced**: 8 [7.01 to 8.97]"),
        ({"ci": [4.752, 6.9]}, "**contradicted**: 6.528 [4.752 to 6.9]"),
        ({"value": 6.6}, "**undecided**: 6.6 [4.752 to 8.97]"),
    ],
)
def test_a_planted_change_of_a_result_changes_the_answer_and_the_conclusion(tmp_path: Path, planted, said) -> None:
    folder = tmp_path / "chunked_offload"
    shutil.copytree(FIGURES / "cpu" / "chunked_offload", folder)
    before = [conclusion.lead("chunked_offload", "cpu", folder), conclusion.of(claims.judge(folder))]
    document = json.loads((folder / "results.json").read_text())
    document["results"]["speedup/batch_32"] |= planted
    (folder / "results.json").write_text(json.dumps(document))
    after = [conclusion.lead("chunked_offload", "cpu", folder), conclusion.of(claims.judge(folder))]
    assert said in after[0]
    assert said.partition(": ")[2] in after[1]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_notebook_without_a_place_for_the_answer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Small", id="title")]), path)
    before = path.read_bytes()
    notebook.lead_with(path, lambda: pytest.fail("nothing is asked"))
    assert path.read_bytes() == before


def test_the_answer_is_written_into_the_executed_notebook_that_pages_are_made_from(tmp_path: Path) -> None:
    path, cells = tmp_path / "small.ipynb", [("title", "# Small"), (notebook.ANSWER, "**Answer.** not yet"), ("x", "y")]
    made = [nbformat.v4.new_markdown_cell(text, id=name) for name, text in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    notebook.lead_with(path, lambda: "**Answer.** Of 3 headline claims 1 is decided.")
    assert [cell.source for cell in read(path).cells] == [
        "# Small",
        "**Answer.** Of 3 headline claims 1 is decided.",
        "y",
    ]
    page = nbformat.reads(notebook.published(path, []).decode(), as_version=4)
    assert page.cells[1].source == read(path).cells[1].source
