"""Checks the replay of routing policies against matrices whose curves are drawn by hand.

Areas, costs and gaps are worked out in the comments; the sums over a curve are also compared with numpy's trapezoids on
a fine grid, and the intervals with a population whose APGR is known. The report's rule is held against the prompts of
its own demonstration, with the model that its comments expect.

Run: pytest tests/inertia/test_routing.py
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from labkit.reports.size_inertia.matrix import COLUMNS, frame
from labkit.routing import deciding, questions
from labkit.routing import replays as routing
from labkit.routing.answer_table import AnswerTable, answer_table
from labkit.routing.replays import (
    BestSingle,
    CannotRoute,
    Cascade,
    KeywordRule,
    Learned,
    LongerToLarger,
    Oracle,
    RandomShare,
    Replay,
    Routes,
    replay,
    wants_large,
)

SMALL = [1, 0, 0, 0]
LARGE = [1, 1, 1, 0]
"""Of every four queries one is answered by both models, two by the larger alone, one by none: 0.25 against 0.75."""


def matrix(
    small: list[float] = SMALL,
    large: list[float] = LARGE,
    *,
    repeat: int = 10,
    seconds: tuple[float, float] = (1.0, 3.0),
    prompts: list[str] | None = None,
    confidence: list[float] | None = None,
) -> pd.DataFrame:
    """Write out a matrix of two models, the pattern of qualities repeated."""
    n = len(small) * repeat
    rows = {"query": [f"q{i:03d}" for i in range(n)], "category": "any"}
    rows |= {"prompt": (prompts or [f"Question number {i}?" for i in range(len(small))]) * repeat}
    parts = []
    for model, quality, cost in (("small", small, seconds[0]), ("large", large, seconds[1])):
        part = pd.DataFrame(rows).assign(model=model, quality=np.tile(quality, repeat).astype(float), seconds=cost)
        if confidence is not None:
            part["confidence"] = np.tile(confidence, repeat) if model == "small" else np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class Scored:
    """Sends the queries with the highest planted scores to the larger model."""

    scores: tuple[float, ...]
    own_seconds: float = 0.0
    name: str = "scored"
    realisable: bool = True

    def route(self, table: AnswerTable) -> Routes:
        scores = np.resize(self.scores, len(table.queries))
        large = (scores > np.unique([-1e9, *scores])[::-1][:, None]).astype(float)
        weights = np.stack([1 - large, large], axis=2)
        return Routes(answered=weights, paid=weights, operating=len(large) // 2, own_seconds=self.own_seconds)


def quick(rows: pd.DataFrame, policy: routing.Policy, **options: object) -> Replay:
    return replay(rows, policy, bootstrap=200, **options)  # type: ignore[arg-type]


def test_a_random_split_recovers_half_of_the_gap_at_any_costs_and_qualities() -> None:
    rng = np.random.default_rng(3)
    rows = matrix()
    rows["seconds"] = rows["seconds"] * rng.lognormal(0, 0.4, len(rows))
    found = quick(rows, RandomShare())
    assert found.apgr.estimate == pytest.approx(0.5, abs=1e-12)
    assert found.apgr.low == pytest.approx(found.apgr.high, abs=1e-12)
    assert (found.minus_random.low, found.minus_random.high, found.helps) == (0, 0, False)


def test_the_oracle_pays_for_the_larger_model_only_where_it_gains() -> None:
    # (1 s, 0.25) -> (2 s, 0.75) -> (3 s, 0.75): mean (0.5 + 0.75) / 2 = 0.625, and (0.625 - 0.25) / 0.5 = 0.75.
    found = quick(matrix(), Oracle())
    assert (found.cost.estimate, found.quality.estimate) == pytest.approx((2.0, 0.75))
    assert found.apgr.estimate == pytest.approx(0.75)
    assert found.minus_random.estimate == pytest.approx(0.25)
    # A random split of 2 s per query answers one half.
    assert found.at_equal_cost.estimate == pytest.approx(0.25)
    assert (found.helps, found.realisable) == (True, False)


@pytest.mark.parametrize(
    ("scores", "apgr", "cpt"),
    [
        # Gains first: (1, 0.25) (2, 0.75) (3, 0.75).
        ((0, 1, 1, 0), 0.75, (1.2, 1.5, 1.8)),
        # Gains last: (1, 0.25) (2, 0.25) (3, 0.75): mean 0.375.
        ((1, 0, 0, 1), 0.25, (2.2, 2.5, 2.8)),
        # All alike: one step from none to all.
        ((0, 0, 0, 0), 0.5, (1.4, 2.0, 2.6)),
    ],
)
def test_areas_and_costs_of_a_share_of_the_gap_are_those_drawn_by_hand(
    scores: tuple[float, ...], apgr: float, cpt: tuple[float, ...]
) -> None:
    found = quick(matrix(), Scored(scores))
    assert found.apgr.estimate == pytest.approx(apgr)
    assert [found.cpt[share].estimate for share in (20, 50, 80)] == pytest.approx(cpt)


def test_cost_of_a_share_is_taken_where_a_falling_curve_first_reaches_it() -> None:
    # Sent in the order gain, loss, gain, gain: qualities 0.25, 0.5, 0.25, 0.5, 0.75 at 1, 1.5, 2, 2.5, 3 s.
    rows = matrix([0, 1, 0, 0], [1, 0, 1, 1])
    found = quick(rows, Scored((4, 3, 2, 1)))
    assert found.curve["quality"].tolist() == pytest.approx([0.25, 0.5, 0.25, 0.5, 0.75])
    assert found.cpt[50].estimate == pytest.approx(1.5)
    assert found.cpt[80].estimate == pytest.approx(2.5 + 0.5 * (0.65 - 0.5) / 0.25)
    # The last two together: 0.25, 0.5, 0.25, 0.75 at 1, 1.5, 2, 3 s; the hull stays at 0.5 up to 2 s.
    assert quick(rows, Scored((4, 3, 2, 2))).cpt[80].estimate == pytest.approx(2 + (0.65 - 0.5) / 0.25)


def test_a_cascade_pays_for_both_models_where_it_escalates() -> None:
    # (1, 0.25) (1 + 0.5 * 3, 0.75) (1 + 3, 0.75): up to 3 s the mean is (1.5 * 0.5 + 0.5 * 0.75) / 2 = 0.5625.
    found = quick(matrix(confidence=[-0.1, -2.0, -2.0, -0.2]), Cascade())
    assert found.apgr.estimate == pytest.approx((0.5625 - 0.25) / 0.5)
    assert (found.cost.estimate, found.quality.estimate) == pytest.approx((2.5, 0.75))
    assert found.curve["cost"].max() == pytest.approx(4.0)


def test_a_cascade_without_confidences_is_refused_and_the_table_says_why() -> None:
    with pytest.raises(CannotRoute, match="no column 'confidence'"):
        quick(matrix(), Cascade())
    with pytest.raises(CannotRoute, match="20 answers of small have no confidence"):
        quick(matrix(confidence=[-0.1, math.nan, -2.0, math.nan]), Cascade())
    row = routing.table(matrix(), [Cascade(), Oracle()], bootstrap=200).iloc[0]
    assert (row["policy"], bool(row["helps"])) == ("cascade by confidence", False)
    assert "confidence" in row["why"]


def test_a_policys_own_seconds_are_part_of_its_cost() -> None:
    # (1.5, 0.25) (2.5, 0.75) (3.5, 0.75), from 1 s on the small model: (0.125 + 0.5 + 0.375) / 2 = 0.5.
    found = quick(matrix(), Scored((0, 1, 1, 0), own_seconds=0.5))
    assert found.curve["cost"].tolist() == pytest.approx([1.5, 2.5, 3.5])
    assert found.apgr.estimate == pytest.approx(0.5)
    joules = quick(matrix().assign(joules=lambda rows: 7 * rows["seconds"]), Scored((0, 1, 1, 0), 0.5), cost="joules")
    assert joules.curve["cost"].tolist() == pytest.approx([7, 14, 21])


def test_policies_that_read_prompts_measure_their_own_seconds() -> None:
    rows = matrix(prompts=["Why?", "Prove it now.", "Prove this one.", "Name it."])
    for policy in (KeywordRule(), LongerToLarger(), Learned()):
        found = quick(rows, policy)
        assert found.own_seconds > 0
        assert found.curve["cost"].min() > 1.0
    assert quick(rows, Learned()).own_seconds > quick(rows, LongerToLarger()).own_seconds


def test_a_policy_routes_by_what_it_decided_before_and_by_the_seconds_that_took() -> None:
    rows = matrix(prompts=["Why?", "Prove it now.", "Prove this one.", "Name it."])
    table = answer_table(rows)
    scores = {
        deciding.KEYWORDS: deciding.by_keywords(table.prompts).scores,
        deciding.LENGTH: deciding.by_length(table.prompts).scores,
        deciding.LEARNED: deciding.by_learning(table.prompts, deciding.gains_of(table)).scores,
    }
    for policy in (KeywordRule(), LongerToLarger(), Learned()):
        known = deciding.with_decisions(policy, {policy.name: {"scores": [*scores[policy.name]], "seconds": 0.25}})
        now, before = policy.route(table), known.route(table)
        assert before.own_seconds == 0.25 != now.own_seconds
        np.testing.assert_array_equal(before.answered, now.answered)
        assert before.operating == now.operating
    assert deciding.with_decisions(Oracle(), {"length": {"scores": [], "seconds": 1.0}}) == Oracle()
    with pytest.raises(CannotRoute, match="nothing to learn"):
        deciding.with_decisions(Learned(), {"learned router": {"why": "nothing to learn"}})


def test_decisions_on_record_are_those_on_the_questions_that_were_answered() -> None:
    asked = questions.load()[::-10]
    gains = [i % 3 == 0 for i in range(len(asked))]
    rows = []
    for model, seconds in (("small", 1.0), ("large", 2.0)):
        for question, gain in zip(asked, gains, strict=True):
            own = {"model": model, "query": question.id, "category": question.category, "prompt": question.prompt}
            own |= {"quality": float(gain) if model == "large" else 0.0, "seconds": seconds}
            rows.append(dict.fromkeys(COLUMNS) | own)
    spec = deciding.spec_of(answer_table(frame(rows)))
    assert spec.queries == tuple(sorted(question.id for question in asked))
    assert dict(zip(spec.queries, spec.gains, strict=True)) == {q.id: g for q, g in zip(asked, gains, strict=True)}
    found = deciding.measure_deciding(spec)
    prompts = {question.id: question.prompt for question in asked}
    assert found["length"]["scores"] == tuple(len(prompts[query]) for query in spec.queries)
    ruled = tuple(float(wants_large(prompts[query])) for query in spec.queries)
    assert found["keyword rule (report)"]["scores"] == ruled
    assert all(own["seconds"] > 0 for own in found.values())
    none = dataclasses.replace(spec, gains=(0,) * len(asked))
    assert "nothing to learn" in deciding.measure_deciding(none)["learned router"]["why"]


def test_cost_is_the_measured_one() -> None:
    slower = quick(matrix(seconds=(1.0, 6.0)), Oracle())
    assert slower.cost.estimate == pytest.approx(0.5 * 1 + 0.5 * 6)
    assert slower.curve["cost"].tolist() != quick(matrix(), Oracle()).curve["cost"].tolist()


def test_areas_equal_trapezoids_on_a_fine_grid() -> None:
    rng = np.random.default_rng(0)
    rows = matrix(rng.random(30).tolist(), (rng.random(30) + 0.6).clip(0, 1).tolist(), repeat=1)
    rows["seconds"] = rows["seconds"] * rng.lognormal(0, 0.2, len(rows))
    found, table = quick(rows, Scored(tuple(rng.random(30)))), answer_table(rows)
    low, high = table.cost.mean(0)
    grid = np.linspace(low, high, 200_001)
    area = np.trapezoid(np.interp(grid, found.curve["cost"], found.curve["quality"]), grid) / (high - low)
    weak, strong = table.quality.mean(0)
    assert found.apgr.estimate == pytest.approx((area - weak) / (strong - weak), abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "large"),
    [
        ("What is 2+2?", False),
        ("What is consciousness?", True),
        ("Should I take this risk?", True),
        ("How many sides does a cube have?", False),
        ("What is the meaning of life?", True),
        ("Why is 1 + 1 = 2?", False),
        ("Why is the sum of one + one two?", True),
        ("Why 1+1", True),
        ("Name the capital of France.", False),
    ],
)
def test_the_reports_rule_sends_its_own_prompts_where_its_demonstration_does(prompt: str, large: bool) -> None:
    assert wants_large(prompt) == large


def test_the_reports_rule_sends_small_to_the_cheapest_and_large_to_the_most_expensive_model() -> None:
    rows = matrix(prompts=["What is 2+2?", "What is consciousness?", "Why so?", "Name it."])
    found = quick(rows, KeywordRule())
    assert found.cost.estimate == pytest.approx(2.0, abs=1e-3)
    assert found.quality.estimate == pytest.approx(0.75)


def test_a_policy_that_never_reaches_a_share_of_the_gap_has_no_cost_for_it() -> None:
    found = quick(matrix(prompts=["Name it."] * 4), KeywordRule())
    assert found.quality.estimate == pytest.approx(0.25)
    assert found.cpt == {20: None, 50: None, 80: None}
    assert not found.helps


def test_three_models_make_a_portfolio() -> None:
    middle = matrix().query("model == 'small'").assign(model="middle", seconds=2.0, quality=[1, 1, 1, 1] * 10)
    rows = pd.concat([matrix(), middle])
    best, oracle = quick(rows, BestSingle()), quick(rows, Oracle())
    assert (best.cost.estimate, best.quality.estimate) == pytest.approx((2.0, 1.0))
    # (1, 0.25) (2, 1), and nobody moves on to the largest model from there: mean (0.625 + 1) / 2 = 0.8125.
    assert best.apgr.estimate == pytest.approx((0.8125 - 0.25) / 0.5)
    # One of four queries is answered by the small model as well, the others best by the middle one.
    assert (oracle.cost.estimate, oracle.quality.estimate) == pytest.approx((0.25 * 1 + 0.75 * 2, 1.0))
    assert quick(rows, RandomShare()).curve["quality"].tolist() == pytest.approx(np.linspace(0.25, 0.75, 11))


def test_results_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = matrix(
        prompts=["What is 2?", "Prove it now.", "Prove this one.", "Name it."], confidence=[-0.1, -2, -1, -0.3]
    )
    shuffled = rows.sample(frac=1, random_state=5)
    exact = [RandomShare(), BestSingle(), Cascade(), Oracle()]
    pd.testing.assert_frame_equal(
        routing.table(rows, exact, bootstrap=200), routing.table(shuffled, exact, bootstrap=200)
    )
    one, other = quick(rows, Learned()), quick(shuffled, Learned())
    assert one.curve["quality"].tolist() == other.curve["quality"].tolist()


def test_the_same_seed_gives_the_same_intervals_and_another_gives_others() -> None:
    rows = matrix()
    rows["seconds"] = rows["seconds"] * np.random.default_rng(0).lognormal(0, 0.4, len(rows))
    assert quick(rows, Oracle(), seed=1).apgr == quick(rows, Oracle(), seed=1).apgr
    assert quick(rows, Oracle(), seed=1).apgr != quick(rows, Oracle(), seed=2).apgr


PROMPTS = ["Name the river.", "Prove the lemma.", "Prove the theorem.", "Name the king."]


def test_a_router_helps_where_prompts_tell_and_not_where_they_are_shuffled() -> None:
    rows = matrix(prompts=PROMPTS, repeat=30, confidence=[-0.1, -2.0, -1.9, -0.2])
    for policy in (Learned(), Cascade()):
        assert quick(rows, policy).helps, policy.name
    order = np.random.default_rng(1).permutation(120)
    shuffled = rows.copy()
    for model in ("small", "large"):
        of_model = rows["model"] == model
        shuffled.loc[of_model, ["prompt", "confidence"]] = rows.loc[of_model, ["prompt", "confidence"]].values[order]
    for policy in (Learned(), Cascade()):
        assert not quick(shuffled, policy).helps, policy.name


def test_a_learned_router_never_scores_a_query_it_was_fitted_to() -> None:
    # Each prompt has words of its own, so only a router that saw a query could know its label.
    rng = np.random.default_rng(7)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 8)) for _ in range(240)]
    gains = rng.random(120) < 0.5
    rows = matrix(
        [0.0] * 120,
        gains.astype(float).tolist(),
        repeat=1,
        prompts=[f"{words[2 * i]} {words[2 * i + 1]}" for i in range(120)],
    )
    assert quick(rows, Learned()).apgr.estimate == pytest.approx(0.5, abs=0.12)


def test_a_router_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(CannotRoute, match="0 of 40 queries gain"):
        quick(matrix(SMALL, SMALL), Learned())


def test_without_a_quality_gap_there_is_no_apgr_and_policies_are_judged_at_equal_cost() -> None:
    # Each model answers what the other cannot: half of the queries sent to either answers all.
    rows = matrix([1, 1, 0, 0], [0, 0, 1, 1])
    good, bad = quick(rows, Scored((0, 0, 1, 1))), quick(rows, Scored((0, 1, 0, 1)))
    for found in (good, bad):
        assert (found.apgr, found.minus_random) == (None, None)
        assert found.why_undefined.startswith("large is not better than small: quality gap 0 [")
        assert set(found.cpt.values()) == {None}
    assert (good.at_equal_cost.estimate, good.helps) == (pytest.approx(0.5), True)
    assert (bad.at_equal_cost.estimate, bad.helps) == (pytest.approx(0.0), False)
    assert not quick(rows, RandomShare()).helps


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_models_of_the_same_cost_leave_nothing_to_trade(spread: float) -> None:
    rows = matrix()
    rows["seconds"] = np.random.default_rng(1).lognormal(0, spread, len(rows))
    found = quick(rows, Oracle())
    assert (found.apgr, found.at_equal_cost, found.helps) == (None, None, False)
    assert "does not cost more" in found.why_undefined


@pytest.mark.parametrize(("gain", "truth"), [(0.6, 0.75), (0.3, 0.5)])
def test_intervals_cover_a_known_apgr(gain: float, truth: float) -> None:
    # Half of the queries score 1. The larger model gains `gain` on them and 0.6 - gain on the others, so that the
    # curve is (1, 0.2) (2, 0.2 + gain / 2) (3, 0.5) and the gap 0.3.
    rng, covered = np.random.default_rng(11), 0
    for seed in range(60):
        scores = rng.random(100) < 0.5
        draw = rng.random(100)
        small, large = draw < 0.2, draw < 0.2 + np.where(scores, gain, 0.6 - gain)
        rows = matrix(small.tolist(), large.tolist(), repeat=1)
        covered += quick(rows, Scored(tuple(scores.astype(float))), seed=seed).apgr.contains(truth)
    assert 52 <= covered <= 60


def test_the_table_has_a_row_per_policy_with_numbers_as_columns() -> None:
    found = routing.table(matrix(prompts=PROMPTS, confidence=[-0.1, -2, -1.9, -0.2]), bootstrap=200)
    assert found["policy"].tolist() == [policy.name for policy in routing.ALL]
    assert (found["quality_low"] <= found["quality"]).all()
    assert (found["cost"] <= found["cost_high"]).all()
    assert found.set_index("policy").loc["oracle", "apgr"] == pytest.approx(0.75)
    assert set(found["unit"]) == {"seconds"}


def test_the_verdict_names_what_helps_and_counts_no_oracle() -> None:
    rows = matrix()
    good, bad, bound = (
        quick(rows, Scored((0, 1, 1, 0))),
        quick(rows, Scored((0, 1, 0, 1), name="blind")),
        quick(rows, Oracle()),
    )
    helps = routing.verdict([quick(rows, RandomShare()), good, bad, bound])
    assert helps.startswith("Routing helps here, by 1 of 2 policies: scored (APGR minus random 0.25 [")
    assert "With hindsight: APGR minus random 0.25" in helps
    assert routing.verdict([bad, bound]).startswith("Routing does not help here: none of 1 policies")
    even = quick(matrix([1, 1, 0, 0], [0, 0, 1, 1]), Scored((0, 0, 1, 1)))
    assert routing.verdict([even]).startswith("APGR is undefined: large is not better than small")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.drop(columns="prompt"), "no column 'prompt'"),
        (lambda rows: rows.iloc[1:], "0 rows of small for query q000, not 1"),
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "2 rows of small for query q000"),
        (lambda rows: rows[rows["model"] == "small"], "1 models and 40 queries"),
        (lambda rows: rows.assign(quality=1.5), "quality must lie in"),
        (lambda rows: rows.assign(quality=math.nan), "quality must lie in"),
        (lambda rows: rows.assign(seconds=0.0), "seconds is missing or not positive in 80 of 80 rows"),
    ],
)
def test_an_incomplete_matrix_is_refused_by_name(spoil, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(spoil(matrix()), Oracle())


def test_joules_that_were_not_measured_cannot_be_a_cost() -> None:
    with pytest.raises(ValueError, match=r"joules is missing or not positive in 80 of 80 rows.*such as seconds"):
        quick(matrix().assign(joules=None), Oracle(), cost="joules")
    with pytest.raises(ValueError, match="bootstrap is 10"):
        replay(matrix(), Oracle(), bootstrap=10)
