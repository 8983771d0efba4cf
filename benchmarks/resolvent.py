"""The blocked resolvent diagonal beside what a user would write instead: a Python loop, a dense inverse, attention.

    python benchmarks/resolvent.py [--threads 1 2] [--repeats 7] [--clock wall|cpu]

Every arm does forward and backward in float32/complex64 on the CPU. Arms are interleaved, so that other load on the
machine falls on all of them; each line gives the median over repeats and, in brackets, the smallest and the largest. A
ratio is formed within one repeat: above 1 the blocked kernel is faster. On a busy machine `--clock cpu` with one thread
is the fairer clock; two threads then wait for each other at every parallel region and say little.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.scaling.resolvent import resolvent_diagonal

BATCH = 32
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
DENSE_LIMIT_BYTES = 2 * 2**30
WIDTH, HEADS = 256, 8

Arm = Callable[[], object]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def loop(potential: Tensor) -> Tensor:
    """Run the causal recursion l_i = 1 / (a_i - l_{i-1}) site by site under autograd."""
    fractions = []
    for site in (potential - (2 + 1j)).unbind(-1):
        fractions.append(1 / (site - fractions[-1] if fractions else site))
    return torch.stack(fractions, -1)


def dense(potential: Tensor) -> Tensor:
    """Invert the whole matrix and take its diagonal (the bidirectional mode).

    One matrix at a time: on two threads the batched complex64 LU of torch 2.13 with MKL 2024.2 fails from N = 256 on.
    """
    off = torch.ones(potential.shape[-1] - 1)
    operators = torch.diag_embed(potential - (2 + 1j)) + off.diag(1) + off.diag(-1)
    return torch.stack([torch.linalg.inv(operator).diagonal() for operator in operators])


def forward_backward(diagonal: Callable[[Tensor], Tensor], batch: int, length: int) -> Arm:
    """Bind an arm to one random potential and one upstream gradient."""
    potential = (torch.rand(batch, length) * 6 - 3).requires_grad_()
    upstream = torch.randn(batch, length, dtype=torch.complex64)
    return lambda: torch.autograd.grad(diagonal(potential), potential, upstream)


def attention(batch: int, length: int) -> Arm:
    """Bind causal scaled-dot-product attention of the same batch, without its projections."""
    shape = (batch, HEADS, length, WIDTH // HEADS)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    upstream = torch.randn(shape)

    def run() -> object:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.autograd.grad(mixed, (query, key, value), upstream)

    return run


def interleave(arms: dict[str, Arm], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Run every arm in turn, `repeats` times; return the seconds per call, a short arm averaged over 20 ms of calls."""
    for arm in arms.values():
        arm()
    calls = {name: max(1, round(0.02 / time_calls(arm, 1, clock))) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            seconds[name].append(time_calls(arm, calls[name], clock))
    return seconds


def time_calls(arm: Arm, calls: int, clock: Clock) -> float:
    """Return the mean seconds of one call on the chosen clock."""
    start = clock()
    for _ in range(calls):
        arm()
    return (clock() - start) / calls


def spread(values: Iterable[float], unit: str = "", scale: float = 1.0) -> str:
    """Write median [min .. max]."""
    ordered = sorted(scale * value for value in values)
    return f"{statistics.median(ordered):9.3g}{unit} [{ordered[0]:.3g} .. {ordered[-1]:.3g}]"


def ratios(seconds: dict[str, list[float]], other: str, ours: str) -> list[float]:
    """Divide within each repeat."""
    return [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]


def compare_with_loop_and_dense(repeats: int, clock: Clock) -> None:
    """Print the two speed-ups, causal against the loop and bidirectional against the dense inverse."""
    for length in (256, 512, 4096):
        ours = forward_backward(resolvent_diagonal, BATCH, length)
        seconds = interleave({"ours": ours, "loop": forward_backward(loop, BATCH, length)}, repeats, clock)
        for name, values in seconds.items():
            print(f"  N={length:<6} {name}         {spread(values, ' ms', 1e3)}")
        print(f"  {'':8} loop / ours  {spread(ratios(seconds, 'loop', 'ours'))}")
        needed = 2 * 8 * BATCH * length**2
        if needed > DENSE_LIMIT_BYTES:
            print(f"  {'':8} dense inverse skipped: matrix and inverse take {needed / 2**30:.1f} GiB, limit 2 GiB")
            continue
        ours = forward_backward(lambda v: resolvent_diagonal(v, causal=False), BATCH, length)
        seconds = interleave({"ours": ours, "dense": forward_backward(dense, BATCH, length)}, repeats, clock)
        print(f"  {'':8} dense / ours {spread(ratios(seconds, 'dense', 'ours'))}   (bidirectional)")


def fit_exponent(repeats: int, clock: Clock) -> None:
    """Print the time at each length and the slope of log time over log N."""
    arms = {str(n): forward_backward(resolvent_diagonal, BATCH, n) for n in LENGTHS}
    seconds = interleave(arms, repeats, clock)
    for name, values in seconds.items():
        print(f"  N={name:<6} {spread(values, ' ms', 1e3)}")
    x = [math.log(n) for n in LENGTHS]
    y = [math.log(statistics.median(seconds[str(n)])) for n in LENGTHS]
    slope = statistics.linear_regression(x, y).slope
    print(f"  time ~ N^{slope:.3f} from N={LENGTHS[0]} to {LENGTHS[-1]} (target: at most 1.15)")


def find_crossing(batch: int, repeats: int, clock: Clock) -> None:
    """Print attention / ours over N and the length where it passes 1."""
    previous: tuple[int, float] | None = None
    crossing = "attention is slower at every N tried"
    for length in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        arms = {"ours": forward_backward(resolvent_diagonal, batch, length), "attention": attention(batch, length)}
        values = ratios(interleave(arms, repeats, clock), "attention", "ours")
        ratio = statistics.median(values)
        print(f"  N={length:<6} attention / ours {spread(values)}")
        if previous and previous[1] < 1 <= ratio:
            share = -math.log(previous[1]) / math.log(ratio / previous[1])
            crossing = f"crossing at N = {previous[0] * (length / previous[0]) ** share:.0f}"
        previous = (length, ratio)
    print(f"  batch {batch}: {crossing}")


def main() -> None:
    """Run every comparison at each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    torch.manual_seed(0)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"== {threads} thread(s), torch {torch.__version__}, batch {BATCH}, {arguments.clock} clock", end=", ")
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        compare_with_loop_and_dense(arguments.repeats, clock)
        print("-- growth with N")
        fit_exponent(arguments.repeats, clock)
        for batch in (BATCH, 1):
            print(f"-- against causal attention of width {WIDTH} ({HEADS} heads), batch {batch}, projections left out")
            find_crossing(batch, arguments.repeats, clock)


if __name__ == "__main__":
    main()
