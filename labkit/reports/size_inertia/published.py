"""Report 000's own measurements, with the conditions of each: what its averages hide, and what compares with what.

The numbers stand in the report's repository (dp-web4/HRM, folder sage/training, runs of 2025-10-31 to 2025-11-07); each
record names its file. Times per prompt are for at most 100 new tokens, sampled; some answers ended early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit.decoding.compare import confounders
from labkit.stats.affine import AffineFit, fit_affine

NEW_TOKENS = 100
"""Most tokens of each answer."""
TRAINING_STEPS = 75
"""Optimizer steps of each training run: 15 an epoch, 5 epochs."""
PROMPTS = (
    "What is consciousness?",
    "Explain the relationship between trust and compression.",
    "How do you learn from experience?",
)
"""The three prompts behind every mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One of the three models, by its published configuration."""

    name: str
    """Name in this package."""
    parameters: int
    """Distinct parameters."""
    reported_parameters: float
    """What the report prints and computes its ratios with."""
    lookup_parameters: int
    """Parameters of an input embedding of its own, read a row at a time; 0 where the head shares the matrix."""
    n_layers: int
    """Depth."""

    def bytes_read(self, bytes_per_parameter: int) -> int:
        """Return the bytes of weights that a decoding step reads."""
        return (self.parameters - self.lookup_parameters) * bytes_per_parameter


MODELS = {
    "qwen2.5-0.5b": Model(
        name="qwen2.5-0.5b", parameters=494_032_768, reported_parameters=494e6, lookup_parameters=0, n_layers=24
    ),
    "phi-2": Model(
        name="phi-2",
        parameters=2_779_683_840,
        reported_parameters=2.7e9,
        lookup_parameters=51_200 * 2_560,
        n_layers=32,
    ),
    "qwen2.5-7b": Model(
        name="qwen2.5-7b",
        parameters=7_615_616_512,
        reported_parameters=7.0e9,
        lookup_parameters=152_064 * 3_584,
        n_layers=28,
    ),
}
"""Models by name, smallest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds of one model on one device, as the report's scripts stored them."""

    model: str
    """Key of `MODELS`."""
    device: str
    """`cpu` (14 Arm cores) or `cuda` (the same board's GPU)."""
    dtype: str
    """Type of the weights."""
    torch: str
    """Version of torch."""
    adapters: str
    """`unmerged` LoRA adapters, or `none`."""
    reported: float
    """The mean that the report prints, in seconds per prompt."""
    seconds: tuple[float, ...]
    """Seconds of each prompt; empty where no raw file exists."""
    ended_early: tuple[bool, ...]
    """Whether the answer stopped before the cap; empty where no raw file exists."""
    source: str
    """File that holds the numbers."""

    @property
    def full_length(self) -> tuple[float, ...]:
        """Seconds of the prompts that reached the cap; the printed mean where no prompt is recorded."""
        pairs = zip(self.seconds, self.ended_early, strict=True)
        return tuple(seconds for seconds, early in pairs if not early) or (self.reported,)

    def row(self, *, full_length: bool) -> dict[str, Any]:
        """Return samples with their conditions, as `compare.ratio` takes them.

        Args:
            full_length: only the prompts that reached the cap; otherwise all, as the report averages them.
        """
        early = sum(self.ended_early)
        tokens = f"{NEW_TOKENS}" if full_length or not early else f"{NEW_TOKENS}, {early} of 3 prompts stopped early"
        conditions = {"model": self.model, "device": self.device, "dtype": self.dtype, "torch": self.torch}
        conditions |= {"adapters": self.adapters, "sampler": "temperature 0.7, top-p 0.9, unseeded"}
        conditions |= {"new_tokens": tokens if self.seconds else None, "warmup": 0, "parameters": self.parameters}
        seconds = np.array(self.full_length if full_length or not self.seconds else self.seconds)
        return {"conditions": conditions, "seconds_per_prompt": float(seconds.mean())}

    @property
    def parameters(self) -> int:
        """Distinct parameters of the model."""
        return MODELS[self.model].parameters

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read by a decoding step."""
        return MODELS[self.model].bytes_read({"float32": 4, "float16": 2}[self.dtype])


_VALIDATION = "epistemic_parallel_results/validation_results.json"
_FINDINGS = "SIZE_INERTIA_FINDINGS.md at 8cdd3aee; no raw file, an estimate of 1.3 and 4.6 s one revision earlier"


def _timing(model: str, device: str, adapters: str, reported: float, seconds: tuple[float, ...], source: str) -> Timing:
    """Fill in what a device implies: the report changed type and torch version together with it."""
    dtype, version = ("float32", "2.2.2") if device == "cpu" else ("float16", "2.9.0")
    # Answers at the cap took the same time within a few per cent; each of these two is far below its neighbours.
    early = tuple(value < 0.7 * max(seconds) for value in seconds)
    return Timing(
        model=model,
        device=device,
        dtype=dtype,
        torch=version,
        adapters=adapters,
        reported=reported,
        seconds=seconds,
        ended_early=early,
        source=source,
    )


TIMINGS = (
    _timing("qwen2.5-0.5b", "cpu", "unmerged", 13.32, (13.28, 13.29, 13.40), _VALIDATION),
    _timing("phi-2", "cpu", "unmerged", 45.59, (52.50, 51.86, 32.40), _VALIDATION),
    _timing("qwen2.5-7b", "cpu", "none", 110.04, (110.09, 108.13, 111.88), "qwen_7b_benchmark.json"),
    _timing("qwen2.5-0.5b", "cuda", "unmerged", 1.63, (), _FINDINGS),
    _timing("phi-2", "cuda", "unmerged", 4.17, (), _FINDINGS),
    _timing("qwen2.5-7b", "cuda", "none", 10.61, (12.64, 12.63, 6.55), "qwen_7b_gpu_benchmark.json"),
)
"""Every inference time behind the report's tables."""
LOAD_SECONDS = {"qwen2.5-0.5b": 0.74, "phi-2": 1.39, "qwen2.5-7b": 11.37}
"""Load times as printed: the first two from the page cache, the third onto the GPU; 273 s for it in a sibling note."""
TRAINING_SECONDS = {"qwen2.5-0.5b": 79.06, "phi-2": 213.83}
"""Wall time of each training run (experiment_comparison.json); weights loaded as float16 were held in float32."""
FINAL_MARGINS = {"qwen2.5-0.5b": 10.82, "phi-2": 6.24}
"""Reward margins at the last step (size_inertia_experiment_results.md)."""
LOSSES = {
    "qwen2.5-0.5b": (
        *(0.6918, 0.6678, 0.5946, 0.4899, 0.3668, 0.2581, 0.1213, 0.0476),
        *(0.0121, 0.0015, 0.0005, 0.0001, 0.0001, 0.0, 0.0),
    ),
    "phi-2": (
        *(0.6926, 0.6860, 0.6645, 0.6149, 0.5469, 0.4698, 0.3402, 0.2210),
        *(0.1108, 0.0394, 0.0131, 0.0064, 0.0033, 0.0038, 0.0025),
    ),
}
"""Training loss every 5 steps, each the mean of 5 (experiment_comparison.json); its `final_loss` fields are null."""


def timing(model: str, device: str) -> Timing:
    """Return the report's time of a model on a device.

    Raises:
        ValueError: the report has no such row.
    """
    for found in TIMINGS:
        if (found.model, found.device) == (model, device):
            return found
    raise ValueError(f"the report has no time of {model!r} on {device!r}; it has {', '.join(MODELS)} on cpu and cuda")


def timing_table() -> pd.DataFrame:
    """Lay out every inference time: printed mean, mean of the prompts that reached the cap, conditions, source."""
    columns = ("model", "device", "dtype", "torch", "adapters", "reported", "parameters", "bytes_read", "source")
    rows = []
    for found in TIMINGS:
        own = {"prompts": len(found.seconds), "ended_early": sum(found.ended_early)}
        rows.append({name: getattr(found, name) for name in columns} | own)
        rows[-1]["full_length"] = float(np.mean(found.full_length))
        rows[-1]["gb_per_s"] = found.bytes_read * NEW_TOKENS / rows[-1]["full_length"] / 1e9
    return pd.DataFrame(rows)


def ratio_table() -> pd.DataFrame:
    """Form the report's ratios as it does and at full length, with what else differs between the two sides of each.

    A ratio with an empty `refused for` may stand; `compare.ratio` raises on the others.
    """
    pairs = [
        (("phi-2", "cpu"), ("qwen2.5-0.5b", "cpu"), "model"),
        (("qwen2.5-7b", "cpu"), ("qwen2.5-0.5b", "cpu"), "model"),
    ]
    pairs += [((model, "cpu"), (model, "cuda"), "device") for model in MODELS]
    rows = []
    for above, below, factor in pairs:
        a, b = timing(*above), timing(*below)
        row = {"ratio": f"{' '.join(above)} / {' '.join(below)}", "factor": factor}
        row |= {"parameters": a.parameters / b.parameters, "as printed": a.reported / b.reported}
        row["full length"] = float(np.mean(a.full_length) / np.mean(b.full_length))
        for label, full in (("printed refused for", False), ("full length refused for", True)):
            row[label] = "; ".join(confounders(a.row(full_length=full), b.row(full_length=full), factor))
        rows.append(row)
    return pd.DataFrame(rows)


def decode_points(device: str) -> pd.DataFrame:
    """Return seconds per token, prompt included, against bytes read: a row per prompt that reached the cap."""
    rows = [
        {"name": found.model, "bytes": found.bytes_read, "seconds": seconds / NEW_TOKENS, "series": f"report, {device}"}
        for found in TIMINGS
        if found.device == device
        for seconds in found.full_length
    ]
    return pd.DataFrame(rows)


def training_points() -> pd.DataFrame:
    """Return seconds per training step against bytes of float32 weights that a pass multiplies with."""
    rows = [
        {"name": name, "bytes": MODELS[name].bytes_read(4), "seconds": seconds / TRAINING_STEPS}
        for name, seconds in TRAINING_SECONDS.items()
    ]
    return pd.DataFrame(rows)


def fits() -> dict[str, AffineFit]:
    """Run the report's own times through the affine law: `cpu`, `cuda` and `training` (two points: exact, untested)."""
    points = {device: decode_points(device) for device in ("cpu", "cuda")} | {"training": training_points()}
    return {
        name: fit_affine(part["bytes"], part["seconds"], clusters=part["name"].tolist())
        for name, part in points.items()
    }


def loss_curves() -> pd.DataFrame:
    """Return the stored training curves, a row per 5 steps; the margin is known at the end only."""
    rows = [
        {"series": f"{name}, report", "step": 5 * (i + 1), "loss": loss, "margin": np.nan}
        for name, losses in LOSSES.items()
        for i, loss in enumerate(losses)
    ]
    table = pd.DataFrame(rows)
    for name, margin in FINAL_MARGINS.items():
        table.loc[(table["series"] == f"{name}, report") & (table["step"] == TRAINING_STEPS), "margin"] = margin
    return table


def saturation_table() -> pd.DataFrame:
    """Set the last stored loss beside -log sigmoid(last margin): what any separable task prints at that margin."""
    rows = [
        {"model": name, "margin": margin, "saturation": float(np.logaddexp(0, -margin)), "stored": LOSSES[name][-1]}
        for name, margin in FINAL_MARGINS.items()
    ]
    return pd.DataFrame(rows)
