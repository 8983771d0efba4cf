"""Ledger rows and their arithmetic, against hand-written rows with known answers and, for report 004, against figures
worked out here another way: parameters by summing a layer's matrices, slopes by numpy over every corner of the print.
"""

import functools
import itertools
import json
import re

import numpy as np
import pytest

from labkit.ledger import claims, formula
from labkit.ledger.audit import Claim, audit, read_ledger

LEDGERS = claims.ledgers()
SCALING = claims.ledgers("scaling_grid")[0]
D, L = (64, 128, 256, 512), (4, 8, 12, 16)
CELLS = [f"d{d}_l{n}" for d in D for n in L]
KEYS = re.compile(
    r"(parameters|peak_gib)/d\d+_l\d+|word_perplexity/(resnet-bk|transformer)/d\d+_l\d+|exponent/(resnet-bk|transformer)|"
    r"(coefficient|r2|ppl_ratio_10x|ppl_ratio_100x)/resnet-bk|hours/(grid|quick)|n_configurations|exponent_difference|"
    r"later_token_reach/published"
)


def row(**fields):
    whole = {"id": "a.x", "source": {"section": "s", "wording": "w"}, "value": 2.0, "printed": "2", "kind": "derived"}
    return whole | fields


def write(tmp_path, *rows, report="demo"):
    path = tmp_path / f"{report}.yaml"
    path.write_text(json.dumps({"report": "demo", "source": "made up", "claims": list(rows)}), encoding="utf-8")
    return path


@functools.cache
def findings(path):
    return {finding.claim: finding for finding in audit(path)}


@pytest.mark.parametrize(
    ("printed", "value", "low", "high"),
    [
        ("4.15M", 4.15e6, 4.145e6, 4.155e6),
        ("~256M", 256e6, 255.25e6, 256.75e6),
        ("~1M", 1e6, 0.25e6, 1.75e6),
        ("1e-3", 1e-3, 0.5e-3, 1.5e-3),
        ("2,162,688", 2162688, 2162687.5, 2162688.5),
        ("~2GB", 2, 1.25, 2.75),
        ("-0.10", -0.1, -0.105, -0.095),
        ("100-150", [100, 150], 100, 150),
        ("~-0.1 to -0.2", [-0.2, -0.1], -0.2, -0.1),
        ("16.23B", 16.23e9, 16.225e9, 16.235e9),
    ],
)
def test_a_printed_number_stands_for_all_that_round_to_it(printed, value, low, high):
    box = Claim(**row(printed=printed, value=value)).as_input()
    assert (box.low, box.high) == pytest.approx((low, high))


@pytest.mark.parametrize("kind", ["setting", "count"])
def test_settings_and_counts_are_exact(kind):
    assert Claim(**row(kind=kind)).as_input() == formula.Interval(2, 2)


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"tolerance": {"origin": "abs", "value": 0.5, "why": "w"}}, 1.5, 2.5),
        ({"tolerance": {"origin": "rel", "value": 0.5, "why": "w"}}, 1, 3),
        ({"tolerance": {"origin": "seeds", "value": 0.25, "why": "w"}}, 1.75, 2.25),
        ({"tolerance": {"origin": "stated", "value": 0.1, "why": "w"}}, 1.9, 2.1),
        ({"value": [1.3, 1.6], "printed": "1.3-1.6"}, 1.3, 1.6),
        ({"value": [1.3, 1.6], "printed": "~1.3-1.6", "tolerance": {"origin": "printed"}}, 1.25, 1.65),
        ({"value": [1, 2], "printed": "1-2", "tolerance": {"origin": "rel", "value": 0.1, "why": "w"}}, 0.9, 2.2),
        ({"kind": "bound", "at": "least"}, 2, np.inf),
        ({"kind": "bound", "at": "most"}, -np.inf, 2),
    ],
)
def test_tolerance_follows_its_origin(fields, low, high):
    box = Claim(**row(**fields)).tolerated()
    assert (box.low, box.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"formula": "a.input"}, "consistent"),
        ({"formula": "a.input + 5e-10"}, "consistent"),
        ({"formula": "a.input * 1.1"}, "rounding"),
        ({"formula": "a.input + 1.1"}, "contradiction"),
        ({"formula": "a.input + 0.9"}, "rounding"),
        ({"formula": "a.input + k", "where": {"k": 3}}, "contradiction"),
        ({"formula": "a.input", "value": [1.5, 2.5], "printed": "1.5-2.5"}, "consistent"),
        ({"formula": "a.input", "value": [2, 2.4], "printed": "2-2.4"}, "rounding"),
        ({"formula": "a.input", "value": [3, 4], "printed": "3-4"}, "contradiction"),
        ({"formula": "a.input", "kind": "bound", "at": "least", "value": 1, "printed": "1"}, "consistent"),
        ({"formula": "a.input", "kind": "bound", "at": "least", "value": 3, "printed": "3"}, "contradiction"),
        ({"formula": "a.input", "kind": "bound", "at": "most", "value": 1, "printed": "1"}, "contradiction"),
        ({"formula": "a.input", "kind": "bound", "at": "most", "value": 3, "printed": "3"}, "consistent"),
    ],
)
def test_contradiction_needs_disjoint_intervals_and_consistency_equal_values(tmp_path, fields, kind):
    found = findings(write(tmp_path, row(id="a.input"), row(**fields)))
    assert found["a.x"].kind == kind
    assert "recomputed" in found["a.x"].why
    assert "reported" in found["a.x"].why


def test_rows_without_formula_are_not_found():
    assert {finding.claim for finding in audit(SCALING)} == {c.id for c in read_ledger(SCALING).claims if c.formula}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(colour="red")], r"demo\.yaml, row a\.x: colour: Extra"),
        ([row(), row()], r"demo\.yaml, row a\.x: this id stands twice"),
        ([row(formula="a.y + 1"), row(id="a.z")], r"row a\.x: the formula names 'a\.y', .*did you mean"),
        ([row(formula="a.x")], r"row a\.x: the formula names 'a\.x'"),
        ([row(formula="import os")], r"row a\.x: formula 'import os' is not"),
        ([row(formula="1/(2-2)")], r"row a\.x: formula .*division"),
        ([row(value=3.0)], r"row a\.x: .*printed '2' does not read as value 3"),
        ([row(value="2")], r"row a\.x: value"),
        ([row(kind="guess")], r"row a\.x: kind"),
        ([row(id="Bad id")], r"row Bad id: id"),
        ([row(id="a.in")], r"row a\.in: .*keyword"),
        ([row(kind="bound")], r"row a\.x: .*at: least"),
        ([row(at="most")], r"row a\.x: .*at: least"),
        ([row(value=[1, 2, 3], printed="1 2 3")], r"row a\.x: value"),
        ([row(value=[2, 1], printed="1-2")], r"row a\.x: .*does not read"),
        ([row(tolerance={"origin": "abs", "why": "w"})], r"row a\.x: .*needs a value"),
        ([row(tolerance={"origin": "stated"})], r"row a\.x: .*needs a value"),
        ([row(tolerance={"origin": "rel", "value": 0.1})], r"row a\.x: .*`why`"),
        ([row(tolerance={"origin": "abs", "value": -1, "why": "w"})], r"row a\.x: tolerance\.value"),
        ([row(source={"wording": "w"})], r"row a\.x: source\.section"),
        ([row(checks=[{"grade": "smoke", "key": "k"}])], r"row a\.x: checks\.0\.grade"),
        (["text"], r"demo\.yaml, claims\.0"),
    ],
)
def test_a_bad_row_is_one_error_with_row_file_and_remedy(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        audit(write(tmp_path, *rows))


def test_a_ledger_is_named_after_its_report(tmp_path):
    with pytest.raises(ValueError, match=r"must be named demo\.yaml"):
        read_ledger(write(tmp_path, row(), report="other"))


@pytest.mark.parametrize("text", ["", "[]", "report: demo", "claims: 3"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, text):
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"demo\.yaml"):
        read_ledger(path)


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.parent.name)
def test_every_row_of_a_ledger_is_whole(path):
    rows = read_ledger(path).claims
    assert len({claim.id for claim in rows}) == len(rows)
    inputs = set().union(*(formula.names(claim.formula) for claim in rows if claim.formula))
    for claim in rows:
        assert claim.source.section.strip()
        assert not set('"“”') & set(claim.source.wording)
        reading = claim.kind == "measured" and claim.note and claim.id in inputs
        assert claim.checks or claim.formula or claim.kind in ("setting", "count") or reading, claim.id
    assert len(audit(path)) == sum(claim.formula is not None for claim in rows)


def test_scaling_checks_name_only_results_that_the_notebook_publishes():
    rows = read_ledger(SCALING).claims
    keys = [key for claim in rows for check in claim.checks for key in [check.key, *check.resolved]]
    assert [key for key in keys if not KEYS.fullmatch(key)] == []
    assert {f"parameters/{cell}" for cell in CELLS} < set(keys)


def test_scaling_shapes_accept_a_reduced_run_and_levels_do_not():
    demands = {check.key: check.grade for claim in read_ledger(SCALING).claims for check in claim.checks}
    shapes = {
        "exponent/resnet-bk",
        "r2/resnet-bk",
        "ppl_ratio_10x/resnet-bk",
        "ppl_ratio_100x/resnet-bk",
        "exponent_difference",
    }
    assert {key for key, grade in demands.items() if grade == "reduced"} == shapes
    exact = {f"parameters/{cell}" for cell in CELLS} | {"later_token_reach/published"}
    assert {key for key, grade in demands.items() if grade == "property"} == exact


def layer_by_layer(d, n_layers, vocabulary=30_000, positions=128, experts=4):
    """Count a ResNet-BK language model's parameters as (inputs + bias) x outputs, matrix by matrix."""

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    norm = 2 * d
    expert = linear(d, 2 * d) + linear(2 * d, d)
    layer = experts * expert + linear(d, experts) + linear(d, 1) + linear(2, d) + 1 + norm
    return vocabulary * d + positions * d + n_layers * layer + norm + linear(d, vocabulary)


@pytest.mark.parametrize("cell", CELLS)
def test_scaling_parameter_formula_counts_every_matrix_and_contradicts_the_table(cell):
    d, n_layers = map(int, re.findall(r"\d+", cell))
    found = findings(SCALING)[f"scaling.{cell}.parameters"]
    exact = layer_by_layer(d, n_layers)
    assert found.recomputed.middle == pytest.approx(exact, rel=1e-12)
    assert exact == 2 * 30_000 * d + 30_000 + 128 * d + 2 * d + n_layers * (16 * d**2 + 22 * d + 6)
    assert found.kind == "contradiction"


def test_scaling_contradictions_are_these_and_no_others():
    found = {name: finding.kind for name, finding in findings(SCALING).items() if not name.endswith(".parameters")}
    by_kind = {
        kind: {name.removeprefix("scaling.") for name, k in found.items() if k == kind} for kind in found.values()
    }
    assert by_kind["contradiction"] == {
        *("table.size_range", "table.exponent", "table.coefficient", "law.at_largest"),
        *("requirement.reached", "tests.skipped", "date.year"),
    }
    assert by_kind["rounding"] == {"law.at_smallest"}
    assert {"law.ratio_10x", "law.ratio_100x", "grid.n_configurations", "tests.passed"} < by_kind["consistent"]
    assert len(found) == 17


def test_scaling_headline_figures():
    found = findings(SCALING)
    assert found["scaling.d64_l4.parameters"].recomputed.middle == pytest.approx(4_146_120)
    assert found["scaling.d512_l16.parameters"].recomputed.middle == pytest.approx(98_105_744)
    assert found["scaling.requirement.parameters"].kind == "contradiction"
    assert "-0.4591" in found["scaling.table.exponent"].why
    assert found["scaling.table.size_range"].recomputed.middle == pytest.approx(98_105_744 / 4_146_120)


def test_scaling_slope_contradicts_the_law_for_every_rounding_of_the_printed_sizes():
    """The largest slope over the box of all printed x and y, found exactly, stays below the stated -0.2.

    Slope >= b means cov(u, v) - b var(u) >= 0 for some corner when b < 0: it is linear in each log y, hence largest at
    an end, and convex in log x. So enumerating the 2^16 corners of x, with the best end of y for each, is a proof.
    """
    rows = {claim.id: claim for claim in read_ledger(SCALING).claims}
    x = [rows[f"scaling.{cell}.parameters"].as_input() for cell in CELLS]
    y = [rows[f"scaling.{cell}.perplexity"].as_input() for cell in CELLS]
    u = np.log(np.array(list(itertools.product(*[(box.low, box.high) for box in x]))))
    low, high = np.log([(box.low, box.high) for box in y]).T
    deviation = u - u.mean(axis=1, keepdims=True)
    largest = np.where(deviation > 0, deviation * high, deviation * low).sum(axis=1) / (deviation**2).sum(axis=1)
    assert largest.max() < -0.2
    smallest_coefficient = np.exp(low.mean() - largest.max() * u.mean(axis=1).min())
    assert smallest_coefficient > 2000


def test_a_row_that_an_interval_decides_has_room_for_one():
    """No interval lies inside a point, so such a row could only be contradicted."""
    for row in claims.load():
        measured = [check for check in row.checks if check.grade != "property"]
        if measured and row.kind not in ("setting", "count"):
            assert row.tolerated().low < row.tolerated().high, row.id
