"""What training reaches of the rate of matrix products alone, on the CPU, by shape and number type.

    python benchmarks/training_share.py [--shapes 512x8 128x8] [--types bfloat16 float32] [--rounds 3]

A round times one matrix product of the shape's own MLP, tokens x d by d x 4d, and one training step of each model, in
turn, so that other load falls on all of them. The rate of a step is its model FLOPs (products only, backward twice
forward) over its time; the share is taken within a round. The clock is the process's own: run it with one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from labkit.reports.scaling_grid.cells import cell_for
from labkit.scaling.counts import training_flops
from labkit.scaling.optim import adamw
from labkit.scaling.train import build, train_step
from labkit.workflow import params

TOKENS = 2048
CONTEXT = 128
_PRODUCTS = 4


def step_of(mixer: str, width: int, layers: int, vocabulary: int, dtype: str) -> tuple[float, Callable[[], object]]:
    """Return the FLOPs of a training step of a model of the grid, and the step."""
    changes = {"vocab_size": vocabulary, "batch_size": TOKENS // CONTEXT, "context": CONTEXT, "dtype": dtype}
    asked = params.resolve("scaling_grid", "ci", changes)
    cell = cell_for(asked, mixer, width, layers, 0, 1e-3)
    model = build(cell.config())
    optimizer = adamw(model, cell.learning_rate)
    ids = torch.randint(vocabulary, (cell.batch_size, CONTEXT + 1))
    flops = training_flops(cell.config(), cell.batch_size, CONTEXT)
    return flops, lambda: train_step(model, optimizer, ids, cell)


def product_of(width: int, dtype: str) -> tuple[float, Callable[[], object]]:
    """Return the FLOPs of a few products of a shape's MLP, and the products."""
    kind = getattr(torch, dtype)
    x, weight = torch.randn(TOKENS, width, dtype=kind), torch.randn(4 * width, width, dtype=kind)
    return _PRODUCTS * 8.0 * TOKENS * width**2, lambda: [F.linear(x, weight) for _ in range(_PRODUCTS)]


def rate_of(flops: float, work: Callable[[], object]) -> float:
    """Return FLOP/s of the process's own time."""
    start = time.process_time()
    work()
    return flops / (time.process_time() - start)


def shares(width: int, layers: int, vocabulary: int, dtype: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return for each model the pairs (GFLOP/s, share of the product's rate) of each round, after one to warm up."""
    arms = {mixer: step_of(mixer, width, layers, vocabulary, dtype) for mixer in ("transformer", "resnet-bk")}
    product = product_of(width, dtype)
    found: dict[str, list[tuple[float, float]]] = {mixer: [] for mixer in arms}
    for _ in range(rounds + 1):
        alone = rate_of(*product)
        for mixer, arm in arms.items():
            rate = rate_of(*arm)
            found[mixer].append((rate / 1e9, rate / alone))
    return {mixer: pairs[1:] for mixer, pairs in found.items()}


def main() -> None:
    """Print a line per shape, number type and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["128x8", "512x8"])
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for shape in given.shapes:
        width, layers = map(int, shape.split("x"))
        for dtype in given.types:
            for mixer, pairs in shares(width, layers, given.vocabulary, dtype, given.rounds).items():
                rate, share = (statistics.median(column) for column in zip(*pairs, strict=True))
                low, high = min(pair[1] for pair in pairs), max(pair[1] for pair in pairs)
                print(f"{shape} {dtype:8} {mixer:11} {rate:6.0f} GFLOP/s, share {share:.2f} [{low:.2f} .. {high:.2f}]")


if __name__ == "__main__":
    main()
