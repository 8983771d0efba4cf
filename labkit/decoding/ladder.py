"""Time a ladder of model shapes with random weights: does the time per token follow t = t0 + bytes / bandwidth?

Speed of a dense model depends on its shape, not on the values of its weights, so nothing is downloaded. The rungs below
the report's smallest model are its architecture (Qwen2: grouped queries, tied embeddings) made narrower, shallower and
with a smaller vocabulary; depth and size do not grow together, or a time per layer could not be told from a bandwidth.
The memory's bandwidth is measured between the repeats, so that the floor and the time have the same neighbours.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from labkit import device as machine
from labkit import models
from labkit.base.units import GIB, MIB
from labkit.cell import cell, environment
from labkit.decoding.decode import TIMES, VERSIONS, conditions, measure_decode, measure_train_step
from labkit.stats.affine import AffineFit, fit_affine

LORA_RANK = 16
"""Rank of the adapters in timed training steps, as in the report."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "dense")
"""Attention's linear maps; `dense` is what Phi-2 calls its output projection."""
_COPY_BYTES = 128 * MIB
_COPIES = 3


def qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, vocabulary: int
) -> tuple[tuple[str, int], ...]:
    """Return the values that turn the report's smallest shape into another of its family."""
    return (
        ("hidden_size", hidden),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("intermediate_size", feed_forward),
        ("vocab_size", vocabulary),
    )


LADDER: dict[str, tuple[str, tuple[tuple[str, int], ...]]] = {
    "qwen2-16m": ("qwen2.5-0.5b", qwen2(256, 12, 4, 1, 1024, 16_384)),
    "qwen2-48m": ("qwen2.5-0.5b", qwen2(640, 6, 10, 2, 2560, 19_456)),
    "qwen2-110m": ("qwen2.5-0.5b", qwen2(512, 24, 8, 2, 1920, 45_056)),
    "qwen2-250m": ("qwen2.5-0.5b", qwen2(1024, 12, 16, 2, 4096, 69_632)),
    "qwen2.5-0.5b": ("qwen2.5-0.5b", ()),
    "qwen2-1b": ("qwen2.5-0.5b", qwen2(1536, 20, 12, 2, 8192, 131_072)),
    "phi-2": ("phi-2", ()),
    "qwen2.5-7b": ("qwen2.5-7b", ()),
}
"""Rungs by name, smallest first: a shape of `labkit.models.SHAPES` and the values replaced in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One shape to time, with everything the times depend on."""

    name: str
    """Name in `LADDER`, or your own."""
    shape: str
    """Key of `labkit.models.SHAPES`."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Configuration values replaced in the shape, as (name, value)."""
    dtype: str = "bfloat16"
    """Type the weights are held and multiplied in."""
    device: str = "cpu"
    """Where it runs."""
    threads: int = 1
    """CPU threads."""
    prompt_tokens: int = 16
    """Length of the random prompt."""
    new_tokens: int = 100
    """Tokens decoded in each repeat, exactly."""
    repeats: int = 5
    """Timed repeats of decoding and of the training step."""
    warmup: int = 1
    """Repeats before them that are not kept."""
    train: bool = True
    """Whether a training step with adapters is timed too."""
    batch: int = 1
    """Sequences of a training step."""
    length: int = 64
    """Tokens of each."""
    seed: int = 0
    """Seed of the weights and the tokens."""


def rung(name: str, **changes: Any) -> Rung:
    """Return a rung of the ladder, with other types, threads, lengths or repeats where given.

    Raises:
        ValueError: no such rung, or a change to a field that a rung does not have or that its name fixes.
    """
    if name not in LADDER:
        raise ValueError(f"no rung {name!r} in the ladder; it has {', '.join(LADDER)}")
    free = {field.name for field in dataclasses.fields(Rung)} - {"name", "shape", "overrides"}
    if strangers := sorted(set(changes) - free):
        raise ValueError(f"{', '.join(strangers)} cannot be set on a rung; what can is {', '.join(sorted(free))}")
    shape, overrides = LADDER[name]
    return Rung(name=name, shape=shape, overrides=overrides, **changes)


def build_rung(spec: Rung) -> PreTrainedModel:
    """Build a rung's model on its device and set its threads.

    Raises:
        TooLarge: it does not fit into the free memory; the message has both numbers.
        ValueError: unknown shape, type or configuration value.
    """
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"rung {spec.name}: dtype is {spec.dtype!r}; write 'float32' or 'bfloat16'")
    machine.set_threads(spec.threads)
    model = models.build(spec.shape, dtype=dtype, seed=spec.seed, device=spec.device, **dict(spec.overrides))
    model.config.name_or_path = spec.name
    return model


@cell(
    "inertia.rung",
    version=1,
    packages=("transformers", "peft"),
    timing=(*TIMES, *VERSIONS, "copy_bytes_per_s", "train_seconds", "build_seconds", "peak_bytes"),
    timed=True,
    onednn=environment.WITHOUT_AMX,
)
def measure_rung(spec: Rung) -> dict[str, Any]:
    """Build a rung, time its decoding beside the memory's bandwidth, and time a training step of its adapters.

    Returns:
        plain JSON: counts (`parameters`, `weight_bytes`, `bytes_per_token`, `n_layers`), samples
        (`seconds_per_token`, `prefill_seconds`, `token_seconds`, `copy_bytes_per_s`, `train_seconds`), `train_losses`
        (one for each step, warm-up included), `conditions`, `build_seconds` and `peak_bytes`. Copies count bytes read
        and bytes written.

    Raises:
        TooLarge, ValueError: as `build_rung`.
        MissingDevice: the device is not here.
    """
    gc.collect()
    copies: list[float] = []
    with machine.peak_memory(spec.device) as memory:
        start = time.perf_counter()
        model = build_rung(spec)
        build_seconds = time.perf_counter() - start
        timing = measure_decode(
            model,
            prompt_tokens=spec.prompt_tokens,
            new_tokens=spec.new_tokens,
            repeats=spec.repeats,
            warmup=spec.warmup,
            seed=spec.seed,
            between=lambda: copies.append(machine.copy_bandwidth(_COPY_BYTES, _COPIES, device=spec.device).median),
        )
    counts = {name: timing.conditions[name] for name in ("parameters", "weight_bytes", "bytes_per_token", "n_layers")}
    result = {"name": spec.name, "rung": dataclasses.asdict(spec)} | counts | timing.as_dict()
    result |= {"copy_bytes_per_s": copies, "build_seconds": build_seconds, "peak_bytes": memory.added_bytes}
    untrained = {"train_seconds": [], "train_losses": [], "train_conditions": {}}
    return result | (_train(model, spec) if spec.train else untrained)


def _train(model: PreTrainedModel, spec: Rung) -> dict[str, Any]:
    """Give the model adapters and time whole steps on them."""
    from peft import LoraConfig

    from labkit.models.wrapping import with_adapters

    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [name for name in LORA_TARGETS if name in present]
    if not targets:
        raise ValueError(f"rung {spec.name}: none of {', '.join(LORA_TARGETS)} is a module of {spec.shape}")
    torch.manual_seed(spec.seed)
    adapted = with_adapters(model, LoraConfig(r=LORA_RANK, target_modules=targets, task_type="CAUSAL_LM"))
    counts = {"batch": spec.batch, "length": spec.length, "repeats": spec.repeats, "warmup": spec.warmup}
    losses: list[float] = []
    seconds = measure_train_step(adapted, **counts, seed=spec.seed, losses=losses)
    held = conditions(adapted) | {"batch": spec.batch, "length": spec.length, "optimizer": "AdamW", "model": spec.name}
    for name in ("sampler", "cache", "bytes_per_token"):
        del held[name]
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    held |= {"trainable": trainable, "targets": targets}
    return {"train_seconds": seconds, "train_losses": losses, "train_conditions": held}


def training_row(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rung's training steps with their own conditions, as `compare.ratio` takes them."""
    return {"seconds_per_step": result["train_seconds"], "conditions": result["train_conditions"]}


def rung_table(results: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay out measured rungs, smallest first.

    `roofline_ms` is the time to move the weights' bytes at the rate that a copy moved bytes, read and written, between
    the same repeats; `fraction` is that floor over the measured time. A rung that fits into the processor's last cache
    can beat it.
    """
    rows = [_row(result) for result in results]
    return pd.DataFrame(rows).sort_values("bytes", ignore_index=True)


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    seconds = statistics.median(result["seconds_per_token"])
    copied = statistics.median(result["copy_bytes_per_s"])
    train = result["train_seconds"]
    return {
        "name": result["name"],
        "parameters": result["parameters"],
        "n_layers": result["n_layers"],
        "bytes": result["bytes_per_token"],
        "ms_per_token": 1e3 * seconds,
        "gb_per_s": result["bytes_per_token"] / seconds / 1e9,
        "copy_gb_per_s": copied / 1e9,
        "roofline_ms": 1e3 * result["bytes_per_token"] / copied,
        "fraction": result["bytes_per_token"] / copied / seconds,
        "prefill_ms": 1e3 * statistics.median(result["prefill_seconds"]),
        "train_ms": 1e3 * statistics.median(train) if train else float("nan"),
        "build_s": result["build_seconds"],
        "peak_gib": result["peak_bytes"] / GIB,
    }


def points(results: Iterable[Mapping[str, Any]], quantity: str = "seconds_per_token") -> pd.DataFrame:
    """Return the samples of a quantity (`seconds_per_token` or `train_seconds`), a row per rung and repeat."""
    rows = [
        {"name": result["name"], "n_layers": result["n_layers"], "bytes": result["bytes_per_token"], "seconds": seconds}
        for result in results
        for seconds in result[quantity]
    ]
    return pd.DataFrame(rows, columns=["name", "n_layers", "bytes", "seconds"])


def fit_rungs(
    results: Iterable[Mapping[str, Any]],
    quantity: str = "seconds_per_token",
    *,
    per_layer: bool = False,
    n_resamples: int = 2000,
    seed: int = 0,
) -> AffineFit:
    """Fit t = t0 + bytes / bandwidth, or with a time per layer, through measured rungs; errors are keyed by rung.

    Raises:
        ValueError: too few rungs for the form, or depths that do not tell a time per layer apart.
    """
    samples = points(results, quantity)
    return fit_affine(
        samples["bytes"],
        samples["seconds"],
        clusters=samples["name"].tolist(),
        per_layer=samples["n_layers"] if per_layer else None,
        n_resamples=n_resamples,
        seed=seed,
    )
