"""A hybrid run inside transformers' Trainer and what inherits from it, trl's SFTTrainer and DPOTrainer among them.

    trainer = Trainer(..., callbacks=[HybridCallback(HybridConfig())])
    trainer.train()

`max_steps` (or epochs) is the length of the schedule in nominal steps. Trainer's own `global_step` counts the steps
that were really taken, so a resumed run skips exactly the batches it has seen; training ends when the schedule does.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.engine import Hybrid
from labkit.hybrid.gate import Losses, untouched
from labkit.hybrid.history import History
from labkit.hybrid.persist import load_state, save_state

_NO_LOSS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)
"""What a dataset or a loss raises that is not made to be asked for a batch by number; want of memory is none of it."""


class HybridCallback(TrainerCallback):
    """Runs the four phases in a Trainer's loop; one callback serves one run."""

    def __init__(self, config: HybridConfig | None = None) -> None:
        """Take the configuration; everything else comes from the Trainer when it starts."""
        self.config = config or HybridConfig()
        self.hybrid: Hybrid | None = None
        self._trainer: Trainer | None = None
        self._loader: Any = None
        self._losses: list[torch.Tensor] = []

    @property
    def history(self) -> pd.DataFrame:
        """One row for each real step and each decision; columns as in `labkit.hybrid.history.COLUMNS`."""
        return self._history().table()

    def summary(self) -> str:
        """Say in a few lines what the run did: steps by phase, jumps and why they did not stay, where the time went."""
        return self._history().summary()

    def _history(self) -> History:
        return History() if self.hybrid is None else self.hybrid.history

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set up the run, or take it up from the checkpoint that the Trainer took itself up from.

        Raises:
            ValueError: a resumed run whose checkpoint has no hybrid state, or another run's; several processes; a probe
                where examples cannot be drawn by number (a stream) or are made by the model (GRPO).
        """
        if args.world_size > 1:
            raise ValueError(f"HybridCallback runs in one process; this Trainer has {args.world_size}")
        self._trainer, self._loader = _calling_trainer(self), kwargs["train_dataloader"]
        # A run that starts again with smaller batches leaves its first copies behind before it makes new ones.
        self.hybrid, self._losses = None, []
        self.hybrid = Hybrid(
            kwargs["model"],
            kwargs["optimizer"],
            self.config,
            total_steps=state.max_steps,
            scheduler=kwargs["lr_scheduler"],
            scaler=self._trainer.accelerator.scaler,
            probe=self._draw,
        )
        if self.config.probes:
            self._require_probe()
        if (folder := _local(self._trainer, "resume_from_checkpoint")) is not None:
            load_state(self.hybrid, Path(folder))

    def _require_probe(self) -> None:
        """Refuse what a probe cannot be drawn from, before anything is trained."""
        remedy = "take gate='always', or a predictor that skips no step"
        # GRPO and its like keep what they generated until it is used up; a probe would make them generate more.
        if hasattr(self._trainer, "_buffered_inputs"):
            raise ValueError(
                f"HybridCallback probes jumps on training examples, and {type(self._trainer).__name__} makes its own "
                f"with the model that is trained; {remedy}"
            )
        if _is_stream(getattr(self._loader, "dataset", None)):
            raise ValueError(
                "HybridCallback draws training examples at random for its probes; the dataset is a stream, which has "
                f"none by number; {remedy}"
            )
        try:
            self._draw(1)()
        except _NO_LOSS as error:
            raise ValueError(
                f"HybridCallback cannot probe jumps here: examples drawn at random have no loss "
                f"({type(error).__name__}: {error}); {remedy}"
            ) from error

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Announce a real step."""
        self._losses = []
        self.hybrid.step_begin()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the loss of a micro-batch whose gradient is accumulated."""
        self._losses.append(_local(self._trainer, "tr_loss_step"))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients, which are unscaled and clipped by now."""
        self.hybrid.gradients_ready()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Close a real step; a Predict phase may follow inside, and the schedule may end with it."""
        self._losses.append(_local(self._trainer, "tr_loss_step"))
        self.hybrid.step_end(float(sum(self._losses)))
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
        run = Path(self._trainer._get_output_dir(_local(self._trainer, "trial")))
        save_state(self.hybrid, run / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def _draw(self, n_batches: int) -> Losses:
        """Draw training examples that no schedule of the loop knows of, and return what measures their loss."""
        # With auto_find_batch_size the Trainer's own number is smaller than the one it was given.
        data, size = self._loader.dataset, self._trainer._train_batch_size
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + len(self.hybrid.history.rows))
        chosen = torch.randint(len(data), (n_batches, size), generator=generator).tolist()
        with _generators_kept():
            batches = [self._loader.collate_fn([data[i] for i in rows]) for rows in chosen]
        return lambda: [self._loss_of(batch) for batch in batches]

    def _loss_of(self, batch: Mapping[str, Any]) -> float:
        trainer = self._trainer
        kept = _generators_kept(), untouched(trainer.model), _metrics_kept(trainer)
        with kept[0], kept[1], kept[2], trainer.compute_loss_context_manager():
            return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))))


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _calling_trainer(callback: TrainerCallback) -> Trainer:
    """Find the Trainer that is calling: transformers tells its callbacks everything but that.

    The loss of trl's trainers is a method of theirs, and a probe has to compute the loss that is trained.
    """
    for frame in _frames():
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    raise ValueError("HybridCallback belongs into a transformers Trainer; around a loop of your own use Hybrid")


def _local(trainer: Trainer, name: str) -> Any:
    """Return a variable of the Trainer's loop that it tells no callback.

    These are the folder it was resumed from, which lies anywhere; the trial of a search, whose checkpoints lie below
    the output folder; and the loss of one micro-batch: in the sum that is logged, rounding depends on the last log.
    """
    for frame in _frames():
        if frame.f_locals.get("self") is trainer and name in frame.f_locals:
            return frame.f_locals[name]
    raise RuntimeError(f"this version of transformers has no {name} in its Trainer's loop; HybridCallback needs it")


def _is_stream(dataset: Any) -> bool:
    """Say whether a dataset has no examples by number; some streams know their length, and all inherit `[]`."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return True
    return getattr(type(dataset), "__getitem__", Dataset.__getitem__) is Dataset.__getitem__


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave all generators as they were: a collator may draw, for words to mask or texts to cut."""
    # Collators and seeds of old draw from NumPy's one global generator.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


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
