"""Verdicts, against a truth table written by hand, against random rows and results (no smoke run reproduces anything,
whatever it found), and on the shipped ledgers with results files of known content.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.base.scale import Scale
from labkit.ledger import audit, claims
from labkit.ledger import verdict as rule
from labkit.ledger.audit import Check, Claim, Finding
from labkit.ledger.claims import judge
from labkit.ledger.formula import Interval
from labkit.ledger.verdict import Evidence, Grade, OutOfReach, Result, Verdict
from labkit.stats import LEAST_ACTS
from labkit.workflow import params
from labkit.workflow.judged import judge_profile, why_stale

DECISIVE = (Scale.REDUCED, Scale.STATED)


def claim(**fields):
    whole = {"id": "a.x", "source": {"section": "s", "wording": "w"}, "value": 2.0, "printed": "2", "kind": "measured"}
    return Claim(**whole | {"checks": [{"grade": "reduced", "key": "x"}]} | fields)


def results(folder, report="demo", **fields):
    """Publish a results.json with the contract's fields."""
    document = {"report": report, "profile": "cpu", "scale": "stated", "evidence": {}}
    document |= {"results": {}, "out_of_reach": {}, "failures": []} | fields
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def ledger(folder, *rows, report="demo"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{report}.yaml").write_text(
        json.dumps(
            {"report": report, "source": "made up", "claims": [row.model_dump(exclude_none=True) for row in rows]}
        )
    )
    return folder


def judged(tmp_path, rows, *, stale=None, **fields):
    """Judge made-up rows against one made-up results.json; return the frame by row id."""
    found = judge(
        results(tmp_path / "figures" / "demo", **fields),
        ledger_dir=ledger(tmp_path / "ledger", *rows),
        stale=stale,
    )
    return found.set_index("claim")


def value(x, **fields):
    return {"value": x, "ci": None, "unit": "", "n_seeds": 3, "note": "", **fields}


def sure(x, **fields):
    """A number that no repetition could change."""
    return value(x, exact=True, **fields)


PROPERTY = {"grade": "property", "key": "x"}
WEAK = {"grade": "stated", "key": "x"}
COST = {"why": "too large", "seconds": 7200.0, "gib": 23.0}


@pytest.mark.parametrize(
    ("row", "fields", "expected", "grade"),
    [
        # one strong result, alone: inside, outside, neither
        ({}, {"results": {"x": sure(2.4)}}, "reproduced", "stated scale"),
        ({}, {"results": {"x": sure(2.6)}}, "contradicted", "stated scale"),
        ({}, {"results": {"x": value(2.2, ci=[1.9, 2.4])}}, "reproduced", "stated scale"),
        ({}, {"results": {"x": value(2.2, ci=[1.5, 2.5])}}, "reproduced", "stated scale"),
        ({}, {"results": {"x": value(2.6, ci=[2.51, 2.8])}}, "contradicted", "stated scale"),
        ({}, {"results": {"x": value(2.6, ci=[2.4, 2.8])}}, "undecided", "stated scale"),
        ({}, {"results": {"x": value(2.0, ci=[1.0, 3.0])}}, "undecided", "stated scale"),
        ({}, {"results": {"x": value([2.2, 9.0], exact=True)}}, "undecided", "stated scale"),
        ({"kind": "bound", "at": "least"}, {"results": {"x": sure(1.9)}}, "contradicted", "stated scale"),
        ({"kind": "bound", "at": "least"}, {"results": {"x": sure(50.0)}}, "reproduced", "stated scale"),
        (
            {"kind": "bound", "at": "least"},
            {"results": {"x": value(50.0, ci=[1.0, 99.0])}},
            "undecided",
            "stated scale",
        ),
        ({"kind": "bound", "at": "most"}, {"results": {"x": sure(50.0)}}, "contradicted", "stated scale"),
        # no interval, no verdict
        ({}, {"results": {"x": value(2.0)}}, "undecided", "stated scale"),
        ({}, {"results": {"x": value(9.0)}}, "undecided", "stated scale"),
        ({}, {"results": {"x": value([2.0, 2.1])}}, "undecided", "stated scale"),
        # a mechanism that hardly acted, whatever the interval says
        ({}, {"results": {"x": value(2.0, ci=[1.9, 2.1], acted=9)}}, "not exercised", "stated scale"),
        ({}, {"results": {"x": value(9.0, ci=[8.9, 9.1], acted=0)}}, "not exercised", "stated scale"),
        ({}, {"results": {"x": value(2.0, ci=[1.9, 2.1], acted=10)}}, "reproduced", "stated scale"),
        # scale against demand
        ({}, {"scale": "reduced", "results": {"x": sure(2.0)}}, "reproduced", "reduced scale"),
        ({"checks": [WEAK]}, {"scale": "reduced", "results": {"x": sure(2.0)}}, "not attempted", "reduced scale"),
        ({"checks": [WEAK]}, {"scale": "stated", "results": {"x": sure(2.0)}}, "reproduced", "stated scale"),
        ({}, {"scale": "smoke", "results": {"x": sure(2.0)}}, "not attempted", "smoke"),
        ({}, {"scale": "custom", "results": {"x": sure(2.0)}}, "not attempted", "smoke"),
        ({}, {"scale": "smoke", "results": {"x": sure(9.0)}}, "not attempted", "smoke"),
        ({"checks": [PROPERTY]}, {"scale": "reduced", "results": {"x": value(2.0)}}, "reproduced", "property"),
        ({"checks": [PROPERTY]}, {"scale": "reduced", "results": {"x": value(9.0)}}, "contradicted", "property"),
        ({"checks": [PROPERTY]}, {"scale": "smoke", "results": {"x": value(2.0)}}, "not attempted", "property"),
        # inputs: no success where they agree, a finding where they do not
        ({"kind": "setting", "checks": []}, {}, "input", ""),
        ({"kind": "count"}, {"scale": "smoke", "results": {"x": sure(2.0)}}, "input", "smoke"),
        ({"kind": "count", "checks": [PROPERTY]}, {"results": {"x": value(2.0)}}, "input", "property"),
        ({"kind": "count", "checks": [PROPERTY]}, {"results": {"x": value(9.0)}}, "contradicted", "property"),
        ({"kind": "setting", "formula": "1 + 1"}, {}, "input", ""),
        ({"kind": "setting", "formula": "1 + 2"}, {}, "inconsistent in source", "recomputed from the text"),
        # cost
        ({}, {"out_of_reach": {"x": COST}}, "out of reach", ""),
        (
            {"checks": [WEAK]},
            {"scale": "reduced", "results": {"x": sure(2.0)}, "out_of_reach": {"x": COST}},
            "out of reach",
            "reduced scale",
        ),
        ({}, {"results": {"x": sure(2.0)}, "out_of_reach": {"x": COST}}, "reproduced", "stated scale"),
        ({}, {"results": {"x": value(2.0)}, "out_of_reach": {"x": COST}}, "undecided", "stated scale"),
        # nothing, or from a profile that does not count
        ({}, {}, "not attempted", ""),
        ({"checks": []}, {"results": {"x": sure(2.0)}}, "not attempted", ""),
        (
            {"checks": [{"grade": "reduced", "key": "x", "profiles": ["h100"]}]},
            {"results": {"x": sure(2.0)}},
            "not attempted",
            "",
        ),
        # the audit
        ({"formula": "2 + 1"}, {"results": {"x": sure(2.0)}}, "inconsistent in source", "recomputed from the text"),
        ({"formula": "2 + 1"}, {}, "inconsistent in source", "recomputed from the text"),
        ({"formula": "1 + 1"}, {}, "audited only", "recomputed from the text"),
        ({"formula": "1 + 1.2"}, {}, "audited only", "recomputed from the text"),
        ({"formula": "1 + 1"}, {"results": {"x": sure(9.0)}}, "contradicted", "stated scale"),
        ({"formula": "1 + 1"}, {"results": {"x": value(9.0)}}, "undecided", "stated scale"),
        (
            {"formula": "1 + 1"},
            {"scale": "smoke", "results": {"x": sure(2.0)}},
            "audited only",
            "recomputed from the text",
        ),
        ({"formula": "1 + 1"}, {"out_of_reach": {"x": COST}}, "audited only", "recomputed from the text"),
    ],
)
def test_verdict_truth_table(tmp_path, row, fields, expected, grade):
    found = judged(tmp_path, [claim(**row)], **fields).loc["a.x"]
    assert (found["verdict"], found["grade"]) == (expected, grade)


def test_a_weak_figure_is_shown_with_the_reason_it_decides_nothing(tmp_path):
    found = judged(tmp_path, [claim()], scale="smoke", results={"x": value(2.01, ci=[1.9, 2.1])}).loc["a.x"]
    assert found["measured"] == "2.01 [1.9 to 2.1]"
    assert "smoke" in found["why"]


def test_out_of_reach_says_what_it_would_take(tmp_path):
    found = judged(tmp_path, [claim()], out_of_reach={"x": COST}).loc["a.x"]
    assert found["why"] == "too large; needs 2 h, 23 GiB"


def test_an_ordering_needs_an_interval_and_what_it_compares_told_from_zero(tmp_path):
    row = claim(
        value=0.0,
        printed="0",
        kind="ordering",
        tolerance={"origin": "abs", "value": 0.25, "why": "w"},
        checks=[{"grade": "reduced", "key": "x", "resolved": ["b1", "b2"]}],
    )
    both = {"b1": value(-0.3, ci=[-0.4, -0.2]), "b2": value(-0.2, ci=[-0.3, -0.1])}
    blurred = both | {"b2": value(-0.2, ci=[-0.5, 0.1])}
    around, away = value(-0.1, ci=[-0.2, 0.1]), value(-0.4, ci=[-0.5, -0.3])

    def verdict(found):
        return judged(tmp_path, [row], results=found).loc["a.x", "verdict"]

    assert verdict(both | {"x": around}) == "reproduced"
    assert verdict(both | {"x": away}) == "contradicted"
    assert verdict(both | {"x": value(0.0)}) == "undecided"
    assert verdict(blurred | {"x": around}) == "undecided"
    assert verdict(blurred | {"x": away}) == "contradicted", "a difference is told, whatever each of the two is"
    assert verdict({"x": around, "b1": both["b1"]}) == "undecided"


def test_a_result_that_decides_is_preferred_to_one_that_does_not(tmp_path):
    row = claim(checks=[{"grade": "stated", "key": "x"}, {"grade": "property", "key": "y"}])
    found = judged(tmp_path, [row], scale="reduced", results={"x": sure(9.0), "y": value(2.0)}).loc["a.x"]
    assert (found["verdict"], found["grade"]) == ("reproduced", "property")


@pytest.mark.parametrize(
    ("stale", "verdict"),
    [
        (None, "reproduced"),
        ({"demo": []}, "reproduced"),
        ({"demo": ["version of demo.train: 1 -> 2"]}, "stale"),
        ({"other": ["version of demo.train: 1 -> 2"]}, "reproduced"),
    ],
)
def test_results_that_stand_on_other_evidence_are_stale_and_say_why(tmp_path, stale, verdict):
    found = judged(tmp_path, [claim()], results={"x": sure(2.0)}, stale=stale)
    assert found.loc["a.x", "verdict"] == verdict
    assert ("version of demo.train: 1 -> 2" in found.loc["a.x", "why"]) == (verdict == "stale")


def test_results_without_cells_are_marked_where_they_are_shown(tmp_path):
    rows = [claim(), claim(id="a.none", checks=[])]
    why = judged(tmp_path, rows, results={"x": value(2.0)}, evidence=None)["why"]
    assert ["recorded before cells were kept" in text for text in why] == [True, False]


@pytest.mark.parametrize(
    ("changed", "reasons"), [({"steps": 7}, []), ({"weight_decay": 0.3}, ["parameter weight_decay: 0.3 -> 0.1"])]
)
def test_a_record_without_cells_stands_where_its_profile_asks_for_more_and_not_where_it_measures_else(changed, reasons):
    asked = params.resolve("predict_phase", "cpu-24gb").model_dump() | changed
    own = {"report": "predict_phase", "profile": "cpu-24gb", "scale": "reduced", "results": {}, "params": asked}
    assert why_stale("predict_phase", "cpu-24gb", claims.Results.model_validate(own)) == reasons


def test_stale_touches_only_rows_with_a_result_and_comes_before_all_else(tmp_path):
    rows = [
        claim(formula="1 + 2"),
        claim(id="a.text", formula="1 + 1", checks=[]),
        claim(id="a.none", checks=[{"grade": "reduced", "key": "none"}]),
    ]
    found = judged(tmp_path, rows, results={"x": value(2.0)}, stale={"demo": ["why"]})["verdict"]
    assert list(found) == ["stale", "audited only", "not attempted"]


@pytest.mark.parametrize(
    ("unit", "measured_in", "measured", "verdict"),
    [
        ("hours", "seconds", 7200.0, "reproduced"),
        ("minutes", "hours", 2.0, "contradicted"),
        ("days", "hours", 48.0, "reproduced"),
        ("GB", "GiB", 1.8626, "reproduced"),
        ("GiB", "GB", 2.0, "reproduced"),
        ("perplexity", "perplexity", 2.0, "reproduced"),
    ],
)
def test_sizes_and_times_are_compared_in_the_rows_unit(tmp_path, unit, measured_in, measured, verdict):
    found = judged(tmp_path, [claim(unit=unit)], results={"x": sure(measured, unit=measured_in)}).loc["a.x"]
    assert found["verdict"] == verdict
    assert found["unit"] == unit


def test_gb_and_gib_differ_by_seven_percent(tmp_path):
    row = claim(unit="GB", value=2.00, printed="2.00")
    found = judged(tmp_path, [row], results={"x": value(2.0, unit="GiB", ci=[1.99, 2.01])}).loc["a.x"]
    assert found["verdict"] == "contradicted"
    assert found["measured"].startswith("2.147 [")


def test_units_that_do_not_convert_are_an_error_naming_file_and_result(tmp_path):
    with pytest.raises(ValueError, match=r"results\.json, result x is in 'nats', its ledger row in 'perplexity'"):
        judged(tmp_path, [claim(unit="perplexity")], results={"x": value(2.0, unit="nats")})


@pytest.mark.parametrize(
    "broken",
    [
        {"results": {"x": value(float("nan"))}},
        {"results": {"x": value(2.0, ci=[float("-inf"), 3.0])}},
        {"results": {"x": value(2.0, ci=[3.0, 1.0])}},
        {"results": {"x": value("2.0")}},
        {"results": {"x": value(2.0, verdict="reproduced")}},
        {"scale": "huge"},
        {"evidence": "none"},
        {"out_of_reach": {"x": {"seconds": 3.0}}},
    ],
)
def test_a_malformed_results_file_is_refused_by_name(tmp_path, broken):
    with pytest.raises(ValueError, match=r"results\.json: .*run the report again"):
        judged(tmp_path, [claim()], **broken)


def test_a_truncated_results_file_is_refused_by_name(tmp_path):
    (tmp_path / "results.json").write_text('{"report": "demo", ')
    with pytest.raises(ValueError, match=r"results\.json: .*run the report again"):
        judge(tmp_path)


numbers = st.floats(-1e6, 1e6)
pairs = st.tuples(numbers, numbers).map(sorted)


@st.composite
def rows(draw):
    """Draw a row of any kind, in whole numbers so that its print is easily made."""
    whole = st.integers(-1000, 1000)
    ends = sorted(draw(st.lists(whole, min_size=1, max_size=2)))
    kind = draw(st.sampled_from(["measured", "expected", "derived", "setting", "bound", "ordering", "count"]))
    grades = draw(st.lists(st.sampled_from(["property", "reduced", "stated"]), max_size=3))
    tolerance = {"origin": "abs", "value": draw(st.floats(0, 1e6)), "why": "w"} if draw(st.booleans()) else None
    return claim(
        value=float(ends[0]) if len(ends) == 1 else [float(end) for end in ends],
        printed=" to ".join(map(str, ends)),
        kind=kind,
        at=draw(st.sampled_from(["least", "most"])) if kind == "bound" else None,
        tolerance=tolerance,
        checks=[{"grade": grade, "key": f"k{i}"} for i, grade in enumerate(grades)],
    )


acts = st.none() | st.integers(0, 20)
measurements = st.builds(Result, value=numbers | pairs, ci=st.none() | pairs, exact=st.booleans(), acted=acts)
costs = st.none() | st.builds(OutOfReach, why=st.just("large"), seconds=st.none() | st.floats(0, 1e9))


@st.composite
def documents(draw):
    """Draw what a notebook could publish for the keys of `rows`."""
    keys = ["k0", "k1", "k2"]
    return claims.Results(
        report="demo",
        profile="cpu",
        scale=draw(st.sampled_from(Scale)),
        results={key: draw(measurements) for key in keys if draw(st.booleans())},
        out_of_reach={key: cost for key in keys if (cost := draw(costs))},
    )


@given(
    rows(),
    documents(),
    st.sampled_from([None, "consistent", "rounding", "contradiction"]),
    st.sampled_from([(), ("why",)]),
)
def test_only_a_reduced_or_stated_run_ever_decides_and_a_stated_row_only_the_latter(row, found, kind, stale):
    box = Interval.point(0)
    findings = [Finding(claim=row.id, kind=kind, reported=box, recomputed=box, why="w")] if kind else []
    evidence = claims._evidence(row, found)
    judgement = rule.verdict(row, evidence, findings, found.scale, stale)
    decided = judgement.verdict in (Verdict.REPRODUCED, Verdict.CONTRADICTED)
    if decided:
        assert found.scale in DECISIVE
        assert kind != "contradiction"
        assert not stale
        assert found.scale is Scale.STATED or evidence.check.grade != "stated"
        measured, reported = evidence.result.interval(), row.tolerated()
        assert measured.inside(reported) == (judgement.verdict is Verdict.REPRODUCED)
        assert measured.meets(reported) == (judgement.verdict is Verdict.REPRODUCED)
        assert evidence.result.ci or evidence.result.exact or evidence.check.grade == "property"
        assert evidence.result.acted is None or evidence.result.acted >= LEAST_ACTS
    assert judgement.why


@given(rows(), measurements, st.sampled_from(["property", "reduced", "stated"]), st.sampled_from(Grade))
def test_a_smoke_run_never_reproduces_even_a_perfect_match(row, result, demand, grade):
    evidence = Evidence(check=Check(key="k", grade=demand), grade=grade, result=result, out_of_reach=None)
    for scale in (Scale.SMOKE, Scale.CUSTOM, None):
        weak = (Verdict.NOT_ATTEMPTED, Verdict.INPUT)
        assert rule.verdict(row, evidence, [], scale, False).verdict in weak


def test_every_number_of_every_report_has_a_row_even_before_any_run(tmp_path):
    found = judge(tmp_path)
    assert list(found.columns) == ["claim", "reported", "measured", "unit", "verdict", "grade", "why"]
    assert list(found["claim"]) == [row.id for row in claims.load()]
    assert set(found["verdict"]) <= {"inconsistent in source", "audited only", "not attempted", "input"}
    assert (found["measured"] == "").all()
    assert (found["why"].str.len() > 0).all()


def test_a_profile_folder_and_a_report_folder_give_the_same_rows(tmp_path):
    published = {
        "parameters/d512_l16": value(98105744, unit="parameters"),
        "exponent/resnet-bk": value(-0.05, ci=[-0.09, -0.01]),
    }
    folder = results(tmp_path / "scaling_grid", report="scaling_grid", scale="reduced", results=published)
    alone, whole = judge(folder), judge(tmp_path, report="scaling_grid")
    assert alone.equals(whole)
    found = alone.set_index("claim")
    assert found.loc["scaling.d512_l16.parameters", "verdict"] == "inconsistent in source"
    assert found.loc["scaling.d512_l16.parameters", "measured"] == "98,105,744"
    assert found.loc["scaling.law.exponent", "verdict"] == "contradicted"


def test_scaling_levels_wait_for_the_stated_scale_and_the_right_device(tmp_path):
    published = {
        "word_perplexity/resnet-bk/d64_l4": value(120.0, unit="perplexity", ci=[119.0, 121.0]),
        "hours/grid": value(30.0, unit="hours", ci=[29.0, 31.0]),
        "exponent/resnet-bk": value(-0.15, ci=[-0.18, -0.12]),
    }
    seen = {}
    for scale in ("smoke", "reduced", "stated"):
        folder = results(tmp_path / scale, report="scaling_grid", scale=scale, results=published)
        found = judge(folder).set_index("claim")["verdict"]
        names = ["d64_l4.perplexity", "time.full_cpu", "time.full_gpu", "law.exponent"]
        seen[scale] = [found[f"scaling.{name}"] for name in names]
    assert seen["smoke"] == ["not attempted"] * 4
    assert seen["reduced"] == ["not attempted", "not attempted", "not attempted", "reproduced"]
    assert seen["stated"] == ["reproduced", "reproduced", "not attempted", "reproduced"]


def test_a_profile_without_runs_is_judged_by_the_audit_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    assert judge_profile("cpu", "scaling_grid").equals(judge(tmp_path, report="scaling_grid"))


def test_an_unknown_report_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="scaling_grid"):
        claims.load("scaling_gird")


def test_summary_counts_every_verdict_once(tmp_path):
    found = judge(tmp_path)
    counts = claims.summary(found)
    assert list(counts["verdict"]) == [str(verdict) for verdict in Verdict]
    assert counts["claims"].sum() == len(found)
    assert counts.set_index("verdict").loc["reproduced", "claims"] == 0


@pytest.mark.parametrize(
    ("estimate", "ends", "reported", "times"),
    [
        (2.0, (1.0, 3.0), (1.5, 2.5), 2.0),  # around the middle of what is reported, twice as wide as it
        (2.4, (2.2, 2.6), (1.5, 2.5), 2.0),  # inside, near an end: 0.2 to each side where 0.1 is room
        (3.0, (2.0, 4.0), (1.5, 2.5), 2.0),  # outside: reaches in by a half where it may by nothing
        (1.0, (0.0, 2.0), (1.5, 2.5), 2.0),
        (0.9, (0.5, 1.3), (1.0, float("inf")), 4.0),
        (2.0, (1.0, 3.0), (2.0, 2.0), float("inf")),
    ],
)
def test_how_many_times_too_wide_an_interval_is(estimate, ends, reported, times):
    found = rule.times_too_wide(estimate, Interval(*ends), Interval(*reported))
    assert found == pytest.approx(times)
    if found < float("inf"):
        narrower = Interval(*(estimate + (end - estimate) / found for end in ends))
        assert narrower.inside(Interval(*reported)) or narrower.low in reported or narrower.high in reported


def test_an_undecided_row_says_how_far_it_is_from_a_decision(tmp_path):
    why = judged(tmp_path, [claim()], results={"x": value(2.0, ci=[1.0, 3.0])}).loc["a.x", "why"]
    assert "2 times too wide, about 4 times the repetitions would decide" in why
    assert "h of steps here" not in why
    priced = judged(tmp_path, [claim()], results={"x": value(2.0, ci=[1.0, 3.0], seconds=1800.0)}).loc["a.x", "why"]
    assert "about 4 times the repetitions would decide, 2 h of steps here" in priced
    lone = judged(tmp_path, [claim()], results={"x": value(2.0)}).loc["a.x", "why"]
    assert "has no interval" in lone
    idle = judged(tmp_path, [claim()], results={"x": value(2.0, ci=[1.9, 2.1], acted=3)}).loc["a.x", "why"]
    assert "it acted 3 times" in idle


def test_headlines_are_sentences_with_the_verdict_of_their_row(tmp_path):
    found = claims.headlines(judge(tmp_path))
    assert list(found.columns) == claims.HEADLINES
    assert (found["statement"].str.len() > 20).all()
    assert found["claim"].is_unique


def test_a_defect_names_rows_that_contradict_their_source_and_each_row_stands_once():
    for path in claims.ledgers():
        bad = {one.claim for one in audit.audit(path) if one.kind == "contradiction"}
        rows = [row for one in claims.defects(audit.report_of(path)) for row in one.rows]
        assert sorted(rows) == sorted(bad), path.stem


def test_render_shows_every_row_and_reads_no_markup_in_the_text(tmp_path):
    found = judged(tmp_path, [claim(note="see [bold] here")], results={"x": value(2.0, ci=[1.0, 3.0])}).reset_index()
    table = claims.render(found)
    assert table.row_count == 1
    assert str(next(iter(table.columns[2].cells))) == "2 [1 to 3]"
    assert "[bold]" in str(next(iter(table.columns[6].cells)))
