"""Learning on real text: the same training streamed under a limit and resident in memory, each in a process of its own.

Both start from the same adapters, see the same windows in the same micro-batches and score the same held-out windows,
so that streaming can change nothing but rounding. The resident arm is transformers' model with PEFT's adapters and
PyTorch's own backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from labkit import corpora, metrics, models
from labkit.base.units import MIB
from labkit.cell import cell, data
from labkit.models.wrapping import with_adapters
from labkit.offload import shapes
from labkit.offload.engine import StreamedLM
from labkit.offload.isolated import run_isolated
from labkit.offload.memory import PeakAnonymous, anonymous_bytes
from labkit.reports.chunked_offload.params import CORPUS

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *shapes.TARGETS)
"""The report's four maps under the names they have in models that keep q, k, v and gate, up apart, and together."""
_CHARACTERS_PER_TOKEN = 8
ABOVE_BASE = 0.35
"""Memory of the streamed arm above what a process without a model holds, as a share of the weights' bytes."""
_LEAST_ABOVE = 128 * MIB


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnSpec:
    """One learning arm, run twice: streamed and resident."""

    model: str
    """Name of a pretrained model."""
    dtype: str
    """Type the weights are computed with."""
    batch_size: int
    """Samples of a step."""
    micro_batch: int
    """Samples that go through a layer together, in both arms."""
    steps: int
    """Optimizer steps."""
    held_out: int
    """Held-out windows."""
    seq_len: int
    """Tokens of a window."""
    lora_rank: int
    """Rank of the adapters."""
    lora_alpha: int
    """Their scale."""
    trained_ends: int
    """Layers with adapters at either end."""
    learning_rate: float
    """AdamW's learning rate."""
    device: str
    """Device."""
    threads: int
    """Threads."""
    seed: int
    """Of the adapters and the order of the windows."""


@cell(
    "offload.learning",
    version=1,
    data=lambda spec: data.corpus(CORPUS) | data.weights(spec.model),
    packages=("transformers", "tokenizers", "peft"),
    timing=("seconds", "peak_bytes", "planned_bytes", "base_bytes", "limits"),
)
def measure_learning(spec: LearnSpec) -> dict[str, Any]:
    """Train both arms.

    On a processor with two threads or more they train side by side, for nothing of theirs is timed; on one accelerator,
    whose memory holds one model, one after the other.

    Returns:
        streamed and resident: loss of each step, gradient norm of each adapter and step, held-out nats per token of
        each window before and after, peak memory; weights: the record of the model's bytes.

    Raises:
        MissingData: the model or the text is not here and cannot be fetched.
        LimitReached: the streamed arm wanted more memory than it was given.
    """
    folder, weights = models.prepare(spec.model)
    train, held_out = _windows(spec, folder)
    request = {"spec": asdict(spec), "folder": str(folder), "train": train.tolist(), "held_out": held_out.tolist()}
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    above = max(_LEAST_ABOVE, int(ABOVE_BASE * n_bytes))
    n_side = side_by_side(spec.device, spec.threads)
    limits = {"threads": spec.threads // n_side}
    with ThreadPoolExecutor(n_side) as pool:
        streamed = pool.submit(run_isolated, f"{__name__}:train_streamed", request, above_bytes=above, **limits)
        resident = pool.submit(run_isolated, f"{__name__}:train_resident", request, **limits)
    arms = {"streamed": streamed.result(), "resident": resident.result()}
    return arms | {"weights": {"sha256": weights.sha256, "source": weights.source, "bytes": n_bytes}}


def side_by_side(device: str, threads: int) -> int:
    """Return how many of the two arms train at a time."""
    return 2 if device == "cpu" and threads > 1 else 1


def _windows(spec: LearnSpec, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cut real text into windows: training ones [steps x batch, T] in random order, and held-out ones [n, T]."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    corpus = corpora.load(CORPUS)
    wanted = {"train": spec.steps * spec.batch_size, "validation": spec.held_out}
    cut = {}
    for split, n in wanted.items():
        text = "\n".join(getattr(corpus, split))[: n * spec.seq_len * _CHARACTERS_PER_TOKEN]
        ids = np.array(tokenizer(text)["input_ids"][: n * spec.seq_len])
        cut[split] = ids[: len(ids) // spec.seq_len * spec.seq_len].reshape(-1, spec.seq_len)
        if len(cut[split]) < n:
            raise ValueError(f"{CORPUS}'s {split} text holds {len(cut[split])} windows of {spec.seq_len}, not {n}")
    return np.random.default_rng(spec.seed).permutation(cut["train"]), cut["validation"]


def held_out_windows(spec: LearnSpec) -> tuple[Path, np.ndarray]:
    """Return a model's folder and the held-out windows of real text for it, [n, T].

    Raises:
        MissingData: the model or the text is not here and cannot be fetched.
    """
    folder, _ = models.prepare(spec.model)
    return folder, _windows(spec, folder)[1]


def lora_of(spec: LearnSpec, folder: str) -> LoraConfig:
    """Return the adapters of the report's four linear maps, in the first and last layers of a model."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    layers = shapes.ends_of(config.get_text_config().num_hidden_layers, spec.trained_ends)
    targets = [name for name in TARGETS if name in shapes.linear_maps(config)]
    return LoraConfig(r=spec.lora_rank, lora_alpha=spec.lora_alpha, target_modules=targets, layers_to_transform=layers)


def open_streamed(spec: LearnSpec, folder: str, **options: Any) -> StreamedLM:
    """Open an arm's model with new adapters; `options` of StreamedLM replace the arm's."""
    own = {"lora": lora_of(spec, folder), "dtype": getattr(torch, spec.dtype), "device": spec.device}
    return StreamedLM(folder, **own | {"micro_batch": spec.micro_batch, "seed": spec.seed} | options)


def _batches(spec: LearnSpec, train: list[list[int]]) -> Iterator[torch.Tensor]:
    yield from torch.tensor(train).split(spec.batch_size)


def train_streamed(spec: dict[str, Any], folder: str, train: list, held_out: list, memory: int) -> dict[str, Any]:
    """Train a streamed model; this is what runs under the limit."""
    own = LearnSpec(**spec)
    model = open_streamed(own, folder, memory=memory, callbacks=[metrics.of_steps(_begin(own, "streamed"))])
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=own.learning_rate)
    windows = {"input_ids": torch.tensor(held_out)}
    before = model.score(windows).mean(1).tolist()
    with PeakAnonymous() as peak:
        reports = [model.step({"input_ids": ids}, optimizer) for ids in _batches(own, train)]
        after = model.score(windows).mean(1).tolist()
    return {
        "loss": [report.loss for report in reports],
        "grad_norms": [dict(report.grad_norms) for report in reports],
        "seconds": [report.seconds for report in reports],
        "held_out_before": before,
        "held_out_after": after,
        "peak_bytes": peak.bytes,
        "planned_bytes": max(report.plan.peak_bytes for report in reports),
        "head_pieces": reports[0].plan.head_pieces,
    }


def train_resident(spec: dict[str, Any], folder: str, train: list, held_out: list) -> dict[str, Any]:
    """Train the same with all weights in memory and PyTorch's own backward pass."""
    own = LearnSpec(**spec)
    base = anonymous_bytes()
    model = _resident(own, folder)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=own.learning_rate)
    windows = torch.tensor(held_out, device=own.device)
    before = score_windows(model, windows, own.micro_batch)
    losses, norms, run = [], [], _begin(own, "resident")
    with PeakAnonymous() as peak:
        for step, ids in enumerate(_batches(own, train)):
            losses.append(_accumulate(model, ids.to(own.device), own.micro_batch))
            norms.append({name: float(p.grad.norm()) for name, p in parameters.items()})
            metrics.emit(run, step, {"loss": losses[-1]}, adapters=norms[-1])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        after = score_windows(model, windows, own.micro_batch)
    return {
        "loss": losses,
        "grad_norms": norms,
        "held_out_before": before,
        "held_out_after": after,
        "peak_bytes": peak.bytes,
        "base_bytes": base,
    }


def _begin(spec: LearnSpec, way: str) -> str:
    """Tell who follows what an arm is; return the name it goes by."""
    name = f"{spec.model} {way}, batch {spec.batch_size}, seed {spec.seed}"
    metrics.begin(name, asdict(spec) | {"way": way})
    return name


def _resident(spec: LearnSpec, folder: str) -> PreTrainedModel:
    """Load the model whole, with the adapters that the streamed one starts from."""
    start = open_streamed(spec, folder)
    adapters = {name: p.detach().clone() for name, p in start.adapters().items()}
    start.close()
    common = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, spec.dtype), **common)
    model = with_adapters(base, lora_of(spec, folder)).to(spec.device)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = adapters[name].to(spec.device)
    return model.train()


def _accumulate(model: PreTrainedModel, ids: torch.Tensor, micro_batch: int) -> float:
    total = 0.0
    for part in ids.split(micro_batch):
        loss = _losses(model, part).sum() / (len(ids) * (ids.shape[1] - 1))
        loss.backward()
        total += float(loss.detach())
    return total


def score_windows(model: PreTrainedModel, windows: torch.Tensor, micro_batch: int) -> list[float]:
    """Return the mean loss of each window in nats per token, with a model that is in memory."""
    model.eval()
    with torch.no_grad():
        found = [_losses(model, part).mean(1) for part in windows.split(micro_batch)]
    model.train()
    return torch.cat(found).tolist()


def _losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the loss of every position in nats, [b, T] -> [b, T - 1].

    Flat, with the vocabulary last: over another axis torch adds 49,152 exponentials one by one, and is off by 3e-4.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
    return functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def differences(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest relative difference between the arms: of losses, of gradient norms, of held-out scores."""
    streamed, resident = result["streamed"], result["resident"]
    pairs = {
        "loss": (streamed["loss"], resident["loss"]),
        "grad_norm": ([*map(whole_norm, streamed["grad_norms"])], [*map(whole_norm, resident["grad_norms"])]),
        "held_out": (streamed["held_out_after"], resident["held_out_after"]),
    }
    return {name: max(abs(a - b) / abs(b) for a, b in zip(*both, strict=True)) for name, both in pairs.items()}


def whole_norm(norms: Mapping[str, float]) -> float:
    """Return the norm of the whole gradient from those of its adapters."""
    return math.sqrt(sum(norm**2 for norm in norms.values()))
