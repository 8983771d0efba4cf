"""The ledger of report 003, against the report's numbers copied out by hand, section by section, and against figures
worked out here another way: parameters tensor by tensor, the schedule step by step, the rest by plain arithmetic on the
ends that the printed numbers round to.
"""

import functools
import json
import re
from collections import Counter

import pytest

from labkit.ledger import claims
from labkit.ledger.audit import Claim, Finding, audit, read_ledger

LEDGER = claims.ledgers("predict_phase")[0]

# Every quantity of the report as printed, under its heading, without its labels (the ledger's header lists them). One
# that is spelt in several ways is written here as its row has it.
PRINTED = {
    "Title": "16GB",
    "Executive Summary": "124M 1.25× 1.74× 40%",
    "Model": "124M 12 768 12 50,257",
    "Training Configuration": "4 2 8 64 50 6e-4 1e-8",
    "HybridTrainer Configuration": "5 10 5 2 2.5 0.3",
    "Memory Optimizations": "4× 8",
    "Performance Comparison": (
        "31.3s 25.1s 18.0s 1.0× 1.25× 1.74× 624ms 498ms 345ms 409 510 1,419 "
        "3.8GB 3.8GB 3.7GB 4.2GB 14.1GB 8.8GB 4.2GB 14.1GB 8.8GB"
    ),
    "Loss Convergence": "449.4 64.1 85.7% 449.0 80.0 82.2% 456.8 80.4 82.4%",
    "Phase Distribution (HybridTrainer)": "5 10% 10 20% 20 40% 15 30%",
    "Step Time Analysis": "3.3s 0.5-0.6 4.6s 0.7s 0.7s 0.02-0.3 10-30× 0.07-0.3 0.5-0.6 0.02-0.3",
    "Goal #1: HybridTrainer Speedup": "≥1.5× 1.25× 1.74×",
    "Goal #2: Quality Preservation": "≤2% ~4% 80 64 80.0 64.1 25% 449 449 50",
    "Goal #3: Predict Phase Activation": "40% 20 50 10-30×",
    "Goal #4: Memory Reduction": "4× 2 8 8.8GB 14GB 3.5× 1,419 409",
    "1. GPU Fix Critical": "30-40 8 244MB 0.5-0.6 50× 409-1419 4-9GB",
    "2. Predict Phase Works!": "0.02-0.3 10-30×",
    "3. Memory Optimizations Effective": "4× 3.5×",
    "4. VRAM Growth Issue": "3.8GB 14.1GB 3.7GB 8.8GB 3.8GB 4.2GB 1",
    "MNIST CNN (Phase 1)": "2-layer ~50K 1.35× 1.88× 99%+",
    "GPT-2 Small (Phase 2B - This Validation)": "12 124M 1.25× 1.74× 2,000×",
    "Statistical Significance": "50 3 500-1000 0.05",
    "Where Time is Spent (HybridTrainer)": "10% 20% ~15% 0.7s 0.6s 40% 0.02-0.3 0.6s 50-95% 30% 0.07-0.3",
    "Optimization Opportunities": "5 10-20 2",
    "What Works": "124M",
    "What Needs Work": "500-1000 3 3",
    "Recommended Next Steps": "500 350M",
    "Phase 2B Success": "124M 40% 1.25-1.74×",
    "Technical Achievement": "1000× 4-phase",
    "Impact": "1.74× 42% 1-week 3 $10K $4,200 1B",
    "Confidence Level": "50",
    "Hardware": "16GB",
    "Expected Results": "~31s 409 ~25s 510 40% ~18s 1,419",
    "Final Assessment": "100% 100% 90% 1.74× ≥1.5× 95% 100% 350M 1B",
}
# The same for its code and result files: what the ledger takes from each.
STORED = {
    "code: src/models/gpt2.rs": "1024 124439808 354823168",
    "code: src/phases.rs": "5",
    "code: src/divergence.rs": "3.0",
    "code: examples/gpt2_small_hybrid.rs": "0",
    "code: examples/mnist_cnn_validation.rs": "421642",
    "code: results/phase_2b_manual_20260207_030835/baseline_seed42.log": (
        "92.71011 76.02993 60.83037 39835.5 31007.3 244.0"
    ),
    "code: VRAM_LEAK_ROOT_CAUSE.md": "3,864 4,184 14,136",
    "code: MNIST_VALIDATION_RESULTS.md": "810.4 599.0 431.5 97.45 99.05 99.37",
}
SECTIONS = PRINTED | STORED


def at_step(loss):
    """Say after how many steps the CPU baseline has a loss, by a line through what it has after 10 and 20."""
    return 10 + (92.71011 - loss) / ((92.71011 - 76.02993) / 10)


CNN = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 7 * 7 + 1) * 128 + (128 + 1) * 10
GAP = (100 * (79.95 / 64.15 - 1), 100 * (80.05 / 64.05 - 1))
# What is left for 20 Predict steps of the hybrid arm, least and most: its total less every other step.
LEFT = (25.05 - 4.65 - 14 * 0.75 - 15 * 0.3, 25.15 - 4.55 - 14 * 0.65 - 15 * 0.07)
# What contradicts the report or its files, with the recomputed ends.
CONTRADICTIONS = {
    "next.medium": (354_823_168, 354_823_168),
    "training.batch_effective_run": (2, 2),
    "config.correction_stored": (0, 0),
    "config.divergence_read": (3, 3),
    "average.baseline": (31.25 * 20, 31.35 * 20),
    "average.hybrid": (25.05 * 20, 25.15 * 20),
    "average.memory_optimized": (17.95 * 20, 18.05 * 20),
    "step.ratio_by_total": (0.65 / (LEFT[1] / 20), 0.75 / (LEFT[0] / 20)),
    "speedup.hybrid_logged": (at_step(80.05) / 50 * 31.25 / 25.15, at_step(79.95) / 50 * 31.35 / 25.05),
    "speedup.memory_optimized_logged": (at_step(80.45) / 50 * 31.25 / 18.05, at_step(80.35) / 50 * 31.35 / 17.95),
    "speedup.memory_optimized_step_times": (623.5 / 345.5, 624.5 / 344.5),
    "speedup.memory_optimized_per_token": (31.25 / 18.05 / 2, 31.35 / 17.95 / 2),
    "throughput.memory_optimized": (6400 / 18.05, 6400 / 17.95),
    "throughput.gain_physical": (6400 / 18.05 / 409.5, 6400 / 17.95 / 408.5),
    "memory.baseline.initial_thousands": (3.8635, 3.8645),
    "memory.hybrid.initial_thousands": (3.8635, 3.8645),
    "memory.baseline.final_gib": (4183.5 / 1024, 4184.5 / 1024),
    "memory.hybrid.final_gib": (14_135.5 / 1024, 14_136.5 / 1024),
    "memory.after_most": (14.05, 14.15),
    "loss.baseline.final_logged": (60.83037, 60.83037),
    "quality.target_printed": GAP,
    "quality.gap": GAP,
    "earlier.parameters": (CNN / 1000, CNN / 1000),
    "earlier.accuracy_maintained": (97.445, 97.455),
    "earlier.scale_counted": (124_439_808 / CNN, 124_439_808 / CNN),
    "earlier.scale_conclusion": (123.5e6 / 50_750, 124.5e6 / 49_250),
    "score.performance_reached": (173.5 / 1.5, 174.5 / 1.5),
}
# What follows from other numbers and agrees with print: our own arithmetic on the ends, never the ledger's.
FOLLOWS = {
    "loss.baseline.reduction": (100 - 100 * 64.15 / 449.35, 100 - 100 * 64.05 / 449.45),
    "loss.hybrid.reduction": (100 - 100 * 80.05 / 448.95, 100 - 100 * 79.95 / 449.05),
    "loss.memory_optimized.reduction": (100 - 100 * 80.45 / 456.75, 100 - 100 * 80.35 / 456.85),
    "time.hybrid_by_steps": (4.55 + 14 * 0.65 + 20 * 0.02 + 15 * 0.07, 4.65 + 14 * 0.75 + 20 * 0.3 + 15 * 0.3),
    "step.ratio": (0.65 / 0.3, 0.75 / 0.02),
    "step.saving": (100 - 100 * 0.3 / 0.55, 100 - 100 * 0.02 / 0.65),
    "speedup.hybrid": (31.25 / 25.15, 31.35 / 25.05),
    "speedup.memory_optimized": (31.25 / 18.05, 31.35 / 17.95),
    "throughput.baseline": (12_800 / 31.35, 12_800 / 31.25),
    "throughput.memory_optimized_virtual": (25_600 / 18.05, 25_600 / 17.95),
    "throughput.gain": (1418.5 / 409.5, 1419.5 / 408.5),
    "quality.gap_points": (85.65 - 82.25, 85.75 - 82.15),
    "quality.gap_numerical": GAP,
    "loss.baseline.final_uniform": (10.8249, 10.8250),
    "fallback.gain": (50, 80),
    "earlier.conservative": (810.35 / 599.05, 810.45 / 598.95),
    "earlier.aggressive": (810.35 / 431.55, 810.45 / 431.45),
    "saving.percent": (100 - 100 / 1.735, 100 - 100 / 1.745),
    "saving.dollars": (4150, 4250),
}
PHASES = ("warmup", "full", "predict", "correct")
GAINS = ("time_ratio/original", "time_ratio/memory_optimized", "loss_gap_percent/original", "full_over_forward")
SPEEDS = ("equal_loss_speed/original", "equal_loss_speed/memory_optimized", "equal_loss_speed/hybrid")
CHECKS = {
    "property": {f"{kind}/{phase}" for kind in ("phases", "phase_percent") for phase in PHASES}
    | {"parameters/gpt2", "parameters/gpt2_medium"},
    "reduced": {*GAINS, *SPEEDS, "memory_growth/prediction_over_graph"},
}
UNITS = {"phases": "steps", "phase_percent": "percent", "loss_gap_percent": "percent", "parameters": "parameters"}


@functools.cache
def rows() -> dict[str, Claim]:
    return {claim.id.removeprefix("predict."): claim for claim in read_ledger(LEDGER).claims}


@functools.cache
def findings() -> dict[str, Finding]:
    return {finding.claim.removeprefix("predict."): finding for finding in audit(LEDGER)}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_prints_the_numbers_of_its_rows_and_no_others(section):
    printed = Counter(SECTIONS[section].split())
    parts = [(row, row.source.section.partition(" against ")[0].split(";")) for row in rows().values()]
    held = Counter(row.printed.replace(" ", "") for row, found in parts if section in map(str.strip, found))
    assert set(held) == set(printed)
    assert printed <= held


def test_every_row_names_sections_of_the_report_or_files_of_its_code():
    for row in rows().values():
        named = {part.strip() for part in re.split(r";| against ", row.source.section)}
        assert named - {"code: src/lib.rs"} <= set(SECTIONS), row.id


def test_contradictions_are_these_and_no_others():
    assert {name for name, finding in findings().items() if finding.kind == "contradiction"} == set(CONTRADICTIONS)


@pytest.mark.parametrize("name", CONTRADICTIONS | FOLLOWS)
def test_a_figure_is_recomputed_from_the_ends_of_others(name):
    box = findings()[name].recomputed
    assert (box.low, box.high) == pytest.approx((CONTRADICTIONS | FOLLOWS)[name], rel=2e-5)


def test_a_wide_tolerance_for_measurements_hides_no_wrong_arithmetic():
    """Where a row allows a measurement more than its print, the recomputed figure still rounds to the print."""
    wide = {name for name, row in rows().items() if row.formula and row.tolerance and row.tolerance.origin == "rel"}
    assert wide == {"speedup.hybrid", "speedup.memory_optimized", "quality.gap", "quality.gap_numerical"}
    for name in wide - {"quality.gap"}:
        assert findings()[name].recomputed.meets(rows()[name].as_input()), name


@pytest.mark.parametrize(("name", "width", "layers"), [("gpt2", 768, 12), ("gpt2_medium", 1024, 24)])
def test_parameters_are_those_of_every_tensor(name, width, layers):
    maps = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    layer = sum(inputs * outputs + outputs for inputs, outputs in maps) + 4 * width
    assert rows()[f"exact.{name}"].value == 50_257 * width + 1024 * width + layers * layer + 2 * width


def test_phases_are_those_of_a_run_step_by_step():
    phases = ["warmup"] * 5 + ["full"] * 10
    while len(phases) < 50:
        phases += ["predict"] * 5 + ["correct"] * 5
    for phase, steps in Counter(phases[:50]).items():
        assert rows()[f"phases.{phase}"].value == steps
        assert rows()[f"phases.{phase}_percent"].value == 2 * steps


def test_each_result_decides_at_its_grade_and_memory_has_none():
    demands = {}
    for name, row in rows().items():
        assert not (row.checks and ("memory." in name or "loss." in name)), name
        for check in row.checks:
            demands.setdefault(check.grade, set()).add(check.key)
            assert (check.profiles, check.resolved) == (None, [])
            assert row.unit == UNITS.get(check.key.partition("/")[0], "")
    assert demands == CHECKS


def test_a_small_run_settles_counts_and_gains(tmp_path):
    values = {"parameters/gpt2": (124_439_808.0, "parameters"), "phases/predict": (20.0, "steps")}
    values |= {"time_ratio/original": (1.3, ""), "equal_loss_speed/original": (0.5, ""), "full_over_forward": (3.1, "")}
    values |= {"equal_loss_speed/hybrid": (0.98, ""), "loss_gap_percent/original": (31.0, "percent")}
    entries = {key: {"value": value, "unit": unit, "exact": True} for key, (value, unit) in values.items()}
    document = {"report": "predict_phase", "profile": "cpu", "scale": "reduced", "results": entries}
    (tmp_path / "results.json").write_text(json.dumps(document), encoding="utf-8")
    found = claims.judge(tmp_path).set_index("claim")["verdict"].rename(lambda name: name.removeprefix("predict."))
    right = {"model.parameters", "speedup.hybrid", "quality.gap_numerical"}
    wrong = {"speedup.hybrid_equal_loss", "speedup.target", "step.ratio", "quality.target"}
    assert set(found.index[found == "reproduced"]) == right
    assert set(found.index[found == "contradicted"]) == wrong
    assert (found == "inconsistent in source").sum() == len(CONTRADICTIONS)
    inputs = {name for name, row in rows().items() if row.kind in ("setting", "count")}
    undecided = set(findings()) - set(CONTRADICTIONS) - inputs - right - wrong
    assert set(found.index[found == "audited only"]) == undecided
