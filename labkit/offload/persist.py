"""Adapters in PEFT's format, and the whole state of a training run in one safetensors file: no pickle in either."""

from __future__ import annotations

import copy
import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from labkit.base.files import disk_errors, replacing
from labkit.offload.headers import CannotStream, Checkpoint, DamagedCheckpoint
from labkit.offload.skeleton import Skeleton

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_STATE = "labkit"
_FORMAT = 1


def lora_of(folder: str | Path) -> LoraConfig:
    """Return the configuration of saved adapters.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    folder = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; name a folder as PEFT's save_pretrained writes it")
    config = LoraConfig.from_pretrained(folder)
    config.inference_mode = False
    return config


def require_bare(folder: str | Path) -> None:
    """Refuse a folder of a model with adapters in it, which transformers would load with the model.

    Raises:
        CannotStream: it holds some.
    """
    if (Path(folder) / _CONFIG).is_file():
        raise CannotStream(
            f"{folder} holds adapters ({_CONFIG}), which transformers loads with the model; pass their folder as "
            "adapter= and the model's as checkpoint, or move the adapters elsewhere"
        )


def load_adapter(folder: str | Path, adapters: Mapping[str, torch.nn.Parameter]) -> None:
    """Copy saved adapters into a model's.

    Raises:
        DamagedCheckpoint: the file is damaged, or its adapters are not those of the model.
    """
    path = Path(folder) / _WEIGHTS
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}; save the adapter again") from error
    own = {_saved_name(name): parameter for name, parameter in adapters.items()}
    _copy(path, saved, own)


def save_adapter(skeleton: Skeleton, folder: Path) -> None:
    """Write adapters as PEFT does: adapter_config.json and adapter_model.safetensors.

    Raises:
        DiskFull: no room.
        ValueError: there are none.
    """
    if skeleton.adapted is None:
        raise ValueError("this model has no adapters to save")
    tensors = get_peft_model_state_dict(
        skeleton.adapted, state_dict=dict(skeleton.adapters()), save_embedding_layers=False
    )
    _write(folder / _WEIGHTS, tensors, {"format": "pt"})
    config = next(iter(skeleton.adapted.peft_config.values()))
    with disk_errors(folder):
        config.save_pretrained(str(folder))


def nameless(lora: LoraConfig | None) -> LoraConfig | None:
    """Return a configuration without the name of its base, of whose change PEFT would warn: the base is given here."""
    bare = copy.copy(lora)
    if bare is not None:
        bare.base_model_name_or_path = None
    return bare


def name_base(skeleton: Skeleton, lora: LoraConfig | None, folder: Path) -> None:
    """Note in the adapters' configuration what PEFT's automatic classes ask for: the kind of task, and the base.

    Args:
        skeleton: the model; one without adapters is left as it is.
        lora: the configuration that was given. The name of a base on the hub stays; a folder may have moved.
        folder: where the base lies.
    """
    named = lora and lora.base_model_name_or_path
    on_hub = bool(named) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named) and not Path(named).exists()
    for config in () if skeleton.adapted is None else skeleton.adapted.peft_config.values():
        config.task_type = config.task_type or TaskType.CAUSAL_LM
        config.base_model_name_or_path = named if on_hub else str(folder.resolve())


def save_state(
    path: Path,
    state: Mapping[str, Any],
    lora: LoraConfig | None,
    adapters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Write a run's state into one file, in place of the one that is there.

    Raises:
        DiskFull: no room; the old file is left as it was.
    """
    tensors = {f"adapter/{name}": parameter.detach() for name, parameter in adapters.items()}
    document = {"format": _FORMAT, **state, "lora": None if lora is None else _plain(lora.to_dict())}
    if optimizer is not None:
        kept = optimizer.state_dict()
        document["optimizer"] = {"kind": type(optimizer).__name__, "param_groups": kept["param_groups"], "numbers": {}}
        for i, values in kept["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{i}/{name}"] = value
                else:
                    document["optimizer"]["numbers"][f"{i}/{name}"] = value
    _write(path, tensors, {_STATE: json.dumps(document)})


def load_state(path: Path) -> dict[str, Any]:
    """Return what a state file says, its tensors left on the disk; `lora` is a configuration.

    Raises:
        FileNotFoundError: no such file.
        DamagedCheckpoint: it is damaged or no state file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; it is a file that StreamedLM.checkpoint writes")
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[_STATE])
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']}")
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is no state that StreamedLM.checkpoint wrote: {error}") from error
    if document["lora"] is not None:
        document["lora"] = LoraConfig(**document["lora"])
    return document


def require_same_base(path: Path, fingerprint: str, base: Checkpoint) -> None:
    """Refuse a base that is not the one a state was written for.

    Raises:
        DamagedCheckpoint: it is another one.
    """
    if fingerprint != base.fingerprint():
        raise DamagedCheckpoint(
            f"{path} was written for another base than {base.folder} (fingerprints {fingerprint[:12]} and "
            f"{base.fingerprint()[:12]}); name the folder it was trained on as checkpoint="
        )


def copy_into(path: Path, adapters: Mapping[str, torch.nn.Parameter]) -> None:
    """Copy the adapters of a state file into a model's.

    Raises:
        DamagedCheckpoint: they are not those of the model.
    """
    saved = {name.removeprefix("adapter/"): t for name, t in _tensors(path).items() if name.startswith("adapter/")}
    _copy(path, saved, adapters)


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the state it had.

    Raises:
        ValueError: the file holds none, or one of another kind or size.
    """
    document = load_state(path)
    saved = document.get("optimizer")
    if saved is None or saved["kind"] != type(optimizer).__name__:
        held = "no optimizer" if saved is None else f"the state of {saved['kind']}"
        raise ValueError(f"{path} holds {held}, not of {type(optimizer).__name__}")
    state: dict[int, dict[str, Any]] = {}
    for name, value in _tensors(path).items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            i, _, key = rest.partition("/")
            state.setdefault(int(i), {})[key] = value
    for name, value in saved["numbers"].items():
        i, _, key = name.partition("/")
        state.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from error


def _copy(path: Path, saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.nn.Parameter]) -> None:
    unequal = [n for n in {*saved, *own} if n not in saved or n not in own or saved[n].shape != own[n].shape]
    if unequal:
        raise DamagedCheckpoint(f"{path} holds other adapters than this model has; {min(unequal)} for one")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def _saved_name(name: str) -> str:
    """Return the name that PEFT saves an adapter's parameter under: without the adapter's own, and as it once was."""
    return name.replace(".default.", ".").replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in JSON's types; what is empty is left to PEFT's defaults."""
    listed = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in values.items()}
    return {k: v for k, v in listed.items() if v not in (None, {}, []) and k != "runtime_config"}


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a reader sees all of it or the old one."""
    with replacing(path) as aside:
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, aside, metadata)
        except SafetensorError as error:
            # Its writer reports what the system said as an error of its own, with the number in the text.
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
