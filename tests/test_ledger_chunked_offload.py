"""The ledger of report 001, against the report's numbers copied out by hand, section by section, and against figures
worked out here another way: parameters matrix by matrix, ratios and ranges from their ends, the law of time over batch
by solving for load and rest.
"""

import functools
import itertools
import json
import math
import re
from collections import Counter

import pytest

from labkit.ledger import claims
from labkit.ledger.audit import Claim, Finding, audit, read_ledger

LEDGER = claims.ledgers("chunked_offload")[0]

# Every quantity of the report as printed, under its heading. Labels (dates, list numbers, the port, the names of card,
# model and number formats) are left out, as the ledger's header says.
PRINTED = {
    "Executive Summary": "16.23B 4GB",
    "Key Results": "760-1169ms 8,293-10,386ms 7-13x 0.86-1.32 0.096-0.121 7-13x 1528-1568MB 979-982MB",
    "Answer: The Model IS Learning": "batch=1 2.2216 2.1509 3.2% batch=32 2.2223 2.1723 2.2% 0",
    "Optimization Configuration": "1 32-128 0 1 2 3 36 37 38 39 8 16 5.57M 0.034% 16.23B",
    "1. Sparse Layer Training": "8 40 4 4",
    "3. LoRA Adapters": "5.57M",
    "4. Chunk-Based Processing": "1 16B 4GB",
    "How to Reproduce": "2 ~30s 4 ~25min 64 4",
    "Conclusion": "7-13x 16B 4GB",
    "Footer": "4GB 16.23B",
}
# The same for its code and result files (e174f1f): what the ledger takes from each.
STORED = {
    "model configuration: microsoft/phi-4": "14659507200",
    "code: models/phi-4/universal_config.json": "14659507200 29.3190144 35840 17920 7680 5120 4.294705152",
    "code: src/wrappers/batched_sparse.py": "5120 7680 35840 17920 1e-4 32",
    "code: archive/experimental_optimizers/training_benchmark.py": "512 8",
    "code: benchmark_results/training_benchmark.json": (
        "16 1 18.7057734375 1169.11083984375 0.855350892250429 1567.73681640625 "
        "2 17.561795473098755 8780.897736549377 0.11388357204498879 978.5615234375 7.510748713717283"
    ),
    "code: docs/UNIVERSAL_OPTIMIZER.md": (
        "3 3261ms 1x 8 949ms 3.4x 64 516ms 6.3x 128 490ms 6.7x 1.5GB"  # and 516ms, 3261ms again by the law
    ),
    "code: output/test_run/training_summary.json": "1445.7525461912155",
    "code: archive/experimental_optimizers/simple_learning_test.py": "10 20 30 1e-3 32 1.1 0.05 1e-8",
    "code: benchmark_results/learning_results.json": (
        "2.221589756011963 2.150910425186157 3.1814753662118265 0.03466203863073118 0.14095087673164294 "
        "2.2223254919052122 2.172323727607727 2.2499748340023076 0.007316755175784792 0.020075786612015745 "
        "1.5976035594940186 22.467816829681396"
    ),
}
SECTIONS = PRINTED | STORED
# What contradicts the report or its files, with the recomputed ends.
CONTRADICTIONS = {
    "model.parameters": (14_659_507_200, 14_659_507_200),
    "model.size": (14_659_507_200, 14_659_507_200),
    "model.size_read": (2_726_297_600, 2_726_297_600),
    "config.batch_recorded": (16, 16),
    "trainable.without_gqa": (6_062_080, 6_062_080),
    "trainable.reached": (2_949_120, 2_949_120),
    "trainable.percent_of_true": (0.037962, 0.038030),
    "optimized.ms_documented": (489.5, 516.5),
    "optimized.ms_later": (1445.75, 1445.75),
    "baseline.ms_documented": (3260.5, 3261.5),
    "speedup.documented": (6.25, 6.75),
    "law.original": (4368.2, 4384.2),
    "law.baseline": (4368.2, 4384.2),
    "bandwidth.two_passes": (5.6459, 7.0708),
    "memory.improvement": (1528, 1568),
    "reproduce.optimized.recorded": (16, 16),
    "reproduce.baseline.recorded": (2, 2),
}
# Load and rest of the series (ms per sample at batches 8 and 128), for the time L/B + c.
LOAD = (949 - 490) / (1 / 8 - 1 / 128)
REST = 490 - LOAD / 128
LAYER = (5120 * 7680, 5120 * 5120, 5120 * 35_840, 17_920 * 5120)
# What follows from other numbers, and from what: our own arithmetic on the ends, never the ledger's.
FOLLOWS = {
    "code.size": (14_659_507_200 * 2 / 1e9,),
    "model.parameters_without_gqa": (14_659_507_200 + 40 * 5120 * 2 * (5120 - 1280),),
    "trainable.parameters": (8 * 8 * sum(map(sum, ((5120, 7680), (5120, 5120), (5120, 35_840), (17_920, 5120)))),),
    "trainable.percent": (5.565e6 / 16.235e9 * 100, 5.575e6 / 16.225e9 * 100),
    "code.record.optimized.ms": (18_705.7734375 / 16,),
    "code.record.optimized.throughput": (16 / 18.7057734375,),
    "code.record.baseline.ms": (17_561.795473098755 / 2,),
    "code.record.baseline.throughput": (2 / 17.561795473098755,),
    "code.record.speedup": (17_561.795473098755 / 2 / (18_705.7734375 / 16),),
    "code.series.batch_8.speedup": (3260.5 / 949.5, 3261.5 / 948.5),
    "code.series.batch_64.speedup": (3260.5 / 516.5, 3261.5 / 515.5),
    "code.series.batch_128.speedup": (3260.5 / 490.5, 3261.5 / 489.5),
    "code.series.memory": (1567.73681640625 / 1024,),
    "optimized.ms": (1169.11083984375,),
    "baseline.ms": (8780.897736549377,),
    "optimized.throughput": (1 / 1.169, 1 / 0.760),
    "baseline.throughput": (1 / 10.386, 1 / 8.293),
    "speedup.time": (8293 / 1169, 10_386 / 760),
    "speedup.throughput": (0.86 / 0.121, 1.32 / 0.096),
    "speedup.recorded": (8780.897736549377 / 1169.11083984375,),
    "speedup.least": (8293 / 1169, 10_386 / 760),
    "speedup.most": (8293 / 1169, 10_386 / 760),
    "bandwidth.eight_layers": tuple(8 * (sum(LAYER) + 2 * 5120) * 2 / 1e6 / ms for ms in (10_386, 8293)),
    "hardware.memory": (4.294705152e9 / 1024**3,),
    "optimized.memory": (1567.73681640625,),
    "baseline.memory": (978.5615234375,),
    "memory.run": (1528 / 1024, 1568 / 1024),
    "code.learning.baseline.reduction": (100 - 100 * 2.150910425186157 / 2.221589756011963,),
    "code.learning.optimized.reduction": (100 - 100 * 2.172323727607727 / 2.2223254919052122,),
    "code.gradient.least": (0.007316755175784792,),
    "reproduce.quick.seconds": (1.5976035594940186 + 22.467816829681396,),
}
CHECKS = {
    ("property", ()): {
        *("parameters/phi-4", "parameters/phi-4-without-gqa", "trainable/phi-4"),
        *("trainable_percent/phi-4", "trainable_percent/phi-4-without-gqa"),
    },
    ("reduced", ()): {
        *("speedup/batch_8", "speedup/batch_32", "speedup/batch_64", "speedup/batch_128", "speedup_range"),
        *("peak_memory/phi-4", "held_out_percent/streamed_over_resident"),
    },
    ("stated", ("gtx1650",)): {
        *("seconds_per_sample/batch_1", "seconds_per_sample/batch_32", "seconds_per_sample/batch_128"),
        *("seconds_per_sample_range", "samples_per_second/batch_1", "samples_per_second_range"),
        *("peak_memory/batch_1", "peak_memory/batch_128"),
    },
}


@functools.cache
def rows() -> dict[str, Claim]:
    return {claim.id.removeprefix("offload."): claim for claim in read_ledger(LEDGER).claims}


@functools.cache
def findings() -> dict[str, Finding]:
    return {finding.claim.removeprefix("offload."): finding for finding in audit(LEDGER)}


def numbers(text: str) -> tuple[float, ...]:
    """Read the numbers of a printed text, with M or B of a model's size; MB and GB stay as they are."""
    found = re.findall(r"(\d[\d,]*(?:\.\d+)?)([MB](?![a-zA-Z]))?", text)
    return tuple(float(digits.replace(",", "")) * {"": 1, "M": 1e6, "B": 1e9}[suffix] for digits, suffix in found)


def rows_of(section: str) -> list[Claim]:
    return [row for row in rows().values() if section in [part.strip() for part in row.source.section.split(";")]]


def publish(folder, *, profile="cpu", scale="reduced", **values):
    """Publish a results.json of report 001; a value is (number or range, unit)."""
    entries = {key: {"value": x, "unit": unit, "exact": True} for key, (x, unit) in values.items()}
    document = {"report": "chunked_offload", "profile": profile, "scale": scale, "results": entries}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(document), encoding="utf-8")
    found = claims.judge(folder).set_index("claim")
    return found.rename(index=lambda name: name.removeprefix("offload."))["verdict"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_prints_the_numbers_of_its_rows_and_no_others(section):
    printed = Counter(map(numbers, SECTIONS[section].split()))
    held = Counter(numbers(row.printed) for row in rows_of(section))
    assert set(held) == set(printed)
    assert printed <= held


def test_every_row_is_spelt_as_its_source_spells_it():
    for section, texts in SECTIONS.items():
        assert set(texts.split()) == {row.printed for row in rows_of(section)}


def test_every_row_stands_in_the_report_its_code_or_the_model_configuration():
    for row in rows().values():
        for part in row.source.section.split(" against ")[0].split(";"):
            bus = "bandwidth" in row.id
            assert bus or row.printed in SECTIONS[part.strip()].split(), row.id


def test_a_comparison_names_what_it_is_held_against_and_recomputes_it():
    held = {name: row for name, row in rows().items() if " against " in row.source.section}
    assert len(held) == 16
    for name, row in held.items():
        assert re.search(r" against (code: \S+/\S+|Key Results|Executive Summary)$", row.source.section), name
        assert name in findings()


def test_contradictions_are_these_and_no_others():
    found = {name: finding.recomputed for name, finding in findings().items() if finding.kind == "contradiction"}
    assert set(found) == set(CONTRADICTIONS)
    for name, ends in CONTRADICTIONS.items():
        assert (found[name].low, found[name].high) == pytest.approx(ends, rel=2e-5), name


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_is_recomputed_to_the_figure_and_agrees_with_print(name):
    found = findings()[name]
    assert (found.recomputed.low, found.recomputed.high) == pytest.approx((FOLLOWS[name] * 2)[:2], rel=1e-9)
    assert found.kind in ("consistent", "rounding")


def test_every_finding_is_worked_out_here_another_way():
    elsewhere = {"exact.phi_4", "model.size_without_gqa", "reproduce.full.minutes"}
    elsewhere |= {name for name in findings() if name.startswith(("code.shape.", "config.", "law.", "learning."))}
    assert set(FOLLOWS) | set(CONTRADICTIONS) | elsewhere == set(findings())
    assert not set(FOLLOWS) & set(CONTRADICTIONS)


def test_a_wide_tolerance_for_measurements_hides_no_wrong_arithmetic():
    """Where a row allows a measurement more than its print, the recomputed figure still rounds to the print."""
    wide = {name for name, row in rows().items() if row.formula and row.tolerance and row.tolerance.origin == "rel"}
    assert wide - {"law.batch_64", "law.original"} == {
        *("code.record.baseline.ms", "code.record.baseline.throughput"),
        *(f"code.series.batch_{size}.speedup" for size in (8, 64, 128)),
    }
    for name in wide - {"law.batch_64", "law.original"}:
        half = 0.5 * 10.0 ** -len(rows()[name].printed.rstrip("x").partition(".")[2])
        box = findings()[name].recomputed
        assert box.low <= rows()[name].value + half, name
        assert box.high >= rows()[name].value - half, name


def matrix_by_matrix(kv_heads, heads=40, width=5120, inner=17_920, layers=40, vocabulary=100_352):
    """Count phi-4's parameters as inputs x outputs, q, k, v, gate and up one by one; no biases."""
    narrow = kv_heads * (width // heads)
    attention = width * width + 2 * width * narrow + width * width
    network = width * inner + width * inner + inner * width
    return vocabulary * width + layers * (attention + network + width + width) + width + width * vocabulary


def test_parameter_formulas_count_every_matrix():
    exact, other = rows()["exact.phi_4"], rows()["model.parameters_without_gqa"]
    assert exact.value == matrix_by_matrix(10) == 14_659_507_200
    assert findings()["exact.phi_4"].recomputed.middle == pytest.approx(matrix_by_matrix(10), rel=1e-12)
    assert [check.key for check in exact.checks] == ["parameters/phi-4"]
    counted = findings()["model.parameters_without_gqa"]
    assert counted.recomputed.middle == pytest.approx(matrix_by_matrix(40), rel=1e-12) == 16_232_371_200
    assert counted.kind == "rounding"
    assert [check.key for check in other.checks] == ["parameters/phi-4-without-gqa"]
    assert findings()["model.size_without_gqa"].kind == "rounding"


def test_shapes_are_those_of_heads_and_inner_width():
    shape = {name: rows()[f"code.shape.{name}"].value for name in ("width", "qkv", "gate_up", "inner")}
    assert shape == {"width": 40 * 128, "qkv": (40 + 10 + 10) * 128, "gate_up": 2 * 17_920, "inner": 17_920}
    assert {findings()[f"code.shape.{name}"].kind for name in ("qkv", "gate_up")} == {"consistent"}


def test_adapters_are_first_and_last_four_layers_and_their_parts_are_named():
    layers = [int(row.value) for name, row in rows().items() if re.fullmatch(r"config\.layer_\d+", name)]
    assert layers == [*range(4), *range(36, 40)]
    assert len(layers) == rows()["config.layers"].value
    assert {f.kind for name, f in findings().items() if name.startswith("config.layer")} == {"consistent"}
    parts = {"qkv": 5120 + 7680, "output": 5120 + 5120, "gate and up": 5120 + 35_840, "down": 17_920 + 5120}
    for name, ends in parts.items():
        assert f"{name} {8 * 8 * ends:,}" in rows()["trainable.parameters"].note
    dead = 8 * 8 * (parts["qkv"] + parts["output"]) + 8 * 8 * 17_920
    assert CONTRADICTIONS["trainable.reached"][0] == 8 * 8 * sum(parts.values()) - dead
    assert CONTRADICTIONS["trainable.without_gqa"][0] == 8 * 8 * (sum(parts.values()) + 2 * (5120 - 1280))
    assert CONTRADICTIONS["model.size_read"][0] == 8 * sum(LAYER)


def test_share_of_the_true_count_is_the_quotient_of_the_counts():
    counts = {"percent_of_true": matrix_by_matrix(10), "percent": matrix_by_matrix(40)}
    for name, count in counts.items():
        box = findings()[f"trainable.{name}"].recomputed
        assert box.low < 100 * 5_570_560 / count < box.high, name


def test_time_over_batch_is_load_over_batch_plus_rest():
    """The formulas are the solved law, and their boxes are the corners of the printed times' rounding."""
    assert pytest.approx(3916.8) == LOAD
    assert pytest.approx(459.4) == REST
    boxes = {name: findings()[f"law.{name}"].recomputed for name in ("batch_64", "original", "baseline", "speedup")}
    corners = {name: [] for name in boxes}
    for at_8, at_128 in itertools.product((948.5, 949, 949.5), (489.5, 490, 490.5)):
        load = (at_8 - at_128) / (1 / 8 - 1 / 128)
        rest = at_128 - load / 128
        corners["batch_64"] += [load / 64 + rest]
        corners["original"] += [load + rest]
        corners["baseline"] += [load + rest]
        corners["speedup"] += [(load + rest) / (load / batch + rest) for batch in (32, 128)]
    for name, values in corners.items():
        assert boxes[name].low <= min(values) + 1e-9, name
        assert boxes[name].high >= max(values) - 1e-9, name
        assert (boxes[name].low, boxes[name].high) == pytest.approx((min(values), max(values)), rel=5e-3), name
    assert findings()["law.batch_64"].kind == "rounding"
    assert findings()["law.speedup"].kind == "consistent"
    assert f"{(LOAD + REST) / REST:.2f}" == "9.53"
    assert "tends to 9.53" in rows()["law.speedup"].note
    assert abs(LOAD / 64 + REST - 516) < 0.01 * 516


def test_two_passes_in_the_printed_time_outrun_the_measured_bus():
    needed = [2 * 2 * matrix_by_matrix(10) / 1e6 / ms for ms in (10_386, 8293)]
    assert needed == pytest.approx(list(CONTRADICTIONS["bandwidth.two_passes"]), rel=2e-5)
    assert min(needed) > rows()["bandwidth.two_passes"].value == 3.0355321132270783


@pytest.mark.parametrize(
    ("arm", "first", "last", "percent"), [("baseline", 2.2216, 2.1509, 3.2), ("optimized", 2.2223, 2.1723, 2.2)]
)
def test_losses_round_the_stored_ones_and_have_no_check(arm, first, last, percent):
    for name, value in (("initial", first), ("final", last), ("reduction", percent)):
        row = rows()[f"learning.{arm}.{name}"]
        stored = rows()[f"code.learning.{arm}.{name}"].value
        assert row.value == value == round(stored, 4 if name != "reduction" else 1)
        assert findings()[f"learning.{arm}.{name}"].kind == "rounding"
        assert "Another program" in row.note
    box = findings()[f"learning.{arm}.reduction"].recomputed
    assert box.low < 100 * (first - last) / first < box.high
    assert not [name for name, row in rows().items() if "learning" in name and row.checks]


def test_quick_validation_extrapolates_to_minutes():
    """Time of a step as overhead plus seconds per sample, fitted to batches 1 and 32 of 200 steps each."""
    one, many = 1.5976035594940186 / 200, 22.467816829681396 / 200
    per_sample = (many - one) / 31
    minutes = 10 * 30 * sum(one + per_sample * (batch - 1) for batch in (1, 8, 32, 128)) / 60
    assert findings()["reproduce.full.minutes"].recomputed.middle == pytest.approx(minutes, rel=1e-9)
    assert findings()["reproduce.full.minutes"].kind == "consistent"
    held = 2 * 30 * 128 * 32 * 5120 * 4
    assert held > rows()["code.hardware.memory"].value * 1e9


def test_each_result_decides_at_its_grade_and_levels_only_on_the_card():
    demands = {}
    for check in itertools.chain.from_iterable(row.checks for row in rows().values()):
        demands.setdefault((check.grade, tuple(check.profiles or ())), set()).add(check.key)
        assert check.resolved == []
    assert demands == CHECKS


def test_a_result_has_one_kind_of_unit_wherever_it_is_used():
    units = {}
    for row in rows().values():
        for check in row.checks:
            units.setdefault(check.key, set()).add(row.unit)
    kinds = {
        r"parameters/.*|trainable/.*": {"parameters"},
        r"(trainable|held_out)_percent/.*": {"percent"},
        r"speedup.*": {""},
        r"seconds_per_sample.*": {"milliseconds"},
        r"samples_per_second.*": {"samples per second"},
        r"peak_memory/.*": {"MiB", "GiB"},
    }
    for key, found in units.items():
        (allowed,) = [names for pattern, names in kinds.items() if re.fullmatch(pattern, key)]
        assert found <= allowed, key


def test_every_row_has_a_verdict_before_any_run(tmp_path):
    found = claims.judge(tmp_path, report="chunked_offload")
    assert list(found["claim"]) == [row.id for row in rows().values()]
    counts = found["verdict"].value_counts()
    assert counts["inconsistent in source"] == len(CONTRADICTIONS)
    inputs = {name for name, row in rows().items() if row.kind in ("setting", "count")}
    assert counts["audited only"] == len(set(findings()) - inputs - set(CONTRADICTIONS))
    assert counts["input"] == len(inputs - set(CONTRADICTIONS))
    assert set(counts.index) == {"inconsistent in source", "audited only", "not attempted", "input"}


def test_a_small_run_settles_counts_and_speed_ups_and_no_level(tmp_path):
    found = publish(
        tmp_path / "small",
        **{
            "parameters/phi-4": (14_659_507_200.0, "parameters"),
            "parameters/phi-4-without-gqa": (16_232_371_200.0, "parameters"),
            "trainable/phi-4": (5_570_560.0, "parameters"),
            "trainable_percent/phi-4": (0.0380, "percent"),
            "trainable_percent/phi-4-without-gqa": (0.03432, "percent"),
            "speedup_range": ([6.1, 8.2], ""),
            "speedup/batch_32": (6.1, ""),
            "speedup/batch_64": (7.3, ""),
            "speedup/batch_128": (8.2, ""),
            "peak_memory/phi-4": (4.1, "GB"),
            "seconds_per_sample/batch_1": (9000.0, "milliseconds"),
            "peak_memory/batch_128": (1550.0, "MiB"),
        },
    )
    assert found["model.parameters"] == "inconsistent in source"
    assert found["model.parameters_without_gqa"] == "reproduced"
    assert found["trainable.parameters"] == "reproduced"
    assert found["trainable.percent"] == "reproduced"
    assert found["trainable.percent_of_true"] == "inconsistent in source"
    assert found["speedup.time"] == "undecided"
    assert found["speedup.least"] == "contradicted"
    assert found["speedup.most"] == "reproduced"
    assert found["code.series.batch_64.speedup"] == "contradicted"
    assert found["memory.phi_4"] == "reproduced"
    assert found["baseline.ms"] == "audited only"
    assert found["optimized.memory"] == "audited only"


def test_the_bound_on_memory_is_that_of_the_card_in_binary_units(tmp_path):
    assert math.isclose(rows()["hardware.memory"].value * 1024**3, 4.294705152e9, rel_tol=1e-4)
    found = publish(tmp_path / "large", **{"peak_memory/phi-4": (4.4, "GB")})
    assert found["memory.phi_4"] == "contradicted"


def test_levels_are_met_or_missed_on_the_card_alone(tmp_path):
    values = {
        "seconds_per_sample_range": ([1100.0, 1300.0], "milliseconds"),
        "seconds_per_sample/batch_1": (4400.0, "milliseconds"),
        "seconds_per_sample/batch_128": (505.0, "milliseconds"),
        "samples_per_second/batch_1": (0.119, "samples per second"),
        "samples_per_second_range": ([0.5, 0.7], "samples per second"),
        "peak_memory/batch_1": (1030.0, "MB"),
        "peak_memory/batch_128": (1600.0, "MB"),
    }
    card = publish(tmp_path / "card", profile="gtx1650", scale="stated", **values)
    assert card["optimized.ms"] == "undecided"
    assert card["baseline.ms"] == card["code.record.baseline.ms"] == "contradicted"
    assert card["code.series.batch_128.ms"] == "reproduced"
    assert card["baseline.throughput"] == "reproduced"
    assert card["optimized.throughput"] == "contradicted"
    assert card["baseline.memory"] == "reproduced"
    assert card["optimized.memory"] == "contradicted"
    elsewhere = publish(tmp_path / "elsewhere", profile="h100", scale="stated", **values)
    assert set(elsewhere) == {"inconsistent in source", "audited only", "not attempted", "input"}
