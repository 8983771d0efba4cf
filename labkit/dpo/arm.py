"""Train one arm of report 000: direct preference optimisation of adapters on a frozen model, by trl and PEFT.

An arm is a pure function of its `DpoArm` and the files it names: on one machine and number of threads the same arm
gives the same losses and margins, whether it ran through or was killed and continued.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from labkit import device
from labkit.cell import cell, data, environment
from labkit.dpo import preferences
from labkit.dpo.preferences import Pair

if TYPE_CHECKING:
    from transformers import TrainerCallback

REPORT_PAIRS, REPORT_MICRO_BATCH, REPORT_ACCUMULATION, REPORT_EPOCHS = 115, 2, 4, 5
"""Size of the report's data set and its training loop (its code; 75 optimizer steps follow)."""
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-3}
"""Largest distance of the first loss from ln 2, by the type of the weights."""
PACKAGES = ("torch", "transformers", "trl", "peft")
"""Packages whose versions an arm's result names."""
TIMES = ("seconds", "seconds_per_step", "reference_seconds", "scoring_seconds", "wall_seconds", "peak_bytes")


class Steps(Protocol):
    """What is told about progress; `labkit.progress.Progress` is one."""

    def advance(self, n: int = 1, message: str = "") -> None:
        """Count n optimizer steps as done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoArm:
    """One training run, with everything its result depends on."""

    name: str
    """Short name for people; no part of what the arm is."""
    role: Literal["report", "rate", "sweep", "tuned", "shuffled", "template", "fewer pairs"] = "tuned"
    """What it is for in a study: the report's schedule, the same at another rate, a learning rate to choose from, the
    chosen one, or a control of that. It changes no number, so an arm of another role that has the same values is the
    same cell."""
    model: str
    """Name for `labkit.models.load`, or a folder."""
    variant: Literal["original", "template", "shuffled"] = "original"
    """Training pairs as they are, with the report's degenerate negatives, or with labels shuffled."""
    label_seed: int = 0
    """Which half of the pairs is swapped where labels are shuffled."""
    n_pairs: int
    """Training pairs, taken by category from those that ship."""
    seed: int = 0
    """Seed of the adapters, the choice of pairs and their order."""
    steps: int
    """Optimizer steps that are run."""
    schedule_steps: int | None = None
    """Optimizer steps the learning rates are planned for, by default `steps`; more stops the schedule early."""
    batch_pairs: int = 8
    """Pairs per optimizer step, on all devices together."""
    micro_batch: int = 4
    """Pairs per forward pass; accumulation follows."""
    beta: float = 0.1
    """DPO's inverse temperature."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear rise from 0; as in transformers the first of them has rate 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Decay to 0 after the warm-up."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters, divided by the rank."""
    lora_dropout: float = 0.05
    """Dropout asked of PEFT; trl switches all dropout off (`disable_dropout`), so it has no effect there or here."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear maps that get an adapter."""
    allow_unmatched: tuple[str, ...] = ()
    """Targets that may match nothing in this model; any other one that does is an error."""
    max_length: int = 512
    """Most tokens of a prompt with one completion; what is beyond is cut."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Type of the frozen weights; adapters are float32."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where it runs."""
    eval_pairs: int = 40
    """Held-out pairs scored after training, and at most as many training pairs."""
    validate_on_rest: bool = False
    """Also score the pairs of the training split that were not taken, to choose between rates."""
    checkpoint_every: int = 5
    """Optimizer steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("n_pairs", "steps", "batch_pairs", "micro_batch", "lora_rank", "eval_pairs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"arm {self.name}: {name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_pairs % self.micro_batch:
            raise ValueError(f"arm {self.name}: batch_pairs {self.batch_pairs} is no multiple of {self.micro_batch=}")
        if self.steps > self.planned_steps or self.warmup_steps > self.planned_steps:
            raise ValueError(
                f"arm {self.name}: {self.steps} steps with {self.warmup_steps} of warm-up do not fit into a schedule "
                f"of {self.planned_steps}"
            )
        if self.variant not in ("original", "template", "shuffled") or self.dtype not in START_TOLERANCE:
            raise ValueError(f"arm {self.name}: no variant {self.variant!r} or no dtype {self.dtype!r}")
        # JSON has no tuples; an arm read back from a record equals the one that was written.
        for name in ("targets", "allow_unmatched"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return self.schedule_steps or self.steps

    @classmethod
    def report(cls, model: str, **changes: Any) -> DpoArm:
        """Return the report's schedule: 75 steps, of which 50 warm up, to 5e-5 and down linearly."""
        steps = optimizer_steps(REPORT_PAIRS, REPORT_MICRO_BATCH, REPORT_ACCUMULATION, REPORT_EPOCHS)
        own = {"name": f"{model} report", "model": model, "n_pairs": REPORT_PAIRS, "steps": steps}
        own |= {"schedule_steps": steps, "learning_rate": 5e-5, "warmup_steps": 50}
        return cls(**own | changes)

    @classmethod
    def sane(cls, model: str, learning_rate: float, **changes: Any) -> DpoArm:
        """Return a schedule that is completed in its own steps, a tenth of them (rounded down) warm-up."""
        own = {"name": f"{model} {learning_rate:g}", "model": model, "n_pairs": REPORT_PAIRS, "steps": 45}
        own |= {"learning_rate": learning_rate} | changes
        return cls(**{"warmup_steps": own["steps"] // 10} | own)


def optimizer_steps(pairs: int, micro_batch: int, accumulation: int, epochs: int) -> int:
    """Count the optimizer steps of a loop that ends each epoch with what is left: 115, 2, 4, 5 -> 75."""
    micro_batches = -(-pairs // micro_batch)
    return epochs * -(-micro_batches // accumulation)


def data_order(n_pairs: int, steps: int, batch_pairs: int, seed: int) -> np.ndarray:
    """Return which pair is visited where, [steps, batch_pairs]: each pass in a random order without replacement.

    Every step has a whole batch, so a pass may end within one. Row k depends on the seed and k alone, not on `steps`.
    """
    rng = np.random.default_rng(seed)
    passes = -(-steps * batch_pairs // n_pairs)
    return np.concatenate([rng.permutation(n_pairs) for _ in range(passes)])[: steps * batch_pairs].reshape(steps, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The pairs of an arm."""

    train: tuple[Pair, ...]
    """Pairs trained on, as the variant wants them."""
    validation: tuple[Pair, ...]
    """The rest of the training split, as it is, if the arm asks for it."""
    held_out: tuple[Pair, ...]
    """Pairs of the held-out split."""
    balanced: tuple[Pair, ...] = ()
    """Word-balanced pairs that are judged as well, where an arm is asked for them."""


def split_of(arm: DpoArm) -> Split:
    """Choose the pairs of an arm from those that ship.

    Raises:
        ValueError: more pairs asked for than there are.
    """
    everything, held_out = preferences.load("train"), preferences.load("held-out")
    taken = preferences.take(everything, arm.n_pairs, arm.seed)
    names = {pair.id for pair in taken}
    rest = tuple(pair for pair in everything if pair.id not in names) if arm.validate_on_rest else ()
    if arm.variant == "template":
        taken = preferences.template_negatives(taken)
    elif arm.variant == "shuffled":
        taken = preferences.shuffle_labels(taken, arm.label_seed)
    held_out = preferences.take(held_out, min(arm.eval_pairs, len(held_out)), arm.seed)
    return Split(train=taken, validation=rest, held_out=held_out)


@cell(
    "inertia.arm",
    version=1,
    data=lambda arm: data.weights(arm.model) | data.shipped(*preferences.shipped("train", "held-out")),
    packages=("transformers", "tokenizers", "trl", "peft", "accelerate"),
    timing=(*TIMES, *PACKAGES, "resumed_from_step"),
    labels=("name", "role"),
    onednn=environment.WITHOUT_AMX,
)
def train_arm(
    arm: DpoArm,
    work_dir: Path | None = None,
    progress: Steps | None = None,
    *,
    split: Split | None = None,
    reference_dir: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train an arm, or continue it after a kill, and score it.

    Args:
        arm: what to train.
        work_dir: gets checkpoints while training, and at the end only `adapter/` in PEFT's format; by default a
            temporary folder, of which nothing is left.
        progress: is advanced by 1 for each optimizer step, and for those of an earlier run that are not done again.
        split: replaces the pairs that ship.
        reference_dir: where the reference's log-probabilities are kept, by default `work_dir`; arms of one model that
            share a folder compute each of them once.
        callbacks: are told what the trainer does; they must change nothing.

    Returns:
        plain JSON: `curve` (a row per step), `first_loss`, `held_out` and `train_pairs` (a row per pair: margin, and
        log-probabilities minus the reference's), `validation`, `reference` (how often the untrained model prefers
        rightly), counts, seconds, memory, weights and conditions; `balanced` as `held_out` where the split has such.

    Raises:
        FloatingPointError: a loss or gradient is not finite; the message names the step.
        ValueError: the first loss is not ln 2, a pair does not fit into max_length, or a target matches nothing.
        MissingWeights, MissingDevice: the model or the device is not here.
    """
    started = time.perf_counter()
    device.set_threads(arm.threads)
    device.set_determinism(arm.seed, arm.device)
    # trl and PEFT take seconds to import, and most who describe an arm never train one.
    from labkit.dpo.run import Run

    with tempfile.TemporaryDirectory() if work_dir is None else contextlib.nullcontext(work_dir) as folder:
        with device.peak_memory(arm.device) as memory:
            run = Run(arm, split or split_of(arm), Path(folder), progress, callbacks)
            run.refer(Path(reference_dir or folder))
            resumed_from = run.train()
            result = run.scores()
        run.keep_adapter()
    wall = time.perf_counter() - started
    return result | {"resumed_from_step": resumed_from, "peak_bytes": memory.bytes, "wall_seconds": wall}
