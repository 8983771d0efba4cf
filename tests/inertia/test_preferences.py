"""Preference pairs: the shipped texts are measured by counting, difflib and classifiers that see only lengths or first
words, the reader is fed every kind of damaged line, and the derived sets are checked against their definitions."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from labkit.dpo import preferences
from labkit.dpo.preferences import (
    CATEGORIES,
    Pair,
    length_only_accuracy,
    load,
    revision,
    shuffle_labels,
    statistics,
    take,
    template_negatives,
)

TRAIN, HELD_OUT = load("train"), load("held-out")
ALL = TRAIN + HELD_OUT
ROW = {"id": "a", "prompt": "p?", "chosen": "yes", "rejected": "no", "category": "self", "reasoning": "because"}
ACROSS = (LogisticRegression(max_iter=1000), GroupKFold(5))


def counts(pairs: tuple[Pair, ...]) -> list[int]:
    found = Counter(pair.category for pair in pairs)
    return [found[name] for name in CATEGORIES]


def n_words(text: str) -> int:
    return len(text.split())


def longest_common(pair: Pair) -> int:
    return SequenceMatcher(None, pair.chosen, pair.rejected, autojunk=False).find_longest_match().size


def opening_accuracy(pairs: tuple[Pair, ...]) -> float:
    """Cross-validated accuracy of a classifier that sees the set of a text's first three words."""
    classifier, folds = ACROSS
    words = CountVectorizer(preprocessor=lambda text: " ".join(text.lower().split()[:3]), token_pattern=r"\S+")
    texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    labels, groups = np.repeat([1, 0], len(pairs)), np.tile(np.arange(len(pairs)), 2)
    return float(cross_val_score(make_pipeline(words, classifier), texts, labels, groups=groups, cv=folds).mean())


def forest_accuracy(pairs: tuple[Pair, ...]) -> float:
    """Cross-validated accuracy of a forest on absolute lengths, which finds gaps that no line through zero can."""
    scores = []
    for seed in range(3):
        first = np.random.default_rng(seed).permutation(len(pairs)) % 2 == 0
        rows = [
            (p.chosen, p.rejected) if shown else (p.rejected, p.chosen) for p, shown in zip(pairs, first, strict=True)
        ]
        lengths = np.array([[n_words(a), len(a), n_words(b), len(b)] for a, b in rows], float)
        seen = np.column_stack([lengths, lengths[:, :2] - lengths[:, 2:]])
        forest = RandomForestClassifier(50, min_samples_leaf=3, random_state=seed)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        scores.append(cross_val_score(forest, seen, first, cv=folds).mean())
    return float(np.mean(scores))


def test_counts_are_the_reports_themes_and_40_held_out() -> None:
    assert counts(TRAIN) == [50, 39, 26]
    assert counts(HELD_OUT) == [14, 16, 10]


def test_ids_and_prompts_are_unique_over_both_splits_and_ids_name_the_split() -> None:
    assert len({pair.id for pair in ALL}) == len({pair.prompt.lower() for pair in ALL}) == 155
    assert all(pair.id.startswith(pair.category) for pair in ALL)
    assert all("-h" in pair.id for pair in HELD_OUT)
    assert not any("-h" in pair.id for pair in TRAIN)


@pytest.mark.parametrize("pair", ALL, ids=lambda pair: pair.id)
def test_each_text_has_its_length_and_plain_characters(pair: Pair) -> None:
    assert 4 <= n_words(pair.prompt) <= 14
    assert 30 <= n_words(pair.chosen) <= 70
    assert 30 <= n_words(pair.rejected) <= 70
    assert "\n" not in pair.chosen + pair.rejected + pair.prompt
    assert not set("\u2014\u2018\u2019\u201c\u201d") & set(pair.chosen + pair.rejected + pair.prompt + pair.reasoning)


@pytest.mark.parametrize("pairs", [TRAIN, ALL], ids=["train", "all"])
def test_length_alone_does_not_tell_chosen_from_rejected(pairs: tuple[Pair, ...]) -> None:
    assert length_only_accuracy(pairs) < 0.60
    assert forest_accuracy(pairs) < 0.65


@pytest.mark.parametrize("category", CATEGORIES)
def test_lengths_are_balanced_within_each_category(category: str) -> None:
    pairs = [pair for pair in ALL if pair.category == category]
    chosen, rejected = (np.array([n_words(getattr(p, side)) for p in pairs]) for side in ("chosen", "rejected"))
    assert chosen.mean() == pytest.approx(rejected.mean(), rel=0.03)
    assert 0.45 <= np.mean(chosen > rejected) <= 0.55


def test_a_planted_length_gap_and_the_template_are_found_by_length_alone() -> None:
    padded = tuple(dataclasses.replace(pair, chosen=pair.chosen + " and so on" * 20) for pair in TRAIN)
    assert length_only_accuracy(padded) > 0.9
    assert forest_accuracy(padded) > 0.9
    assert length_only_accuracy(template_negatives(TRAIN)) > 0.9


def test_every_rejected_text_is_written_anew_and_a_template_one_is_not() -> None:
    assert max(longest_common(pair) for pair in ALL) < 40
    assert min(longest_common(pair) for pair in template_negatives(ALL)) >= 40


def test_no_opening_marks_a_class_and_the_templates_does() -> None:
    assert max(Counter(pair.rejected[:25] for pair in ALL).values()) <= 3
    assert max(Counter(pair.chosen[:25] for pair in ALL).values()) <= 3
    assert opening_accuracy(ALL) < 0.7
    assert opening_accuracy(template_negatives(ALL)) > 0.95


def test_numbers_and_their_absence_occur_on_both_sides() -> None:
    factual = [pair for pair in ALL if pair.category == "factual"]
    for side in ("chosen", "rejected"):
        with_digits = np.mean([any(c.isdigit() for c in getattr(pair, side)) for pair in factual])
        assert 0.2 < with_digits < 0.9


def test_template_negatives_keep_everything_else_and_use_one_template_for_every_category() -> None:
    made = template_negatives(ALL)
    prefix, suffix = preferences.TEMPLATE
    for pair, template in zip(ALL, made, strict=True):
        assert dataclasses.replace(template, rejected=pair.rejected) == pair
        assert template.rejected == prefix + pair.chosen[:100] + suffix


def test_shuffled_labels_swap_exactly_half_and_nothing_else() -> None:
    shuffled = shuffle_labels(TRAIN, seed=1)
    same = [pair == other for pair, other in zip(TRAIN, shuffled, strict=True)]
    swapped = [
        (pair.chosen, pair.rejected) == (other.rejected, other.chosen) and pair.id == other.id
        for pair, other in zip(TRAIN, shuffled, strict=True)
    ]
    assert sum(swapped) == 57
    assert sum(same) == 58
    assert shuffle_labels(TRAIN, seed=1) == shuffled
    assert shuffle_labels(TRAIN, seed=2) != shuffled


@pytest.mark.parametrize("seed", range(5))
def test_smaller_sets_lie_in_larger_ones_with_the_categories_in_their_shares(seed: int) -> None:
    sets = [take(TRAIN, n, seed) for n in (1, 29, 57, 92, 115)]
    for smaller, larger in pairwise(sets):
        assert set(smaller) < set(larger)
    for drawn in sets:
        shares = len(drawn) * np.array(counts(TRAIN)) / len(TRAIN)
        assert np.abs(np.array(counts(drawn)) - shares).max() <= 1
    assert sets[-1] == TRAIN
    assert take(TRAIN, 29, seed + 1) != sets[1]


@pytest.mark.parametrize("n", [0, 116])
def test_a_number_that_cannot_be_taken_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n} is not between 1 and the 115 pairs"):
        take(TRAIN, n, seed=0)


def test_revision_follows_every_field_and_the_order() -> None:
    assert len(revision(TRAIN)) == 64
    assert revision(load("train")) == revision(TRAIN)
    changed = [dataclasses.replace(TRAIN[0], **{name: "x"}) for name in preferences.FIELDS]
    found = {revision((first, *TRAIN[1:])) for first in changed} | {revision(TRAIN), revision(TRAIN[::-1])}
    assert len(found) == len(preferences.FIELDS) + 2


def test_statistics_are_those_of_plain_counting() -> None:
    table = statistics(TRAIN).set_index("category")
    assert table["n"].to_dict() == {"factual": 50, "behavioural": 39, "self": 26, "all": 115}
    for name in ("factual", "self"):
        own, row = [pair for pair in TRAIN if pair.category == name], table.loc[name]
        for side in ("prompt", "chosen", "rejected"):
            assert row[f"{side}_words"] == pytest.approx(sum(n_words(getattr(p, side)) for p in own) / len(own))
        assert row["chosen_longer"] == sum(n_words(p.chosen) > n_words(p.rejected) for p in own) / len(own)
    assert table.loc["all", "length_only_accuracy"] == length_only_accuracy(TRAIN)
    assert statistics(TRAIN[:3])["length_only_accuracy"].isna().all()


def test_too_few_pairs_for_cross_validation_are_refused() -> None:
    with pytest.raises(ValueError, match="9 pairs are too few for 5 folds"):
        length_only_accuracy(TRAIN[:9])


def test_a_folder_of_own_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(ROW | {"id": "b", "prompt": "q?"}) + "\n\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "notes.txt").write_text("no pairs")
    assert [pair.id for pair in load(folder=tmp_path)] == ["a", "b"]
    assert load(folder=tmp_path)[0] == Pair(**ROW)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in ROW.items() if key != name})


BAD_LINES = {
    **{f"no {name}": (without(name), f"field '{name}' is missing; add it") for name in ROW},
    **{f"empty {name}": (json.dumps(ROW | {name: " "}), f"field '{name}' is empty; write it") for name in ROW},
    "unknown field": (json.dumps(ROW | {"score": 1}), "unknown field 'score'; remove it"),
    "number": (json.dumps(ROW | {"prompt": 7}), "field 'prompt' is int, not text; put it in quotes"),
    "category": (
        json.dumps(ROW | {"category": "moral"}),
        "field 'category' is 'moral'; use one of factual, behavioural, self",
    ),
    "equal": (json.dumps(ROW | {"rejected": "yes"}), "field 'rejected' equals 'chosen'; write an answer that is worse"),
    "cut": (json.dumps(ROW)[:-9], "damaged JSON .*; write one object a line"),
    "twice in a line": (json.dumps(ROW)[:-1] + ', "id": "c"}', "damaged JSON .field 'id' stands twice"),
    "list": ("[1]", "expected an object, found list"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_refused_with_file_line_field_and_remedy(name: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[name]
    good = json.dumps(ROW | {"id": "first", "prompt": "other?"})
    (tmp_path / "own.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"own\.jsonl, line 3: {message}"):
        load(folder=tmp_path)


@pytest.mark.parametrize(("field", "value"), [("id", "a"), ("prompt", " P? ")])
def test_a_repeat_in_another_file_is_refused_with_both_places(field: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "b.jsonl").write_text(json.dumps(ROW | {"id": "b", "prompt": "q?"} | {field: value}))
    with pytest.raises(
        ValueError, match=rf"b\.jsonl, line 1: field '{field}' repeats that of .*a\.jsonl, line 1; change"
    ):
        load(folder=tmp_path)


def test_what_holds_no_pairs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="split='test' is not one of train, held-out"):
        load("test")
    with pytest.raises(ValueError, match=r"holds no \*\.jsonl file; put pairs there"):
        load(folder=tmp_path)
    (tmp_path / "own.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"own\.jsonl is empty; write one JSON object a line"):
        load(folder=tmp_path)
    (tmp_path / "own.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(ValueError, match=r"own\.jsonl: byte 8 is not UTF-8; save the file as UTF-8"):
        load(folder=tmp_path)
    monkeypatch.setattr(preferences, "_DATA", tmp_path)
    with pytest.raises(ValueError, match=r"factual\.jsonl does not exist; install labkit again"):
        load("train")
