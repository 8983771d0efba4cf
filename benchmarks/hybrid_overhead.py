"""What asking costs: a hybrid whose every jump is refused, beside the same training without it.

    python benchmarks/hybrid_overhead.py [--tasks text-0.1m text-1m] [--steps 200] [--repeats 5] [--threads 2]

Both arms end with the same weights, to the bit, or the script stops: what differs is the time of recording, probing and
copying. Arms are interleaved, another one first in each round; ratios are formed within a round, with the smallest and
the largest in brackets. The goal is 3 % at most.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

from labkit.reports.predict_phase import train
from labkit.reports.predict_phase.tasks import Run

ARMS = ("adamw", "rejecting", "learned")
"""The baseline, the gate that always refuses, and a predictor that is not asked while it is not sure."""
SHAPES = {
    "text-0.1m": {"vocab_size": 288, "context": 64, "batch_size": 16},
    "text-1m": {"vocab_size": 2048, "context": 128, "batch_size": 16},
}


def run_of(task: str, steps: int, threads: int) -> Run:
    """Return the baseline's run of a task."""
    return Run(
        task=task,
        arm="adamw",
        learning_rate=4e-3,
        steps=steps,
        seed=0,
        corpus="wiki-sample",
        held_out_windows=64,
        weight_decay=0.1,
        beta2=0.95,
        warmup_fraction=0.05,
        grad_clip=1.0,
        device="cpu",
        dtype="float32",
        threads=threads,
        **SHAPES[task],
    )


def measure(task: str, steps: int, repeats: int, threads: int) -> None:
    """Time the arms of a task in turns and print what the hybrids cost."""
    run, ratios = run_of(task, steps, threads), {arm: [] for arm in ARMS[1:]}
    for repeat in range(repeats):
        order = ARMS[repeat % len(ARMS) :] + ARMS[: repeat % len(ARMS)]
        found = {arm: train.train(dataclasses.replace(run, arm=arm)) for arm in order}
        if found["rejecting"]["block_nats"] != found["adamw"]["block_nats"]:
            raise SystemExit("the arm that refuses every jump ended with other weights than the baseline")
        for arm in ratios:
            ratios[arm].append(found[arm]["seconds"] / found["adamw"]["seconds"])
    asked = sum("probe_after" in jump for jump in found["rejecting"]["jumps"])
    for arm, values in ratios.items():
        middle, low, high = (100 * (f(values) - 1) for f in (statistics.median, min, max))
        print(f"{task:10s} {steps} steps, {arm:10s} {middle:+.1f} % [{low:+.1f}, {high:+.1f}] of the baseline's time")
    print(f"{task:10s} baseline {found['adamw']['seconds']:.1f} s; the gate was asked {asked} times")


def main() -> None:
    """Read the arguments and measure every task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for task in options.tasks:
        measure(task, options.steps, options.repeats, options.threads)


if __name__ == "__main__":
    main()
