"""Which part of a causal LM is its body, and which part of that is a language model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from labkit.offload.headers import CannotStream


def body_of(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[str, nn.Module]:
    """Return the part of a causal LM that its layers lie in, after its name; the others belong to the head."""
    return next((name, part) for name, part in model.named_children() if any(own is layers for own in part.modules()))


def holder_of(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[nn.Module, str]:
    """Return the module that a list of layers is an attribute of, and the attribute's name."""
    return next(
        (module, name) for module in model.modules() for name, child in module.named_children() if child is layers
    )


def text_model(model: PreTrainedModel) -> nn.Module:
    """Return the part of a model that is a language model: all of it, or what stands beside a vision tower."""
    return model if model.config.get_text_config() is model.config else model.get_decoder()


def other_media(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[str, ...]:
    """Return how the names begin of what lies in a model's body beside its language model, such as a vision tower."""
    text, (prefix, body) = text_model(model), body_of(model, layers)
    if text is model or not any(text is own for own in body.modules()):
        return ()
    return tuple(
        f"{prefix}.{name}."
        for name, part in body.named_children()
        if not any(own is text or own is layers for own in part.modules())
    )


def require_every_layer(model: PreTrainedModel) -> None:
    """Refuse to train a model that leaves out layers at random while it trains.

    Raises:
        CannotStream: it does.
    """
    for name, module in model.named_modules():
        if (share := getattr(module, "layerdrop", 0)) and module.training:
            raise CannotStream(
                f"{name} leaves out each layer with probability {share} while it trains; streamed, every layer is run: "
                "set layerdrop to 0 in config.json"
            )


@contextmanager
def as_found(modules: Iterable[nn.Module], values: Mapping[int, torch.Tensor] | None = None) -> Iterator[None]:
    """Leave modules as they were found: attributes, which buffers they have, and what those hold.

    Args:
        modules: some of them remember what they saw last, such as the longest sequence.
        values: what buffers hold, by their id, for those that are changed in place.
    """
    found = [(module, dict(module.__dict__), dict(module._buffers)) for module in modules]
    versions = {id(b): b._version for _, _, buffers in found for b in buffers.values() if b is not None}
    try:
        yield
    finally:
        for module, attributes, buffers in found:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            for buffer in filter(lambda b: b is not None and b._version != versions[id(b)], buffers.values()):
                if (own := (values or {}).get(id(buffer))) is not None:
                    buffer.copy_(own)
