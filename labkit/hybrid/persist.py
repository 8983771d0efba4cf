"""A hybrid run's state beside a checkpoint: safetensors for tensors, JSON for the rest.

The state says beside which trainer_state.json it was written: a later run without the callback may write its own
checkpoints into the same folders, and leaves this file there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from labkit.base.files import write_atomically
from labkit.hybrid.engine import Hybrid

TENSORS, NUMBERS = "hybrid.safetensors", "hybrid.json"
_BESIDE = "trainer_state.json"


def save_state(hybrid: Hybrid, folder: Path) -> None:
    """Write the state into a folder; the JSON comes last, so a state with one is whole.

    Raises:
        DiskFull: no room.
    """
    # One that an earlier run left here would make whole what is written only in part.
    (folder / NUMBERS).unlink(missing_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in hybrid.tensors().items()}
    write_atomically(folder / TENSORS, save(tensors))
    numbers = hybrid.numbers() | {"beside": _beside(folder)}
    write_atomically(folder / NUMBERS, json.dumps(numbers).encode())


def load_state(hybrid: Hybrid, folder: Path) -> None:
    """Take up the state of a folder.

    Raises:
        ValueError: there is none, it is damaged, or it belongs to another run; the message says what to do.
    """
    remedy = "resume from an older checkpoint, or start anew"
    if not (folder / NUMBERS).exists():
        raise ValueError(
            f"{folder} holds no hybrid state ({NUMBERS}): it was written without the callback or cut off; {remedy}"
        )
    try:
        numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"the hybrid state in {folder} cannot be read ({error}); {remedy}") from None
    if isinstance(numbers, dict) and numbers.get("beside", _beside(folder)) != _beside(folder):
        raise ValueError(f"the hybrid state in {folder} is of another run than {_BESIDE} beside it; {remedy}")
    try:
        hybrid.load(tensors, numbers)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the hybrid state in {folder} is damaged ({error!r}); {remedy}") from error


def _beside(folder: Path) -> str:
    """Return what tells the Trainer's own state in a folder from another run's; nothing where there is none."""
    path = folder / _BESIDE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
