"""LoRA steps of a model larger than memory: this package beside what a user would pick instead, under the same limit.

    python benchmarks/offload_throughput.py [steps] [equal-memory] [airllm] [--repeats 5] [--threads 2]
                                            [--folder FOLDER] [--out FILE]

    steps          1 and 32 samples of 16 tokens, 2.5B parameters, 0.9 GiB for the whole process
    equal-memory   128 samples of 128 tokens, 0.2B parameters, within the least memory that both plan for or work with
    airllm         1 and 32 samples of 16 tokens of a Qwen3.5 shape, 0.5B parameters (pip install airllm==4.0.0)

    labkit         StreamedLM: the weights once up and once down for all samples, two buffers, O_DIRECT
    accelerate     disk_offload with PEFT and transformers' checkpointing, repaired so that it trains at all
    mapped         the checkpoint mapped into memory, and the kernel left to bring and drop its pages
    airllm         AirLLM 4.0's layer-wise LoRA trainer
    resident       all weights in memory, no limit: what computing alone costs

Every arm runs in a process of its own, the limited ones in a memory cgroup and under RLIMIT_DATA, from a cold cache;
who does not get through within labkit's limit is given the least with which it does. A round has one process of each
arm, so that a slow minute of the machine meets all. Of a process the first step is not counted, but for the long steps
of equal-memory. Ratios are formed within a round; cells give the median with the smallest and the largest. Adapters and
tokens are the same everywhere; "gradient" is the largest difference of an adapter's gradient norm from labkit's.
Weights are random, since speed does not depend on their values, and are deleted at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from labkit import device
from labkit.base.units import GB, MIB, format_bytes, parse_bytes
from labkit.device.pagecache import drop_pages
from labkit.offload import plan, shapes
from labkit.offload.isolated import LimitReached, run_isolated
from labkit.offload.planner import TooSmall
from labkit.offload.random_weights import write_random_checkpoint
from labkit.progress import Progress

ARMS = "offload_arms"
UNLIMITED = {"resident"}
ONE_SAMPLE = {"mapped"}
"""Arms that are run with one sample only: paging takes them minutes a step."""
PREPARED = {"accelerate": "write_offload", "airllm": "split_for_airllm"}
"""Arms that read a copy of the checkpoint in a format of their own, and what writes it."""
TRIED = 12
"""Micro-batches that a limit is tried with: what is left for the garbage collector grows over the first few."""
Job = dict[str, Any]
"""What an arm is asked to do; see `jobs_of`."""
Trial = Callable[[Job], Any]
Found = dict[tuple[str, int], list[dict[str, Any]]]
"""What the processes of an arm at a number of samples returned."""
QWEN_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QWEN = {
    "text_config": {
        **{"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 32, "vocab_size": 32_064},
        # Without their kernels, which need a GPU, layers of the recurrent kind would be most of the time of both arms.
        **{"layer_types": ["full_attention"] * 32},
        **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256},
    },
    "vision_config": {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 1024},
}
SMALL = {"hidden_size": 1024, "num_hidden_layers": 12, "intermediate_size": 3584, "num_attention_heads": 16}
SMALL |= {"num_key_value_heads": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One comparison."""

    arms: tuple[str, ...]
    """Who takes part; labkit first."""
    sizes: tuple[tuple[int, int, int], ...]
    """Samples, tokens of each, and timed steps of a process."""
    budget: str
    """Memory of labkit's whole process; empty for the least that both get through a sample with."""
    targets: tuple[str, ...]
    """Maps with adapters."""
    layers: tuple[int, ...] | None
    """Layers with adapters; None for all."""
    ablated: int = 0
    """First rounds in which labkit is also timed with nothing read and with nothing computed."""
    equal_memory: bool = False
    """Whether the others get the same limit, and accumulate micro-batches as large as fit; labkit's is raised if one
    of them needs more for a sample."""


ENDS_44, ENDS_12 = (*range(4), *range(40, 44)), (*range(4), *range(8, 12))
PARTS = {
    "steps": Part(
        arms=("labkit", "accelerate", "mapped", "resident"),
        sizes=((1, 16, 2), (32, 16, 1)),
        budget="0.9GiB",
        targets=shapes.TARGETS,
        layers=ENDS_44,
        ablated=sys.maxsize,
    ),
    "equal-memory": Part(
        arms=("labkit", "accelerate"),
        sizes=((128, 128, 1),),
        budget="",
        targets=shapes.TARGETS,
        layers=ENDS_12,
        # Computing alone takes as long as a step does here, and is the same every time.
        ablated=1,
        equal_memory=True,
    ),
    "airllm": Part(
        arms=("labkit", "airllm"),
        sizes=((1, 16, 1), (32, 16, 1)),
        budget="1GiB",
        targets=tuple(QWEN_TARGETS),
        layers=None,
    ),
}


def write_weights(part: str, folder: Path) -> str:
    """Write a part's random checkpoint, and describe it."""
    if part == "airllm":
        made = run_isolated(f"{ARMS}:write_qwen", {"folder": str(folder), "config": json.dumps(QWEN)}, threads=2)
        made |= {"bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")), "make": "Qwen3.5"}
    else:
        more = shapes.overrides("phi3-2.5b") | (SMALL if part == "equal-memory" else {})
        made = write_random_checkpoint(folder, "phi-4", dtype=torch.bfloat16, **more) | {"make": "Phi-3"}
    return f"{made['make']} shape of {made['parameters']:,} parameters, {made['bytes'] / GB:.2f} GB in bfloat16"


def smallest_plan(part: Part, folder: Path) -> int:
    """Return the smallest limit this package plans a part's first size within, and a tenth more."""
    n, seq_len, _ = part.sizes[0]
    wanted = LoraConfig(r=8, lora_alpha=16, target_modules=list(part.targets), layers_to_transform=list(part.layers))
    for mib in range(256, 4096, 64):
        try:
            plan(folder, memory=mib * MIB, batch_size=n, seq_len=seq_len, lora=wanted, reader="direct")
            return int(1.1 * mib * MIB)
        except TooSmall:
            continue
    raise SystemExit("no limit below 4 GiB is enough")


def run(arm: str, folder: Path, offload: Path, threads: int, job: Job) -> dict[str, Any]:
    """Run one arm in a process of its own, from a cold cache."""
    files = [path for root in (folder, offload) for path in root.rglob("*") if path.suffix in {".safetensors", ".dat"}]
    why_not = drop_pages(sorted(files))
    if why_not:
        raise SystemExit(f"no cold cache: {why_not}")
    arguments = {"folder": str(folder), "job": job} | ({"offload": str(offload)} if arm in PREPARED else {})
    limit = 0 if arm in UNLIMITED else job["budget"]
    return run_isolated(f"{ARMS}:{arm}", arguments, threads=threads, limit_bytes=limit)


def least_limit(trial: Trial, job: Job) -> int:
    """Return the first limit an arm gets through two steps within, from the job's upwards by quarters."""
    limit = job["budget"]
    while True:
        try:
            accumulated = min(job["batch"], TRIED * job["micro_batch"])
            trial(job | {"budget": limit, "warm_up": 1, "steps": 1, "batch": accumulated})
            return limit
        except LimitReached:
            limit += limit // 4


def largest_micro_batch(trial: Trial, job: Job) -> int:
    """Return the largest micro-batch, a power of 2, that an arm accumulates several of within the job's limit."""
    size = 1
    while size < job["batch"]:
        try:
            trial(job | {"micro_batch": 2 * size, "batch": TRIED * 2 * size, "warm_up": 0, "steps": 1})
            size *= 2
        except LimitReached:
            break
    return size


def arms_at(part: Part, n: int) -> list[str]:
    """Return who takes part at a number of samples."""
    return [arm for arm in part.arms if n == 1 or arm not in ONE_SAMPLE]


def jobs_of(part: Part, folder: Path, offloads: dict[str, Path], threads: int) -> dict[tuple[str, int], Job]:
    """Say what each arm does at each size: within the part's limit, or the least one it works with."""
    budget = parse_bytes(part.budget) if part.budget else smallest_plan(part, folder)
    jobs: dict[tuple[str, int], Job] = {}
    for n, seq_len, steps in part.sizes:
        for arm in arms_at(part, n):
            job = {"batch": n, "seq_len": seq_len, "steps": steps, "micro_batch": n, "targets": list(part.targets)}
            job |= {"layers": None if part.layers is None else list(part.layers), "budget": budget, "warm_up": 1}
            job |= {"ablate": False}
            trial = partial(run, arm, folder, offloads[arm], threads)
            if part.equal_memory:
                job |= {"warm_up": 0} | ({} if arm == "labkit" else {"micro_batch": 1})
            if arm not in {"labkit", "resident"}:
                job["budget"] = least_limit(trial, job)
            if part.equal_memory and arm != "labkit":
                job["micro_batch"] = largest_micro_batch(trial, job)
                # Whoever needs more sets the limit for both.
                jobs["labkit", n]["budget"] = job["budget"]
            jobs[arm, n] = job
    return jobs


def compare(name: str, options: argparse.Namespace) -> str:
    """Run a part and return its table."""
    part, folder = PARTS[name], options.folder / name
    offloads = {arm: options.folder / f"{name}-{arm}" for arm in part.arms}
    try:
        described = write_weights(name, folder)
        for arm in set(part.arms) & set(PREPARED):
            prepare(arm, folder, offloads[arm], part)
        jobs = jobs_of(part, folder, offloads, options.threads)
        found: Found = {key: [] for key in jobs}
        with Progress(options.repeats * len(jobs), name) as progress:
            for i in range(options.repeats):
                for (arm, n), job in jobs.items():
                    own = job | {"ablate": arm == "labkit" and i < part.ablated}
                    found[arm, n].append(run(arm, folder, offloads[arm], options.threads, own))
                    progress.advance(1, f"{arm} {n}: {mean_seconds(found[arm, n][-1]):.2f} s a step")
        lines = [f"### {name}", "", f"{described}; {options.repeats} rounds.", ""]
        return "\n".join([*lines, *rows_of(part, found, jobs), "", *remarks(part, found)])
    finally:
        for left in (folder, *offloads.values()):
            shutil.rmtree(left, ignore_errors=True)


def prepare(arm: str, folder: Path, offload: Path, part: Part) -> None:
    """Write an arm's own copy of the checkpoint, without a limit."""
    arguments: dict[str, Any] = {"folder": str(folder), "offload": str(offload)}
    arguments |= {"job": {"targets": list(part.targets)}} if arm == "airllm" else {}
    run_isolated(f"{ARMS}:{PREPARED[arm]}", arguments, threads=2)


def mean_seconds(one: dict[str, Any]) -> float:
    """Return a process's seconds a step."""
    return statistics.mean(row["seconds"] for row in one["rows"])


def spread(values: list[float]) -> str:
    """Write a median with the smallest and the largest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def rows_of(part: Part, found: Found, jobs: dict[tuple[str, int], Job]) -> list[str]:
    """Return a Markdown table of the arms."""
    columns = ("samples", "arm", "limit, MiB", "private, MiB", "micro-batch", "GB from disk", "s a step", "s a sample")
    lines = [f"| {' | '.join((*columns, 'times labkit', 'gradient'))} |", "|--:|---|" + "--:|" * 8]
    for n, seq_len, _ in part.sizes:
        for arm in arms_at(part, n):
            ones, ours, job = found[arm, n], found["labkit", n], jobs[arm, n]
            own = [*map(mean_seconds, ones)]
            ratio = [b / mean_seconds(a) for a, b in zip(ours, own, strict=True)]
            cells = [f"{n} x {seq_len}", arm, "none" if arm in UNLIMITED else f"{job['budget'] / MIB:,.0f}"]
            cells += [f"{max(one['peak_bytes'] for one in ones) / MIB:,.0f}"]
            cells += ["by plan" if arm == "labkit" else str(job["micro_batch"])]
            cells += [f"{statistics.median(row['disk_bytes'] for one in ones for row in one['rows']) / GB:.2f}"]
            cells += [spread(own), f"{statistics.median(own) / n:.3f}", spread(ratio)]
            cells += [f"{max(abs(ones[0]['norms'][k] / v - 1) for k, v in ours[0]['norms'].items()):.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def remarks(part: Part, found: Found) -> list[str]:
    """Say how labkit fares against itself at one sample, and against its own bound."""
    said, sizes = [], [n for n, _, _ in part.sizes]
    for n in sizes:
        ones = [one for one in found["labkit", n] if "read_seconds" in one]
        if ones:
            shares = [max(one["read_seconds"], one["compute_seconds"]) / mean_seconds(one) for one in ones]
            read, computed = (statistics.median(one[f"{what}_seconds"] for one in ones) for what in ("read", "compute"))
            said.append(
                f"- labkit, {n} samples: {spread(shares)} of max(reading alone, {read:.2f} s; computing alone, "
                f"{computed:.2f} s); planned at most {ones[0]['planned_bytes'] / MIB:,.0f} MiB."
            )
    if len(sizes) > 1:
        few, many = (found["labkit", n] for n in (sizes[0], sizes[-1]))
        gains = [mean_seconds(a) / sizes[0] / (mean_seconds(b) / sizes[-1]) for a, b in zip(few, many, strict=True)]
        said.append(f"- labkit, a sample of {sizes[0]} over one of {sizes[-1]}: {spread(gains)} times the time.")
    return said


def heading(threads: int) -> str:
    """Describe the machine."""
    here = device.describe()
    memory = format_bytes(here["memory_total_bytes"])
    return f"Machine: {here['cpu']}, {here['n_cores']} cores, {memory}, torch {here['torch']}, {threads} threads."


def main() -> None:
    """Run the parts asked for, print their tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=device.usable_cores())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "labkit-benchmark")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wanted = options.parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; known: {', '.join(PARTS)}")
    if "airllm" in wanted and importlib.util.find_spec("airllm") is None:
        parser.error("part airllm needs AirLLM: pip install airllm==4.0.0")
    # The processes of the arms import them by their file's name.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    tables = [heading(options.threads)]
    print(tables[0], flush=True)
    for name in wanted:
        tables.append(compare(name, options))
        print(tables[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
