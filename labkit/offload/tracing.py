"""Which tensors of a checkpoint fill which parameters and buffers, found as transformers finds it when it loads them.

Its own tables say how older checkpoints call a parameter, and which tensors it joins to one: most checkpoints hold each
expert of a layer in tensors of its own. Its own code joins small stand-ins here, whose numbers say what comes to lie
where.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)

from labkit.offload.headers import COMPUTED, CannotStream, Checkpoint, DamagedCheckpoint, Entry
from labkit.offload.store import Joined, Source


@dataclass(slots=True)
class _Collected:
    """What a checkpoint holds of one parameter."""

    converter: WeightConverter | None
    """What transformers makes the parameter with; None where it takes a tensor as it is."""
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    """The tensors, by the converter's pattern that they match."""


def trace(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Source]:
    """Return where each parameter of a model lies, under each of its names, tied ones too, and each saved buffer.

    A buffer that the checkpoint lacks is left out: it keeps the value that the model computes, as in transformers.

    Args:
        model: on the meta device, with its ties and without adapters.
        checkpoint: where the weights lie.

    Raises:
        CannotStream: a parameter has no tensor there, or one that cannot be computed with.
        DamagedCheckpoint: the index says that a parameter is in a file which does not hold it.
    """
    stored, computed = _stored(model, checkpoint)
    aliases: dict[int, list[str]] = {}
    for name, tensor in _state(model):
        aliases.setdefault(id(tensor), []).append(name)
    found, missing = {}, []
    for name, tensor in _state(model):
        source = next((stored[own] for own in (name, *aliases[id(tensor)]) if own in stored), None)
        if source is None and not isinstance(tensor, torch.nn.Parameter):
            continue
        if source is None or source.shape != tuple(tensor.shape):
            missing.append(name)
        else:
            found[name] = source
            if tensor.is_floating_point():
                _require_numbers(checkpoint, name, source)
    if missing:
        raise _lacking(model, checkpoint, missing, computed)
    return found


def _state(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name all that a checkpoint holds of a model: parameters, tied ones under each of their names, and buffers."""
    named = model.state_dict(keep_vars=True).items()
    return ((name, tensor) for name, tensor in named if isinstance(tensor, torch.Tensor))


def _stored(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[dict[str, Source], dict[str, str]]:
    """Return what a checkpoint holds of a model by name, and what transformers would compute of what it holds."""
    stored: dict[str, Source] = {}
    computed: dict[str, str] = {}
    held = _held(model)
    for name, collected in _collect(model, checkpoint).items():
        source = _source(model, name, collected)
        if isinstance(source, str):
            computed[name] = source
        elif source is not None:
            stored[name] = _in_type(source, held(name))
    return stored, computed


def _collect(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, _Collected]:
    """Sort tensors by the parameter they belong to."""
    collected: dict[str, _Collected] = {}
    state = model.state_dict()
    for key, name, pattern, converter in named(model, checkpoint):
        if name in state:
            own = collected.setdefault(name, _Collected(converter))
            own.entries.setdefault(pattern or key, []).append(checkpoint.entries[key])
    return collected


def named(
    model: PreTrainedModel, checkpoint: Checkpoint
) -> Iterator[tuple[str, str, str | None, WeightConverter | None]]:
    """Name tensors as `convert_and_load_state_dict_in_model` of transformers does, in its order.

    Returns:
        for each the name in the checkpoint and in the model, and the pattern and the converter that it matches.
    """
    steps, state, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    by_pattern = {pattern: step for step in converters for pattern in step.source_patterns}
    for key in sorted(checkpoint.entries, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        yield key, name, pattern, by_pattern.get(pattern)


def _source(model: PreTrainedModel, name: str, collected: _Collected) -> Source | str | None:
    """Return where a parameter lies, what transformers computes it with, or None if what there is does not fit."""
    if collected.converter is None:
        # Of several tensors that end up under one name transformers takes the first.
        return next(iter(collected.entries.values()))[0]
    entries = list(itertools.chain.from_iterable(collected.entries.values()))
    whole = _made(model, name, collected, lambda entry: torch.empty(entry.shape, device="meta"))
    codes = _made(model, name, collected, _codes())
    if whole is None:
        return None
    order = _order(codes[name], entries) if codes is not None and whole.keys() == codes.keys() == {name} else None
    if order is None:
        return ", ".join(type(step).__name__ for step in collected.converter.operations)
    return Joined(parts=tuple(entries[i] for i in order), shape=tuple(whole[name].shape))


def _codes() -> Callable[[Entry], torch.Tensor]:
    """Return what makes stand-ins: of as many axes as a tensor has, each of length two, with numbers in order."""
    last = itertools.count()

    def stand_in(entry: Entry) -> torch.Tensor:
        axes = len(entry.shape)
        return torch.tensor([next(last) for _ in range(2**axes)]).view((2,) * axes)

    return stand_in


def _made(
    model: PreTrainedModel, name: str, collected: _Collected, stand_in: Callable[[Entry], torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Return what transformers makes of stand-ins, by name; None if it cannot."""
    converter = copy.deepcopy(collected.converter)
    for pattern, entries in collected.entries.items():
        for entry in entries:
            converter.add_tensor(name, name, pattern, stand_in(entry))
    try:
        made = converter.convert(name, model=model, config=model.config)
    except Exception:
        # It may stumble over anything: a stand-in's small axes, or tensors that are not all there.
        return None
    return {own: value[0] if isinstance(value, list) else value for own, value in made.items()}


def _order(codes: torch.Tensor, entries: list[Entry]) -> list[int] | None:
    """Return in which order tensors follow each other where each lies in one stretch; None where one does not."""
    numbers, order = codes.flatten().tolist(), []
    firsts = [0, *itertools.accumulate(2 ** len(entry.shape) for entry in entries)]
    places = {first: i for i, first in enumerate(firsts[:-1])}
    while numbers:
        i = places.get(numbers[0])
        if i is None or numbers[: firsts[i + 1] - firsts[i]] != list(range(firsts[i], firsts[i + 1])):
            return None
        order.append(i)
        del numbers[: firsts[i + 1] - firsts[i]]
    return order if sorted(order) == list(range(len(entries))) else None


def _held(model: PreTrainedModel) -> Callable[[str], torch.dtype | None]:
    """Return what tells the type that transformers holds a parameter in, where that is not the model's."""
    state, plan = model.state_dict(), model._get_dtype_plan(model.dtype)
    pattern, globs, _ = build_glob_alternation(list(plan))

    def held(name: str) -> torch.dtype | None:
        matched = pattern.search(name) if plan else None
        dtype = state[name].dtype if matched is None else plan[globs[matched.lastgroup]]
        return dtype if dtype.is_floating_point and dtype != model.dtype else None

    return held


def _in_type(source: Source, held: torch.dtype | None) -> Source:
    if held is None:
        return source
    if isinstance(source, Entry):
        return dataclasses.replace(source, held=held)
    return dataclasses.replace(source, parts=tuple(dataclasses.replace(part, held=held) for part in source.parts))


def _lacking(
    model: PreTrainedModel, checkpoint: Checkpoint, missing: list[str], computed: Mapping[str, str]
) -> ValueError:
    """Return why parameters cannot be filled."""
    kind, what = type(model).__name__, f"{len(missing)} parameters of"
    if made := [name for name in missing if name in computed]:
        return CannotStream(
            f"{checkpoint.folder}: transformers computes {what} {kind} when it loads them, {made[0]} for one "
            f"({computed[made[0]]}), and here tensors are only joined; load the model and save it with "
            "save_pretrained(save_original_format=False)"
        )
    if gone := [name for name in missing if name in checkpoint.absent]:
        return DamagedCheckpoint(
            f"{checkpoint.folder} is damaged: its index says that {checkpoint.absent[gone[0]]} holds {gone[0]}, which "
            "that file does not; fetch or save it again"
        )
    return CannotStream(
        f"{checkpoint.folder}: {what} {kind} have no tensor of their name and shape there, {missing[0]} for one; save "
        "the model again with save_pretrained"
    )


def _require_numbers(checkpoint: Checkpoint, name: str, source: Source) -> None:
    """Refuse weights that are stored as something else than floating-point numbers of 16 bits or more."""
    for part in source.parts:
        if part.dtype not in COMPUTED.values():
            raise CannotStream(
                f"{checkpoint.folder}: {name} is stored as {part.stored}, and weights are computed with only as "
                f"{', '.join(COMPUTED)}; load the model and save it in one of these types"
            )
