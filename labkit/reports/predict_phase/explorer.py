"""Report 003: which steps the four phases make, what skipping could give at most, and what an arm gave."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.phases import Phase, PhaseMachine
from labkit.reports.predict_phase.plots import ratio_axis
from labkit.reports.predict_phase.speed import BASELINE, frontier
from labkit.workflow.figures import style
from labkit.workflow.panel import Answer, Explorer, axes, published

TOTAL = 150
"""Steps of the schedule that is drawn."""
_COLOURS = {Phase.WARMUP: "#bbbbbb", Phase.FULL: "#0173b2", Phase.PREDICT: "#de8f05", Phase.CORRECT: "#029e73"}


def phases(hardware: str | None = None, folder: Path | None = None) -> Explorer:
    """Explore the phases of a schedule, and the time to a loss of a predictor that was measured.

    Args:
        hardware: profile whose published runs are shown; the largest published one where not given.
        folder: a notebook's own outputs, to be explored instead of published ones.
    """
    hardware, file = published("predict_phase", "runs.csv", hardware, folder)
    runs = pd.read_csv(file)
    judged = pd.read_csv(file.with_name("judgements.csv"), keep_default_na=False).set_index("arm")
    speeds, lines = judged["speed at equal loss"], {arm: frontier(runs, arm) for arm in dict.fromkeys(runs["arm"])}
    arms = [arm for arm in lines if arm in speeds]
    lately = {"continuous_update": False}
    controls = {
        "arm": widgets.Dropdown(options=arms, description="way to train"),
        "full": widgets.IntSlider(value=16, min=2, max=40, description="Full, real steps", **lately),
        "horizon": widgets.IntSlider(value=8, min=1, max=40, description="Predict, steps at most", **lately),
        "gate": widgets.ToggleButtons(options=["always", "never"], description="the gate believes"),
    }

    def answer(arm: str, full: int, horizon: int, gate: str) -> Answer:
        spans = timeline(full, horizon, gate == "always")
        figure, bottom = axes(height=4.8)
        bottom.set_position((0.12, 0.12, 0.85, 0.58))
        top = figure.add_axes((0.12, 0.86, 0.85, 0.11))
        for phase, start, steps in spans:
            top.barh(0, steps, left=start, color=_COLOURS[phase], edgecolor="white")
        top.set(
            yticks=[], xlim=(0, TOTAL), xlabel="nominal step: grey Warmup, blue Full, orange Predict, green Correct"
        )
        looks = style([BASELINE, arm])
        for name in (BASELINE, arm):
            line = lines[name]
            bottom.plot(line["seconds"], line["loss"], label=name, **looks[name])
        bottom.set(xlabel="seconds of training", ylabel="held-out loss, nats")
        ratio_axis(bottom, pd.concat([lines[name]["seconds"] for name in (BASELINE, arm)]))
        bottom.legend(loc="upper right")
        predicted = sum(steps for phase, _, steps in spans if phase is Phase.PREDICT)
        text = (
            f"{predicted} of {TOTAL} steps are predicted: at no cost and with no loss of progress at most "
            f"{TOTAL / (TOTAL - predicted):.2f} times the speed.\n"
            f"{arm} on {hardware}: {speeds[arm]} times the speed of tuned AdamW at an equal final loss."
        )
        return Answer(text=text, figure=figure)

    return Explorer("Which steps are skipped, and what was it worth?", controls, answer)


def timeline(full: int, horizon: int, believed: bool) -> list[tuple[Phase, int, int]]:
    """Return phase, first step and steps of every phase of a schedule whose every jump is believed, or none."""
    config = HybridConfig(warmup_steps=TOTAL // 10, full_steps=full, predict_steps=horizon, max_gain=horizon / full)
    machine, spans = PhaseMachine(config, TOTAL), []
    while not machine.over:
        phase, start = machine.phase, machine.nominal
        while machine.left and not machine.over:
            machine.count_real()
        spans.append((phase, start, machine.nominal - start))
        jump = machine.horizon(full) if believed and machine.may_predict and not machine.over else 0
        if jump:
            spans.append((Phase.PREDICT, machine.nominal, jump))
            machine.predict(jump)
        elif not machine.over:
            machine.end_phase()
    return spans
