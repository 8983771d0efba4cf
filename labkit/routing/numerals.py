"""Numbers in a text, in digits and in English words."""

from __future__ import annotations

import re

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 100, "thousand": 1000}
_VALUES = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALE = "hundred|thousand"
_SMALL = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_UNITS[1:10])}))?|(?:{'|'.join(_UNITS)}))\b"
_WORDS = re.compile(rf"\b{_SMALL}(?:\s+(?:{_SCALE})\b(?:(?:\s+and)?\s+{_SMALL})?)*")
# A digit after a letter or point belongs to what stands there; a minus after a letter or digit is a dash or subtracts.
_DIGITS = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))")


def numbers(text: str, *, words: bool) -> list[tuple[int, int, float]]:
    """Return start, end and value of each number in a lower-case text, in its order.

    Args:
        text: such as "12 + 7 = 19." or, with `words`, "forty-two".
        words: whether numbers in words count too, up to the thousands.
    """
    found = [(*m.span(), float(m[0].replace(",", ""))) for m in _DIGITS.finditer(text)]
    if words:
        found += [(*m.span(), float(_value(m[0]))) for m in _WORDS.finditer(text)]
    return sorted(found)


def _value(phrase: str) -> int:
    """Add up a number in words: units and tens add, a scale multiplies what stands before it."""
    total = current = 0
    for word in re.findall("[a-z]+", phrase):
        if word == "thousand":
            total, current = total + current * _SCALES[word], 0
        elif word in _SCALES:
            current *= _SCALES[word]
        else:
            current += _VALUES.get(word, 0)
    return total + current
