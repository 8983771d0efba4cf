"""The stages of training one arm around trl's trainer: load, score the reference, train or continue, score, keep."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig

from labkit import models
from labkit.dpo import evaluate, preferences
from labkit.dpo.arm import PACKAGES, START_TOLERANCE, DpoArm, Split, Steps, data_order, train_arm
from labkit.dpo.preferences import Pair
from labkit.dpo.trainer import PreferenceTrainer
from labkit.models import Loaded

_CURVE = ("step", "loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
_CURVE += ("learning_rate", "num_tokens", "seconds", "grad_norm")


class Run:
    """One arm on its way; the methods are called in the order they stand in."""

    def __init__(
        self,
        arm: DpoArm,
        split: Split,
        folder: Path,
        progress: Steps | None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """Load the model and tokenise the pairs."""
        self._arm, self._split, self._folder, self._progress = arm, split, folder, progress
        loaded = models.load(arm.model, dtype=getattr(torch, arm.dtype), device=arm.device)
        self._weights = loaded.weights
        self._format = "chat template" if loaded.tokenizer.chat_template else "raw prompt"
        with quiet():
            self._coverage = models.lora_coverage(loaded.model, lora_config(arm), allow_unmatched=arm.allow_unmatched)
            own = {"identity": self._identity(), "on_step": self._tell, "callbacks": callbacks}
            self._trainer = make_trainer(arm, loaded, split, folder, **own)
        self._rows = {name: list(rows) for name, rows in self._trainer.eval_dataset.items()}
        self._rows["train"] = list(self._trainer.train_dataset)
        for name, pairs in dataclasses.asdict(split).items():
            if name in self._rows and len(self._rows[name]) != len(pairs):
                raise ValueError(f"arm {arm.name}: a {name} prompt fills max_length={arm.max_length}; raise it")

    def _identity(self) -> dict[str, Any]:
        """Everything a checkpoint must agree with to be continued; the code is for who names the folder."""
        own = {"arm": train_arm.spec(self._arm), "version": train_arm.version}
        own |= {"pairs": preferences.revision(self._split.train), "environment": train_arm.environment(self._arm)}
        return own | self._conditions()

    def _conditions(self) -> dict[str, Any]:
        arm, versions = self._arm, {name: importlib.metadata.version(name) for name in PACKAGES}
        own = {"dtype": arm.dtype, "threads": arm.threads, "device": arm.device, "format": self._format}
        return own | {"weights_sha256": self._weights.sha256} | versions

    def _tell(self, row: Mapping[str, Any]) -> None:
        self._advance(1, f"step {row['step']}/{self._arm.steps}, loss {row['loss']:.4f}")

    def _advance(self, n: int, message: str) -> None:
        if self._progress is not None:
            self._progress.advance(n, f"{self._arm.name}: {message}")

    def refer(self, folder: Path) -> None:
        """Score the reference on every pair that is trained on or judged, and lay out the training rows."""
        arm, rows = self._arm, self._rows["train"]
        start = time.perf_counter()
        order = data_order(len(rows), arm.steps, arm.batch_pairs, arm.seed)
        wanted = {name: range(len(own)) for name, own in self._rows.items()}
        wanted["train"] = sorted({*order.flat, *range(min(arm.eval_pairs, len(rows)))})
        conditions = self._conditions() | {"max_length": arm.max_length, "environment": train_arm.environment(arm)}
        self._reference = {}
        for name, own in self._rows.items():
            scores = np.full((len(own), 2), np.nan)
            some = [own[i] for i in wanted[name]]
            scores[wanted[name]] = evaluate.reference_logps(self._trainer, some, folder, conditions)
            self._reference[name] = scores
        lay_out(self._trainer, rows, self._reference["train"], order)
        self._reference_seconds = time.perf_counter() - start

    def untrained(self) -> dict[str, list[list[float]]]:
        """Score the judged pairs by the model without its adapter.

        Returns:
            by the name of the pairs, a row for each: summed log-probabilities of the chosen and of the rejected text in
            nats, and their numbers of tokens.
        """
        scored = {}
        for name, rows in self._rows.items():
            logps = evaluate.pair_logps(self._trainer, rows, adapter=False)
            evaluate.require_finite(logps, f"{self._arm.name}: {name} pairs")
            lengths = ([len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows)
            scored[name] = [[*own, *n] for own, n in zip(logps.tolist(), lengths, strict=True)]
        return scored

    def train(self) -> int:
        """Train to the last step; return the step that was continued from."""
        checkpoint = self._trainer.latest_checkpoint()
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if done:
            self._advance(done, f"continued after step {done}")
        with quiet():
            self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return done

    def scores(self) -> dict[str, Any]:
        """Score the trained model and put the result together."""
        start = time.perf_counter()
        n_train = min(self._arm.eval_pairs, len(self._rows["train"]))
        rows = self._rows | {"train": self._rows["train"][:n_train]}
        reference = self._reference | {"train": self._reference["train"][:n_train]}
        policy = {name: evaluate.pair_logps(self._trainer, own, adapter=True) for name, own in rows.items()}
        for name, own in policy.items():
            evaluate.require_finite(own, f"{self._arm.name}: {name} pairs after step {self._arm.steps}")
        summaries = {name: evaluate.summary(own, reference[name], self._arm.beta) for name, own in policy.items()}
        pairs = {"held_out": self._split.held_out, "train": self._split.train[:n_train]}
        pairs |= {"balanced": self._split.balanced} if self._split.balanced else {}
        scored = {
            name: evaluate.scored_pairs(own, policy[name], reference[name], self._arm.beta)
            for name, own in pairs.items()
        }
        judged = {
            "held_out": scored["held_out"],
            "held_out_summary": summaries["held_out"],
            "train_pairs": scored["train"],
            "train_summary": summaries["train"],
            "validation": summaries.get("validation"),
            "reference": evaluate.reference_preference(rows["held_out"], reference["held_out"]),
        }
        judged |= {"balanced": scored["balanced"]} if self._split.balanced else {}
        spent = {"reference_seconds": self._reference_seconds, "scoring_seconds": time.perf_counter() - start}
        return self._trained() | judged | spent

    def _trained(self) -> dict[str, Any]:
        curve = [{key: row[key] for key in _CURVE} for row in self._trainer.curve]
        seconds = [row["seconds"] for row in curve]
        dropout = [module.p for module in self._trainer.model.modules() if isinstance(module, torch.nn.Dropout)]
        return {
            "curve": curve,
            "first_loss": curve[0]["loss"],
            "seconds": sum(seconds),
            "seconds_per_step": statistics.median(seconds),
            "tokens": int(curve[-1]["num_tokens"]),
            "trainable": self._coverage.trainable,
            "coverage": dataclasses.asdict(self._coverage) | {"percent": self._coverage.percent},
            "dropout_in_effect": float(max(dropout, default=0.0)),
            "format": self._format,
            "weights": self._weights.as_dict(),
            "conditions": self._conditions(),
        }

    def keep_adapter(self) -> None:
        """Leave `adapter/` in PEFT's format and nothing else of the training."""
        if not self._trainer.args.should_save:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        model.peft_config["default"].base_model_name_or_path = self._arm.model
        partial = Path(tempfile.mkdtemp(dir=self._folder, prefix=".partial-"))
        # Embeddings are not trained; left to guess, PEFT would ask the hub whether they are.
        model.save_pretrained(partial, save_embedding_layers=False)
        shutil.rmtree(self._folder / "adapter", ignore_errors=True)
        os.replace(partial, self._folder / "adapter")
        self._trainer.remove_checkpoints()


def lora_config(arm: DpoArm) -> LoraConfig:
    """Return PEFT's configuration of an arm's adapters."""
    return LoraConfig(
        r=arm.lora_rank,
        lora_alpha=arm.lora_alpha,
        lora_dropout=arm.lora_dropout,
        target_modules=list(arm.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def trainer_config(arm: DpoArm, folder: Path, **changes: Any) -> DPOConfig:
    """Return trl's configuration of an arm.

    Raises:
        ValueError: the pairs of a step do not divide among the processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if arm.batch_pairs % (arm.micro_batch * processes):
        raise ValueError(
            f"arm {arm.name}: {arm.batch_pairs} pairs a step do not divide into micro-batches of {arm.micro_batch} on "
            f"{processes} processes; lower micro_batch"
        )
    own = {
        "output_dir": str(folder),
        "per_device_train_batch_size": arm.micro_batch,
        "gradient_accumulation_steps": arm.batch_pairs // (arm.micro_batch * processes),
        "max_steps": arm.steps,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": arm.learning_rate,
        "lr_scheduler_type": arm.schedule,
        "warmup_steps": arm.warmup_steps,
        "beta": arm.beta,
        "max_length": arm.max_length,
        "seed": arm.seed,
        "use_cpu": arm.device == "cpu",
        # Not autocast: the frozen weights already have the arm's type, and PEFT computes adapters in their own.
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": arm.checkpoint_every,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": arm.device != "cpu",
    }
    return DPOConfig(**own | changes)


def make_trainer(
    arm: DpoArm,
    loaded: Loaded,
    split: Split,
    folder: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **own: Any,
) -> PreferenceTrainer:
    """Make the trainer of an arm, its data tokenised by trl.

    Args:
        arm: what is trained.
        loaded: its model and tokenizer.
        split: its pairs.
        folder: where checkpoints go.
        callbacks: are told what the trainer does.
        own: further arguments of `PreferenceTrainer`.
    """
    chat = bool(loaded.tokenizer.chat_template)
    judged = {"held_out": split.held_out} | ({"validation": split.validation} if split.validation else {})
    judged |= {"balanced": split.balanced} if split.balanced else {}
    # Iterable, because a map over any other data set pickles the tokenizer to look for its result in a cache: with
    # Gemma's 262,144 words that takes 4 s for each data set.
    data = {name: as_dataset(pairs, chat).to_iterable_dataset() for name, pairs in judged.items()}
    return PreferenceTrainer(
        schedule_steps=arm.planned_steps,
        start_tolerance=START_TOLERANCE[arm.dtype],
        model=loaded.model,
        args=trainer_config(arm, folder),
        train_dataset=as_dataset(split.train, chat).to_iterable_dataset(),
        eval_dataset=data,
        processing_class=loaded.tokenizer,
        peft_config=lora_config(arm),
        callbacks=list(callbacks),
        **own,
    )


def as_dataset(pairs: Sequence[Pair], chat: bool) -> Dataset:
    """Lay out pairs as trl reads them: messages for a chat template, or else raw texts as the report did."""
    return Dataset.from_list([_messages(pair) if chat else _texts(pair) for pair in pairs])


def _texts(pair: Pair) -> dict[str, str]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _messages(pair: Pair) -> dict[str, list[dict[str, str]]]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": roles[name], "content": text}] for name, text in _texts(pair).items()}


def lay_out(
    trainer: PreferenceTrainer, rows: Sequence[Mapping[str, Any]], scores: np.ndarray, order: np.ndarray
) -> None:
    """Give the trainer its rows in the order in which they are visited, with the reference's log-probabilities.

    Within a step the rows go by length, so that a micro-batch has little padding; the step's gradient, a mean over its
    pairs, is the same in any order.
    """
    lengths = np.array([sum(len(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids")) for row in rows])
    visits = np.concatenate([batch[np.argsort(lengths[batch], kind="stable")] for batch in order])
    trainer.train_dataset = Dataset.from_list(
        [
            {key: rows[i][key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
            | {"ref_chosen_logps": float(scores[i, 0]), "ref_rejected_logps": float(scores[i, 1])}
            for i in visits.tolist()
        ]
    )
    trainer.precompute_ref_logps = True


@contextmanager
def quiet() -> Iterator[None]:
    """Leave progress bars, and hints that concern trl's own calls of transformers, out of a notebook."""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with models.quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        if bars:
            datasets.enable_progress_bars()
