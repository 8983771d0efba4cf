"""Optimizer steps of DPO with adapters: this package's trainer beside trl's own, same model, pairs and type.

    python benchmarks/dpo_throughput.py [--model smollm2-135m] [--dtype bfloat16] [--steps 4] [--repeats 2]
                                        [--threads 2] [--clock wall|cpu] [--layers N]

Three arms on the shipped pairs, eight a step: `trl` as it comes (gradient checkpointing, the reference scored at every
step, one batch of eight), `trl tuned` (no checkpointing, reference scored once) and `labkit` (reference scored once,
packed pairs, vocabulary only where needed, two micro-batches by length). A step is forward, backward, clip and AdamW.
Arms are interleaved step by step, so that other load falls on all of them; a repeat starts all arms anew. Ratios are
formed within one step (above 1: more pairs per second than `trl`), and lines give the median with the smallest and the
largest in brackets. The largest difference between loss curves and the seconds of the one reference pass are printed
too. On a busy machine `--clock cpu --threads 1` is the fairer clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from trl import DPOTrainer

from labkit import device, models
from labkit.dpo import evaluate
from labkit.dpo.arm import DpoArm, data_order, split_of
from labkit.dpo.packed import use_packed_pairs
from labkit.dpo.run import as_dataset, lay_out, lora_config, quiet, trainer_config

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MAX_GRAD_NORM = 1.0


@dataclass(kw_only=True, slots=True)
class Contestant:
    """One way to train."""

    trainer: DPOTrainer
    """Holds model, data and loss."""
    micro_batch: int
    """Pairs per forward pass."""
    reference_seconds: float
    """Time of the one pass of the reference over all pairs; 0 where it is scored at every step."""
    optimizer: torch.optim.Optimizer
    """AdamW as transformers makes it."""
    losses: list[float] = field(default_factory=list)
    """Loss of each step."""
    seconds: list[float] = field(default_factory=list)
    """Time of each step."""

    def step(self, number: int, batch_pairs: int, clock: Callable[[], float]) -> None:
        """Take optimizer step `number`."""
        first = number * batch_pairs
        rows = [self.trainer.train_dataset[i] for i in range(first, first + batch_pairs)]
        if not self.trainer.precompute_ref_logps:
            rows = [{key: value for key, value in row.items() if not key.startswith("ref_")} for row in rows]
        start, total = clock(), 0.0
        self.trainer.model.train()
        for at in range(0, batch_pairs, self.micro_batch):
            batch = self.trainer.data_collator(rows[at : at + self.micro_batch])
            loss = self.trainer.compute_loss(self.trainer.model, batch) * self.micro_batch / batch_pairs
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(clock() - start)
        self.losses.append(total)


def contestant(kind: str, arm: DpoArm, layers: int | None, clock: Callable[[], float]) -> Contestant:
    """Make one of `trl`, `trl tuned`, `labkit`."""
    loaded = models.load(arm.model, dtype=getattr(torch, arm.dtype))
    if layers:
        loaded.model.base_model.layers = loaded.model.base_model.layers[:layers]
        loaded.model.config.num_hidden_layers = layers
    pairs = split_of(arm).train
    checkpointing = {"activation_checkpointing": kind == "trl"}
    with quiet():
        trainer = DPOTrainer(
            model=loaded.model,
            args=trainer_config(arm, Path(tempfile.mkdtemp()), **checkpointing),
            train_dataset=as_dataset(pairs, bool(loaded.tokenizer.chat_template)),
            processing_class=loaded.tokenizer,
            peft_config=lora_config(arm),
        )
        if kind == "trl":
            trainer.model.gradient_checkpointing_enable()
    if kind == "labkit":
        use_packed_pairs(trainer.model.get_base_model())
    rows = list(trainer.train_dataset)
    order = data_order(len(rows), arm.steps, arm.batch_pairs, arm.seed)
    visited, scores = np.unique(order).tolist(), np.zeros((len(rows), 2))
    start = clock()
    if kind != "trl":
        scores[visited] = evaluate.pair_logps(trainer, [rows[i] for i in visited], adapter=False)
    seconds = clock() - start
    lay_out(trainer, rows, scores, order)
    trainer.precompute_ref_logps = kind != "trl"
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    micro_batch = arm.micro_batch if kind == "labkit" else arm.batch_pairs
    optimizer = torch.optim.AdamW(trained, lr=arm.learning_rate, weight_decay=0.0)
    return Contestant(trainer=trainer, micro_batch=micro_batch, reference_seconds=seconds, optimizer=optimizer)


def run(kinds: list[str], arm: DpoArm, layers: int | None, clock: Callable[[], float]) -> dict[str, Contestant]:
    """Step all arms in turn; the first step of each is no part of the times."""
    arms = {kind: contestant(kind, arm, layers, clock) for kind in kinds}
    for number in range(arm.steps):
        for kind in kinds:
            arms[kind].step(number, arm.batch_pairs, clock)
            print(
                f"  {kind}: step {number}, {arms[kind].seconds[-1]:.2f} s, loss {arms[kind].losses[-1]:.5f}", flush=True
            )
    return arms


def line(values: list[float], unit: str = "") -> str:
    """Write a median with its extremes."""
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--layers", type=int, help="keep only the first N layers, for a quick look")
    parser.add_argument("--arms", nargs="+", default=["trl", "trl tuned", "labkit"])
    own = parser.parse_args()
    device.set_threads(own.threads)
    arm = DpoArm.sane(own.model, 1e-4, steps=own.steps, dtype=own.dtype, threads=own.threads)
    rounds = [run(own.arms, arm, own.layers, CLOCKS[own.clock]) for _ in range(own.repeats)]
    print(f"{own.model}, {own.dtype}, {own.threads} threads, {own.clock} clock, {arm.batch_pairs} pairs a step")
    base = own.arms[0]
    for kind in own.arms:
        seconds = [value for arms in rounds for value in arms[kind].seconds[1:]]
        ratios = [b / k for arms in rounds for b, k in zip(arms[base].seconds[1:], arms[kind].seconds[1:], strict=True)]
        gap = max(abs(a - b) for arms in rounds for a, b in zip(arms[base].losses, arms[kind].losses, strict=True))
        once = f"{rounds[-1][kind].reference_seconds:.1f} s"
        print(
            f"{kind:>10}: {line(seconds, ' s')} a step, {line(ratios)} times {base}, "
            f"losses differ by at most {gap:.1e}, reference once {once}"
        )


if __name__ == "__main__":
    main()
