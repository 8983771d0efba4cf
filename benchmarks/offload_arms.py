"""The ways of training a model larger than memory that `offload_throughput.py` compares, each for a process of its own.

Every arm trains the same adapters from the same values on the same tokens and returns, for each optimizer step, its
seconds, what the process read from the disk, and on the first step the norm of the gradient of each adapter.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import disk_offload, init_empty_weights
from accelerate.hooks import remove_hook_from_module
from accelerate.utils.offload import offload_state_dict
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from labkit.offload import ablation
from labkit.offload.engine import StreamedLM
from labkit.offload.head import token_loss
from labkit.offload.headers import open_checkpoint
from labkit.offload.memory import PeakAnonymous
from labkit.offload.readers import disk_bytes_read

RANK, ALPHA, RATE = 8, 16, 1e-4


def labkit(folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Take steps with StreamedLM, and time the same step with nothing read and with nothing computed."""
    model = StreamedLM(folder, lora=lora(job), memory=job["budget"], reader="direct", slots=2)
    start_alike(model.adapters())
    optimizer = torch.optim.AdamW(model.adapters().values(), lr=RATE)
    batch = {"input_ids": tokens(job, model.vocabulary)}
    norms: list[dict[str, float]] = []

    def step() -> None:
        norms.append({plain(name): norm for name, norm in model.step(batch, optimizer).grad_norms.items()})

    found = timed(step, norms, job)
    if job["ablate"]:
        found["read_seconds"] = ablation.without_computing(model, batch)
        found["compute_seconds"] = ablation.without_reading(model, batch)
    return found | {"planned_bytes": model.plan_for(*batch["input_ids"].shape).peak_bytes}


def accelerate(folder: str, job: Mapping[str, Any], offload: str) -> dict[str, Any]:
    """Take steps with accelerate's disk_offload, repaired so that its adapters have gradients at all.

    The base is offloaded before the adapters are added, and their modules are freed of its hooks and given memory.
    """
    base = on_meta(folder).requires_grad_(False)
    disk_offload(base, offload, execution_device=torch.device("cpu"))
    model = get_peft_model(base, lora(job))
    for name, module in model.named_modules():
        if ".lora_" in name and isinstance(module, nn.Linear):
            remove_hook_from_module(module)
            module.weight = nn.Parameter(torch.zeros(module.weight.shape))
    return train(model, job)


def write_offload(folder: str, offload: str) -> dict[str, Any]:
    """Write the files that disk_offload reads: one for each tensor."""
    offload_state_dict(offload, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict())
    return {}


def mapped(folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Take steps with the checkpoint mapped into memory and the kernel left to bring and drop its pages."""
    model = on_meta(folder)
    with contextlib.ExitStack() as files:
        views = {}
        for name, entry in open_checkpoint(folder).entries.items():
            file = files.enter_context(entry.file.open("rb"))
            # MAP_SHARED of a file opened for reading is never written to, and is not private memory.
            whole = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            count = entry.n_bytes // entry.dtype.itemsize
            views[name] = torch.frombuffer(whole, dtype=entry.dtype, count=count, offset=entry.start).view(entry.shape)
        model.load_state_dict(views, assign=True)
        return train(get_peft_model(model, lora(job)), job)


def resident(folder: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Take steps with all weights in memory."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return train(get_peft_model(base, lora(job)), job)


def airllm(folder: str, job: Mapping[str, Any], offload: str) -> dict[str, Any]:
    """Take steps with AirLLM's layer-wise trainer, its adapters in float32 as everywhere here."""
    trainer = _airllm(folder, offload, job)
    adapters = {name: p for name, p in trainer.model.named_parameters() if "lora_" in name}
    for parameter in adapters.values():
        parameter.data = parameter.data.float()
    start_alike(adapters)
    ids = tokens(job, trainer.config.get_text_config().vocab_size)
    norms: list[dict[str, float]] = []

    def step() -> None:
        trainer.train_step(ids)
        norms.append(norms_of(adapters))

    return timed(step, norms, job)


def split_for_airllm(folder: str, job: Mapping[str, Any], offload: str) -> dict[str, Any]:
    """Write AirLLM's own copy of the checkpoint, a file for each layer."""
    _airllm(folder, offload, job)
    return {}


def _airllm(folder: str, offload: str, job: Mapping[str, Any]) -> Any:
    from airllm.airllm_lora import AirLLMLoRA

    class Untokenized(AirLLMLoRA):
        def get_tokenizer(self, hf_token: str | None = None) -> None:
            return None

    return Untokenized(
        folder,
        device="cpu",
        dtype=torch.bfloat16,
        layer_shards_saving_path=offload,
        lora_r=RANK,
        lora_alpha=ALPHA,
        target_modules=job["targets"],
        lr=RATE,
    )


def lora(job: Mapping[str, Any]) -> LoraConfig:
    """Return the adapters: rank 8 on the job's maps, of the layers it names or of all."""
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=job["targets"], layers_to_transform=job["layers"])


def tokens(job: Mapping[str, Any], vocabulary: int) -> torch.Tensor:
    """Return the tokens of a step, the same in all arms."""
    return torch.randint(3, vocabulary, (job["batch"], job["seq_len"]), generator=torch.Generator().manual_seed(0))


def on_meta(folder: str) -> nn.Module:
    """Build a checkpoint's model without weights."""
    with init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def train(model: nn.Module, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a PEFT model the ordinary way: checkpointing, and gradients accumulated over micro-batches."""
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    start_alike(trainable)
    optimizer = torch.optim.AdamW(trainable.values(), lr=RATE)
    ids = tokens(job, model.config.vocab_size)
    counted = ids.shape[0] * (ids.shape[1] - 1)
    norms: list[dict[str, float]] = []

    def step() -> None:
        for own in ids.split(job["micro_batch"]):
            token_loss(model(input_ids=own, use_cache=False).logits, own, counted).backward()
        norms.append(norms_of(trainable))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, norms, job)


def timed(step: Callable[[], None], norms: list[dict[str, float]], job: Mapping[str, Any]) -> dict[str, Any]:
    """Take steps of which the first `warm_up` are not counted."""
    with PeakAnonymous() as peak:
        rows = [_timed_once(step) for _ in range(job["warm_up"] + job["steps"])]
    return {"rows": rows[job["warm_up"] :], "norms": norms[0], "peak_bytes": peak.bytes}


def _timed_once(step: Callable[[], None]) -> dict[str, float]:
    before, began = disk_bytes_read(), time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - began, "disk_bytes": disk_bytes_read() - before}


def start_alike(adapters: Mapping[str, nn.Parameter]) -> None:
    """Give adapters values by their names, so that all arms start from the same ones."""
    for name, parameter in adapters.items():
        generator = torch.Generator().manual_seed(sum(plain(name).encode()))
        nn.init.normal_(parameter, std=0.02, generator=generator)


def norms_of(adapters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the norm of each adapter's gradient."""
    return {plain(name): float(parameter.grad.norm()) for name, parameter in adapters.items()}


def plain(name: str) -> str:
    """Call an adapter the same whatever wraps it."""
    for prefix in ("base_model.model.", "model.", "language_model."):
        name = name.removeprefix(prefix)
    return name.replace(".default.weight", "")


def write_qwen(folder: str, config: str) -> dict[str, Any]:
    """Write a random-weight model of the one make that AirLLM trains and this package streams."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration._from_config(Qwen3_5Config(**json.loads(config)), dtype=torch.bfloat16)
    # In many files: AirLLM opens one whole file privately, which a limit on private memory takes for memory.
    model.save_pretrained(folder, max_shard_size="200MB")
    return {"parameters": sum(p.numel() for p in model.model.language_model.parameters())}
