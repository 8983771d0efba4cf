"""Which maps of a model an adapter configuration reaches, before anything is trained.

PEFT adapts the target names it finds and says nothing about the others as long as one is there, so the same list means
different things in different architectures: in Phi-2 `o_proj` is called `dense` and stays without an adapter.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from labkit.models.wrapping import with_adapters

_ADAPTED = "base_model.model."
"""What PEFT puts before the names of a model's modules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """What a LoRA configuration reaches in a model."""

    trainable: int
    """Trainable parameters as PEFT counts them: r (d_in + d_out) for each map."""
    total: int
    """Distinct parameters of the model without adapters."""
    matched: dict[str, int]
    """Number of maps that each target name reached; by the maps' own names where no list was given."""
    unmatched: tuple[str, ...]
    """Target names that reached nothing."""
    layers: tuple[int, ...]
    """Layers with at least one adapter; those of a decoder are counted on from the encoder's."""
    n_layers: int
    """Layers of the model, of an encoder and a decoder together; of a model that sees, those of its language model."""

    @property
    def percent(self) -> float:
        """Adapter parameters in percent of the model's with them, as PEFT prints it."""
        return 100 * self.trainable / (self.total + self.trainable)


def lora_coverage(
    model: PreTrainedModel, lora_config: LoraConfig, *, allow_unmatched: Collection[str] = ()
) -> Coverage:
    """Count what a configuration would adapt, by PEFT itself on a copy of the model without weights.

    Args:
        model: a causal LM without adapters, also on the meta device; it is left as it is.
        lora_config: PEFT's configuration; it is left as it is. Only a list of target names can have unmatched ones.
        allow_unmatched: target names that may reach nothing in this model.

    Raises:
        ValueError: a target reaches nothing and is not allowed to; the message lists the linear maps there are. Or
            PEFT refuses the configuration: no target is there, or one is no map it can adapt.

    Warns:
        UserWarning: it reaches maps outside the language model too, such as those of a part that sees.
    """
    bare = without_weights(model)
    stacks, n_layers = _stacks(bare)
    named = lora_config.target_modules
    reach = {} if named is None or isinstance(named, str) else {t: _reached_by(t, lora_config, bare) for t in named}
    unmatched = tuple(sorted(target for target, n in reach.items() if not n))
    if refused := [target for target in unmatched if target not in allow_unmatched]:
        chosen = lora_config.layers_to_transform
        where = f" (layers {chosen} of {n_layers})" if chosen is not None else ""
        raise ValueError(
            f"target {', '.join(map(repr, refused))} matches nothing in {model.config.model_type}{where}, whose linear "
            f"maps are {', '.join(_linear_names(bare))}; name one of those, or allow it by name in allow_unmatched"
        )
    total = sum(parameter.numel() for parameter in bare.parameters())
    # Adapters are made where default tensors are: without this they would be allocated and filled.
    with torch.device("meta"):
        adapted = with_adapters(bare, copy.deepcopy(lora_config))
    maps = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    _warn_of_others(model, [name.removeprefix(_ADAPTED) for name in maps])
    return Coverage(
        trainable=adapted.get_nb_trainable_parameters()[0],
        total=total,
        matched={t: reach[t] for t in sorted(reach) if reach[t]} or dict(Counter(map(_last, sorted(maps)))),
        unmatched=unmatched,
        layers=tuple(sorted({i for name in maps if (i := _layer_of(name.removeprefix(_ADAPTED), stacks)) is not None})),
        n_layers=n_layers,
    )


def _stacks(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Return the number of the first layer of each list of layers, by the list's name, and of all layers together.

    Layers are the longest lists of modules that a module holds, but for those within another list, as experts are.
    """
    root = _language_part(model)
    named = [(name, m) for name, m in model.named_modules() if name.startswith(root)]
    lists = {name: len(module) for name, module in named if isinstance(module, torch.nn.ModuleList)}
    outer = {name: n for name, n in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    longest: dict[str, int] = {}
    for name, n in outer.items():
        holder = name.rpartition(".")[0]
        longest[holder] = max(n, longest.get(holder, 0))
    first, at = {}, 0
    for holder, n in longest.items():
        first |= {name: at for name, own in outer.items() if name.rpartition(".")[0] == holder and own == n}
        at += n
    return first, at


def _language_part(model: PreTrainedModel) -> str:
    """Return the name of the language model where it is a part of one that does more, else nothing."""
    if model.config.get_text_config(decoder=True) is model.config or model.config.is_encoder_decoder:
        return ""
    own = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is own)


def _layer_of(name: str, stacks: Mapping[str, int]) -> int | None:
    """Return the layer that a map lies in; None for one beside the layers."""
    for stack, first in stacks.items():
        if name.startswith(f"{stack}."):
            return first + int(name.removeprefix(f"{stack}.").partition(".")[0])
    return None


def _warn_of_others(model: PreTrainedModel, maps: Collection[str]) -> None:
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "")
    root = _language_part(model)
    others = sorted(name for name in maps if not name.startswith(root) and name != head)
    if others:
        warnings.warn(
            f"{len(others)} of {len(maps)} maps that get an adapter lie outside the language model {root}, "
            f"{others[0]} for one; name the others by a pattern such as {root}.*{_last(others[0])}",
            UserWarning,
            stacklevel=3,
        )


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model with every parameter and buffer on the meta device, ties included; nothing is allocated."""
    empty: dict[int, torch.Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        hollow = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        empty[id(tensor)] = torch.nn.Parameter(hollow, tensor.requires_grad) if is_parameter else hollow
    return copy.deepcopy(model, empty)


def _reached_by(target: str, lora_config: LoraConfig, model: PreTrainedModel) -> int:
    """Count the modules that PEFT would adapt for one target name, exclusions and chosen layers respected."""
    alone = copy.copy(lora_config)
    alone.target_modules = {target}
    return sum(bool(check_target_module_exists(alone, name)) for name, _ in model.named_modules())


def _linear_names(model: PreTrainedModel) -> list[str]:
    """List the linear maps by their last names; GPT-2 writes them as Conv1D."""
    linear = (torch.nn.Linear, Conv1D)
    return sorted({_last(name) for name, module in model.named_modules() if isinstance(module, linear)})


def _last(name: str) -> str:
    return name.rpartition(".")[2]
