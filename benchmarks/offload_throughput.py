"""Optimizer steps of a model that is streamed from disk: this package beside what a user would pick instead.

    python benchmarks/offload_throughput.py [--shape phi3-1b] [--batches 1 32] [--seq-len 16] [--repeats 5]
                                            [--budget 1GiB] [--threads 2] [--folder FOLDER]

Arms, each in a process of its own, taking turns (a repeat starts all of them anew, from a cold cache):

    labkit      StreamedLM within the budget, two buffers
    accelerate  disk_offload with PEFT adapters and transformers' checkpointing, repaired so that it trains at all: the
                base is offloaded before the adapters are added, and the adapters' modules are freed of its hooks and
                given memory (as installed, gradients of adapters silently vanish or live on no device)
    resident    all weights in memory, no limit: the floor of computing

The adapters and the tokens are the same everywhere, so the gradient norms of the first step are printed beside the
times: arms that compute something else show. Ratios are formed within a repeat; lines give the median with the smallest
and the largest in brackets. Weights are random (speed does not depend on their values) and are deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import disk_offload
from accelerate.hooks import remove_hook_from_module
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from labkit.offload import shapes
from labkit.offload.engine import StreamedLM
from labkit.offload.head import token_loss
from labkit.offload.isolated import run_isolated
from labkit.offload.memory import PeakAnonymous
from labkit.offload.random_weights import write_random_checkpoint
from labkit.pagecache import drop_pages
from labkit.units import GB, MIB, parse_bytes

ARMS = ("labkit", "accelerate", "resident")
TIMED_STEPS = 2
"""Steps timed in each process, after one that is not: the mean of them is one sample."""


def lora(shape: str) -> LoraConfig:
    """Return the report's adapters: rank 8 on four maps of the first and last four layers."""
    layers = shapes.trained_layers(shape, 4)
    return LoraConfig(r=8, lora_alpha=16, target_modules=list(shapes.TARGETS), layers_to_transform=layers)


def tokens(n: int, seq_len: int, vocabulary: int) -> torch.Tensor:
    """Return the tokens of a step, the same in all arms."""
    return torch.randint(3, vocabulary, (n, seq_len), generator=torch.Generator().manual_seed(0))


def timed(step: Any, n: int) -> Iterator[tuple[float, float]]:
    """Yield seconds and gradient norm of one step to warm up and of the timed ones."""
    for _ in range(n + 1):
        began = time.perf_counter()
        norm = step()
        yield time.perf_counter() - began, norm


def labkit(folder: str, shape: str, batch: int, seq_len: int, budget: int) -> dict[str, Any]:
    """Take steps with StreamedLM."""
    model = StreamedLM(folder, lora=lora(shape), memory=budget, reader="direct", slots=2)
    start_alike(dict(model.adapters()))
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=1e-4)
    ids = tokens(batch, seq_len, model.vocabulary)
    with PeakAnonymous() as peak:
        rows = list(timed(lambda: model.step({"input_ids": ids}, optimizer).grad_norm, TIMED_STEPS))
    return {"rows": rows, "peak_bytes": peak.bytes}


def accelerate(folder: str, shape: str, batch: int, seq_len: int, offload: str) -> dict[str, Any]:
    """Take steps with accelerate's disk_offload, repaired."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).requires_grad_(False)
    disk_offload(base, offload, execution_device=torch.device("cpu"))
    model = get_peft_model(base, lora(shape))
    for name, module in model.named_modules():
        if ".lora_" in name and isinstance(module, nn.Linear):
            remove_hook_from_module(module)
            module.weight = nn.Parameter(torch.zeros(module.weight.shape))
    return train(model, shape, batch, seq_len)


def resident(folder: str, shape: str, batch: int, seq_len: int) -> dict[str, Any]:
    """Take steps with all weights in memory."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return train(get_peft_model(base, lora(shape)), shape, batch, seq_len)


def train(model: PreTrainedModel, shape: str, batch: int, seq_len: int) -> dict[str, Any]:
    """Train a PEFT model the ordinary way, with checkpointing."""
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    start_alike(trainable)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-4)
    ids = tokens(batch, seq_len, model.config.vocab_size)

    def step() -> float:
        logits = model(input_ids=ids, use_cache=False).logits
        token_loss(logits, ids, batch * (seq_len - 1)).backward()
        norm = torch.nn.utils.get_total_norm(p.grad for p in trainable.values())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm)

    with PeakAnonymous() as peak:
        rows = list(timed(step, TIMED_STEPS))
    return {"rows": rows, "peak_bytes": peak.bytes}


def start_alike(adapters: dict[str, nn.Parameter]) -> None:
    """Give adapters values by their names, so that all arms start from the same ones."""
    for name, parameter in sorted(adapters.items()):
        seed = sum(name.removeprefix("base_model.").encode())
        nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(seed))


def run(arm: str, options: argparse.Namespace, folder: Path, batch: int) -> dict[str, Any]:
    """Run one arm in a process of its own."""
    drop_pages(sorted(folder.glob("*.safetensors")))
    arguments = {"folder": str(folder), "shape": options.shape, "batch": batch, "seq_len": options.seq_len}
    limits = {}
    if arm == "labkit":
        budget = parse_bytes(options.budget)
        arguments |= {"budget": budget}
        limits = {"limit_bytes": budget}
    with tempfile.TemporaryDirectory(dir=folder.parent) as offload:
        arguments |= {"offload": offload} if arm == "accelerate" else {}
        return run_isolated(f"offload_throughput:{arm}", arguments, threads=options.threads, **limits)


def spread(values: list[float]) -> str:
    """Write a median with the smallest and the largest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def report(found: dict[tuple[str, int], list[dict[str, Any]]], batches: list[int]) -> None:
    """Print times, peaks and ratios to labkit's."""
    seconds = {key: [statistics.mean(s for s, _ in one["rows"][1:]) for one in ones] for key, ones in found.items()}
    for n in batches:
        for arm in ARMS:
            ours, own = seconds["labkit", n], seconds[arm, n]
            ratio = spread([b / a for a, b in zip(ours, own, strict=True)])
            peak = max(one["peak_bytes"] for one in found[arm, n]) / MIB
            norm = found[arm, n][0]["rows"][0][1]
            print(
                f"batch {n:3d} {arm:10s} {spread(own)} s a step, {statistics.median(own) / n:.3f} s a sample, "
                f"{ratio} x labkit, peak {peak:,.0f} MiB, first gradient norm {norm:.4f}",
                flush=True,
            )
    first, last = batches[0], batches[-1]
    gains = [a / first / (b / last) for a, b in zip(seconds["labkit", first], seconds["labkit", last], strict=True)]
    print(f"labkit, a sample of batch {first} over one of batch {last}: {spread(gains)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="phi3-1b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "labkit-benchmark")
    options = parser.parse_args()
    # The processes of the arms import this file by its name.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    folder = options.folder / "weights"
    more = shapes.overrides(options.shape)
    made = write_random_checkpoint(folder, "phi-4", dtype=torch.bfloat16, **more)
    print(f"{options.shape}: {made['parameters']:,} parameters, {made['bytes'] / GB:.2f} GB; budget {options.budget}")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    try:
        for _ in range(options.repeats):
            for n in options.batches:
                for arm in ARMS:
                    found.setdefault((arm, n), []).append(run(arm, options, folder, n))
        report(found, options.batches)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
