"""What being followed costs: the same training with no tracker, with AIM, and with a tracker that sleeps at every line.

    python benchmarks/tracking_overhead.py [--steps 30] [--rounds 6] [--adapters 210] [--width 512] [--threads 2]

A step is a forward and backward pass through linear maps with an adapter each, by transformers' Trainer, which tells
its loss and the gradient norm of every adapter. As under `labkit run` it trains in a process of its own, and the
tracker lives in the one that waits for it. Arms are interleaved, another one first in each round; ratios are formed
within a round. The goal is 2 % at most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import labkit.track
from labkit import metrics
from labkit.metrics.trainer import TrainerMetrics
from labkit.stats import bootstrap_ci

ARMS = ("none", "aim", "sleeps")
SLEEP_SECONDS = 1.0
SETTLE_SECONDS = 4.0
"""Time for a tracker to start, which a run pays once and not at every step."""
OTHERS = 0.03
"""Share of the machine that other processes may use in a round; a round with more is not counted."""
BATCH = 64


class Sleeps:
    """A tracker that takes a second for every line."""

    def begin(self, run: str, about: Mapping[str, Any]) -> None: ...

    def step(self, line: Any) -> None:
        time.sleep(SLEEP_SECONDS)

    def figures(self, folder: Path) -> None: ...

    def close(self) -> None: ...


class Maps(nn.Module):
    """Linear maps one after the other."""

    def __init__(self, maps: int, width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(maps))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for own in self.maps:
            x = x + torch.tanh(own(x)) / len(self.maps)
        return {"loss": (x - labels).square().mean()}


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def train(steps: int, adapters: int, width: int, threads: int, followed_by: str | None) -> tuple[float, float]:
    """Train in this process; return the seconds of all steps but the first two, and the last loss."""
    os.environ.pop(metrics.VARIABLE, None)
    if followed_by:
        os.environ[metrics.VARIABLE] = followed_by
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    names = [f"maps.{i}" for i in range(adapters)]
    model = get_peft_model(Maps(adapters, width), LoraConfig(r=16, target_modules=names))
    rows = torch.randn(BATCH * steps, 2, width, generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(), max_steps=steps, per_device_train_batch_size=BATCH, logging_steps=1,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    data, clock = [{"x": x, "labels": y} for x, y in rows], Clock()
    with TrainerMetrics("followed", {"adapters": adapters}) as followed:
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[followed, clock])
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.train()
    return clock.ends[-1] - clock.ends[1], trainer.state.log_history[-2]["loss"]


def run(pool: ProcessPoolExecutor, arm: str, shape: tuple[int, ...], sent: dict[str, str]) -> tuple[float, float]:
    """Train under one arm; the seconds are those of the training process, whatever the tracker does afterwards."""
    tracker = {"none": None, "aim": "aim", "sleeps": lambda *names: Sleeps()}[arm]
    with labkit.track.follow(tracker, "overhead", arm, lambda line: sent.update({arm: line}), drain_seconds=2.0):
        time.sleep(SETTLE_SECONDS)
        return pool.submit(train, *shape, os.environ.get(metrics.VARIABLE)).result()


def busy() -> tuple[float, float]:
    """Return the processor seconds that this machine, and this benchmark with its children, have used so far."""
    machine, own = psutil.cpu_times(), psutil.Process()
    ours = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    ended = own.cpu_times().children_user + own.cpu_times().children_system
    return machine.user + machine.nice + machine.system, ended + sum(each.user + each.system for each in ours)


def quiet_round(pool: ProcessPoolExecutor, order: Sequence[str], shape: tuple[int, ...], sent: dict) -> dict | None:
    """Run all arms once; None if other processes used more of the machine meanwhile than may be."""
    began, before = time.perf_counter(), busy()
    found = {arm: run(pool, arm, shape, sent) for arm in order}
    machine, ours = (after - earlier for after, earlier in zip(busy(), before, strict=True))
    others = (machine - ours) / (time.perf_counter() - began) / psutil.cpu_count()
    if len({loss for _, loss in found.values()}) > 1:
        raise SystemExit("an arm that was followed ended with another loss")
    return found if others <= OTHERS else None


def measure(options: argparse.Namespace) -> None:
    """Time the arms in turns and print what being followed costs."""
    shape = (options.steps, options.adapters, options.width, options.threads)
    rounds: list[dict[str, tuple[float, float]]] = []
    sent: dict[str, str] = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(train, 5, *shape[1:], None).result()
        for number in range(2 * options.rounds):
            order = ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
            found = quiet_round(pool, order, shape, sent)
            rounds += [found] if found else []
            if len(rounds) == options.rounds:
                break
    if len(rounds) < 2:
        raise SystemExit(
            f"other processes disturbed {number + 1 - len(rounds)} of {number + 1} rounds; run it again later"
        )
    step = statistics.median(found["none"][0] for found in rounds) / (options.steps - 2)
    print(f"{options.adapters} adapters, {options.steps} steps of {step:.3f} s")
    print(f"{len(rounds)} rounds, {number + 1 - len(rounds)} more were disturbed by other processes")
    for arm in ARMS[1:]:
        ratios = [found[arm][0] / found["none"][0] for found in rounds]
        own = bootstrap_ci(ratios, np.median)
        middle, low, high = (100 * (x - 1) for x in (own.estimate, own.low, own.high))
        least, most = (100 * (f(ratios) - 1) for f in (min, max))
        print(f"{arm:6s} {middle:+.1f} % [{low:+.1f}, {high:+.1f}] of the time without; {least:+.1f} to {most:+.1f}")
        print(f"       {sent[arm].partition(';')[0]}")


def main() -> None:
    """Read the arguments and measure in a folder that is removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--adapters", type=int, default=210)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    folder = tempfile.mkdtemp()
    os.environ["LABKIT_OUTPUT"] = folder
    try:
        measure(parser.parse_args())
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
