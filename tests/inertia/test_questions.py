"""The graders against texts whose grade a person gave, and the shipped questions against properties that make a score
mean something: repeating a question, saying nothing, or always saying the same scores no more than chance.

The references are the hand-graded texts below and arithmetic on the questions' own fields.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.routing import questions
from labkit.routing.numerals import numbers
from labkit.routing.questions import CATEGORIES, CHANCE, Question, grade, load

QUESTIONS = load()
BASE = {"id": "x-1", "category": "geography", "prompt": "What is asked?"}


def question(grader: str, answer: object, **more: object) -> Question:
    """Make a question as a line of the file would."""
    return questions._question(json.dumps({**BASE, "grader": grader, "answer": answer, **more}))


PARIS = question("exact", "Paris", prompt="What is the capital of France?")
BIKE = question(
    "exact", "red", options=["red", "blue"], prompt="A red bicycle, a blue hat. Which colour is the bicycle?"
)
GATE = question("exact", "15", options=["15", "50"], prompt="Gates 15 and 50. Which is the first?")
SUM = question("number", 15, prompt="What is 12 + 3?")
BIG = question("number", 1500, prompt="How many grams are in 1.5 kilograms?")
LEGS = question("number", 8, prompt="How many legs does one spider have?")
CITY = question(
    "choice", "B", options=["Rome", "Oslo", "Madrid", "Athens"], prompt="Farthest north? A) Rome B) Oslo ..."
)
FIRST = question("choice", "A", options=["Mercury", "Iron", "Copper", "Tin"], prompt="Which is liquid?")
SUN = question("yes-no", "yes", prompt="Is the Sun a star? Answer yes or no.")
FISH = question("yes-no", "no", prompt="Is a whale a fish? Answer yes or no.")
WORDS = question("regex", r"[\w'-]+ [\w'-]+ [\w'-]+[.!]?", example="The sea roars")
UPPER = question("regex", "PAPER", example="PAPER")
SEASONS = question("set", ["spring", "summer", "autumn|fall", "winter"])
WEEKEND = question("set", ["Saturday", "Sunday"], options=["Monday", "Friday"], prompt="Name the weekend's days.")
SORTED = question("set", ["2", "5", "9"], ordered=True, prompt="Sort these numbers: 9, 2, 5")

PASSES = [
    *(
        (PARIS, t)
        for t in ("Paris", "paris.", "The capital of France is Paris.", "It is not Lyon, it is Paris", "PARÍS")
    ),
    *((PARIS, t) for t in ("not London but Paris", "It's **Paris**!", "Paris's the capital")),
    *(
        (BIKE, t)
        for t in (
            "red",
            "The bicycle is red.",
            "It is red, not blue.",
            "It is more red than blue",
            "Blue is not it: red",
            "Not the blue one: red",
        )
    ),
    *((GATE, t) for t in ("15", "Gate 15.", "fifteen", "15, of course")),
    *(
        (SUM, t)
        for t in ("15", "15.", "12 + 3 = 15", "The sum of 12 and 3 is 15.", "fifteen", "The answer is 15", "15.0")
    ),
    *((SUM, t) for t in ("not 16, but 15", "Adding 3 gives 14? No, the answer: 15", "12+3=15", "$15")),
    *((BIG, t) for t in ("1500", "1,500", "1,500 g", "There are 1500 grams in 1.5 kilograms.", "1500.0 grams")),
    *((BIG, "one thousand five hundred"), (LEGS, "One spider has 8 legs."), (LEGS, "Eight, like any one of them")),
    *(
        (CITY, t)
        for t in ("B", "B.", "(B)", "B) Oslo", "The answer is B", "Oslo", "Oslo lies farthest north.", "B Oslo")
    ),
    *((CITY, t) for t in ("Not A, B.", "Option B: it is far north")),
    *((FIRST, t) for t in ("A", "A) Mercury", "A metal like mercury", "(A)")),
    *((SUN, t) for t in ("Yes", "yes, it is", "Yes or no? Yes.")),
    *((FISH, t) for t in ("No", "no.", "No, a whale is a mammal.")),
    *((WORDS, t) for t in ("The sea roars", '"The sea roars."', " Waves never sleep! ")),
    *((UPPER, t) for t in ("PAPER", "'PAPER'", "PAPER.")),
    *((SEASONS, t) for t in ("Spring, summer, fall and winter", "winter autumn summer spring")),
    *((WEEKEND, t) for t in ("Sunday and Saturday", "Saturday, Sunday, but not Monday")),
    *((SORTED, t) for t in ("2, 5, 9", "2,5,9", "The order is 2 < 5 < 9.", "two, five, nine")),
]
FAILS = [
    *((PARIS, t) for t in ("", "   ", "not Paris", "It isn't Paris.", "It is never in Paris", "Parisian", "London")),
    *((PARIS, t) for t in ("The capital is not the city of Paris", "anything other than Paris", "Compari s")),
    *(
        (BIKE, t)
        for t in (
            "",
            "blue",
            "red and blue",
            "not red",
            "Red is not it",
            "Red isn't it",
            "more blue than red",
            "a red bicycle and a blue hat",
            "redder",
            BIKE.prompt,
        )
    ),
    *((GATE, t) for t in ("50", "150", "15.5", "1,015", "115", "15 or 50", "0.15", "not 15")),
    *(
        (SUM, t)
        for t in ("", "16", "150", "1.5", "15.5", "-15", "12 + 3", "16, or maybe 15", "12 + 3 = 16", "1 5", "not 15")
    ),
    *((SUM, t) for t in ("15 minus something: the answer is 14", "The answer is fifty")),
    *((BIG, t) for t in ("150", "1,50", "15,000", "1.500", "1.5 kilograms")),
    *((LEGS, t) for t in ("80", "0.8", "18", "six", "eighteen")),
    *(
        (CITY, t)
        for t in ("", "A", "C) Madrid", "A) Rome B) Oslo C) Madrid D) Athens", "Rome and Oslo", "not B", "b", "Bo")
    ),
    *((FIRST, t) for t in ("A good question", "A metal", "Iron", "I think a metal, tin")),
    *((SUN, t) for t in ("", "No", "Answer yes or no.", "yesterday", "It is a star", "no, yes")),
    *((FISH, t) for t in ("Yes", "nothing", "north", "Yes, not no")),
    *((WORDS, t) for t in ("", "The sea", "The sea roars loudly", "Three words: The sea roars")),
    *((UPPER, t) for t in ("paper", "Paper", "PAPER PAPER", "")),
    *(
        (SEASONS, t)
        for t in ("", "spring, summer, winter", "springs summer fall winter", "spring summer fall, not winter")
    ),
    *((WEEKEND, t) for t in ("Friday, Saturday, Sunday", "Sunday", "Saturday and Monday")),
    *((SORTED, t) for t in ("9, 2, 5", "2, 5", "2, 9, 5", "25, 9", "")),
]


@pytest.mark.parametrize(("asked", "text"), PASSES, ids=lambda value: str(getattr(value, "grader", value)))
def test_a_text_that_a_person_would_accept_passes(asked: Question, text: str) -> None:
    assert grade(asked, text) == 1.0


@pytest.mark.parametrize(("asked", "text"), FAILS, ids=lambda value: str(getattr(value, "grader", value)))
def test_a_text_that_a_person_would_refuse_fails(asked: Question, text: str) -> None:
    assert grade(asked, text) == 0.0


def test_every_grader_is_held_against_texts_of_both_kinds() -> None:
    for cases in (PASSES, FAILS):
        assert {asked.grader for asked, _ in cases} == set(CHANCE)


@given(
    st.integers(0, 10**7), st.sampled_from(["{}", "{:,}", "It is {}.", "= {}", "the answer: {}", "about {:,} grams"])
)
def test_an_integer_is_read_back_from_any_notation_and_no_other_one(value: int, form: str) -> None:
    assert grade(question("number", value), form.format(value)) == 1.0
    assert grade(question("number", value + 1), form.format(value)) == 0.0
    assert grade(question("number", value * 10 + 1), form.format(value)) == 0.0


@pytest.mark.parametrize("value", [0, 7, 13, 20, 42, 99, 100, 105, 110, 999, 1000, 1900, 2345, 12345])
def test_numbers_in_words_are_read_as_written_by_a_speller_of_the_test(value: int) -> None:
    assert [found for *_, found in numbers(f"that makes {spelled(value)}, at least", words=True)] == [value]


def spelled(value: int) -> str:
    """Spell a number below a million, by division."""
    small = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    small += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
    tens = ["", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if value < 20:
        return small[value]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            return f"{spelled(value // size)} {name}" + (f" {spelled(rest)}" if rest else "")
    return tens[value // 10 - 1] + (f"-{small[value % 10]}" if value % 10 else "")


def test_there_are_150_questions_of_every_category_and_grader() -> None:
    assert len(QUESTIONS) == 150
    counts = Counter(q.category for q in QUESTIONS)
    assert tuple(counts) == CATEGORIES
    assert all(15 <= n <= 25 for n in counts.values())
    assert {q.grader for q in QUESTIONS} == set(CHANCE)
    assert len({q.prompt for q in QUESTIONS}) == len(QUESTIONS)


def right_answer(asked: Question) -> str:
    """Write down the answer that the file itself states."""
    if asked.grader == "number":
        return f"{asked.answer:g}"
    if asked.grader == "set":
        return ", ".join(item.split("|")[0] for item in asked.answer)
    return asked.example or asked.answer[0]


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda q: q.id)
def test_the_stated_answer_passes_and_the_repeated_question_or_nothing_fails(asked: Question) -> None:
    assert grade(asked, right_answer(asked)) == 1.0
    assert grade(asked, asked.prompt) == 0.0
    assert grade(asked, "") == 0.0
    if asked.grader not in ("regex", "yes-no", "set"):
        assert grade(asked, f"It is not {right_answer(asked)}") == 0.0


def test_no_constant_answer_scores_above_chance() -> None:
    constants = {right_answer(q) for q in QUESTIONS} | {*"ABCD", "yes", "no", "I do not know."}
    for grader, chance in CHANCE.items():
        part = [q for q in QUESTIONS if q.grader == grader]
        best = max(sum(grade(q, text) for q in part) for text in constants)
        assert best <= chance * len(part) if chance else best <= max(1, 0.1 * len(part)), grader


def test_every_text_of_a_choice_stands_behind_its_letter_in_the_prompt() -> None:
    for asked in QUESTIONS:
        if asked.grader == "choice":
            assert all(f" {letter}) {text}" in asked.prompt for letter, text in zip("ABCD", asked.options, strict=True))


def test_every_answer_of_an_extraction_has_a_rival_in_its_passage() -> None:
    for asked in QUESTIONS:
        if asked.category == "extraction" and asked.grader == "exact":
            named = [text for text in asked.options if questions.mentions(questions.normalise(asked.prompt), text)]
            assert len(named) >= 2, asked.id


def write(folder: Path, change: Callable[[dict], None]) -> Path:
    """Write two good questions and, as the third line, a changed one."""
    rows = [{**BASE, "id": f"x-{i}", "grader": "exact", "answer": "Paris"} for i in range(3)]
    change(rows[2])
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


BAD = {
    "prompt": [("prompt", None), ("prompt", ""), ("prompt", "two\nlines"), ("prompt", 3)],
    "id": [("id", None), ("id", "x-0"), ("id", " x")],
    "category": [("category", None), ("category", "sport")],
    "grader": [("grader", None), ("grader", "exakt")],
    "answer": [("answer", None), ("answer", []), ("answer", 3), ("answer", [""]), ("answer", {"a": 1})],
    "hint": [("hint", "x")],
    "ordered": [("ordered", "yes")],
    "options": [("options", [1])],
}


@pytest.mark.parametrize(("field", "change"), [(field, case) for field, cases in BAD.items() for case in cases])
def test_a_bad_field_is_refused_with_file_line_and_field(tmp_path: Path, field: str, change: tuple) -> None:
    name, value = change
    path = write(tmp_path, lambda row: row.pop(name) if value is None else row.update({name: value}))
    with pytest.raises(ValueError, match=rf"mine\.jsonl line 3: field '{field}'"):
        load(path)


@pytest.mark.parametrize(
    ("grader", "more", "field"),
    [
        ("number", {"answer": "4"}, "answer"),
        ("number", {"answer": True}, "answer"),
        ("number", {"answer": 4, "prompt": "Is four 4?"}, "answer"),
        ("number", {"answer": 4, "prompt": "Is it four?"}, "answer"),
        ("choice", {"answer": "E", "options": ["a", "b", "c", "d"]}, "answer"),
        ("choice", {"answer": "A", "options": ["a", "b", "c"]}, "options"),
        ("yes-no", {"answer": "maybe"}, "answer"),
        ("set", {"answer": ["one"]}, "answer"),
        ("regex", {"answer": "(", "example": "x"}, "answer"),
        ("regex", {"answer": "x", "example": "y"}, "example"),
        ("regex", {"answer": "x"}, "example"),
    ],
)
def test_an_answer_that_its_grader_cannot_use_is_refused(tmp_path: Path, grader: str, more: dict, field: str) -> None:
    path = write(tmp_path, lambda row: row.update({"grader": grader, **more}))
    with pytest.raises(ValueError, match=rf"mine\.jsonl line 3: field '{field}'"):
        load(path)


@pytest.mark.parametrize("line", ["{", "[1]", "", "3"])
def test_a_line_that_is_no_object_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.jsonl line 1: is "):
        load(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.touch()
    with pytest.raises(ValueError, match=r"mine\.jsonl holds no question"):
        load(path)
