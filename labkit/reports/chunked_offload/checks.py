"""Two side questions of report 001 on a pretrained model: which number types hold, and what dropping the middle does.

The report says that half-precision weights with float32 adapters gave NaN. And its code touched 8 of 40 layers only; a
model without its middle layers is faster, and another model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from labkit.cell import cell, data
from labkit.offload import shapes
from labkit.offload.engine import StreamedLM
from labkit.offload.isolated import run_isolated
from labkit.offload.passes import NotFinite
from labkit.offload.skeleton import find_layers
from labkit.reports.chunked_offload import learning
from labkit.reports.chunked_offload.learning import LearnSpec
from labkit.reports.chunked_offload.params import CORPUS

DTYPES = ("float32", "bfloat16", "float16")
_TYPE_SHARE = 8
"""One in so many held-out windows makes the gradient that number types are compared on: processors multiply float16
slowly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSpec:
    """What is checked, on the held-out windows of a learning arm."""

    arm: LearnSpec
    """Model, windows and adapters."""


@cell(
    "offload.checks",
    version=1,
    data=lambda spec: data.corpus(CORPUS) | data.weights(spec.arm.model),
    packages=("transformers", "tokenizers", "peft"),
    timing=("limits",),
)
def measure_checks(spec: CheckSpec) -> dict[str, Any]:
    """Compare number types on one gradient, and score the model without its middle layers.

    Returns:
        types: for each, loss and gradient against float32, or what was not finite; scores: held-out nats per token of
        each window, whole and truncated.

    Raises:
        MissingData: the model or the text is not here and cannot be fetched.
    """
    folder, held_out = learning.held_out_windows(spec.arm)
    request = {"spec": asdict(spec.arm), "folder": str(folder), "windows": held_out.tolist()}
    return run_isolated(f"{__name__}:check", request, threads=spec.arm.threads)


def check(spec: dict[str, Any], folder: str, windows: list) -> dict[str, Any]:
    """Do both checks; this is what runs in a process of its own."""
    arm, ids = LearnSpec(**spec), torch.tensor(windows)
    return {
        "types": _types(arm, folder, ids[: max(1, len(ids) // _TYPE_SHARE)]),
        "scores": _truncated(arm, folder, ids),
    }


def _types(arm: LearnSpec, folder: str, ids: torch.Tensor) -> list[dict[str, Any]]:
    reference: dict[str, torch.Tensor] | None = None
    rows = []
    for dtype in DTYPES:
        model = learning.open_streamed(arm, folder, dtype=getattr(torch, dtype))
        _randomise(model)
        row: dict[str, Any] = {"dtype": dtype, "loss": None, "grad_norm": None, "difference": None, "not_finite": ""}
        try:
            loss, found = model.gradients({"input_ids": ids})
            gradient = torch.cat([g.flatten().double() for g in found.values()])
            reference = gradient if reference is None else reference
            row |= {"loss": loss, "grad_norm": float(gradient.norm())}
            row["difference"] = float((gradient - reference).norm() / reference.norm())
        except NotFinite as error:
            row["not_finite"] = str(error)
        model.close()
        rows.append(row)
    return rows


def _randomise(model: StreamedLM) -> None:
    """Move the adapters off their start, where B is zero and half of the gradient vanishes."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.adapters().items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)


def _truncated(arm: LearnSpec, folder: str, ids: torch.Tensor) -> dict[str, list[float]]:
    common = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arm.dtype), **common).to(arm.device)
    whole = learning.score_windows(model, ids.to(arm.device), arm.micro_batch)
    layers = find_layers(model)
    kept = nn.ModuleList(layers[i] for i in shapes.ends_of(len(layers), arm.trained_ends))
    owner = next(module for module in model.modules() for child in module.children() if child is layers)
    name = next(name for name, child in owner.named_children() if child is layers)
    setattr(owner, name, kept)
    model.config.get_text_config().num_hidden_layers = len(kept)
    return {"whole": whole, "truncated": learning.score_windows(model, ids.to(arm.device), arm.micro_batch)}
