"""Decoding speed of the ladder beside the memory's bandwidth, and the two affine laws through it.

    python benchmarks/decode_roofline.py [--threads 2] [--repeats 5] [--new-tokens 32] [--dtype bfloat16|float32]
                                         [--rungs NAME ...]

Greedy decoding at batch 1 by eager PyTorch, random weights. All rungs are built first and take turns within each
repeat, each right after a measurement of the copy bandwidth (bytes read and bytes written both count), so that other
load on the machine falls on all of them. A line gives the median over repeats and, in brackets, the smallest and the
largest; a repeat counts by its median token. `of copy` is the time the weights' bytes would take at that bandwidth over
the measured time. Both laws are then fitted to all repeats, and each rung is predicted from the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

import torch

from labkit import device
from labkit.base.units import MIB
from labkit.decoding.decode import bytes_per_token, decode_once, random_prompt
from labkit.decoding.ladder import LADDER, build_rung, fit_rungs, rung
from labkit.stats.affine import AffineFit

DEFAULT_RUNGS = ("qwen2-16m", "qwen2-48m", "qwen2-110m", "qwen2-250m", "qwen2.5-0.5b")
PROMPT_TOKENS = 16


def measure(names: list[str], dtype: str, threads: int, new_tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Build every rung, then time one decoding of each in turn, `repeats` times after a warm-up."""
    models = {name: build_rung(rung(name, dtype=dtype, threads=threads)) for name in names}
    results = {name: _empty(name, model) for name, model in models.items()}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            copied = device.copy_bandwidth(128 * MIB, 3).median
            prefill, steps, _ = decode_once(model, random_prompt(model, PROMPT_TOKENS), new_tokens)
            if repeat:
                results[name]["copy_bytes_per_s"].append(copied)
                results[name]["prefill_seconds"].append(prefill)
                results[name]["seconds_per_token"].append(statistics.median(steps))
    return list(results.values())


def _empty(name: str, model: Any) -> dict[str, Any]:
    samples: dict[str, Any] = {"copy_bytes_per_s": [], "prefill_seconds": [], "seconds_per_token": []}
    counts = {"bytes_per_token": bytes_per_token(model), "n_layers": model.config.num_hidden_layers}
    return {"name": name, "parameters": sum(p.numel() for p in model.parameters())} | counts | samples


def spread(values: list[float], scale: float = 1.0) -> str:
    """Write median [min .. max]."""
    ordered = sorted(scale * value for value in values)
    return f"{statistics.median(ordered):7.3g} [{ordered[0]:.3g} .. {ordered[-1]:.3g}]"


def show(results: list[dict[str, Any]]) -> None:
    """Print a line for each size."""
    print(f"{'rung':14}{'parameters':>14}  layers  {'ms/token':24}{'GB/s':24}{'copy GB/s':24}of copy")
    for row in results:
        rates = [row["bytes_per_token"] / seconds for seconds in row["seconds_per_token"]]
        shares = [rate / copied for rate, copied in zip(rates, row["copy_bytes_per_s"], strict=True)]
        times, copies = spread(row["seconds_per_token"], 1e3), spread(row["copy_bytes_per_s"], 1e-9)
        head = f"{row['name']:14}{row['parameters']:>14,}  {row['n_layers']:>6}"
        print(f"{head}  {times:24}{spread(rates, 1e-9):24}{copies:24}{spread(shares)}")


def show_fit(label: str, fit: AffineFit) -> None:
    """Print a law with its intervals and its held-out errors."""
    (t0_low, t0_high), (slow, fast) = fit.ci["intercept"], (1 / end if end else float("inf") for end in fit.ci["slope"])
    bandwidth = 1 / fit.slope if fit.slope else float("inf")
    print(f"-- {label}")
    print(f"   t0 {1e3 * fit.intercept:.3g} ms [{1e3 * t0_low:.3g} .. {1e3 * t0_high:.3g}]", end=", ")
    if fit.per_layer is not None:
        low, high = fit.ci["per_layer"]
        print(f"{1e6 * fit.per_layer:.3g} us a layer [{1e6 * low:.3g} .. {1e6 * high:.3g}]", end=", ")
    print(f"bandwidth {bandwidth / 1e9:.3g} GB/s [{fast / 1e9:.3g} .. {slow / 1e9:.3g}]")
    errors = ", ".join(f"{name} {error:+.1%}" for name, error in fit.leave_one_size_out.items())
    print(f"   left out: {errors}; median {fit.median_error:.1%}")


def main() -> None:
    """Measure, print the sizes, fit both laws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=device.usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rungs", nargs="+", choices=LADDER, default=list(DEFAULT_RUNGS))
    arguments = parser.parse_args()
    threads, load = arguments.threads, os.getloadavg()[0]
    print(f"== {threads} thread(s), {arguments.dtype}, torch {torch.__version__}, load average {load:.1f}")
    results = measure(arguments.rungs, arguments.dtype, threads, arguments.new_tokens, arguments.repeats)
    show(results)
    show_fit("t = t0 + bytes / bandwidth", fit_rungs(results))
    if len(results) > 3:
        show_fit("t = t0 + layers x t_layer + bytes / bandwidth", fit_rungs(results, per_layer=True))


if __name__ == "__main__":
    main()
