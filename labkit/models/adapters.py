"""Which maps of a model an adapter configuration reaches, before anything is trained.

PEFT adapts the target names it finds and says nothing about the others as long as one is there, so the same list means
different things in different architectures: in Phi-2 `o_proj` is called `dense` and stays without an adapter.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


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
    """Layers with at least one adapter."""
    n_layers: int
    """Layers of the model."""

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
    """
    bare = without_weights(model)
    named = lora_config.target_modules
    reach = {} if named is None or isinstance(named, str) else {t: _reached_by(t, lora_config, bare) for t in named}
    unmatched = tuple(sorted(target for target, n in reach.items() if not n))
    if refused := [target for target in unmatched if target not in allow_unmatched]:
        chosen = lora_config.layers_to_transform
        where = f" (layers {chosen} of {model.config.num_hidden_layers})" if chosen is not None else ""
        raise ValueError(
            f"target {', '.join(map(repr, refused))} matches nothing in {model.config.model_type}{where}, whose linear "
            f"maps are {', '.join(_linear_names(bare))}; name one of those, or allow it by name in allow_unmatched"
        )
    total = sum(parameter.numel() for parameter in bare.parameters())
    # Adapters are made where default tensors are: without this they would be allocated and filled.
    with torch.device("meta"):
        adapted = get_peft_model(bare, copy.deepcopy(lora_config))
    maps = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    return Coverage(
        trainable=adapted.get_nb_trainable_parameters()[0],
        total=total,
        matched={t: reach[t] for t in sorted(reach) if reach[t]} or dict(Counter(map(_last, sorted(maps)))),
        unmatched=unmatched,
        layers=tuple(sorted({int(found[1]) for name in maps if (found := _LAYER.search(name))})),
        n_layers=model.config.num_hidden_layers,
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
