"""Judge what is published for a profile, against versions, data and parameters as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.base import paths
from labkit.base.files import write_atomically
from labkit.ledger import claims
from labkit.ledger.audit import report_of
from labkit.workflow import evidence, params
from labkit.workflow.cells import Cells
from labkit.workflow.record import dump_json, write_results
from labkit.workflow.schema import Params


def conclude(
    folder: Path, resolved: Params, cells: Cells, measured: Mapping[str, Any], out_of_reach: Mapping[str, Any]
) -> pd.DataFrame:
    """Write what a run measured, the cells that it stands on and the verdicts, and return those.

    Args:
        folder: what the run publishes.
        resolved: its parameters.
        cells: the cells that the numbers were made from.
        measured: numbers by key.
        out_of_reach: what a number that was not measured would take.

    Raises:
        DiskFull: no room.
        ValueError: a number is not finite.
    """
    write_results(folder, resolved, cells, measured, out_of_reach)
    judged = claims.judge(folder)
    write_atomically(folder / "claims.json", dump_json(judged.to_dict("records")))
    return judged


def judge_profile(hardware: str, report: str | None = None) -> pd.DataFrame:
    """Judge what is published for a profile; see `labkit.ledger.claims.judge`."""
    folder = paths.output_root() / "figures" / hardware
    files = {name: folder / name / "results.json" for name in map(report_of, claims.ledgers(report))}
    stale = {
        name: why_stale(name, hardware, claims.read_results(file)) for name, file in files.items() if file.exists()
    }
    return claims.judge(folder, report=report, stale=stale)


def rejudge(report: str, hardware: str) -> Path | None:
    """Write claims.json of a folder that was recorded before cells were kept anew, by ledger and rule as they are now.

    What is committed is judged where nothing was published yet at the place for outputs, as cells are taken from there.

    Returns:
        the folder that holds claims.json now; None if there is no such record, and nothing was written.

    Raises:
        ValueError: the ledger or the results.json is invalid.
        DiskFull: no room; the file that was there is as it was.
    """
    final = paths.figures(hardware, report)
    for folder in (final, *(paths.figures_of(root, hardware, report) for root in [paths.repository()] if root)):
        if (folder / "results.json").exists():
            if claims.read_results(folder / "results.json").evidence is not None:
                return None
            write_atomically(final / "claims.json", dump_json(claims.judge(folder).to_dict("records")))
            return final
    return None


def why_stale(report: str, hardware: str, results: claims.Results) -> list[str]:
    """Say why published results no longer stand.

    What was recorded before cells were kept stands until a better run replaces it, also where its profile asks for a
    larger scope by now; a change of what is measured (the science parameters) ends it all the same.
    """
    resolved = params.resolve(report, hardware)
    made_with = results.params or (results.provenance or {}).get("params", {})
    if results.evidence is None:
        return evidence.other_science(made_with, resolved)
    return evidence.why_stale(results.evidence, made_with, resolved)
