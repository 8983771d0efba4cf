"""The ledger of report 000, against the report's numbers copied out by hand, section by section, and against figures
worked out here another way: parameters matrix by matrix, means and ratios by plain arithmetic on the stored readings
(labkit.reports.size_inertia.published), steps by counting batches.
"""

import functools
import json
import math
import re
import statistics

import pytest

from labkit.ledger import claims
from labkit.ledger.audit import Claim, Finding, audit, read_ledger
from labkit.reports.size_inertia import published

LEDGER = claims.ledgers("size_inertia")[0]
THREE = ("qwen2.5-0.5b", "phi-2", "qwen2.5-7b")
ROWS = {"qwen2.5-0.5b": "qwen_0_5b", "phi-2": "phi_2", "qwen2.5-7b": "qwen_7b"}

# Every quantity of the report as printed, under its heading. Labels (dates, sessions, versions, the sizes in model
# names, number formats, list numbers, the steps that head the losses) are left out, as the ledger's header says.
PRINTED = {
    "Title": "122GB",
    "Executive Summary": "494M 2.7B 5.46x 2.70x 3.42x",
    "Models Tested": "494M 2.7B",
    "Training Configuration": "115 5 2.16M 0.44% 7.86M 0.28%",
    "Hardware": "131.9GB 122GB",
    "Training Performance": "494M 79.1 1.05 0.000 50 2.7B 213.8 2.85 0.003 2.70x",
    "Loss Convergence Curves": "0.692 0.258 0.002 0.000 75 0.693 0.470 0.039 0.003",
    "Inference Performance": "3 0.74 13.32 1.39 45.59 3.42x",
    "Efficiency Analysis": "5.46x 2.70x 3.42x 0.64x",
    "1. Super-Linear Overhead in Inference": "3.42x 5.46x 2.70x",
    "3. LoRA Efficiency Scales Inversely": "0.44% 0.28%",
    "SAGE Orchestration Validation": "0.100",
    "Measured SAGE Performance": "7-9s 12-17s ~45s",
    "For ATP Energy Economics": "3.4x",
    "Qwen 7B GPU Benchmark": "110.04 1.0x 10.61 15.31GB 10.37x 11.37s 12.64s 12.63s 6.55s",
    "Complete Dataset with GPU": "494M 13.32 1.63 8.17x 2.7B 45.59 4.17 10.93x 7.0B 110.04 10.61 10.37x 8-11x",
    "Updated SAGE Performance Estimates": "~1s 1.63s 4.17s 10.61s 15s",
    "Completed Steps": "14x 10.37x 1.63s 8.17x 4.17s 10.93x",
    "Immediate Next Steps": "~1s",
    "Conclusion": "2.70x 5.46x 8.26x 14x ~10x 122GB 131.9GB 494M 7B",
    "Platform": "14 122GB 131.9GB",
}
# Statements without a digit that the ledger turns into a bound on the exponent of time in size; "better than linear" in
# the table of ratios is the third.
SAID = {
    "SAGE Orchestration Validation": "No single best model",
    "3. LoRA Efficiency Scales Inversely": "proportionally fewer",
    "Executive Summary": "super-linear",
    "Efficiency Analysis": "sub-linear",
    "For Edge Devices": "super-linear",
    "Complete Dataset with GPU": "sub-linear",
    "Completed Steps": "sub-linear",
    "Conclusion": "sub-linear",
}
# What contradicts the report, with the recomputed figure.
CONTRADICTIONS = {
    "phi_2.parameters": 2_779_683_840,
    "qwen_7b.parameters": 7_615_616_512,
    "phi_2.size_ratio": 5.6265,
    "qwen_7b.size_ratio": 15.415,
    "lora.phi_2.all_targets": 10_485_760,
    "lora.phi_2.percent_of_printed": 0.29121,
    "inference.ratio_full_length": 3.916,
    "law.inference_super": 0.7244,
    "law.training_super": 0.5851,
    "law.exceeds_size": 3.42,
    "gpu.qwen_7b.speedup_full_length": 8.709,
    "gpu.speedup_consistent": 8.17,
    "hardware.ram": 131.9,
}
# What follows from the report's other numbers, and from what: our own arithmetic, never the ledger's.
FOLLOWS = {
    "phi_2.size_ratio_printed": 2.7e9 / 494e6,
    "qwen_7b.size_ratio_printed": 7.0e9 / 494e6,
    "lora.qwen_0_5b.trainable": 24 * 16 * sum((896 + 896, 896 + 128, 896 + 128, 896 + 896)),
    "lora.phi_2.trainable": 32 * 16 * 3 * (2560 + 2560),
    "lora.percent_ratio": 0.28 / 0.44,
    "training.qwen_0_5b.seconds_per_step": 79.1 / 75,
    "training.phi_2.seconds_per_step": 213.8 / 75,
    "training.ratio": 213.8 / 79.1,
    "inference.ratio": 45.59 / 13.32,
    "inference.ratio_7b": 110.04 / 13.32,
    "law.training_sub": math.log(2.70) / math.log(5.46),
    "law.inference_sub": math.log(8.26) / math.log(14),
    "law.gpu_sub": math.log(10.61 / 1.63) / math.log(14),
    "law.exceeds_training": 3.42,
    "gpu.qwen_0_5b.speedup": 13.32 / 1.63,
    "gpu.phi_2.speedup": 45.59 / 4.17,
    "gpu.qwen_7b.speedup": 110.04 / 10.61,
    "gpu.peak_memory_weights": 7_615_616_512 * 2 / 1e9,
    "hardware.ram_gib": 131.9e9 / 1024**3,
    "loss.qwen_0_5b.at_margin": -math.log(1 / (1 + math.exp(-10.82))),
    "loss.phi_2.at_margin": -math.log(1 / (1 + math.exp(-6.24))),
    "routing.atp": 0.1,
}
PROPERTIES = re.compile(r"(parameters|parameter_ratio|lora_\w+)/.*|dpo/optimizer_steps")
SHAPES = re.compile(
    r"(train_time_ratio|generation_ratio/cpu)/.*|size_exponent/(decode|train)|loss_difference/step_75|"
    r"preference_loss/smaller|routing_gain/keyword_rule"
)
LOSSES = re.compile(r"final_loss/.*|loss/.*/step_(5|30|50|75)")
ON_THE_BOARD = re.compile(
    r"(train_seconds|train_seconds_per_step|load_seconds|cuda_speedup|seconds_per_query)/.*|"
    r"generation_seconds/(cpu|cuda)/.*|peak_memory/cuda/qwen2\.5-7b"
)


@functools.cache
def rows() -> dict[str, Claim]:
    return {claim.id.removeprefix("inertia."): claim for claim in read_ledger(LEDGER).claims}


@functools.cache
def findings() -> dict[str, Finding]:
    return {finding.claim.removeprefix("inertia."): finding for finding in audit(LEDGER)}


def numbers(text: str) -> list[float]:
    """Read the numbers of a printed text, with k, M or B of a model's size; GB stays as it is."""
    found = re.findall(r"(\d+(?:\.\d+)?)([MB](?![a-zA-Z]))?", text)
    return [float(digits) * {"": 1, "M": 1e6, "B": 1e9}[suffix] for digits, suffix in found]


def rows_of(section: str) -> list[Claim]:
    listed = {name: [part.strip() for part in row.source.section.split(";")] for name, row in rows().items()}
    return [row for name, row in rows().items() if section in listed[name]]


def publish(folder, *, profile="cpu", scale="reduced", **values):
    """Publish a results.json of report 000; a value is (number, interval or None, unit)."""
    entries = {
        key: {"value": x, "ci": ends, "unit": unit, "exact": ends is None} for key, (x, ends, unit) in values.items()
    }
    document = {"report": "size_inertia", "profile": profile, "scale": scale, "results": entries}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(document), encoding="utf-8")
    return claims.judge(folder).set_index("claim")


PAIRS = [(section, text) for section, texts in PRINTED.items() for text in texts.split()]


@pytest.mark.parametrize(("section", "text"), PAIRS, ids=[f"{section}-{text}" for section, text in PAIRS])
def test_every_printed_number_has_a_row_under_its_heading(section, text):
    assert [row.id for row in rows_of(section) if numbers(row.printed) == numbers(text)]


@pytest.mark.parametrize("section", SAID)
def test_every_statement_on_growth_has_a_row_under_its_heading(section):
    assert [row.id for row in rows_of(section) if SAID[section] in row.printed]


def test_every_row_stands_in_the_report_its_code_or_a_model_configuration():
    for row in rows().values():
        plain = row.source.section.split(" against ")[0]
        for part in plain.split(";"):
            section = part.strip()
            if section.startswith(("code: ", "model configuration: ")):
                continue
            said = SAID.get(section, "").split()
            printed = [numbers(text) for text in PRINTED.get(section, "").split()]
            assert numbers(row.printed) in printed or any(text in row.printed for text in said), (row.id, section)


def test_contradictions_are_these_and_no_others():
    found = {name: finding for name, finding in findings().items() if finding.kind == "contradiction"}
    assert set(found) == set(CONTRADICTIONS)
    for name, value in CONTRADICTIONS.items():
        assert found[name].recomputed.middle == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_is_recomputed_to_the_figure_and_agrees_with_print(name):
    assert findings()[name].recomputed.middle == pytest.approx(FOLLOWS[name], rel=1e-3)
    assert findings()[name].kind in ("consistent", "rounding")


def test_a_wide_tolerance_for_measurements_hides_no_wrong_arithmetic():
    """Where a row allows a measurement more than its print, the recomputed figure still rounds to the print."""
    wide = [row for row in rows().values() if row.formula and row.tolerance and row.tolerance.origin != "printed"]
    assert len(wide) >= 15
    for row in wide:
        digits = re.search(r"\d+(?:\.(\d+))?", row.printed)
        half = 0.5 * 10.0 ** -len(digits[1] or "")
        box = findings()[row.id.removeprefix("inertia.")].recomputed
        if row.kind != "bound" and row.id != "inertia.hardware.ram_gib":
            assert box.low <= row.value + half, row.id
            assert box.high >= row.value - half, row.id


def matrix_by_matrix(vocabulary, width, layers, narrow, inner, *, gated):
    """Count a decoder's parameters as inputs x outputs + biases: Qwen 2 if gated, else Phi."""

    def linear(inputs, outputs, bias=True):
        return inputs * outputs + outputs * bias

    attention = linear(width, width) + 2 * linear(width, narrow) + linear(width, width, bias=not gated)
    network = 3 * linear(width, inner, bias=False) if gated else linear(width, inner) + linear(inner, width)
    norms = (2 * layers + 1) * width if gated else (layers + 1) * 2 * width
    return vocabulary * width + layers * (attention + network) + norms


COUNTED = {
    "qwen2.5-0.5b": matrix_by_matrix(151_936, 896, 24, 128, 4864, gated=True),
    "phi-2": matrix_by_matrix(51_200, 2560, 32, 2560, 10_240, gated=False) + 51_200 * (2560 + 1),
    "qwen2.5-7b": matrix_by_matrix(152_064, 3584, 28, 512, 18_944, gated=True) + 152_064 * 3584,
}


@pytest.mark.parametrize("name", THREE)
def test_parameter_formulas_count_every_matrix(name):
    counted = COUNTED[name]
    row = rows()[f"exact.{ROWS[name]}"]
    assert row.value == counted
    assert findings()[f"exact.{ROWS[name]}"].recomputed.middle == pytest.approx(counted, rel=1e-12)
    assert [check.key for check in row.checks] == [f"parameters/{name}"]


def test_steps_are_what_a_loader_of_this_batch_size_gives():
    batches = [range(i, min(i + 2, 115)) for i in range(0, 115, 2)]
    updates = [batches[i : i + 4] for i in range(0, len(batches), 4)]
    assert findings()["training.steps"].recomputed.middle == pytest.approx(len(updates) * 5)
    assert rows()["training.steps"].value == 75


def test_raw_readings_are_those_of_the_published_record():
    for timing in published.TIMINGS:
        place = {"cpu": "code.cpu", "cuda": "gpu"}[timing.device]
        name = f"{place}.{ROWS[timing.model]}.prompt_"
        assert [rows()[f"{name}{i + 1}"].value for i in range(len(timing.seconds))] == list(timing.seconds)
        assert rows()[f"{place.removeprefix('code.')}.{ROWS[timing.model]}.seconds"].value == timing.reported
        for i, early in enumerate(timing.ended_early):
            assert early == (not rows()[f"{name}{i + 1}"].checks)
    for model, seconds in published.TRAINING_SECONDS.items():
        assert rows()[f"code.training.{ROWS[model]}"].value == seconds
        assert rows()[f"code.margin.{ROWS[model]}"].value == published.FINAL_MARGINS[model]
        for step in (5, 30, 50, 75):
            assert rows()[f"code.loss.{ROWS[model]}.step_{step}"].value == published.LOSSES[model][step // 5 - 1]


def test_means_are_those_of_the_raw_readings_and_full_length_leaves_out_the_early_ones():
    seconds = {(timing.model, timing.device): timing for timing in published.TIMINGS}
    for device, model in [("cpu", name) for name in THREE] + [("gpu", "qwen2.5-7b")]:
        raw = seconds[model, {"gpu": "cuda"}.get(device, device)].seconds
        mean = findings()[f"{device}.{ROWS[model]}.seconds"].recomputed.middle
        assert mean == pytest.approx(statistics.fmean(raw), abs=1e-6)
    full = {key: statistics.fmean(timing.full_length) for key, timing in seconds.items()}
    small, middle = (full[name, "cpu"] for name in THREE[:2])
    assert findings()["inference.ratio_full_length"].recomputed.middle == pytest.approx(middle / small, rel=1e-5)
    speedup = full["qwen2.5-7b", "cpu"] / full["qwen2.5-7b", "cuda"]
    assert findings()["gpu.qwen_7b.speedup_full_length"].recomputed.middle == pytest.approx(speedup, rel=1e-5)


def test_each_result_decides_at_its_grade_and_times_only_on_their_board():
    demands = {(check.key, check.grade, tuple(check.profiles or ())) for row in rows().values() for check in row.checks}
    board, gpus = ("jetson-thor",), ("gtx1650", "rtx5080", "jetson-thor", "h100")
    for key, grade, profiles in demands:
        kinds = {
            ("property", ()): PROPERTIES,
            ("reduced", ()): SHAPES,
            ("stated", ()): LOSSES,
            ("stated", board): ON_THE_BOARD,
            ("reduced", gpus): re.compile("size_exponent/decode"),
        }
        assert kinds[grade, profiles].fullmatch(key), key
    models = {part for key, *_ in demands for part in key.split("/")[1:] if re.search("qwen|phi|bitnet", part)}
    assert {name for part in models for name in part.split("_over_")} == {*THREE, "bitnet-2b"}


def test_a_statement_about_the_gpu_is_decided_on_gpus_only():
    (check,) = rows()["law.gpu_sub"].checks
    assert "h100" in check.profiles
    assert not [name for name in check.profiles if name == "ci" or name.startswith("cpu")]


def test_every_row_has_a_verdict_before_any_run(tmp_path):
    found = claims.judge(tmp_path, report="size_inertia")
    assert list(found["claim"]) == [row.id for row in rows().values()]
    counts = found["verdict"].value_counts()
    assert counts["inconsistent in source"] == len(CONTRADICTIONS)
    audited = [name for name in findings() if rows()[name].kind not in ("setting", "count")]
    assert counts["audited only"] == len(audited) - len(CONTRADICTIONS)
    assert counts["input"] == sum(row.kind in ("setting", "count") for row in rows().values())
    assert set(counts.index) == {"inconsistent in source", "audited only", "not attempted", "input"}


def test_a_small_run_settles_counts_and_shapes_and_no_level(tmp_path):
    found = publish(
        tmp_path / "small",
        **{
            "lora_trainable/phi-2": (7864320.0, None, "parameters"),
            "lora_percent_ratio/phi-2_over_qwen2.5-0.5b": (0.6473, None, ""),
            "dpo/optimizer_steps": (75.0, None, "steps"),
            "size_exponent/decode": (0.96, [0.93, 0.99], ""),
            "size_exponent/train": (1.08, [1.05, 1.11], ""),
            "generation_ratio/cpu/phi-2_over_qwen2.5-0.5b": (4.9, [4.8, 5.0], ""),
            "loss/phi-2/step_5": (0.693, None, "nats"),
            "train_seconds/phi-2": (213.8, None, "seconds"),
        },
    )["verdict"]
    assert found["inertia.lora.phi_2.trainable"] == "reproduced"
    assert found["inertia.training.steps"] == "input"
    assert found["inertia.lora.percent_ratio"] == "contradicted"
    assert found["inertia.law.inference_sub"] == "reproduced"
    assert found["inertia.law.training_sub"] == "contradicted"
    assert found["inertia.inference.ratio"] == "contradicted"
    assert found["inertia.inference.ratio_full_length"] == "inconsistent in source"
    assert found["inertia.law.inference_super"] == "inconsistent in source"
    assert found["inertia.loss.phi_2.step_5"] == "audited only"
    assert found["inertia.training.phi_2.seconds"] == "audited only"


def test_an_exponent_that_may_be_0_says_nothing_about_growth(tmp_path):
    found = publish(tmp_path / "vague", **{"size_exponent/decode": (0.5, [-0.2, 1.2], "")})
    assert found.loc["inertia.law.inference_sub", "verdict"] == "undecided"
    assert "cannot be told from 0" in found.loc["inertia.law.inference_sub", "why"]


def test_seconds_are_met_or_missed_on_the_board_alone(tmp_path):
    values = {
        "generation_seconds/cpu/phi-2": (52.2, [51.8, 52.6], "seconds"),
        "generation_seconds/cuda/qwen2.5-7b": (12.6, None, "seconds"),
        "cuda_speedup/phi-2": (10.5, None, ""),
        "peak_memory/cuda/qwen2.5-7b": (14.26, None, "GiB"),
        "loss/phi-2/step_5": (0.693, None, "nats"),
    }
    board = publish(tmp_path / "board", profile="jetson-thor", scale="stated", **values)["verdict"]
    assert board["inertia.cpu.phi_2.seconds"] == "contradicted"
    assert board["inertia.code.cpu.phi_2.prompt_1"] == "reproduced"
    assert board["inertia.gpu.qwen_7b.seconds"] == "contradicted"
    assert board["inertia.gpu.qwen_7b.prompt_1"] == "reproduced"
    assert board["inertia.gpu.phi_2.speedup"] == "reproduced"
    assert board["inertia.gpu.peak_memory"] == "reproduced"
    elsewhere = publish(tmp_path / "elsewhere", profile="h100", scale="stated", **values)["verdict"]
    assert elsewhere["inertia.loss.phi_2.step_5"] == board["inertia.loss.phi_2.step_5"] == "reproduced"
    for name in ("cpu.phi_2.seconds", "code.cpu.phi_2.prompt_1", "gpu.qwen_7b.prompt_1", "gpu.peak_memory"):
        assert elsewhere[f"inertia.{name}"] in ("audited only", "not attempted")
