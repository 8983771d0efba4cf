"""Generated questions, tiers, and what decides between them: answers are checked by rule, controls come out as planted.

References: sums worked out here, a tier table made here whose gain is known, and counts.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from labkit.reports.size_inertia import generated, tiers
from labkit.routing import deciding, questions
from labkit.routing import replays as routing
from labkit.routing.answer_table import AnswerTable
from labkit.routing.policies import Routes, _between
from labkit.workflow import params

ASKED = generated.load()


def right_answer(question: questions.Question) -> str:
    answer = question.answer
    return f"{answer:g}" if isinstance(answer, float) else answer[0]


def test_at_least_a_thousand_questions_know_their_answers_and_no_echo_passes() -> None:
    assert len(ASKED) == params.resolve("size_inertia", "cpu-24gb").generated_questions >= 1000
    assert all(questions.grade(one, right_answer(one)) == 1 for one in ASKED)
    assert not [one.id for one in ASKED if questions.grade(one, one.prompt)]
    sums = [one for one in ASKED if one.category == "arithmetic" and one.prompt.startswith("What is")]
    assert len(sums) > 300
    for one in sums:
        a, sign, b = one.prompt.removeprefix("What is ").removesuffix("?").split()
        assert one.answer == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def test_the_reports_words_send_more_than_ten_questions_each_way() -> None:
    away = sum(deciding.wants_large(one.prompt) for one in ASKED)
    assert 10 <= away <= len(ASKED) - 10


def test_notes_are_found_for_facts_and_hold_the_answer() -> None:
    asked = [one for one in ASKED if one.id.startswith(("capital", "symbol", "opposite", "meaning"))]
    found = generated.looked_up([one.prompt for one in asked], 2)
    held = [right_answer(one) in " ".join(notes) for one, notes in zip(asked, found, strict=True)]
    assert np.mean(held) > 0.95
    assert generated.with_notes("Q?", []) == "Q?"


def test_a_tiers_name_says_what_it_does() -> None:
    assert tiers.parsed("gemma-3-270m+notes*3") == ("gemma-3-270m", 2, 3)
    assert tiers.parsed("smollm2-135m") == ("smollm2-135m", 0, 1)
    cfg = params.resolve("size_inertia", "cpu-24gb")
    blocks = tiers.specs(cfg, cfg.tiers[0])
    places = [i for spec in blocks for i in range(spec.first, spec.first + spec.n_questions)]
    assert places == list(range(cfg.generated_questions))


def test_samples_agree_by_their_first_number_or_their_words() -> None:
    assert tiers.majority(["It is 12.", "13", "12"]) == [0, 2]
    assert tiers.majority(["Paris.", "paris", "Rome"]) == [0, 1]
    assert tiers.majority(["a", "b", "c"]) == [0]


def test_a_tiny_model_answers_a_block_by_the_majority_of_its_samples_and_twice_alike() -> None:
    spec = tiers.BlockSpec(model="tiny-qwen2", dtype="float32", notes=1, samples=3, n_questions=2, threads=1)
    done, again = tiers.answer_block(spec), tiers.answer_block(spec)
    assert [row["query"] for row in done["rows"]] == [one.id for one in ASKED[:2]]
    assert [row["answer"] for row in done["rows"]] == [row["answer"] for row in again["rows"]]
    alone = tiers.answer_block(dataclasses.replace(spec, samples=1, notes=0))
    assert alone["rows"][0]["tokens_out"] < done["rows"][0]["tokens_out"]
    assert alone["rows"][0]["tokens_in"] < done["rows"][0]["tokens_in"]


def test_tiers_closer_than_fifteen_points_are_void() -> None:
    def answers(*shares: float) -> pd.DataFrame:
        parts = [
            pd.DataFrame({"model": f"t{i}", "quality": [1.0] * round(100 * s) + [0.0] * round(100 * (1 - s))})
            for i, s in enumerate(shares)
        ]
        return pd.concat(parts)

    assert tiers.void(answers(0.3, 0.45)) == []
    assert tiers.void(answers(0.3, 0.44)) == ["t1 is right +14.0% against t0, and +15% are needed"]
    assert tiers.void(answers(0.5, 0.3)) == ["t1 is right -20.0% against t0, and +15% are needed"], "dearer and worse"
    assert len(tiers.void(answers(0.3, 0.5, 0.6))) == 1


@dataclasses.dataclass(frozen=True)
class Told:
    """A router that is told the right tier, with a share of errors."""

    wants: tuple[bool, ...]
    name: str = "told"
    realisable: bool = False

    def route(self, table: AnswerTable) -> Routes:
        return Routes(**_between(table, [list(map(float, self.wants))]), operating=0)


def planted(prompts: list[str], dear_better: np.ndarray) -> AnswerTable:
    """Queries that one of two tiers answers and the other does not."""
    n = len(prompts)
    quality = np.stack([1.0 - dear_better, 1.0 * dear_better], axis=1)
    cost = np.tile([1.0, 3.0], (n, 1))
    ids = tuple(f"q{i:04}" for i in range(n))
    return AnswerTable(
        queries=ids,
        prompts=tuple(prompts),
        categories=("x",) * n,
        models=("cheap", "dear"),
        quality=quality,
        cost=cost,
        confidence=None,
        unit="seconds",
    )


def test_a_router_told_the_right_tier_with_a_fifth_of_errors_shows_its_gain() -> None:
    rng = np.random.default_rng(0)
    better = rng.random(1000) < 0.5
    wrong = rng.random(1000) < 0.2
    table = planted([f"question {i}" for i in range(1000)], better)
    gain, away = routing.gain_over_best(table, Told(tuple(better ^ wrong)), bootstrap=500)
    expected = 1 - wrong.mean() - max(better.mean(), 1 - better.mean())
    assert gain.estimate == pytest.approx(expected)
    assert gain.low > 0
    assert away >= 10
    blind, _ = routing.gain_over_best(table, Told(tuple(rng.random(1000) < 0.5)), bootstrap=500)
    assert blind.low <= 0, "a router that knows nothing gains nothing"


def test_a_planted_leak_of_the_tier_is_found_by_the_learned_router_and_its_absence_is_too() -> None:
    rng = np.random.default_rng(1)
    better = rng.random(300) < 0.5
    prompts = [one.prompt for one in ASKED[:300]]
    leaky = [f"{prompt} ({'upper' if up else 'lower'} tier)" for prompt, up in zip(prompts, better, strict=True)]
    found, _ = routing.gain_over_best(planted(leaky, better), routing.Learned(), bootstrap=300)
    nothing, _ = routing.gain_over_best(planted(prompts, better), routing.Learned(), bootstrap=300)
    assert found.low > 0.3
    assert nothing.low <= 0.05
