"""A hybrid run's state beside a checkpoint: safetensors for tensors, JSON for the rest."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from labkit.files import write_atomically
from labkit.hybrid.engine import Hybrid

TENSORS, NUMBERS = "hybrid.safetensors", "hybrid.json"


def save_state(hybrid: Hybrid, folder: Path) -> None:
    """Write the state into a folder; the JSON comes last, so a state with one is whole.

    Raises:
        DiskFull: no room.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in hybrid.tensors().items()}
    write_atomically(folder / TENSORS, save(tensors))
    write_atomically(folder / NUMBERS, json.dumps(hybrid.numbers()).encode())


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
    hybrid.load(tensors, numbers)
