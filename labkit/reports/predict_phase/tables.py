"""Tables and sentences of report 003 for its notebook: plain frames, nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from labkit.base.units import MIB
from labkit.reports.predict_phase import original
from labkit.reports.predict_phase.arms import ARMS
from labkit.reports.predict_phase.contest import Contest
from labkit.reports.predict_phase.protocol import Judgement
from labkit.reports.predict_phase.results import ORIGINAL
from labkit.reports.predict_phase.speed import BASELINE, frontier
from labkit.reports.predict_phase.study import Study
from labkit.stats import ratio_ci


def original_table(study: Study) -> pd.DataFrame:
    """Return one row an initialisation: losses against ln V, time for as many steps, speed at equal loss.

    Means over seeds, geometric ones of ratios. Where a baseline learned nothing (`original.learned`) the curves are
    noise around the floor; gap and speed, which would be read off noise, are left empty.
    """
    rows = []
    for name, runs in study.originals.items():
        found = pd.DataFrame([original.summary(run) for run in runs])
        ratio = {key: scipy_stats.gmean(found[key]) for key, unit in ORIGINAL.items() if not unit}
        learned = all(map(original.learned, runs))
        rows.append(
            {
                "initialisation": name,
                "seeds": len(runs),
                "first loss": np.mean([run["baseline"]["loss"][0] for run in runs]),
                "ln V": float(np.log(study.params.original_vocab_size)),
                "baseline, last": found["final_loss/baseline"].mean(),
                "original, last": found["final_loss/hybrid"].mean(),
                "gap, %": found["loss_gap_percent/original"].mean() if learned else np.nan,
                "time for 50 steps": ratio["time_ratio/original"],
                "speed at equal loss": ratio["equal_loss_speed/original"] if learned else np.nan,
                "step over forward": ratio["full_over_forward"],
            }
        )
    return pd.DataFrame(rows)


def original_curves(study: Study) -> pd.DataFrame:
    """Return the loss of every step of the report's protocol on its first seed: initialisation, arm, step, seconds."""
    rows = []
    for name, runs in study.originals.items():
        for arm in original.ARMS:
            seconds = np.cumsum(runs[0][arm]["seconds"])
            rows += [
                {"initialisation": name, "arm": arm, "step": i + 1, "seconds": float(s), "loss": loss}
                for i, (s, loss) in enumerate(zip(seconds, runs[0][arm]["loss"], strict=True))
            ]
    return pd.DataFrame(rows)


def tuning_table(contest: Contest) -> pd.DataFrame:
    """Return the chosen rate of every arm and whether it lies inside the rates tried, by budget where each has its own.

    Of arms that have one, the chosen read-out or gate stands beside it.
    """
    if contest.by_budget:
        return pd.DataFrame([_tuned(contest, arm, steps) for arm in contest.arms for steps in contest.lengths()])
    rows = [
        {"arm": arm, "peak rate": rate, "inside the sweep": contest.interior[arm], "what it is": ARMS[arm].words}
        for arm, rate in contest.best_rate.items()
    ]
    return pd.DataFrame(rows)


def _tuned(contest: Contest, arm: str, steps: int) -> dict[str, Any]:
    return {
        "arm": arm,
        "steps": steps,
        "peak rate": contest.rate(arm, steps),
        "inside the sweep": contest.is_inside(arm, steps),
        "chosen": contest.read_out.get((arm, steps)) or contest.gates.get(arm, ""),
        "what it is": ARMS[arm].words,
    }


def costs_table(contest: Contest) -> pd.DataFrame:
    """Return milliseconds of a real step, a probe and a jump by arm, and a step over the baseline's; empty without.

    Means of the rounds; the ratio is that of geometric means, with Student's interval over rounds.
    """
    found = contest.costs or {"step": {}, "forward": {}, "jump": {}}
    rows = []
    for arm, seconds in found["step"].items():
        others = {f"{kind}, ms": found[kind].get(arm, []) for kind in ("forward", "jump")}
        means = {name: 1e3 * float(np.mean(own)) if own else np.nan for name, own in others.items()}
        ratio = str(ratio_ci(seconds, found["step"][BASELINE])) if arm != BASELINE else "1"
        rows.append({"arm": arm, "step, ms": 1e3 * float(np.mean(seconds))} | means | {"step over AdamW's": ratio})
    return pd.DataFrame(rows, columns=["arm", "step, ms", "forward, ms", "jump, ms", "step over AdamW's"])


def frontiers(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean seconds and loss of every arm at every budget, with their standard errors over seeds."""
    grouped = runs.groupby(["arm", "steps"], sort=False)[["seconds", "loss"]].agg(["mean", "sem"])
    grouped.columns = ["seconds", "seconds_sem", "loss", "loss_sem"]
    return grouped.fillna(0.0).reset_index()


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what the longest budget of every arm cost and did, means over seeds."""
    longest = runs[runs["steps"] == runs["steps"].max()]
    kept = ["seconds", "real_steps", "predicted_steps", "jumps", "refused", "probe_forwards", "tokens", "loss"]
    return longest.groupby("arm", sort=False)[kept].mean().reset_index()


def phase_time_table(contest: Contest) -> pd.DataFrame:
    """Return where the time of the longest budget goes: share of each phase in percent, and milliseconds of its steps.

    The share of Predict is that of probing and jumping; its milliseconds are for each predicted step.
    """
    rows, longest = [], [entry for entry in contest.entries() if entry.steps == contest.steps]
    for arm in contest.arms:
        own = [contest.results[one.run] for one in longest if one.arm == arm and one.run in contest.results]
        row: dict[str, Any] = {"arm": arm}
        for phase in ("warmup", "full", "predict", "correct"):
            seconds = float(np.mean([r["phase_seconds"].get(phase, 0.0) for r in own]))
            steps = float(np.mean([r["phases"].get(phase, 0) for r in own]))
            row |= {f"{phase}, %": 100 * seconds / float(np.mean([r["seconds"] for r in own]))}
            row |= {f"{phase}, ms": 1e3 * seconds / steps if steps else np.nan}
        rows.append(row)
    return pd.DataFrame(rows)


def accuracy_table(contest: Contest) -> pd.DataFrame:
    """Return the share of held-out digits each arm recognises at its longest budget, mean and extremes of seeds."""
    longest = [one for one in contest.entries() if one.steps == contest.steps and one.run in contest.results]
    rows = [{"arm": one.arm, "accuracy, %": 100 * contest.results[one.run]["accuracy"]} for one in longest]
    return pd.DataFrame(rows).groupby("arm", sort=False)["accuracy, %"].agg(["mean", "min", "max"]).reset_index()


def oracle_table(oracles: Mapping[int, dict[str, Any]]) -> pd.DataFrame:
    """Return one row a point: jumps and what they are worth at the end of the schedule, means over seeds.

    *delivered* is the share of the skipped steps' progress that the jump put in their place: the ratio of the mean
    differences, with the least and the greatest of the single seeds.
    """
    rows = []
    for points in zip(*(found["points"] for found in oracles.values()), strict=True):
        finals = np.array([found["final"] for found in oracles.values()])
        jumped, left_out = (np.array([point[name] for point in points]) for name in ("jumped", "left_out"))
        single = (left_out - jumped) / (left_out - finals)
        rows.append(
            {
                "step": points[0]["step"],
                "best jump, steps": float(np.mean([point["best"] for point in points])),
                "gain of it at once": float(np.mean([p["here"] - p["losses"][str(p["best"])] for p in points])),
                "judged jump, steps": float(np.mean([point["judged"] for point in points])),
                "final, nothing skipped": float(finals.mean()),
                "final, jumped": float(jumped.mean()),
                "final, left out": float(left_out.mean()),
                "delivered, %": 100 * float((left_out - jumped).mean() / (left_out - finals).mean()),
                "least, %": 100 * float(single.min()),
                "greatest, %": 100 * float(single.max()),
            }
        )
    return pd.DataFrame(rows)


def oracle_losses(oracles: Mapping[int, dict[str, Any]]) -> pd.DataFrame:
    """Return the held-out loss after jumps of every length: seed, step, length, loss less that before the jump."""
    rows = [
        {"seed": seed, "step": point["step"], "length": int(n), "change": loss - point["here"]}
        for seed, found in oracles.items()
        for point in found["points"]
        for n, loss in point["losses"].items()
    ]
    return pd.DataFrame(rows)


def memory_points(study: Study) -> pd.DataFrame:
    """Return memory above its start against predicted steps, ours and with the leak made on purpose."""
    rows = []
    for name in ("ours", "leak") if study.growth else ():
        own = study.growth[name]
        rows += [
            {"run": name, "step": step, "mib": (held - own["bytes"][0]) / MIB}
            for step, held in zip(own["steps"], own["bytes"], strict=True)
        ]
    return pd.DataFrame(rows)


def timeline(contest: Contest, arm: str) -> pd.DataFrame:
    """Return the decisions of one run of an arm, first seed and longest budget: step, horizon, probe, remark."""
    own = [run for run in contest.results if run.arm == contest.runs_as(arm) and run.seed in contest.seeds]
    if not own:
        return pd.DataFrame()
    longest = max(own, key=lambda run: (run.steps, -run.seed))
    return pd.DataFrame(contest.results[longest]["jumps"])


def verdict_sentence(judgements: Sequence[Judgement], arm: str) -> str:
    """Say in one sentence what an arm has shown."""
    own = next((found for found in judgements if found.arm == arm), None)
    if own is None:
        return f"{arm} was not run."
    said = "; ".join(own.claims) or "nothing"
    return (
        f"{arm}: {own.reach} times the baseline's speed at equal final loss over {own.n_seeds} seeds, loss at equal "
        f"time {100 * own.loss_change:+.2f} %. What may be said: {said}."
    )


def baseline_sentence(runs: pd.DataFrame) -> str:
    """Say what the baseline reached, and what a shorter schedule of it costs."""
    line = frontier(runs, BASELINE)
    if len(line) < 2:
        return "The baseline ran at one budget."
    shorter, longest = line.iloc[-2], line.iloc[-1]
    loss = 100 * (shorter["loss"] / longest["loss"] - 1)
    return (
        f"The baseline ends at {longest['loss']:.3f} nats in {longest['seconds']:.1f} s; a schedule of "
        f"{shorter['seconds'] / longest['seconds']:.2f} times that time changes the loss by {loss:+.2f} %, with no "
        f"prediction at all."
    )
