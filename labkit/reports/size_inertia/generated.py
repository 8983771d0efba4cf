"""Questions made by rule from facts, with answers that a rule checks, and notes that may be looked up for them.

A thousand questions tell 13 points of a difference apart where a hundred and fifty do not tell 30. They are of kinds of
which notes help with some (capitals, elements, meanings) and with others not (sums, comparisons, letters), so that a
query has something to be routed by. The facts ship with the package; no question depends on anything else.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.routing import questions
from labkit.routing.questions import Question

PATH = Path(__file__).parent / "data" / "question_facts.jsonl"
"""Facts, one a line, each of one kind."""
SHIPPED = f"inertia/data/{PATH.name}"
"""Their file, relative to the package."""
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_N_SUMS, _N_DIFFERENCES, _N_PRODUCTS, _N_LARGER, _N_ALPHABET = 120, 120, 80, 150, 100

Row = dict[str, Any]


def facts(kind: str) -> list[Row]:
    """Return the shipped facts of a kind: country, element, meaning, opposite, purpose or word."""
    rows = map(json.loads, PATH.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["kind"] == kind]


def load() -> tuple[Question, ...]:
    """Make every question, in an order that mixes the kinds and is always the same.

    Raises:
        ValueError: a fact gives a question that cannot be graded.
    """
    rows = [*_geography(), *_science(), *_language(), *_calendar(), *_letters(), *_arithmetic(), *_larger()]
    made = [questions.made(row) for row in rows]
    if len({one.prompt for one in made}) < len(made):
        raise ValueError("two generated questions have the same text")
    return tuple(made[i] for i in np.random.default_rng(0).permutation(len(made)))


def notes() -> list[str]:
    """Return every note: a sentence for each fact that a question asks for."""
    found = [
        f"{row['name']} is a country in {row['continent']} with the capital {row['capital']}."
        for row in facts("country")
    ]
    found += [
        f"The element {row['name']} has the symbol {row['symbol']} and the atomic number {row['number']}."
        for row in facts("element")
    ]
    found += [f"The word {row['name']} means {row['same']}." for row in facts("meaning")]
    found += [f"The opposite of {row['name']} is {row['opposite']}." for row in facts("opposite")]
    return found + [f"The purpose of a {row['name']} is {row['purpose']}." for row in facts("purpose")]


def looked_up(prompts: Sequence[str], n: int) -> list[list[str]]:
    """Return for each prompt the n notes that share most with it by the cosine of their TF-IDF vectors.

    Nobody tells the search which note answers a question; where none does, the notes say nothing to the point.
    """
    store, words, known = _index()
    # Rounded, so that ties are ties on every machine, and go to the note that stands first.
    near = (words.transform(prompts) @ known.T).toarray().round(9)
    return [[store[i] for i in np.argsort(-row, kind="stable")[:n]] for row in near]


@functools.cache
def _index() -> tuple[list[str], Any, Any]:
    """Return the notes, their vectorizer, and their vectors, a row each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    store = notes()
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    return store, words, words.fit_transform(store)


def with_notes(prompt: str, found: Sequence[str]) -> str:
    """Return a prompt with notes before it, in one line."""
    return f"Notes: {' '.join(found)} Use a note only if it answers the question. {prompt}" if found else prompt


def _row(name: str, category: str, prompt: str, grader: str, answer: Any, options: Sequence[str] = ()) -> Row:
    own = {"id": name, "category": category, "prompt": prompt, "grader": grader, "answer": answer}
    return own | ({"options": list(options)} if options else {})


def _geography() -> Iterator[Row]:
    for i, row in enumerate(facts("country"), 1):
        country, capital = row["name"], row["capital"]
        yield _row(f"capital-{i:03}", "geography", f"What is the capital of {country}?", "exact", capital)
        yield _row(f"country-{i:03}", "geography", f"Of which country is {capital} the capital?", "exact", country)
        yield _row(f"continent-{i:03}", "geography", f"On which continent is {country}?", "exact", row["continent"])


def _science() -> Iterator[Row]:
    for i, row in enumerate(facts("element"), 1):
        name, symbol = row["name"], row["symbol"]
        yield _row(f"symbol-{i:03}", "science", f"Which chemical element has the symbol {symbol}?", "exact", name)
        yield _row(f"atom-{i:03}", "science", f"What is the atomic number of {name}?", "number", row["number"])


def _language() -> Iterator[Row]:
    for i, row, options in _offered("meaning", "same"):
        prompt = f"What is the meaning of the word {row['name']}: {_listed(options)}?"
        yield _row(f"meaning-{i:03}", "language", prompt, "exact", row["same"], options)
    for i, row in enumerate(facts("opposite"), 1):
        yield _row(f"opposite-{i:03}", "language", f"What is the opposite of {row['name']}?", "exact", row["opposite"])
    for i, row, options in _offered("purpose", "purpose"):
        prompt = f"What is the purpose of a {row['name']}: {_listed(options)}?"
        yield _row(f"purpose-{i:03}", "reasoning", prompt, "exact", row["purpose"], options)


def _offered(kind: str, field: str) -> Iterator[tuple[int, Row, list[str]]]:
    """Yield facts with three options: their own answer among those of two others, at a place that goes round."""
    rows = facts(kind)
    for i, row in enumerate(rows):
        others = [rows[(i + step) % len(rows)][field] for step in (7, 16)]
        others.insert(i % 3, row[field])
        yield i + 1, row, others


def _listed(options: Sequence[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"


def _calendar() -> Iterator[Row]:
    for kind, names in (("month", MONTHS), ("day", DAYS)):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            yield _row(
                f"{kind}-after-{i + 1:02}", "reasoning", f"Which {kind} comes after {name}?", "exact", after, names
            )
            yield _row(
                f"{kind}-before-{i + 1:02}", "reasoning", f"Which {kind} comes before {name}?", "exact", before, names
            )


def _letters() -> Iterator[Row]:
    words = [row["name"] for row in facts("word")]
    for i, word in enumerate(words, 1):
        yield _row(f"letters-{i:03}", "language", f"How many letters has the word {word}?", "number", len(word))
    for i, (a, b) in enumerate(_pairs(len(words), _N_ALPHABET, seed=1), 1):
        first, second = words[a], words[b]
        prompt = f"Which word comes first in the alphabet, {first} or {second}?"
        yield _row(f"alphabet-{i:03}", "language", prompt, "exact", min(first, second), (first, second))


def _arithmetic() -> Iterator[Row]:
    kinds = (("sum", "+", _N_SUMS, 90), ("difference", "-", _N_DIFFERENCES, 90), ("product", "*", _N_PRODUCTS, 18))
    for seed, (kind, sign, n, span) in enumerate(kinds, 2):
        for i, (a, b) in enumerate(_pairs(span, n, seed=seed), 1):
            high, low = max(a, b) + 11, min(a, b) + 2
            value = {"+": high + low, "-": high - low, "*": high * low}[sign]
            # An answer that the question states would be given by an echo.
            high += value == low
            value = {"+": high + low, "-": high - low, "*": high * low}[sign]
            yield _row(f"{kind}-{i:03}", "arithmetic", f"What is {high} {sign} {low}?", "number", value)


def _larger() -> Iterator[Row]:
    for i, (a, b) in enumerate(_pairs(900, _N_LARGER, seed=5), 1):
        first, second = str(a + 100), str(b + 100)
        prompt = f"Which number is larger, {first} or {second}?"
        yield _row(f"larger-{i:03}", "arithmetic", prompt, "exact", max(first, second), (first, second))


def _pairs(span: int, n: int, *, seed: int) -> list[tuple[int, int]]:
    """Draw n different unordered pairs of different whole numbers below span, each in a random order."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        a, b = (int(x) for x in rng.choice(span, 2, replace=False))
        found.setdefault(frozenset((a, b)), (a, b))
    return list(found.values())
