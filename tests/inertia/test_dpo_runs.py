"""Runs of preference arms: complete results, an uninterrupted run for one that was killed, two processes for one, and
arms that cannot be.

Run with `pytest tests/inertia/test_dpo_runs.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_arms import arm, split

from labkit import metrics, models
from labkit.dpo import evaluate
from labkit.dpo.arm import DpoArm, data_order, train_arm
from labkit.metrics.trainer import TrainerMetrics

TIMES = ("seconds", "seconds_per_step", "reference_seconds", "scoring_seconds", "wall_seconds", "peak_bytes")


def test_the_order_of_pairs_depends_on_the_seed_and_the_step_alone() -> None:
    long, short = data_order(11, 9, 4, seed=3), data_order(11, 5, 4, seed=3)
    assert (long[:5] == short).all()
    assert sorted(long.flat[:11]) == list(range(11))
    assert (data_order(11, 5, 4, seed=4) != short).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_result_is_complete_json_and_starts_at_ln_2(folder: Path, tmp_path: Path, dtype: str) -> None:
    steps: list[tuple[int, str]] = []

    class Listener:
        def advance(self, n: int = 1, message: str = "") -> None:
            steps.append((n, message))

    result = train_arm(arm(folder, dtype=dtype), tmp_path, Listener(), split=split())
    json.dumps(result, allow_nan=False)
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-3 if dtype == "float32" else 5e-3)
    assert [row["step"] for row in result["curve"]] == [1, 2, 3, 4, 5, 6]
    assert sum(n for n, _ in steps) == 6
    assert [pair["id"] for pair in result["held_out"]] == [pair.id for pair in split().held_out]
    assert result["validation"]["n"] == 3
    assert result["train_summary"]["margin"] > 0.5
    adapters = PeftModel.from_pretrained(models.load(str(folder)).model, tmp_path / "adapter")
    assert result["trainable"] == sum(p.numel() for name, p in adapters.named_parameters() if "lora_" in name)
    assert result["dropout_in_effect"] == 0


def test_margins_and_accuracies_follow_from_the_logits_of_both_models(llama: Path, tmp_path: Path) -> None:
    own = arm(llama)
    result = train_arm(own, tmp_path, split=split())
    loaded = models.load(own.model)
    pair = split().held_out[0]
    before = [completion_logp(loaded, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
    tuned = dataclasses.replace(loaded, model=PeftModel.from_pretrained(loaded.model, tmp_path / "adapter"))
    after = [completion_logp(tuned, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
    row = result["held_out"][0]
    assert row["logp_chosen"] == pytest.approx(after[0] - before[0], abs=1e-3)
    assert row["logp_rejected"] == pytest.approx(after[1] - before[1], abs=1e-3)
    assert row["margin"] == pytest.approx(own.beta * (row["logp_chosen"] - row["logp_rejected"]), abs=1e-6)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def completion_logp(loaded: models.Loaded, prompt: str, text: str) -> float:
    """Sum the log-probabilities of a completion from plain logits."""
    start = len(loaded.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([loaded.tokenizer(prompt + text + loaded.tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        logp = loaded.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return logp[start - 1 :].sum().item()


def test_without_a_folder_nothing_is_left_and_the_numbers_are_the_same(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train_arm(arm(llama), tmp_path / "kept", split=split())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    renamed = train_arm(arm(llama, name="other", role="template"), split=split())
    assert timeless(renamed) == timeless(expected)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_callback_is_told_every_step_and_changes_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = train_arm(arm(llama), tmp_path / "alone", split=split())
    monkeypatch.setenv(metrics.VARIABLE, str(tmp_path / "lines"))
    with TrainerMetrics("an arm", {"learning_rate": 1e-2}) as followed:
        told = train_arm(arm(llama), tmp_path / "followed", split=split(), callbacks=[followed])
    assert timeless(told) == timeless(alone)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line.get("values", {})]
    assert [line["values"]["loss"] for line in steps] == [row["loss"] for row in told["curve"]]
    assert [line["values"]["seconds"] for line in steps] == [row["seconds"] for row in told["curve"]]
    assert all(line["adapters"] for line in steps)


def test_shared_reference_log_probabilities_change_nothing(llama: Path, tmp_path: Path) -> None:
    alone = train_arm(arm(llama), tmp_path / "a", split=split())
    shared = tmp_path / "shared"
    train_arm(arm(llama, seed=1), tmp_path / "b", split=split(), reference_dir=shared)
    second = train_arm(arm(llama), tmp_path / "c", split=split(), reference_dir=shared)
    assert timeless(alone) == timeless(second)


def test_a_reference_of_another_model_is_refused_at_the_first_step(llama: Path, tmp_path: Path) -> None:
    train_arm(arm(llama), tmp_path / "a", split=split())
    path = next((tmp_path / "a").glob("reference-*.json"))
    known = {key: [chosen + 1, rejected] for key, (chosen, rejected) in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(known))
    with pytest.raises(ValueError, match=r"first DPO loss is 0\.7\d+; before any update it is 0\.693147"):
        train_arm(arm(llama), tmp_path / "b", split=split(), reference_dir=tmp_path / "a")


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="at step 2"):
        train_arm(arm(llama, learning_rate=float("inf")), tmp_path, split=split())


def test_a_target_without_a_map_is_in_the_result(llama: Path, tmp_path: Path) -> None:
    result = train_arm(
        arm(llama, targets=("q_proj", "dense"), allow_unmatched=("dense",), steps=1), tmp_path, split=split()
    )
    assert result["coverage"]["unmatched"] == ("dense",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": 3}, "no multiple"),
        ({"schedule_steps": 5}, "do not fit"),
        ({"warmup_steps": 7}, "do not fit"),
        ({"steps": 0}, "at least 1"),
        ({"variant": "other"}, "no variant"),
    ],
)
def test_an_impossible_arm_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arm(Path("m"), **changes)


def test_an_arm_survives_json() -> None:
    own = DpoArm.sane("smollm2-135m", 1e-4, steps=30)
    assert DpoArm(**json.loads(json.dumps(dataclasses.asdict(own)))) == own
    assert own.warmup_steps == 3
    assert hash(own)


def test_an_interval_is_wilsons() -> None:
    low, high = evaluate.wilson(15, 23)
    z, n, p = 1.959964, 23, 15 / 23
    half = z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    centre = (p + z * z / 2 / n) / (1 + z * z / n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Drop what a clock or the number of starts decides."""
    rest = {key: value for key, value in result.items() if key not in (*TIMES, "resumed_from_step")}
    return rest | {"curve": [{k: v for k, v in row.items() if k != "seconds"} for row in rest["curve"]]}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from labkit.dpo.arm import DpoArm, Split, train_arm
from labkit.dpo.preferences import Pair

moment = sys.argv[3]
replace = os.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Lines:
    def advance(self, n=1, message=""):
        if moment in message:
            die()

def replace_or_die(source, target):
    if Path(target).name == moment:
        die()
    replace(source, target)

os.replace = replace_or_die
spec = json.loads(Path(sys.argv[1]).read_text())
split = Split(**{name: tuple(Pair(**p) for p in own) for name, own in spec["split"].items()})
train_arm(DpoArm(**spec["arm"]), Path(sys.argv[2]), Lines(), split=split)
"""


@pytest.mark.parametrize(("moment", "kept"), [("step 7/9", 6), ("checkpoint-6", 4)])
def test_a_killed_run_continues_and_ends_with_the_same_numbers(
    llama: Path, tmp_path: Path, moment: str, kept: int
) -> None:
    own, messages = arm(llama, steps=9, warmup_steps=2), []
    spec = {"arm": dataclasses.asdict(own), "split": dataclasses.asdict(split())}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    work = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "spec.json"), str(work), moment])
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in work.glob("checkpoint-*")] == [f"checkpoint-{kept}"]
    assert len(list(work.glob(".partial-*"))) == (moment == "checkpoint-6")

    class Listener:
        def advance(self, n: int = 1, message: str = "") -> None:
            messages.append((n, message))

    again = train_arm(own, work, Listener(), split=split())
    assert again["resumed_from_step"] == kept
    assert sum(n for n, _ in messages) == 9
    assert not any(f"step {kept}/9" in message for _, message in messages)
    assert timeless(again) == timeless(train_arm(own, tmp_path / "whole", split=split()))
    left = sorted(path.name for path in work.iterdir() if not path.name.startswith("reference-"))
    assert left == ["adapter"]


def test_a_checkpoint_of_other_settings_is_not_continued(llama: Path, tmp_path: Path) -> None:
    class Stop(RuntimeError):
        pass

    class AtStep4:
        def advance(self, n: int = 1, message: str = "") -> None:
            if "step 5/" in message:
                raise Stop

    with pytest.raises(Stop):
        train_arm(arm(llama), tmp_path, AtStep4(), split=split())
    (tmp_path / ".partial-half").mkdir()
    assert (tmp_path / "checkpoint-4").exists()
    other = train_arm(arm(llama, beta=0.2), tmp_path, split=split())
    assert other["resumed_from_step"] == 0
    assert not list(tmp_path.glob(".partial-*"))


RANK = """
import json, os, sys
from pathlib import Path
from labkit.dpo.arm import DpoArm, Split, train_arm
from labkit.dpo.preferences import Pair

spec = json.loads(Path(sys.argv[1]).read_text())
split = Split(**{name: tuple(Pair(**p) for p in own) for name, own in spec["split"].items()})
result = train_arm(DpoArm(**spec["arm"]), Path(sys.argv[2]), split=split)
if os.environ["RANK"] == "0":
    Path(sys.argv[3]).write_text(json.dumps(result))
"""


def test_two_processes_train_as_one_does(llama: Path, tmp_path: Path) -> None:
    """`accelerate launch` starts GPU ranks by torch.distributed.run, which is called here for two on a processor."""
    own = arm(llama, steps=4, micro_batch=1)
    spec = {"arm": dataclasses.asdict(own), "split": dataclasses.asdict(split())}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "rank.py").write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    places = [str(tmp_path / name) for name in ("rank.py", "spec.json", "ranks", "result.json")]
    done = subprocess.run([*launch, *places], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = json.loads((tmp_path / "result.json").read_text())
    one = train_arm(own, tmp_path / "one", split=split())
    for key in ("loss", "rewards/margins", "rewards/accuracies", "num_tokens"):
        theirs = [row[key] for row in ranks["curve"]]
        assert theirs == pytest.approx([row[key] for row in one["curve"]], rel=1e-4, abs=1e-5), key
    margins = [row["margin"] for row in ranks["held_out"]]
    assert margins == pytest.approx([row["margin"] for row in one["held_out"]], rel=1e-3, abs=1e-4)
