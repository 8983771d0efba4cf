"""What is needed to see a preference itself, beside an arm's margin against its reference.

A margin says how far training moved a model; whether the model gives the chosen text the higher probability also takes
the reference's own log-probabilities, and numbers of tokens. They are the same for all arms of a model, so they are a
cell of their own. Arms that are judged on word-balanced pairs too are a second kind of cell.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import device
from labkit.cell import cell, data, environment
from labkit.dpo import arm as dpo
from labkit.dpo import preferences
from labkit.dpo.arm import DpoArm, Split, Steps
from labkit.reports.size_inertia import balanced

if TYPE_CHECKING:
    from transformers import TrainerCallback

_PACKAGES = ("transformers", "tokenizers", "trl", "peft", "accelerate")


def _files(balanced_pairs: int) -> list[str]:
    """Name the files that judged pairs come from."""
    return preferences.shipped("train", "held-out") + ([balanced.SHIPPED] if balanced_pairs else [])


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSpec:
    """An untrained model, and what it scores."""

    model: str
    """Name for `labkit.models.load`, or a folder."""
    dtype: str = "float32"
    """Type of its weights."""
    max_length: int = 512
    """Most tokens of a prompt with one completion; what is beyond is cut."""
    balanced_pairs: int = 0
    """Word-balanced pairs that it scores beside all held-out ones."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """Where it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancedArm(DpoArm):
    """A training run that is judged on word-balanced pairs, too."""

    balanced_pairs: int
    """How many of them."""

    def __post_init__(self) -> None:
        # Named, because slots make the class anew, and an empty super() would look for the first one.
        DpoArm.__post_init__(self)
        if self.balanced_pairs < 1:
            raise ValueError(f"arm {self.name}: balanced_pairs is {self.balanced_pairs}; it must be at least 1")

    @classmethod
    def of(cls, arm: DpoArm, n: int) -> BalancedArm:
        """Return an arm with n word-balanced pairs to be judged on."""
        return cls(**dataclasses.asdict(arm), balanced_pairs=n)


@cell(
    "inertia.balanced_arm",
    version=1,
    data=lambda arm: data.weights(arm.model) | data.shipped(*_files(arm.balanced_pairs)),
    packages=_PACKAGES,
    timing=(*dpo.TIMES, *dpo.PACKAGES, "resumed_from_step"),
    labels=("name", "role"),
    onednn=environment.WITHOUT_AMX,
)
def train_balanced(
    arm: BalancedArm,
    work_dir: Path | None = None,
    progress: Steps | None = None,
    *,
    reference_dir: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train an arm as `dpo.train_arm` does, with the same arguments and errors.

    Returns:
        what that returns, and `balanced`: the word-balanced pairs as rows like those of `held_out`.
    """
    split = dataclasses.replace(dpo.split_of(arm), balanced=balanced.take(arm.balanced_pairs))
    return dpo.train_arm(arm, work_dir, progress, split=split, reference_dir=reference_dir, callbacks=callbacks)


@cell(
    "inertia.reference",
    version=1,
    data=lambda spec: data.weights(spec.model) | data.shipped(*_files(spec.balanced_pairs)),
    packages=_PACKAGES,
    onednn=environment.WITHOUT_AMX,
)
def measure_reference(spec: ReferenceSpec) -> dict[str, Any]:
    """Score the held-out and the word-balanced pairs by the untrained model.

    Returns:
        plain JSON: `held_out` and `balanced`, by the pair's id [log-probability of the chosen text and of the rejected
        one, summed over their tokens, in nats; the numbers of those tokens].

    Raises:
        ValueError: a prompt fills max_length.
        MissingWeights, MissingDevice: the model or the device is not here.
    """
    # trl takes seconds to import, and most who describe a cell never compute one.
    from labkit.dpo.run import Run

    device.set_threads(spec.threads)
    device.set_determinism(0, spec.device)
    own = {name: getattr(spec, name) for name in ("model", "dtype", "max_length", "threads", "device")}
    # A run of one step is the shortest that can be described; it only holds the model and the tokens here.
    arm = DpoArm(**own, name=f"{spec.model} reference", n_pairs=1, steps=1, learning_rate=1.0, targets=("q_proj",))
    held_out, train = preferences.load("held-out"), preferences.load("train")[:1]
    judged = Split(train=train, validation=(), held_out=held_out, balanced=balanced.take(spec.balanced_pairs))
    with tempfile.TemporaryDirectory() as folder:
        rows = Run(arm, judged, Path(folder), None).untrained()
    named = {"held_out": judged.held_out, "balanced": judged.balanced}
    return {
        name: {pair.id: row for pair, row in zip(pairs, rows.get(name, []), strict=True)}
        for name, pairs in named.items()
    }
