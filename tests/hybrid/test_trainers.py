"""HybridCallback under every kind of Trainer that people have: it works there, or is refused when training starts.

The reference of a resumed run is the same run left alone, weights and history equal to the bit.
"""

import dataclasses
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from labkit.hybrid import HybridCallback, HybridConfig

STEPS, SAVE, VOCABULARY = 30, 7, 64
CONFIG = HybridConfig(
    warmup_steps=4, full_steps=6, predict_steps=4, max_gain=1.0, confidence_threshold=0.0, gate="always"
)
PROBING = dataclasses.replace(CONFIG, gate="probe", least_gain=-5.0)


def rows(n=120):
    ids = torch.randint(VOCABULARY, (n, 1), generator=torch.Generator().manual_seed(2)) + torch.arange(12)
    return [{"input_ids": row, "labels": row} for row in ids % VOCABULARY]


def tiny(seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCABULARY, n_positions=16))


def trainer(folder, callback, data=None, kind=Trainer, **more):
    """Return a Trainer of a tiny model, dropout on."""
    usual = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 5, "save_strategy": "no"}
    usual |= {} if "num_train_epochs" in more else {"max_steps": STEPS}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 0}
    arguments = TrainingArguments(output_dir=str(folder), **quiet | usual | more)
    callbacks = [] if callback is None else [callback]
    return kind(tiny(), arguments, train_dataset=rows() if data is None else data, callbacks=callbacks)


def trained(folder, callback, *, resume=None, **more):
    made = trainer(folder, callback, **more)
    made.train(resume_from_checkpoint=resume)
    return made


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def predicted(callback):
    return callback.hybrid.history.phase_steps()["predict"]


def require_same(first, second, alone, again):
    assert torch.equal(weights(first), weights(second))
    assert again.history.drop(columns="seconds").equals(alone.history.drop(columns="seconds"))


SAVED = {"save_strategy": "steps", "save_steps": SAVE}


@pytest.fixture(scope="module", params=[CONFIG, PROBING], ids=["always", "probe"])
def alone(request, tmp_path_factory):
    """A run left alone, whose checkpoints fall between two logs, and its configuration."""
    folder, callback = tmp_path_factory.mktemp("alone"), HybridCallback(request.param)
    made = trained(folder, callback, **SAVED)
    assert predicted(callback) >= 4
    return folder, made, callback, request.param


@pytest.mark.parametrize("step", [SAVE, 2 * SAVE])
@pytest.mark.parametrize("told", ["its own folder", "the last one there", "a copy elsewhere", "a copy beside others"])
def test_a_run_goes_on_from_the_folder_it_was_told_wherever_that_lies(alone, told, step, tmp_path):
    folder, whole, first, config = alone
    saved = folder / f"checkpoint-{step}"
    resume, output = str(saved), tmp_path / "output"
    if told == "its own folder":
        output = folder
    if told == "the last one there":
        resume = True
        shutil.copytree(saved, output / saved.name)
    if told.startswith("a copy"):
        shutil.copytree(saved, tmp_path / "kept" / "somewhere")
        resume = str(tmp_path / "kept" / "somewhere")
    if told == "a copy beside others":
        # Another run's checkpoints of the same steps lie where this one writes its own.
        trained(output, HybridCallback(config), learning_rate=3e-2, **SAVED)
    again = HybridCallback(config)
    second = trained(output, again, resume=resume, **SAVED)
    require_same(whole, second, first, again)


def test_a_state_that_another_run_left_in_the_folder_is_refused(tmp_path):
    trained(tmp_path, HybridCallback(CONFIG), **SAVED)
    trained(tmp_path, None, learning_rate=3e-2, **SAVED)  # without the callback: the other files are written anew
    made = trainer(tmp_path, HybridCallback(CONFIG), **SAVED)
    with pytest.raises(ValueError, match=r"the hybrid state in .*checkpoint-7 is of another run than trainer_state"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("hybrid.json", b'{"config": ', r"cannot be read"),
        ("hybrid.json", b"\xff\xfe", r"cannot be read"),
        ("hybrid.json", b"[]", r"is damaged"),
        ("hybrid.json", b"{}", r"is damaged \(KeyError\('config'\)\)"),
        ("hybrid.safetensors", b"\0" * 20, r"cannot be read"),
        ("hybrid.safetensors", None, r"cannot be read"),
    ],
)
def test_a_damaged_state_is_refused_by_the_name_of_its_folder(tmp_path, name, content, said):
    trained(tmp_path, HybridCallback(CONFIG), **SAVED)
    file = tmp_path / "checkpoint-7" / name
    file.unlink() if content is None else file.write_bytes(content)
    made = trainer(tmp_path, HybridCallback(CONFIG), **SAVED)
    with pytest.raises(ValueError, match=f"the hybrid state in .*checkpoint-7 {said}.*resume from an older checkpoint"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_a_state_written_in_part_over_an_older_one_is_not_whole(tmp_path, monkeypatch):
    callback = HybridCallback(CONFIG)
    trained(tmp_path, callback, **SAVED)
    monkeypatch.setattr(callback.hybrid, "numbers", lambda: 1 / 0)
    from labkit.hybrid.persist import save_state

    with pytest.raises(ZeroDivisionError):
        save_state(callback.hybrid, tmp_path / "checkpoint-7")
    assert not (tmp_path / "checkpoint-7" / "hybrid.json").exists()


class Searching(Trainer):
    """Keeps its checkpoints where a search for hyperparameters has those of one trial."""

    def _get_output_dir(self, trial):
        return f"{self.args.output_dir}/run-3"


def test_a_trial_of_a_search_keeps_its_state_beside_its_own_checkpoints(tmp_path):
    trained(tmp_path, HybridCallback(CONFIG), kind=Searching, **SAVED)
    assert (tmp_path / "run-3" / "checkpoint-7" / "hybrid.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run-3"]


EVALUATED = {"eval_strategy": "steps", "eval_steps": 4, "lr_scheduler_type": "reduce_lr_on_plateau"}
EVALUATED |= {"metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 0, "threshold": 10.0}}


class Evaluated(Trainer):
    """Evaluates on the data it trains on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, eval_dataset=rows(16), **kwargs)


@pytest.mark.parametrize("config", [CONFIG, PROBING], ids=["always", "probe"])
def test_a_schedule_that_follows_the_evaluation_takes_no_predicted_steps(config, tmp_path):
    more = {"kind": Evaluated} | EVALUATED
    first = HybridCallback(config)
    whole = trained(tmp_path / "a", first, **more, **SAVED)
    assert predicted(first) >= 4
    assert whole.optimizer.param_groups[0]["lr"] < 1e-2, "the schedule has fallen at least once"
    again = HybridCallback(config)
    second = trained(tmp_path / "b", again, resume=str(tmp_path / "a" / "checkpoint-14"), **more, **SAVED)
    require_same(whole, second, first, again)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(rows() * 4)


class SizedStream(Stream):
    def __len__(self):
        return 480


class Nameless(Dataset):
    """Knows its length, and inherits a `[]` that is none; a sampler of its own would be needed."""

    def __len__(self):
        return 120


def hub_stream():
    listed = [{name: value.tolist() for name, value in row.items()} for row in rows() * 4]
    return datasets.Dataset.from_list(listed).to_iterable_dataset()


STREAMS = {"a stream": Stream, "a stream with a length": SizedStream, "a stream of datasets": hub_stream}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_have_no_examples_to_probe_on_and_need_none_without_a_probe(name, tmp_path):
    made = trainer(tmp_path, HybridCallback(PROBING), STREAMS[name]())
    before = weights(made).clone()
    with pytest.raises(ValueError, match=r"the dataset is a stream, which has none by number; take gate='always'"):
        made.train()
    assert torch.equal(weights(made), before)
    for config in (CONFIG, dataclasses.replace(PROBING, predictor="ema-nesterov")):
        callback = HybridCallback(config)
        done = trained(tmp_path, callback, data=STREAMS[name]())
        assert sum(callback.hybrid.history.phase_steps().values()) == STEPS
        assert done.state.global_step == STEPS - predicted(callback)


def test_a_dataset_that_has_a_length_and_no_examples_is_refused_when_training_starts(tmp_path):
    with pytest.raises(ValueError, match="the dataset is a stream"):
        trainer(tmp_path, HybridCallback(PROBING), Nameless()).train()


def test_what_has_no_loss_outside_the_loop_is_refused_with_the_reason(tmp_path):
    class OnlyInSteps(Trainer):
        def compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kwargs):
            if num_items_in_batch is None:
                raise KeyError("made in the step before")
            return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)

    with pytest.raises(ValueError, match=r"drawn at random have no loss \(KeyError: 'made in the step before'\)"):
        trainer(tmp_path, HybridCallback(PROBING), kind=OnlyInSteps).train()


def test_examples_that_the_trained_model_makes_are_no_ground_for_a_probe(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="0", eos_token="1")
    arguments = GRPOConfig(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    prompts = datasets.Dataset.from_list([{"prompt": f"{i} {i + 1}"} for i in range(2, 22)])
    asked: list[int] = []

    def reward(completions, **_):
        asked.append(len(completions))
        return [float(len(set(text.split()))) for text in completions]

    def start(config):
        callback = HybridCallback(config)
        own = {"processing_class": tokenizer, "train_dataset": prompts, "callbacks": [callback]}
        GRPOTrainer(tiny(), reward, args=arguments, **own).train()
        return callback

    with pytest.raises(ValueError, match=r"GRPOTrainer makes its own with the model that is trained; take gate='alw"):
        start(PROBING)
    assert not asked, "nothing was generated"
    short = dataclasses.replace(CONFIG, warmup_steps=1, full_steps=2, predict_steps=1, predict_until=1.0)
    assert sum(start(short).hybrid.history.phase_steps().values()) == 6


@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_epochs_that_do_not_divide_evenly_into_accumulated_steps(accumulation, tmp_path):
    more = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 4, "logging_steps": 1}
    callback = HybridCallback(dataclasses.replace(CONFIG, warmup_steps=2, full_steps=3, predict_steps=2))
    done = trained(tmp_path, callback, data=rows(50), **more)
    assert sum(callback.hybrid.history.phase_steps().values()) == done.state.max_steps
    logged = [log["loss"] for log in done.state.log_history if "loss" in log]
    assert callback.history["loss"].dropna().tolist() == pytest.approx(logged, abs=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_with_accumulated_gradients_a_run_resumed_between_two_logs_ends_as_the_run_left_alone(accumulation, tmp_path):
    more = SAVED | {"gradient_accumulation_steps": accumulation}
    first, again = HybridCallback(PROBING), HybridCallback(PROBING)
    whole = trained(tmp_path / "a", first, **more)
    second = trained(tmp_path / "b", again, resume=str(tmp_path / "a" / "checkpoint-14"), **more)
    require_same(whole, second, first, again)


class Small(Trainer):
    """Has memory for four samples; what needs more fails as it does on a GPU."""

    sizes: list[int]

    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        self.sizes.append(len(inputs["input_ids"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("config", [CONFIG, PROBING], ids=["always", "probe"])
def test_a_batch_size_that_is_found_holds_for_probes_too(config, tmp_path):
    more = {"auto_find_batch_size": True, "per_device_train_batch_size": 5}
    made = trainer(tmp_path, callback := HybridCallback(config), kind=Small, **more)
    made.sizes = []
    made.train()
    assert made._train_batch_size <= 4
    assert set(made.sizes) == {made._train_batch_size}
    assert sum(callback.hybrid.history.phase_steps().values()) == STEPS
    assert predicted(callback) >= 4


@pytest.mark.parametrize("config", [CONFIG, PROBING], ids=["always", "probe"])
def test_steps_that_a_gradient_scaler_skips_leave_no_infinity_behind(config, tmp_path):
    # Scaled by so much the first gradients are infinite: the scaler skips a step and halves, as it does on a GPU.
    callback = HybridCallback(dataclasses.replace(config, warmup_steps=1))
    made = trainer(tmp_path, callback, logging_steps=1)
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    made.accelerator.native_amp, made.accelerator.state._mixed_precision = True, "fp16"
    try:
        made.train()
    finally:
        made.accelerator.state._mixed_precision = "no"
    assert made.accelerator.scaler.get_scale() < 2.0**24
    assert callback.hybrid.machine.nominal == STEPS
    assert all(torch.isfinite(mean).all() for mean in callback.hybrid._recorder.mean)
    assert torch.isfinite(weights(made)).all()


def test_a_collator_that_draws_at_random_is_no_trace_of_a_probe(tmp_path):
    def cut(batch):
        kept = 4 + int(np.random.randint(4)) + int(torch.randint(4, (1,)))  # noqa: NPY002
        return {name: torch.stack([row[name][:kept] for row in batch]) for name in ("input_ids", "labels")}

    def done(callback):
        made = trainer(tmp_path, callback)
        made.data_collator = cut
        made.train()
        return weights(made)

    never = HybridCallback(dataclasses.replace(PROBING, gate="never"))
    assert torch.equal(done(None), done(never))
    assert never.history["probe_after"].notna().sum() >= 2


def test_the_summary_says_what_happened(tmp_path):
    callback = HybridCallback(PROBING)
    assert callback.summary().startswith("0 steps: 0 real (none), 0 predicted")
    trained(tmp_path, callback)
    history, steps = callback.history, callback.hybrid.history.phase_steps()
    lines = callback.summary().splitlines()
    real = STEPS - steps["predict"]
    assert lines[0].startswith(f"{STEPS} steps: {real} real (4 warmup, {steps['full']} full, ")
    assert lines[0].endswith(f", {steps['predict']} predicted")
    asked = history[history["phase"] == "predict"]
    assert lines[1] == f"{len(asked)} jumps asked for, {int(asked['accepted'].sum())} kept"
    assert sum(int(line.split()[0]) for line in lines[2:-1]) == int((~asked["accepted"].astype(bool)).sum())
    assert " s in real steps, " in lines[-1]


def test_help_says_what_each_field_of_the_configuration_means():
    shown = HybridConfig.__doc__
    for field in dataclasses.fields(HybridConfig):
        assert f"    {field.name} = {field.default!r}: " in shown
    assert "Least confidence of the predictor, in [0, 1]" in " ".join(shown.split())


def test_what_is_saved_is_plain_json(tmp_path):
    trained(tmp_path, HybridCallback(PROBING), **SAVED)
    found = json.loads((tmp_path / "checkpoint-14" / "hybrid.json").read_text())
    assert len(found["beside"]) == 64
