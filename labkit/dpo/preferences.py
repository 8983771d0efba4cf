"""Preference pairs about one stance: calibrated (chosen) against overclaiming or evasive (rejected).

115 pairs to train on and 40 held out ship with the package, in the themes and numbers of the report's set (50 factual,
39 behavioural, 26 self). Every rejected text is written for its own prompt, and lengths are balanced, since the
report's negatives could be told apart by their first token and by length, so that its loss says nothing about a stance
(`template_negatives` reproduces them as a control).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CATEGORIES = ("factual", "behavioural", "self")
SPLITS = {
    "train": ("factual.jsonl", "behavioural.jsonl", "self.jsonl"),
    "held-out": ("held_out_factual.jsonl", "held_out_stance.jsonl"),
}
"""Files of each split that ship with the package, in the order they are read."""
TEMPLATE = (
    "I am not able to verify this, but from what I have read ",
    " ... so please ask an expert before relying on it.",
)
"""Prefix and suffix of the degenerate negatives. The wording is ours; the shape is the report's."""
TEMPLATE_CHARACTERS = 100
"""Characters of the chosen text that the report's negatives copy."""
_DATA = Path(__file__).parent / "data"
_FOLDS = 5
_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    id: str
    """Unique name, such as `factual-01`, or `factual-h01` in the held-out split."""
    prompt: str
    """What the user wrote."""
    chosen: str
    """The calibrated answer."""
    rejected: str
    """An overclaiming or evasive answer to the same prompt."""
    category: str
    """One of CATEGORIES."""
    reasoning: str
    """Why the chosen answer is better, for people; no model sees it."""


FIELDS = tuple(field.name for field in dataclasses.fields(Pair))


def shipped(*splits: str) -> list[str]:
    """Name the files of splits relative to the package."""
    return [f"inertia/data/{name}" for split in splits for name in SPLITS[split]]


def load(split: str = "train", folder: Path | None = None) -> tuple[Pair, ...]:
    """Load a split of the shipped pairs, or every *.jsonl file of a folder of your own.

    Args:
        split: train or held-out; a folder of your own is one split, so it is read whole whichever is named.
        folder: holds one JSON object a line with the fields of `Pair`.

    Raises:
        ValueError: unknown split, no file, or a line that is no pair; the message names file, line, field and remedy.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
    paths = [_DATA / name for name in SPLITS[split]] if folder is None else sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise ValueError(
            f"{folder} holds no *.jsonl file; put pairs there, one JSON object a line with {_listed(FIELDS)}"
        )
    seen: dict[tuple[str, str], str] = {}
    pairs = tuple(_unique(pair, where, seen) for path in paths for where, pair in _read(path))
    if not pairs:
        raise ValueError(f"{_listed(map(str, paths))} is empty; write one JSON object a line with {_listed(FIELDS)}")
    return pairs


def _read(path: Path) -> Iterator[tuple[str, Pair]]:
    """Yield each pair of a file with the place it stands at."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; install labkit again, or name a folder of your own pairs")
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _pair(line, where)


def _pair(line: str, where: str) -> Pair:
    try:
        row = json.loads(line, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise ValueError(f"{where}: damaged JSON ({error}); write one object a line, each text on one line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}; write {_listed(FIELDS)} in braces")
    for name in FIELDS:
        _check_field(row, name, where)
    if unknown := sorted(set(row) - set(FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; remove it, the fields are {_listed(FIELDS)}")
    if row["chosen"].strip() == row["rejected"].strip():
        raise ValueError(f"{where}: field 'rejected' equals 'chosen'; write an answer that is worse")
    return Pair(**row)


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in items).items() if count > 1]
    if repeated:
        raise ValueError(f"field {repeated[0]!r} stands twice")
    return dict(items)


def _check_field(row: dict[str, Any], name: str, where: str) -> None:
    if name not in row:
        raise ValueError(f"{where}: field {name!r} is missing; add it, a pair needs {_listed(FIELDS)}")
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {name!r} is {type(value).__name__}, not text; put it in quotes")
    if not value.strip():
        raise ValueError(f"{where}: field {name!r} is empty; write it or remove the line")
    if name == "category" and value not in CATEGORIES:
        raise ValueError(f"{where}: field 'category' is {value!r}; use one of {_listed(CATEGORIES)}")


def _unique(pair: Pair, where: str, seen: dict[tuple[str, str], str]) -> Pair:
    for name, value in (("id", pair.id), ("prompt", " ".join(pair.prompt.lower().split()))):
        if first := seen.get((name, value)):
            raise ValueError(f"{where}: field {name!r} repeats that of {first}; change or remove one of them")
        seen[name, value] = where
    return pair


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def template_negatives(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Replace every rejected text by a degenerate one of the shape that the report trained against.

    In the report's set each rejected text is a fixed prefix, the first 100 characters of the chosen one and a fixed
    suffix, and the template meant for factual rows stands in every row whatever its category (all 115 rows of the
    original data). The wording of TEMPLATE is ours; the shape is the report's.
    """
    prefix, suffix = TEMPLATE
    return tuple(
        dataclasses.replace(pair, rejected=prefix + pair.chosen[:TEMPLATE_CHARACTERS] + suffix) for pair in pairs
    )


def shuffle_labels(pairs: Sequence[Pair], seed: int) -> tuple[Pair, ...]:
    """Swap chosen and rejected in exactly half of the pairs (rounded down), so that the label says nothing.

    The order of the pairs stays; the same seed swaps the same pairs.
    """
    swapped = set(np.random.default_rng(seed).permutation(len(pairs))[: len(pairs) // 2].tolist())
    return tuple(
        dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) if i in swapped else pair
        for i, pair in enumerate(pairs)
    )


def take(pairs: Sequence[Pair], n: int, seed: int) -> tuple[Pair, ...]:
    """Take n pairs with the categories in the shares they have in all, in the order of `pairs`.

    Nested: for one seed a smaller set is part of every larger one, so that only the number differs between them.

    Raises:
        ValueError: n below 1 or above the number of pairs.
    """
    if not 1 <= n <= len(pairs):
        raise ValueError(f"n={n} is not between 1 and the {len(pairs)} pairs there are")
    drawn = sorted(_spread(pairs, seed)[:n])
    return tuple(pairs[i] for i in drawn)


def _spread(pairs: Sequence[Pair], seed: int) -> list[int]:
    """Order positions so that every prefix holds each category in its share, to within one pair.

    The k-th of m pairs of a category, in random order within it, stands at (k + 1/2) / m of the way.
    """
    rng = np.random.default_rng(seed)
    placed: list[tuple[float, int, int]] = []
    for rank, category in enumerate(dict.fromkeys(pair.category for pair in pairs)):
        members = [i for i, pair in enumerate(pairs) if pair.category == category]
        order = rng.permutation(len(members))
        placed += [((k + 0.5) / len(members), rank, members[j]) for k, j in enumerate(order)]
    return [i for _, _, i in sorted(placed)]


def length_only_accuracy(pairs: Sequence[Pair]) -> float:
    """Measure how often a classifier that sees nothing but lengths finds the chosen text; 0.5 is chance.

    A logistic regression sees, for each pair laid out in random order, the first text's words and characters minus the
    second's. Mean accuracy over repeated stratified cross-validation, with new orders and folds each time; a pair is
    one row, so that it never stands in training and test at once.

    Raises:
        ValueError: fewer than ten pairs, too few for five folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(pairs) < 2 * _FOLDS:
        raise ValueError(f"{len(pairs)} pairs are too few for {_FOLDS} folds; give at least {2 * _FOLDS}")
    gap = np.array([_lengths(pair.chosen) - _lengths(pair.rejected) for pair in pairs])
    model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False))
    scores = []
    for repeat in range(_REPEATS):
        chosen_first = np.random.default_rng(repeat).permutation(len(pairs)) % 2 == 0
        shown = np.where(chosen_first[:, None], gap, -gap)
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=repeat)
        scores.append(cross_val_score(model, shown, chosen_first, cv=folds).mean())
    return float(np.mean(scores))


def length_only_accuracies(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """Return the `length_only_accuracy` of each category and of all pairs; None below ten pairs."""
    return {name: length_only_accuracy(own) if len(own) >= 2 * _FOLDS else None for name, own in _groups(pairs).items()}


def _groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Return the pairs of each category that occurs, and all of them."""
    own = {name: [pair for pair in pairs if pair.category == name] for name in CATEGORIES}
    return {name: group for name, group in own.items() if group} | {"all": list(pairs)}


def _lengths(text: str) -> np.ndarray:
    return np.array([len(text.split()), len(text)], dtype=float)


def revision(pairs: Sequence[Pair]) -> str:
    """Return the SHA-256 of the pairs' content in their order, in hex; the data revision recorded with every result."""
    content = json.dumps([dataclasses.astuple(pair) for pair in pairs], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


def statistics(pairs: Sequence[Pair], length_only: Mapping[str, float | None] | None = None) -> pd.DataFrame:
    """Describe the pairs, a row per category and one for all.

    Args:
        pairs: what is described.
        length_only: their `length_only_accuracies`, measured here if not given.

    Returns:
        columns category, n, prompt_words, chosen_words, rejected_words (means), chosen_longer (share of pairs whose
        chosen text has more words) and length_only_accuracy (None below ten pairs).
    """
    by_length = length_only_accuracies(pairs) if length_only is None else length_only
    return pd.DataFrame([_statistics_row(name, own, by_length.get(name)) for name, own in _groups(pairs).items()])


def _statistics_row(name: str, pairs: Sequence[Pair], by_length: float | None) -> dict[str, Any]:
    words = np.array([[len(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected)] for pair in pairs])
    prompt, chosen, rejected = words.mean(axis=0).tolist()
    return {
        "category": name,
        "n": len(pairs),
        "prompt_words": prompt,
        "chosen_words": chosen,
        "rejected_words": rejected,
        "chosen_longer": float((words[:, 1] > words[:, 2]).mean()),
        "length_only_accuracy": by_length,
    }
