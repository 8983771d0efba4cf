"""trl's DPOTrainer with packed pairs, a schedule that may be cut short, and checkpoints without pickles.

A checkpoint is a folder `checkpoint-<step>` of safetensors and JSON. It is written beside its place and renamed, so it
is there as a whole or not at all. The rows of the training set lie in the order in which they are visited, so the order
depends on nothing that a killed run could lose.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save
from transformers.trainer_callback import PrinterCallback
from trl import DPOTrainer

from labkit.base.files import read_json, write_atomically
from labkit.dpo.packed import use_packed_pairs

LN2 = math.log(2)
_PREFIX = "checkpoint-"
_PARTIAL = ".partial-"
_REMEDY = "delete its folder: training goes on from an older checkpoint, or begins anew"


class PreferenceTrainer(DPOTrainer):
    """DPO on a frozen model with adapters.

    Trainer's loop, trl's data preparation and trl's loss are used as they are. Replaced are the forward pass
    (`labkit.dpo.packed`), the number of steps that the schedule is planned for, and how state is saved.
    """

    def __init__(
        self,
        *,
        schedule_steps: int,
        start_tolerance: float,
        identity: Mapping[str, Any],
        on_step: Callable[[Mapping[str, Any]], None],
        **inherited: Any,
    ) -> None:
        """Prepare to train.

        Args:
            schedule_steps: optimizer steps the learning-rate schedule is planned for.
            start_tolerance: largest distance of the first loss from ln 2.
            identity: plain JSON that a checkpoint must agree with to be continued.
            on_step: called with each row of the curve.
            inherited: arguments of `DPOTrainer`.
        """
        super().__init__(**inherited)
        use_packed_pairs(self.model.get_base_model())
        self.remove_callback(PrinterCallback)
        self._schedule_steps, self._start_tolerance = schedule_steps, start_tolerance
        self._identity, self._on_step = json.loads(json.dumps(dict(identity))), on_step
        self._step_started: float | None = None

    @property
    def curve(self) -> list[dict[str, Any]]:
        """One row per optimizer step so far."""
        return [row for row in self.state.log_history if "loss" in row]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Plan the learning rates for the whole schedule, of which this run may take only the first steps."""
        return super().create_scheduler(self._schedule_steps, optimizer)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run forward and backward of one micro-batch.

        Raises:
            FloatingPointError: the loss is not finite; the message names the step.
        """
        if self._step_started is None:
            self._step_started = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the DPO loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's seconds to its row, check it, and tell who listens.

        Raises:
            ValueError: the first loss is not ln 2, as it must be while policy and reference are one model.
            FloatingPointError: the gradient is not finite; the message names the step.
        """
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        logs["seconds"] = time.perf_counter() - self._step_started
        self._step_started = None
        super().log(logs, start_time)
        step = self.state.global_step
        if step == 1 and not abs(logs["loss"] - LN2) <= self._start_tolerance:
            raise ValueError(
                f"the first DPO loss is {logs['loss']:.6f}; before any update it is {LN2:.6f} (ln 2) within "
                f"{self._start_tolerance:g}, so the reference log-probabilities do not belong to this model"
            )
        if not math.isfinite(logs["grad_norm"]):
            raise FloatingPointError(f"the gradient norm is {logs['grad_norm']} at step {step}")
        self._on_step(self.curve[-1])

    def latest_checkpoint(self) -> Path | None:
        """Return the checkpoint to continue from, and delete what is partial or belongs to something else."""
        found = sorted(self._saved(_PREFIX), key=lambda path: int(path.name.removeprefix(_PREFIX)))
        resume = read_json(found[-1] / "resume.json", "identity", remedy=_REMEDY) if found else {}
        usable = resume.get("identity") == self._identity
        # Every process has looked before the first one deletes.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in self._saved(_PARTIAL):
                shutil.rmtree(path)
            self.remove_checkpoints(keep=found[-1] if usable else None)
        return found[-1] if usable else None

    def _saved(self, prefix: str) -> list[Path]:
        return list(Path(self.args.output_dir).glob(f"{prefix}*"))

    def remove_checkpoints(self, keep: Path | None = None) -> None:
        """Delete all checkpoints but one."""
        for path in self._saved(_PREFIX):
            if path != keep:
                shutil.rmtree(path)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the state after a step, then delete the checkpoint before it."""
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=_PARTIAL))
        _write_tensors(
            partial / "adapter.safetensors", get_peft_model_state_dict(self.model, save_embedding_layers=False)
        )
        _write_tensors(partial / "optimizer.safetensors", _flat_state(self.optimizer))
        _write_tensors(partial / "random.safetensors", {"cpu": torch.get_rng_state()} | _cuda_rng_state())
        resume = {
            "identity": self._identity,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "scheduler": self.lr_scheduler.state_dict(),
            "tokens": self._total_train_tokens,
        }
        write_atomically(partial / "resume.json", json.dumps(resume).encode())
        self.state.save_to_json(str(partial / "trainer_state.json"))
        final = folder / f"{_PREFIX}{self.state.global_step}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        self.remove_checkpoints(keep=final)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        set_peft_model_state_dict(self.model, load_file(Path(resume_from_checkpoint) / "adapter.safetensors"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        resume = read_json(Path(checkpoint) / "resume.json", "rates", "scheduler", "tokens", remedy=_REMEDY)
        _restore_state(self.optimizer, load_file(Path(checkpoint) / "optimizer.safetensors"), resume["rates"])
        self.lr_scheduler.load_state_dict(resume["scheduler"])
        self._total_train_tokens = resume["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Nothing is drawn at random while training: trl switches all dropout off, and the order of rows is fixed.
        if checkpoint is None:
            return
        states = load_file(Path(checkpoint) / "random.safetensors")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])


def _cuda_rng_state() -> dict[str, torch.Tensor]:
    return {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    write_atomically(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def _flat_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name each tensor of an optimizer's state "<parameter's number>.<its name>"."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, own in state.items() for name, value in own.items()}


def _restore_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, torch.Tensor], rates: list[float]) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        whole["state"].setdefault(int(number), {})[name] = value
    for group, rate in zip(whole["param_groups"], rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict(whole)
