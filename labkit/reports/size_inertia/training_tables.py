"""Tables of the training arms: steps, held-out preference with intervals, sizes of the data set, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labkit.base import paths
from labkit.dpo import evaluate, preferences
from labkit.dpo.arm import DpoArm
from labkit.reports.size_inertia import arms, balanced, preferred, published
from labkit.reports.size_inertia.results import loss_of
from labkit.reports.size_inertia.study import Study

STEP_COLUMNS = ["arm", "model", "role", "n_pairs", "seed", "label_seed", "learning_rate", "step", "loss", "margin"]
STEP_COLUMNS += ["accuracy", "logp_chosen", "logp_rejected", "tokens", "seconds"]
"""Columns of dpo_steps.csv, a row for each optimizer step of each arm."""
FULL_PROFILE = "cpu-24gb"
"""The profile that runs the report's whole schedule on a machine without a GPU."""
_LAST = 5


def steps_table(study: Study) -> pd.DataFrame:
    """Lay out every optimizer step of every arm."""
    rows = [_step_row(arm, row) for arm, done in study.arms.items() for row in done["curve"]]
    return pd.DataFrame(rows, columns=STEP_COLUMNS)


def _step_row(arm: DpoArm, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "model": arm.model,
        "role": arm.role,
        "n_pairs": arm.n_pairs,
        "seed": arm.seed,
        "label_seed": arm.label_seed,
        "learning_rate": row["learning_rate"],
        "step": row["step"],
        "loss": row["loss"],
        "margin": row["rewards/margins"],
        "accuracy": row["rewards/accuracies"],
        "logp_chosen": row["logps/chosen"],
        "logp_rejected": row["logps/rejected"],
        "tokens": row["num_tokens"],
        "seconds": row["seconds"],
    }


def full_schedule(hardware: str) -> tuple[pd.DataFrame, str]:
    """Return the steps of the report's whole schedule as published for `FULL_PROFILE`, and a sentence on its origin.

    Empty for that profile itself and where nothing is published.
    """
    file = paths.root() / "figures" / FULL_PROFILE / "size_inertia" / "dpo_steps.csv"
    if hardware == FULL_PROFILE or not file.exists():
        return pd.DataFrame(columns=STEP_COLUMNS), "No record of the whole schedule is used."
    steps = pd.read_csv(file)
    return steps[
        steps["role"] == "report"
    ], f"The whole schedule is the record of profile {FULL_PROFILE} ({_short(file)})."


def _short(file: Path) -> str:
    return file.relative_to(paths.root()).as_posix()


def loss_series(steps: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Pick the curves to draw: the report's arm, the tuned one, and the recorded whole schedule where there is one."""
    parts = []
    for (model, role), part in steps[steps["role"].isin(["report", "tuned"])].groupby(["model", "role"], sort=False):
        first = part[part["seed"] == part["seed"].min()]
        label = "report's schedule" if role == "report" else "tuned rate"
        parts.append(first.assign(series=f"{model}, {label}"))
    for model, part in full.groupby("model", sort=False):
        parts.append(part.assign(series=f"{model}, report's schedule, {FULL_PROFILE}"))
    return pd.concat(parts, ignore_index=True)[["series", "step", "loss", "margin"]]


def pairs_table(study: Study) -> pd.DataFrame:
    """Describe the training pairs: numbers, lengths, and what lengths alone give away."""
    return preferences.statistics(preferences.load("train"), study.surface["lengths"] if study.surface else {})


def published_series() -> pd.DataFrame:
    """Return the report's own curves, a row every five steps, with the margin where the report states one."""
    return published.loss_curves()


def held_out_table(study: Study) -> pd.DataFrame:
    """Count the held-out pairs that each kind of arm prefers rightly, with a 95 % interval.

    An arm prefers a pair rightly if its margin against the reference is above 0; the reference itself is judged by its
    own log-probabilities, per token, since the margin of a model to itself is 0. Arms that differ by a seed alone, that
    of the training or of the shuffled labels, are one row (`evaluate.repeated_accuracy`); `each` lists them.
    """
    rows: list[dict[str, Any]] = []
    for model in study.params.models:
        own = {arm: done for arm, done in study.arms.items() if arm.model == model and arm.role != "sweep"}
        for done in list(own.values())[:1]:
            rows.append({"model": model, "arm": "untrained"} | _counted(done["reference"]))
        for label in dict.fromkeys(map(preferred.label_of, own)):
            rows.append(
                {"model": model, "arm": label} | _pooled([d for a, d in own.items() if preferred.label_of(a) == label])
            )
    return pd.DataFrame(rows + ([word_row(study.surface["words"])] if study.surface else []))


def judged_table(study: Study) -> pd.DataFrame:
    """Lay out what each kind of arm prefers, in each way and set of pairs, and what a bag of words does."""
    table = preferred.table(study.arms, study.references, study.params.models)
    where = {"pairs_of": preferred.SETS["held_out"], "way": preferred.MARGIN, "kind": "words"}
    words = [word_row(study.surface["words"]) | where] if study.surface else []
    return pd.concat([table, pd.DataFrame(words, columns=table.columns)], ignore_index=True) if words else table


def moved_and_preferred(judged: pd.DataFrame) -> list[str]:
    """Say for each model's arms in a sentence how far the margin and the preference itself agree, on held-out pairs."""
    lines = []
    own = judged[judged["pairs_of"] == preferred.SETS["held_out"]]
    for (model, arm), part in own.groupby(["model", "arm"], sort=False):
        by_way = part.set_index("way")
        if {*preferred.WAYS} <= {*by_way.index}:
            told = {way: f"{by_way.at[way, 'accuracy']:.0%}" for way in preferred.WAYS}
            lines.append(
                f"{model}, {arm}: moved towards the chosen text on {told[preferred.MARGIN]} of the pairs, gives it the "
                f"higher probability on {told[preferred.SUM]} by sum and {told[preferred.PER_TOKEN]} per token."
            )
    return lines


def balance_sentence(study: Study) -> str:
    """Say what words alone make of the word-balanced pairs."""
    if study.balance is None:
        return "No word-balanced pairs are used on this profile."
    shares = {name: balanced.share(scores) for name, scores in study.balance.items()}
    told = ", ".join(f"{share:.1%} by {name}" for name, share in shares.items())
    return f"Classifiers fitted to other topics prefer the chosen of {study.params.balanced_pairs} pairs in {told}."


def _pooled(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Judge arms of one kind together."""
    right = np.array([[row["margin"] > 0 for row in done["held_out"]] for done in runs])
    return evaluate.repeated_accuracy(right) | {
        "pairs": right.shape[1],
        "each": " ".join(str(count) for count in right.sum(1)),
        "margin": float(np.mean([done["held_out_summary"]["margin"] for done in runs])),
        "training loss": float(np.mean([loss_of(done)[-_LAST:].mean() for done in runs])),
    }


def _counted(summary: Mapping[str, Any]) -> dict[str, Any]:
    once = {"runs": 1, "pairs": summary["n"], "each": str(summary["correct"])}
    return {name: summary[name] for name in ("correct", "n", "accuracy", "low", "high")} | once


def word_row(words: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of the bag of words, which has no language model (`surface.measure_surface`)."""
    return {"model": "words alone", "arm": f"bag of words, {words['n_pairs']} pairs"} | _counted(words)


def size_table(study: Study) -> pd.DataFrame:
    """Compare arms with fewer pairs at equal steps and rate: last training loss and held-out accuracy."""
    rows = []
    for arm, done in study.arms.items():
        if arm.seed != study.params.seeds[0] or arm.model not in study.params.control_models:
            continue
        if arm.role in ("tuned", "fewer pairs"):
            row = {"model": arm.model, "n_pairs": arm.n_pairs} | _counted(done["held_out_summary"])
            rows.append(row | {"final_loss": float(loss_of(done)[-_LAST:].mean())})
    return pd.DataFrame(rows).sort_values(["model", "n_pairs"], ignore_index=True)


def sweep_table(study: Study) -> pd.DataFrame:
    """Lay out the learning-rate sweeps: loss on the pairs that were not trained on, with the chosen rate marked.

    Where training diverged the loss is infinite; such a rate was tried.
    """
    rows = []
    for model, losses in study.sweeps.items():
        for rate, loss in losses.items():
            mark = "chosen" if min(losses) < rate < max(losses) else "chosen, at the edge"
            row = {"model": model, "learning rate": rate, "steps": study.params.sweep_steps, "validation loss": loss}
            row |= {"validation pairs": arms.N_PAIRS - arms.SWEEP_PAIRS}
            rows.append(row | {"chosen": mark if rate == study.best_rate.get(model) else ""})
    return pd.DataFrame(rows)


def speed_table(study: Study) -> pd.DataFrame:
    """Lay out time and tokens of each model's arms: seconds per step and per thousand tokens."""
    rows = []
    for model in study.params.models:
        done = [result for arm, result in study.arms.items() if arm.model == model]
        if done:
            tokens = sum(result["tokens"] for result in done)
            seconds = sum(result["seconds"] for result in done)
            row = {
                "model": model,
                "arms": len(done),
                "s/step (median)": np.median([d["seconds_per_step"] for d in done]),
            }
            rows.append(row | {"s per 1000 tokens": 1e3 * seconds / tokens, "first loss": done[0]["first_loss"]})
    return pd.DataFrame(rows)


def conclusions(held: pd.DataFrame) -> list[str]:
    """Say in a sentence for each arm what its interval allows."""
    return [_sentence(row) for row in held.itertuples()]


def _sentence(row: Any) -> str:
    many = f" over {row.runs} runs ({row.each} of {row.pairs} each)" if row.runs > 1 else ""
    share = f"{row.correct} of {row.n}{many} ({row.accuracy:.0%}, 95 % [{row.low:.0%}, {row.high:.0%}])"
    where = f"{row.model}, {row.arm}: {share}"
    if row.margin == 0:
        return f"{row.model}, {row.arm}: every margin is 0, so the steps taken (the first has rate 0) changed nothing."
    if row.low > 0.5:
        return f"{where}: better than chance."
    return f"{where}: worse than chance." if row.high < 0.5 else f"{where}: not told from chance."


def against_shuffles(held: pd.DataFrame) -> list[str]:
    """Say for each model with controls where true labels stand among shuffled ones: a permutation test.

    With k shuffles no p below 1 / (k + 1) can be had, which the sentence says.
    """
    lines = []
    for model, part in held.groupby("model", sort=False):
        by_arm = part.set_index("arm")
        if "shuffled labels" not in by_arm.index:
            continue
        shuffles = [int(count) for count in by_arm.at["shuffled labels", "each"].split()]
        true = int(by_arm.at[f"tuned rate, {arms.N_PAIRS} pairs", "each"].split()[0])
        as_good = sum(count >= true for count in shuffles)
        p = (1 + as_good) / (1 + len(shuffles))
        lines.append(
            f"{model}: {as_good} of {len(shuffles)} shuffles of the labels did as well as the true ones "
            f"(p = {p:.2g}; with {len(shuffles)} shuffles it cannot be below {1 / (1 + len(shuffles)):.2g})."
        )
    return lines
