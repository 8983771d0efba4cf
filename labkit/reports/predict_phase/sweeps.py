"""Tables of report 003's recommended next steps: one setting at a time, and jumps against the noise of the gradient."""

from __future__ import annotations

import numpy as np
import pandas as pd

from labkit.base.units import MIB
from labkit.reports.predict_phase import speed
from labkit.reports.predict_phase.arms import ARMS, SETTINGS
from labkit.reports.predict_phase.study import Study


def settings_table(study: Study) -> pd.DataFrame:
    """Return one row a setting, all of as many nominal steps and at the baseline's rate unless the rate is what varies.

    Means over seeds: steps predicted and kept, loss and time against the baseline with as many nominal steps, speed at
    an equal final loss by the baseline's shorter schedules, and the memory that training adds at its peak.
    """
    if study.settings is None:
        return pd.DataFrame()
    own = study.settings.comparison()
    base = study.scratch.comparison(own_time=True)
    runs = pd.concat([base[(base["arm"] == "adamw") & base["seed"].isin(own["seed"])], own[own["arm"] != "adamw"]])
    longest = base[(base["arm"] == "adamw") & (base["steps"] == base["steps"].max())].set_index("seed")
    rows = []
    for family, arm in [("", "adamw"), *((name, arm) for name in study.params.settings for arm in SETTINGS[name])]:
        part = own[own["arm"] == arm].set_index("seed")
        part = part.loc[part.index.intersection(longest.index)]
        beside = longest.loc[part.index]
        rows.append(
            {
                "varied": family,
                "setting": arm,
                "what it is": ARMS[arm].words,
                "predicted steps": part["predicted_steps"].mean(),
                "loss, %": 100 * float((part["loss"] / beside["loss"] - 1).mean()),
                "time": float((part["seconds"] / beside["seconds"]).mean()),
                "speed at equal loss": str(speed.reach(runs, arm)),
                "memory added, MiB": part["added_bytes"].mean() / MIB,
            }
        )
    return pd.DataFrame(rows)


def noise_table(study: Study) -> pd.DataFrame:
    """Return one row a batch size and arm: the batch against the noise scale, and the speed at an equal final loss.

    The noise scale is the mean over the points of the schedule where the signal could be told from the noise.
    """
    rows = []
    for size, contest in study.by_batch.items():
        scales = [p["scale"] for p in study.noises.get(size, {"points": []})["points"] if p["scale"] is not None]
        scale, runs = float(np.mean(scales)) if scales else np.nan, contest.comparison()
        for arm in contest.arms[1:]:
            found = speed.reach(runs, arm)
            rows.append(
                {
                    "windows a step": size,
                    "noise scale, windows": scale,
                    "batch over noise scale": size / scale,
                    "arm": arm,
                    "speed": found.ratio,
                    "low": found.interval.low if found.interval else np.nan,
                    "high": found.interval.high if found.interval else np.nan,
                    "bound": found.bound,
                }
            )
    names = ("windows a step", "noise scale, windows", "batch over noise scale", "arm", "speed", "low", "high", "bound")
    return pd.DataFrame(rows, columns=list(names))
