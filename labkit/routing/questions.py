"""The checkable questions of the routing matrix, read strictly, and how an answer to one of them is graded.

Every grader is mechanical: the same text always gets the same grade, and no model judges another. A text is graded as
it stands: a mention that the text denies ("not Paris") does not count, and neither does one among several of the
alternatives that a question offers, so that repeating the question scores nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from labkit.routing.numerals import numbers

PATH = Path(__file__).parent / "data" / "questions.jsonl"
"""The questions shipped with the package."""
SHIPPED = f"inertia/data/{PATH.name}"
"""Their file, relative to the package."""
CATEGORIES = (
    *("geography", "science", "arithmetic", "language", "extraction"),
    *("reasoning", "instruction", "culture", "code"),
)
CHANCE = {"exact": 0.0, "number": 0.0, "choice": 0.25, "yes-no": 0.5, "regex": 0.0, "set": 0.0}
"""What a guess without any knowledge scores, by grader; letters and yes or no are balanced over the questions."""

_LETTERS = "ABCD"
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|without|except|than|instead of)|n't)\b(?:\W+\w+){0,3}\W*$"
)
_DENIAL = re.compile(r"\W*\b(?:is|was|are|were|does|did|do|has|can)(?: not\b|n't\b)|\W*\bcannot\b")
_CLAUSE = re.compile(r"[,;:.!?](?=\s|$)|\bbut\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question whose answer can be checked without a person."""

    id: str
    """Name, the same in every run."""
    category: str
    """One of `CATEGORIES`."""
    prompt: str
    """The question, in one line."""
    grader: str
    """One of `CHANCE`."""
    answer: tuple[str, ...] | float
    """Accepted strings (exact), all that must appear (set; `a|b` for either), a letter, yes or no, a pattern; or the
    number."""
    options: tuple[str, ...] = ()
    """Exact and set: alternatives, of which an answer may name none but the accepted ones. Choice: the four texts."""
    ordered: bool = False
    """Set: the items must appear in this order."""
    example: str = ""
    """Regex: an answer that passes."""


def load(path: Path = PATH) -> tuple[Question, ...]:
    """Read questions, one JSON object a line.

    Raises:
        ValueError: a missing, unknown or malformed field, an unknown grader or category, a duplicate id; the message
            names the file, the line and the field.
    """
    found: dict[str, Question] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            question = _question(line)
            if question.id in found:
                raise ValueError(f"field 'id' is {question.id!r}, which an earlier line has; ids must differ")
        except ValueError as error:
            raise ValueError(f"{path.name} line {number}: {error}") from None
        found[question.id] = question
    if not found:
        raise ValueError(f"{path.name} holds no question")
    return tuple(found.values())


def made(row: dict[str, Any]) -> Question:
    """Check a question that was made by rule, and return it.

    Raises:
        ValueError: a missing, unknown or malformed field, or an answer that could not be graded.
    """
    return _question(json.dumps(row))


def prompts(path: Path = PATH) -> dict[str, str]:
    """Return the text of each question by its id."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["prompt"] for row in rows}


def fingerprint(path: Path = PATH) -> str:
    """Return the SHA-256 of the questions' file: answers to other questions are other results."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def grade(question: Question, text: str) -> float:
    """Return 1.0 if a text answers a question, and 0.0 if it does not.

    exact: one of the accepted strings appears as whole words, and no other of the question's options.
    number: the first number after the last "answer", else after the last "=", else anywhere, that the question does not
        state itself; written in digits or, in a text without digits, in words.
    choice: the one letter named, or where there is none, the one option named.
    yes-no: the first yes or no.
    regex: the whole text matches, quotation marks around it and a full stop at its end aside.
    set: all items appear, in their order where the question asks for one, and no other of the question's options.
    """
    return float(_GRADERS[question.grader](question, text.strip()))


def normalise(text: str) -> str:
    """Fold case, accents, typographic forms (CO₂, ’) and runs of space, so that spelling alone decides."""
    folded = unicodedata.normalize("NFKD", text.translate({0x2019: "'", 0x2018: "'", 0x2212: "-"}))
    return " ".join("".join(c for c in folded if not unicodedata.combining(c)).casefold().split())


def mentions(text: str, term: str) -> list[int]:
    """Return where a normalised text names a term as whole words without denying it.

    Denied is what stands up to three words after "not", "than" and the like in one clause, or right before "is not". A
    term in digits is compared as a number: 15 is in "15." and not in "150", "15.5" or "1,015".
    """
    if re.fullmatch(r"\d+(?:\.\d+)?", term):
        places = [span for *span, value in numbers(text, words=_in_words(text)) if value == float(term)]
    else:
        places = [found.span() for found in re.finditer(rf"(?<!\w){re.escape(normalise(term))}(?!\w)", text)]
    return [start for start, end in places if not _denied(text, start, end)]


def _in_words(text: str) -> bool:
    """Say whether numbers in words count as an answer: only where there are no digits."""
    return not any(map(str.isdigit, text))


def _denied(text: str, start: int, end: int) -> bool:
    before, after = _CLAUSE.split(text[:start])[-1], text[end:]
    return bool(_NEGATION.search(before) or _DENIAL.match(after))


def _exact(question: Question, text: str) -> bool:
    text = normalise(text)
    others = set(map(normalise, question.options)) - set(map(normalise, question.answer))
    return _any(text, question.answer) and not _any(text, others)


def _any(text: str, terms: Iterable[str]) -> bool:
    return any(mentions(text, term) for term in terms)


def _number(question: Question, text: str) -> bool:
    stated = {value for *_, value in numbers(normalise(question.prompt), words=True)}
    text = normalise(text)
    tails = [text.rpartition(mark)[2] for mark in ("answer", "=") if mark in text]
    for part in (*tails, text):
        for start, end, value in numbers(part, words=_in_words(text)):
            if value not in stated and not _denied(part, start, end):
                return abs(value - question.answer) < 1e-9
    return False


def _choice(question: Question, text: str) -> bool:
    # "A" alone at a word's place may be the article: it is a letter only beside a mark, or as the whole answer.
    marked = re.finditer(r"(?<![\w'])(?:\(([A-D])\)|([A-D])(?=[).:,]|$)|([B-D])(?=\s))", text)
    lower = text.casefold()
    letters = {"".join(filter(None, m.groups())) for m in marked if not _denied(lower, *m.span())}
    if not letters:
        folded = normalise(text)
        letters = {
            letter for letter, option in zip(_LETTERS, question.options, strict=True) if mentions(folded, option)
        }
    return letters == {question.answer[0]}


def _yes_no(question: Question, text: str) -> bool:
    words = re.findall(r"\b(?:yes|no)\b", re.sub(r"\byes or no\b", "", normalise(text)))
    return bool(words) and words[0] == question.answer[0]


def _regex(question: Question, text: str) -> bool:
    bare = " ".join(text.split()).strip("\"'“”‘’`").removesuffix(".").strip("\"'“”‘’`")
    return re.fullmatch(question.answer[0], bare) is not None


def _set(question: Question, text: str) -> bool:
    text = normalise(text)
    items = [item.split("|") for item in question.answer]
    places = [sorted(place for term in item for place in mentions(text, term)) for item in items]
    if not all(places) or _any(text, set(question.options).difference(*items)):
        return False
    first = [found[0] for found in places]
    return not question.ordered or first == sorted(first)


_GRADERS: dict[str, Callable[[Question, str], bool]] = {
    "exact": _exact,
    "number": _number,
    "choice": _choice,
    "yes-no": _yes_no,
    "regex": _regex,
    "set": _set,
}


def _question(line: str) -> Question:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg}); write one object a line") from None
    if not isinstance(raw, dict):
        raise ValueError(f"is a {type(raw).__name__}; write one JSON object a line")
    known = [field.name for field in fields(Question)]
    if strange := sorted(set(raw) - set(known)):
        raise ValueError(f"field {strange[0]!r} is unknown; known are {', '.join(known)}")
    for name in ("id", "category", "prompt", "grader", "answer"):
        if name not in raw:
            raise ValueError(f"field {name!r} is missing")
    for name in ("id", "category", "prompt", "grader", "example"):
        value = raw.get(name, "-")
        if not (isinstance(value, str) and value.strip() == value != "" and "\n" not in value):
            raise ValueError(f"field {name!r} is {value!r}; write a line of text without blanks around it")
    _one_of(raw, "category", CATEGORIES)
    _one_of(raw, "grader", _GRADERS)
    if not isinstance(raw.get("ordered", False), bool):
        raise ValueError(f"field 'ordered' is {raw['ordered']!r}; write true or false")
    return _checked(Question(**raw | {"answer": _answer(raw), "options": _texts(raw, "options")}))


def _one_of(raw: dict[str, Any], name: str, known: Iterable[str]) -> None:
    if raw[name] not in known:
        raise ValueError(f"field {name!r} is {raw[name]!r}; known are {', '.join(known)}")


def _answer(raw: dict[str, Any]) -> tuple[str, ...] | float:
    if raw["grader"] != "number":
        return _texts(raw, "answer")
    if isinstance(raw["answer"], bool) or not isinstance(raw["answer"], int | float):
        raise ValueError(f"field 'answer' is {raw['answer']!r}; the grader 'number' needs a number")
    return float(raw["answer"])


def _texts(raw: dict[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name, [])
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts)):
        raise ValueError(f"field {name!r} is {value!r}; write a string or a list of strings")
    return tuple(texts)


def _checked(question: Question) -> Question:
    """Refuse what a grader could not grade, or would grade wrongly."""
    answer, grader = question.answer, question.grader
    if grader == "number":
        if answer in {value for *_, value in numbers(normalise(question.prompt), words=True)}:
            raise ValueError(f"field 'answer' is {answer:g}, a number the prompt states; an echo would pass")
        return question
    allowed = {"choice": tuple(_LETTERS), "yes-no": ("yes", "no")}.get(grader, answer)
    single = grader in ("choice", "yes-no", "regex")
    if not set(answer) <= set(allowed) or len(answer) < (2 if grader == "set" else 1) or (single and len(answer) > 1):
        raise ValueError(f"field 'answer' is {list(answer)}, which the grader {grader!r} cannot use")
    if grader == "choice" and len(question.options) != len(_LETTERS):
        raise ValueError(f"field 'options' has {len(question.options)} texts; the grader 'choice' needs four")
    if grader == "regex":
        _check_pattern(question)
    return question


def _check_pattern(question: Question) -> None:
    try:
        passes = _regex(question, question.example)
    except re.error as error:
        raise ValueError(f"field 'answer' is no regular expression: {error}") from None
    if not passes:
        raise ValueError(f"field 'example' is {question.example!r}, which the pattern in 'answer' does not accept")
