"""Numbers of report 003 for the ledger, from what a run measured, and what a profile cannot measure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats as scipy_stats

from labkit import stats
from labkit.base.units import GIB
from labkit.hybrid.config import REPORT, HybridConfig
from labkit.hybrid.phases import Phase, PhaseMachine
from labkit.reports.predict_phase import original
from labkit.reports.predict_phase.protocol import Judgement
from labkit.reports.predict_phase.study import Study
from labkit.workflow.measured import Number, number

HYBRID = "block-trend"
"""Arm that stands for the report's hybrid trainer: the same state machine, with a predictor that changes weights."""
TUNED_HYBRID = "block-trend-tuned"
"""The same with a gate that is tuned until jumps are kept; it stands for the trainer where it ran."""
SHAPES = {"gpt2": (768, 12), "gpt2_medium": (1024, 24)}
"""Width and layers of the report's models."""
VOCABULARY, POSITIONS = 50_257, 1_024
"""Rows of their two embeddings."""

ORIGINAL = {
    "full_over_forward": "",
    "time_ratio/original": "",
    "equal_loss_speed/original": "",
    "time_ratio/memory_optimized": "",
    "equal_loss_speed/memory_optimized": "",
    "loss_gap_percent/original": "percent",
}
"""Numbers of the report's own protocol, with their units."""


def results(study: Study, judgements: Sequence[Judgement]) -> dict[str, Number]:
    """Return every number a run has for the ledger, by key."""
    return property_results() | original_results(study) | growth_results(study) | comparison_results(judgements)


def property_results() -> dict[str, Number]:
    """Count what is exact: phases of the report's configuration, parameters of its models."""
    steps = report_phases(50)
    out = {f"phases/{phase}": number(n, "steps") for phase, n in steps.items()}
    out |= {f"phase_percent/{phase}": number(100 * n / 50, "percent") for phase, n in steps.items()}
    return out | {f"parameters/{name}": number(n_parameters(name), "parameters") for name in SHAPES}


def report_phases(total: int) -> dict[str, int]:
    """Return the steps of each phase under the report's configuration when every prediction is believed."""
    config = HybridConfig(**REPORT)
    machine, counts = PhaseMachine(config, total), dict.fromkeys(map(str, Phase), 0)
    while not machine.over:
        counts[str(machine.phase)] += 1
        machine.count_real()
        if machine.left:
            continue
        if not machine.may_predict:
            machine.end_phase()
            continue
        steps = machine.horizon(config.full_steps)
        counts[str(Phase.PREDICT)] += steps
        machine.predict(steps)
    return counts


def n_parameters(name: str) -> int:
    """Count the parameters of one of SHAPES: embeddings, layers of four matrices with biases and two norms, a norm."""
    width, n_layers = SHAPES[name]
    return (VOCABULARY + POSITIONS) * width + n_layers * (12 * width**2 + 13 * width) + 2 * width


def original_results(study: Study) -> dict[str, Number]:
    """Return the ratios of the report's own protocol with the initialisation that it had; only its own model counts.

    Over seeds: Student's interval of the logarithms of ratios, and of the gap itself.
    """
    if study.params.original_task != "gpt2" or "published" not in study.originals:
        return {}
    runs = study.originals["published"]
    summaries = [original.summary(run) for run in runs]
    seconds = sum(map(_seconds, runs))
    void = _read_off_noise(study)
    return {
        key: _over_seeds([one[key] for one in summaries], unit, seconds)
        for key, unit in ORIGINAL.items()
        if key not in void
    }


def _read_off_noise(study: Study) -> dict[str, Any]:
    """Say what the protocol cannot tell because a baseline learned nothing: all that is read off its curve."""
    if all(map(original.learned, study.originals.get("published", []))):
        return {}
    needs = {"why": f"void: a baseline lost less than {100 * original.LEARNED:g} % of its first loss"}
    return {key: needs for key in ORIGINAL if key.startswith(("equal_loss", "loss_gap"))}


def _over_seeds(values: Sequence[float], unit: str, seconds: float) -> Number:
    if len(values) == 1:
        return number(values[0], unit, note="one seed")
    own = stats.mean_ci(values) if unit else stats.ratio_ci(values, [1.0] * len(values))
    told = {"n_seeds": len(values), "seconds": seconds, "note": f"{len(values)} seeds"}
    return number(own.estimate, unit, [own.low, own.high], **told)


def _seconds(run: dict[str, Any]) -> float:
    """Return the seconds that the arms of a run of the protocol took; they run one after the other."""
    return sum(sum(run[name]["seconds"]) for name in original.ARMS)


def growth_results(study: Study) -> dict[str, Number]:
    """Return the memory that a predicted step adds over that of a forward pass whose graph is kept, by their slopes.

    Student's interval, from how far the readings of our trainer lie off a line.
    """
    if study.growth is None:
        return {}
    ours, leak = (
        scipy_stats.linregress(one["steps"], one["bytes"]) for one in (study.growth[n] for n in ("ours", "leak"))
    )
    n_readings = len(study.growth["ours"]["steps"])
    width = scipy_stats.t.ppf(0.975, n_readings - 2) * ours.stderr
    ends = [(ours.slope + sign * width) / leak.slope for sign in (-1, 1)]
    note = f"slopes of {n_readings} readings of a process's memory"
    return {"memory_growth/prediction_over_graph": number(ours.slope / leak.slope, "", ends, note=note)}


def comparison_results(judgements: Sequence[Judgement]) -> dict[str, Number]:
    """Return the hybrid's speed at equal loss on real text; nothing where its budgets hold only a bound, or void."""
    own = hybrid_of(judgements)
    if own is None or own.reach.bound or own.void:
        return {}
    interval = own.reach.interval
    ends = None if interval is None else [interval.low, interval.high]
    note = f"{own.n_seeds} paired seeds"
    told = {"n_seeds": own.n_seeds, "acted": own.acted, "note": note}
    return {"equal_loss_speed/hybrid": number(own.reach.ratio, "", ends, **told)}


def hybrid_of(judgements: Sequence[Judgement]) -> Judgement | None:
    """Return what was found of the arm that stands for the report's trainer; None where none ran."""
    found = {own.arm: own for own in judgements}
    return found.get(TUNED_HYBRID) or found.get(HYBRID)


def hybrid_arm(judgements: Sequence[Judgement]) -> str:
    """Return the name of the arm that stands for the report's trainer."""
    own = hybrid_of(judgements)
    return own.arm if own else HYBRID


def out_of_reach(study: Study, judgements: Sequence[Judgement] = ()) -> dict[str, Any]:
    """Name what this profile cannot measure, and what it would take, by its own rate of training; what is void, too."""
    own = hybrid_of(judgements)
    void = {"equal_loss_speed/hybrid": {"why": f"void: {'; '.join(own.void)}"}} if own and own.void else {}
    return _of_the_original(study) | void


def _of_the_original(study: Study) -> dict[str, Any]:
    if study.params.original_task == "gpt2":
        return _read_off_noise(study)
    why = f"the report's protocol ran on {study.params.original_task} here, not on GPT-2 small"
    needs: dict[str, Any] = {"why": why, "gib": 16 * n_parameters("gpt2") / GIB}
    needs |= {"seconds": _seconds_on_gpt2(study)} if study.originals else {}
    return dict.fromkeys(ORIGINAL, needs)


def _seconds_on_gpt2(study: Study) -> float:
    """Scale by parameters the seconds of the small model's protocol: what decides, and once the other initialisation.

    The steps are timed, so the arms and seeds run one after the other.
    """
    seconds = 0.0
    for name, runs in study.originals.items():
        n_seeds = max(len(runs), original.LEAST_SEEDS) if name == "published" else 1
        scale = n_parameters("gpt2") / runs[0]["parameters"]
        seconds += n_seeds * scale * statistics.fmean(map(_seconds, runs))
    return seconds
