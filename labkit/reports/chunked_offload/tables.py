"""Tables and sentences of report 001 for the notebook, from what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit import models
from labkit.base.units import GB, GIB, MIB, format_bytes
from labkit.offload import shapes
from labkit.reports.chunked_offload import results
from labkit.reports.chunked_offload.learning import LearnSpec, differences
from labkit.reports.chunked_offload.study import Study
from labkit.stats import bootstrap_ci, mean_ci
from labkit.stats.affine import AffineFit

PUBLISHED = (
    ("report, baseline", 1, 8.293, 10.386),
    ("report, optimized", 32, 0.760, 1.169),
    ("report, optimized", 128, 0.760, 1.169),
    ("its notes, series", 8, 0.949, 0.949),
    ("its notes, series", 64, 0.516, 0.516),
    ("its notes, series", 128, 0.490, 0.490),
)
"""Seconds per sample that the report and its code's notes state: series, samples a step, least, most."""
PARTS = (
    *("process", "buffers", "outside the layers", "adapters"),
    *("hidden states", "kept for the way back", "at work"),
)
"""Parts of planned memory, in the order they are stacked."""


def counts_table() -> pd.DataFrame:
    """Count the shape of phi-4 with and without grouped queries, part by part."""
    rows = []
    for name, more in (("10 key and value heads (phi-4)", {}), ("40 (no grouping)", {"num_key_value_heads": 40})):
        model = models.build("phi-4", device="meta", **more)
        layer = sum(p.numel() for p in model.model.layers[0].parameters())
        whole = sum(p.numel() for p in model.parameters())
        rows.append({"key and value heads": name, "a layer": layer, "40 layers": 40 * layer, "whole": whole})
    return pd.DataFrame(rows)


def speed_table(timed: Mapping[str, Any], seq_len: int) -> pd.DataFrame:
    """List, for each batch size, what a step and a sample took."""
    rows = []
    for n in sorted({row["batch"] for row in timed["rows"]}):
        own = [row for row in timed["rows"] if row["batch"] == n]
        seconds = results.seconds_of(timed, n)
        gain = results.speedup(timed, n)
        rows.append(
            {
                "samples a step": n,
                "tokens a pass": n * seq_len,
                "s a step": float(np.median(seconds)),
                "ms a sample": 1e3 * float(np.median(seconds)) / n,
                "tokens/s": n * seq_len / float(np.median(seconds)),
                "gain over batch 1": f"{gain['value']:.2f}" + _ends(gain["ci"]) if n > 1 else "",
                "GB read": float(np.median([row["bytes_read"] for row in own])) / GB,
                "GB from disk": float(np.median([row["disk_bytes"] for row in own])) / GB,
                "waiting %": 100 * float(np.median([row["stalled_seconds"] / row["seconds"] for row in own])),
                "planned MiB": timed["plans"][str(n)]["peak_bytes"] / MIB,
            }
        )
    return pd.DataFrame(rows)


def _ends(ci: list[float] | None) -> str:
    return f" [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else ""


def roofline_table(timed: Mapping[str, Any]) -> pd.DataFrame:
    """Set a whole step beside reading alone and computing alone, medians of the same rounds."""
    rows = []
    for n in sorted({row["batch"] for row in timed["ablations"]}):
        own = pd.DataFrame([row for row in timed["ablations"] if row["batch"] == n])
        rows.append(
            {
                "samples a step": n,
                "whole step": float(np.median(results.seconds_of(timed, n))),
                "reading alone": float(own["read_seconds"].median()),
                "computing alone": float(own["compute_seconds"].median()),
                "share of the bound": results.roofline_share(timed, n)["value"],
            }
        )
    return pd.DataFrame(rows)


def bounds(timed: Mapping[str, Any]) -> pd.DataFrame:
    """List reading alone and computing alone by batch size: series, batch, seconds_per_sample, least, most."""
    rows = []
    for series, name in (("reading alone", "read_seconds"), ("computing alone", "compute_seconds")):
        for n in sorted({row["batch"] for row in timed["ablations"]}):
            each = [row[name] / n for row in timed["ablations"] if row["batch"] == n]
            spread = {"seconds_per_sample": float(np.median(each)), "least": min(each), "most": max(each)}
            rows.append({"series": series, "batch": n} | spread)
    return pd.DataFrame(rows)


def gain_sentence(study: Study) -> str:
    """Say how predicted and measured gains compare, or why the rounds show nothing."""
    if why := results.void(study):
        return f"void, so that no number of these rounds is judged: {'; '.join(why)}"
    found = results.law_results(study)
    if "gain_slope" not in found:
        return "not measured"
    one = found["gain_slope"]
    return (
        f"measured gains are {one['value']:.3f}{_three(one['ci'])} times those that reading alone and computing alone "
        f"predict ({one['note']})"
    )


def _three(ci: list[float] | None) -> str:
    return f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""


def held_out_table(study: Study) -> pd.DataFrame:
    """List the loss on held-out text before and after training, streamed and resident, with intervals over windows."""
    rows = []
    for n, arms in results.arms_by_batch(study).items():
        for kind in ("streamed", "resident"):
            found = {state: mean_ci(value) for state, value in results.held_out(study, arms, kind).items()}
            row = {"samples a step": n, "steps": arms[0].steps, "seeds": len(arms), "training": kind}
            row |= {f"{state}, nats": one.estimate for state, one in found.items()}
            rows.append(row | {"change, low": found["change"].low, "change, high": found["change"].high})
    return pd.DataFrame(rows)


def memory_table(study: Study) -> pd.DataFrame:
    """Lay out planned memory by part for every step that was timed.

    The measured peak stands at the largest plan of a process: memory that one step leaves behind an allocator keeps for
    the next, so the smaller steps of the same process have no peak of their own.
    """
    rows = []
    for timed in filter(None, (study.speed, study.full)):
        peak = max(row["peak_bytes"] for row in timed["rows"])
        largest = max(timed["plans"], key=lambda n: timed["plans"][n]["peak_bytes"])
        for n, plan in sorted(timed["plans"].items(), key=lambda item: int(item[0])):
            name = f"{timed['weights']['shape']}, batch {n}"
            parts = {part: plan["parts"][part] for part in PARTS}
            parts |= {"measured peak": peak} if n == largest else {}
            parts |= {"limit": timed["limits"]["limit_bytes"], "weights": timed["weights"]["bytes"]}
            rows += [{"step": name, "part": part, "MiB": n_bytes / MIB} for part, n_bytes in parts.items()]
    return pd.DataFrame(rows)


def amortisation_points(timed: Mapping[str, Any]) -> pd.DataFrame:
    """List seconds per sample by batch size: every timed step, and what the report and its notes state."""
    rows = [("here", row["batch"], row["seconds"] / row["batch"]) for row in timed["rows"]]
    rows += [(name, n, end) for name, n, low, high in PUBLISHED for end in sorted({low, high})]
    return pd.DataFrame(rows, columns=["series", "batch", "seconds_per_sample"])


def law_sentence(timed: Mapping[str, Any]) -> str:
    """Say what t(B) = L/B + c gives, with intervals."""
    law = results.amortisation(timed)
    most = 1 + law.intercept / law.slope
    return (
        f"t(B) = L/B + c with L = {_milliseconds(law, 'intercept')} and c = {_milliseconds(law, 'slope')} a sample; "
        f"more samples a pass can gain {most:.1f}x at most"
    )


def _milliseconds(law: AffineFit, name: str) -> str:
    ends = [f"{1e3 * end:.3g}" for end in law.ci.get(name, ())]
    return f"{1e3 * getattr(law, name):.3g}" + (f" [{', '.join(ends)}]" if ends else "") + " ms"


def learning_table(study: Study) -> pd.DataFrame:
    """Set each arm's streamed training beside the resident one, with the held-out text before and after."""
    rows = []
    for arm, done in study.learning.items():
        streamed, apart = done["streamed"], differences(done)
        change = np.array(streamed["held_out_after"]) - np.array(streamed["held_out_before"])
        found = bootstrap_ci(change, n_resamples=study.params.bootstrap, seed=arm.seed)
        rows.append(
            {
                "samples a step": arm.batch_size,
                "seed": arm.seed,
                "windows seen": arm.batch_size * arm.steps,
                "first loss": streamed["loss"][0],
                "last loss": streamed["loss"][-1],
                "held-out before": float(np.mean(streamed["held_out_before"])),
                "held-out change": f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]",
                "losses apart by": f"{apart['loss']:.1e}",
                "gradient norms apart by": f"{apart['grad_norm']:.1e}",
                "above an empty process, MiB": (streamed["peak_bytes"] - streamed["limits"]["base_bytes"]) / MIB,
                "weights, MiB": done["weights"]["bytes"] / MIB,
            }
        )
    return pd.DataFrame(rows)


def curves(study: Study) -> pd.DataFrame:
    """List the loss of every step, streamed and resident, by arm."""
    rows = [
        {"arm": arm_name(arm), "kind": kind, "step": step, "loss": loss}
        for arm, done in study.learning.items()
        for kind in ("streamed", "resident")
        for step, loss in enumerate(done[kind]["loss"])
    ]
    return pd.DataFrame(rows)


def arm_name(arm: LearnSpec) -> str:
    """Name an arm as figures do."""
    return f"batch {arm.batch_size}" + (f", seed {arm.seed}" if arm.seed else "")


def grad_norms(study: Study) -> pd.DataFrame:
    """List the mean gradient norm over the steps by adapter matrix: arm, layer, map, matrix, norm."""
    rows = []
    for arm, done in study.learning.items():
        steps = pd.DataFrame(done["streamed"]["grad_norms"])
        for name, norm in steps.mean().items():
            parts = str(name).split(".")
            layer = next(int(part) for part in parts if part.isdigit())
            matrix = next(part for part in parts if part.startswith("lora_"))
            of = parts[parts.index(matrix) - 1]
            rows.append({"arm": arm_name(arm), "layer": layer, "map": of, "matrix": matrix, "norm": norm})
    return pd.DataFrame(rows)


def types_table(study: Study) -> pd.DataFrame:
    """Set one gradient in each number type beside float32's."""
    found = pd.DataFrame(study.checks["types"] if study.checks else [])
    return found.rename(columns={"dtype": "type", "grad_norm": "gradient norm", "not_finite": "not finite"})


def truncated_sentence(study: Study) -> str:
    """Say what is left of a model without its middle layers."""
    if study.checks is None:
        return "not measured"
    whole, cut = (float(np.mean(study.checks["scores"][name])) for name in ("whole", "truncated"))
    return (
        f"{study.params.learn_model} scores {whole:.2f} nats a token on the held-out windows; with only its first and "
        f"last {study.params.trained_ends} layers {cut:.2f}, a change of {cut - whole:+.2f}."
    )


def limits_sentence(timed: Mapping[str, Any]) -> str:
    """Say what the kernel enforced, and how far it was used."""
    limits, weights = timed["limits"], timed["weights"]
    group = (
        f"a memory cgroup, whose own peak was {format_bytes(limits['cgroup_peak_bytes'])}, and RLIMIT_DATA"
        if limits["cgroup"]
        else "RLIMIT_DATA (no cgroup may be made here)"
    )
    times = weights["bytes"] / limits["limit_bytes"]
    return (
        f"{weights['shape']}: {weights['bytes'] / GB:.2f} GB of weights, {times:.1f} times the limit of "
        f"{limits['limit_bytes'] / GIB:.2f} GiB for the whole process, enforced by {group}"
        + (f"; cache not cold: {timed['why_not_cold']}" if timed["why_not_cold"] else "")
    )


def shape_sentence(params: Any) -> str:
    """Say how many adapter parameters the report's choice of layers gives phi-4."""
    return (
        f"adapters of phi-4: {results.n_trainable(params, 'phi-4'):,} parameters in layers "
        f"{', '.join(map(str, shapes.trained_layers('phi-4', params.trained_ends)))}"
    )
