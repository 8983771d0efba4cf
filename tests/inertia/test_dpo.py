"""Training of preference arms against independent references: trl's own forward, loss and loop on the same data; an
uninterrupted run for one that was killed; ln 2 for the first loss; a count on paper for the steps.

Run with `pytest tests/inertia/test_dpo.py`.
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

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from labkit import models
from labkit.inertia import evaluate
from labkit.inertia.dpo import DpoArm, Split, data_order, optimizer_steps, train_arm
from labkit.inertia.dpo_run import as_dataset, lay_out, lora_config, quiet, trainer_config
from labkit.inertia.packed import TokenLogProbs, use_packed_pairs
from labkit.inertia.preferences import Pair

TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 300}
SHAPES = {"smollm2-135m": {}, "gemma-3-270m": {"head_dim": 8}}
TIMES = ("seconds", "seconds_per_step", "reference_seconds", "scoring_seconds", "wall_seconds", "peak_bytes")


def pairs(n: int, seed: int = 0) -> tuple[Pair, ...]:
    """Draw pairs of nonsense whose texts differ much in length."""
    rng = np.random.default_rng(seed)
    text = lambda low, high: " ".join("".join(rng.choice(list("abcde"), 3)) for _ in range(rng.integers(low, high)))  # noqa: E731
    names = ("factual", "behavioural", "self")
    return tuple(Pair(f"p{i}", text(2, 9) + "?", text(2, 20), text(2, 9), names[i % 3], "") for i in range(n))


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama among them."""
    return write_model(tmp_path_factory.mktemp("llama"), "smollm2-135m")


def write_model(target: Path, shape: str) -> Path:
    """Write a model and a byte-level tokenizer as save_pretrained does."""
    model = models.build(shape, dtype=torch.float32, seed=0, **TINY, **SHAPES[shape])
    # Larger than a fresh initialisation, so that log-probabilities differ visibly between tokens.
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(target)
    own = Tokenizer(BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    corpus = [f"{p.prompt} {p.chosen}" for p in pairs(30)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(corpus, BpeTrainer(vocab_size=290, special_tokens=["<end>"], initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(target)
    return target


def arm(folder: Path, **changes: Any) -> DpoArm:
    """An arm of a few seconds."""
    own = {"name": "tiny", "model": str(folder), "n_pairs": 12, "steps": 6, "batch_pairs": 4, "micro_batch": 2}
    own |= {"learning_rate": 1e-2, "eval_pairs": 5, "checkpoint_every": 2}
    return DpoArm(**own | changes)


def split(n: int = 12) -> Split:
    return Split(train=pairs(n), validation=pairs(3, seed=1), held_out=pairs(6, seed=2))


def plain_trainer(own: DpoArm, tmp: Path, packed: bool, **changes: Any) -> DPOTrainer:
    """Return trl's trainer with adapters that are not zero, with or without the packed forward."""
    loaded = models.load(own.model, dtype=getattr(torch, own.dtype))
    with quiet():
        trainer = DPOTrainer(
            model=loaded.model,
            args=trainer_config(own, tmp, **{"save_strategy": "no"} | changes),
            train_dataset=as_dataset(split().train, chat=False),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(own),
        )
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if packed:
        use_packed_pairs(trainer.model.get_base_model())
    return trainer


def loss_and_gradient(trainer: DPOTrainer, micro_batches: list[list[int]]) -> tuple[float, torch.Tensor]:
    """Run trl's loss on rows of the data set, micro-batch by micro-batch, as one step does."""
    trainer.model.train()
    rows = list(trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]))
    total = 0.0
    for chosen in micro_batches:
        batch = trainer.data_collator([rows[i] for i in chosen])
        loss = trainer.compute_loss(trainer.model, batch) / len(micro_batches)
        loss.backward()
        total += loss.item()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    trainer.model.zero_grad()
    return total, gradient


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_the_reports_loop_takes_75_steps() -> None:
    assert optimizer_steps(115, 2, 4, 5) == 75
    assert DpoArm.report("phi-2").steps == 75
    assert optimizer_steps(116, 2, 4, 5) == 75
    assert optimizer_steps(121, 2, 4, 5) == 80


def test_packed_pairs_have_the_loss_and_gradient_of_trls_own_forward(folder: Path, tmp_path: Path) -> None:
    own = arm(folder)
    expected_loss, expected = loss_and_gradient(plain_trainer(own, tmp_path, packed=False), [[0, 1, 2, 3, 4, 5]])
    loss, gradient = loss_and_gradient(plain_trainer(own, tmp_path, packed=True), [[0, 1, 2, 3, 4, 5]])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert abs(loss - math.log(2)) > 1e-3
    assert relative(gradient, expected) < 1e-5


def test_micro_batches_sorted_by_length_have_the_gradient_of_the_unsorted_batch(folder: Path, tmp_path: Path) -> None:
    trainer = plain_trainer(arm(folder), tmp_path, packed=True)
    expected_loss, expected = loss_and_gradient(trainer, [[0, 1, 2, 3, 4, 5]])
    loss, gradient = loss_and_gradient(trainer, [[5, 2], [0, 3], [1, 4]])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative(gradient, expected) < 1e-5


def test_the_rejected_text_does_not_see_the_chosen_one(folder: Path, tmp_path: Path) -> None:
    trainer = plain_trainer(arm(folder), tmp_path, packed=True)
    row = trainer.train_dataset[0]
    other = dict(row) | {"chosen_ids": row["chosen_ids"][::-1]}
    scores = evaluate.pair_logps(trainer, [row, other], adapter=True)
    assert scores[0, 1] == pytest.approx(scores[1, 1], rel=1e-6)
    assert abs(scores[0, 0] - scores[1, 0]) > 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_log_probabilities_through_tiles_equal_log_softmax(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.inertia.packed._TILE_VALUES", 350)
    monkeypatch.setattr("labkit.inertia.packed._CACHED_VALUES", 150)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).float()  # noqa: E731
    hidden, weight, offset = draw(11, 8).requires_grad_(), draw(50, 8), draw(50) if bias else None
    target = torch.randint(50, (11,), generator=generator)
    factor = draw(11)
    own, _ = TokenLogProbs.apply(hidden, weight, offset, target)
    (own * factor).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    expected = F.log_softmax(F.linear(hidden, weight, offset), -1).gather(1, target[:, None])[:, 0]
    (expected * factor).sum().backward()
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-5)


def test_a_head_that_caps_its_logits_is_refused(llama: Path) -> None:
    model = models.load(str(llama)).model.requires_grad_(False)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping=30"):
        use_packed_pairs(model)


def test_training_follows_trls_own_loop_on_the_same_batches(llama: Path, tmp_path: Path) -> None:
    own = arm(llama, steps=5, warmup_steps=1, schedule_steps=8)
    result = train_arm(own, tmp_path / "ours", split=split())
    loaded = models.load(own.model)
    with quiet():
        trainer = DPOTrainer(
            model=loaded.model,
            args=trainer_config(own, tmp_path / "trl", save_strategy="no", max_steps=8),
            train_dataset=as_dataset(split().train, chat=False),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(own),
        )
        rows = list(trainer.train_dataset)
        lay_out(trainer, rows, np.zeros((len(rows), 2)), data_order(len(rows), 8, own.batch_pairs, own.seed))
        trainer.precompute_ref_logps = False
        trainer.train()
    expected = [row for row in trainer.state.log_history if "loss" in row][:5]
    for key, tolerance in {"loss": 1e-4, "rewards/margins": 1e-4, "learning_rate": 0, "logps/chosen": 1e-3}.items():
        ours, theirs = [row[key] for row in result["curve"]], [row[key] for row in expected]
        assert ours == pytest.approx(theirs, rel=1e-4, abs=tolerance)
    assert result["curve"][-1]["loss"] < 0.5


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
from labkit.inertia.dpo import DpoArm, Split, train_arm
from labkit.inertia.preferences import Pair

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
