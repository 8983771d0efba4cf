"""A hybrid run inside transformers' Trainer and what inherits from it, trl's SFTTrainer and DPOTrainer among them.

    trainer = Trainer(..., callbacks=[HybridCallback(HybridConfig())])
    trainer.train()

`max_steps` (or epochs) is the length of the schedule in nominal steps. Trainer's own `global_step` counts the steps
that were really taken, so a resumed run skips exactly the batches it has seen; training ends when the schedule does.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.gate import Losses, untouched
from labkit.hybrid.history import History
from labkit.hybrid.persist import load_state, save_state


class HybridCallback(TrainerCallback):
    """Runs the four phases in a Trainer's loop; one callback serves one run."""

    def __init__(self, config: HybridConfig | None = None) -> None:
        """Take the configuration; everything else comes from the Trainer when it starts."""
        self.config = config or HybridConfig()
        self.hybrid: Hybrid | None = None
        self._trainer: Trainer | None = None
        self._loader: Any = None
        self._seen = 0.0

    @property
    def history(self) -> pd.DataFrame:
        """One row for each real step and each decision; columns as in `labkit.hybrid.history.COLUMNS`."""
        return (History() if self.hybrid is None else self.hybrid.history).table()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set up the run, or take it up where its checkpoint was written.

        Raises:
            ValueError: a resumed run without a hybrid state, several processes, or a stream for a dataset.
        """
        if args.world_size > 1:
            raise ValueError(f"HybridCallback runs in one process; this Trainer has {args.world_size}")
        self._trainer, self._loader = _calling_trainer(self), kwargs["train_dataloader"]
        if not hasattr(self._loader.dataset, "__len__"):
            raise ValueError("HybridCallback draws training examples at random for its probes; the dataset is a stream")
        self.hybrid = Hybrid(
            kwargs["model"],
            kwargs["optimizer"],
            self.config,
            total_steps=state.max_steps,
            scheduler=kwargs["lr_scheduler"],
            scaler=self._trainer.accelerator.scaler,
            probe=self._draw,
        )
        self._seen = 0.0
        if state.global_step:
            load_state(self.hybrid, _checkpoint(args, state))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Announce a real step."""
        self.hybrid.step_begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients, which are unscaled and clipped by now."""
        self.hybrid.gradients_ready()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Close a real step; a Predict phase may follow inside, and the schedule may end with it."""
        self.hybrid.step_end(self._loss(state))
        if self.hybrid.over:
            control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add where the run stands to what is logged."""
        if logs is None or self.hybrid is None:
            return
        # Trainer has copied what it logs into its history by now.
        for entry in (logs, *state.log_history[-1:]):
            entry["nominal_step"] = self.hybrid.machine.nominal

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into the checkpoint that was just written."""
        save_state(self.hybrid, _standard_folder(args, state))

    def _loss(self, state: TrainerState) -> float:
        """Return the loss of the step just taken, from the sum that Trainer keeps between two logs."""
        summed = float(self._trainer._tr_loss)
        if self._trainer._globalstep_last_logged == state.global_step - 1:
            self._seen = 0.0
        loss, self._seen = summed - self._seen, summed
        return loss

    def _draw(self, n_batches: int) -> Losses:
        """Draw training examples that no schedule of the loop knows of, and return what measures their loss."""
        data, size = self._loader.dataset, self._trainer.args.train_batch_size
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + len(self.hybrid.history.rows))
        chosen = torch.randint(len(data), (n_batches, size), generator=generator).tolist()
        batches = [self._loader.collate_fn([data[i] for i in rows]) for rows in chosen]
        return lambda: [self._loss_of(batch) for batch in batches]

    def _loss_of(self, batch: Mapping[str, Any]) -> float:
        trainer = self._trainer
        with untouched(trainer.model), _metrics_kept(trainer), trainer.compute_loss_context_manager():
            return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))))


def _calling_trainer(callback: TrainerCallback) -> Trainer:
    """Find the Trainer that is calling: transformers tells its callbacks everything but that.

    The loss of trl's trainers is a method of theirs, and a probe has to compute the loss that is trained.
    """
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
        frame = frame.f_back
    raise ValueError("HybridCallback belongs into a transformers Trainer; around a loop of your own use Hybrid")


def _standard_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder a run is resumed from: the one it was told, else the standard one of its step."""
    told = args.resume_from_checkpoint
    return Path(told) if isinstance(told, str) and Path(told).is_dir() else _standard_folder(args, state)


@contextmanager
def _metrics_kept(trainer: Trainer) -> Iterator[None]:
    """Leave the running metrics of trl's trainers as they were: a probe is no evaluation."""
    names = [name for name in ("_metrics", "_total_train_tokens") if hasattr(trainer, name)]
    before = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
