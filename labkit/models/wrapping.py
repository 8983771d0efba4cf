"""PEFT's adapters around a model, without warnings about calls that are not the user's."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

_NOT_THE_USERS = (
    (".*gradient_checkpointing.* is deprecated", FutureWarning),  # PEFT asks transformers by a name about to go
    ("fan_in_fan_out is set to False but the target module is `Conv1D`", UserWarning),  # PEFT sets it right by itself
)


def with_adapters(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """Wrap the maps of a model that a configuration names, as `peft.get_peft_model` does.

    Raises:
        ValueError: PEFT refuses the configuration.
    """
    with warnings.catch_warnings():
        for message, category in _NOT_THE_USERS:
            warnings.filterwarnings("ignore", message=message, category=category)
        return get_peft_model(model, lora)
