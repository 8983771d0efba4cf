"""An AIM repository as a tracker: one AIM run for each run, looked at with `make aim`.

AIM would record the environment, installed packages, git state, terminal output and the use of the machine; all of that
is switched off. This release of AIM sends nothing anywhere.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aim
from aim.sdk.repo import Repo

from labkit.track.published import numbers, pictures
from labkit.track.trackers import Step

MOST_OPEN = 8
"""Runs that are kept open at once: each holds files and a thread, and a grid has hundreds."""


class AimBoard:
    """Runs of one report on one profile in a repository."""

    def __init__(self, folder: Path, report: str, hardware: str) -> None:
        """Open a repository, or make one.

        Args:
            folder: the folder that holds `.aim`.
            report: experiment that the runs belong to.
            hardware: the profile.
        """
        # AIM warns of file systems whose locks it does not know, and then does the right thing.
        logging.getLogger("aim").setLevel(logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self._repo = Repo.from_path(str(folder), init=not Repo.exists(str(folder)))
        self._report, self._hardware = report, hardware
        self._hashes: dict[str, str] = {}
        self._open: OrderedDict[str, aim.Run] = OrderedDict()

    def begin(self, run: str, about: Mapping[str, Any]) -> None:
        """Open a run under "REPORT PROFILE: RUN" with its settings as parameters."""
        self._end(run)
        own = self._new_run()
        own.name = f"{self._report} {self._hardware}: {run}"
        own["profile"], own["about"] = self._hardware, dict(about)
        self._hashes[run] = own.hash
        self._keep_open(run, own)

    def step(self, line: Step) -> None:
        """Track each number; words such as the phase are the context by which the board tells curves apart."""
        own = self._run(line.run)
        for name, value in line.numbers.items():
            own.track(value, name=name, step=line.step, context=dict(line.words))
        for adapter, norm in line.adapters.items():
            own.track(norm, name="grad_norm", step=line.step, context={"adapter": adapter})

    def figures(self, folder: Path) -> None:
        """Put pictures and numbers into a run of their own."""
        self.begin("results", {})
        own = self._run("results")
        own["results"] = numbers(folder)
        for name, image, caption in pictures(folder):
            own.track(aim.Image(image, caption=caption), name=name, step=0)

    def close(self) -> None:
        """End all runs; the board shows them as finished."""
        for run in list(self._open):
            self._end(run)

    def _new_run(self, run_hash: str | None = None) -> aim.Run:
        return aim.Run(
            run_hash,
            repo=self._repo,
            experiment=self._report,
            log_system_params=False,
            system_tracking_interval=None,
            capture_terminal_logs=False,
        )

    def _run(self, run: str) -> aim.Run:
        if run not in self._open:
            self._keep_open(run, self._new_run(self._hashes[run]))
        self._open.move_to_end(run)
        return self._open[run]

    def _keep_open(self, run: str, own: aim.Run) -> None:
        self._open[run] = own
        if len(self._open) > MOST_OPEN:
            self._end(next(iter(self._open)))

    def _end(self, run: str) -> None:
        own = self._open.pop(run, None)
        if own is not None:
            own.report_successful_finish()
            own.close()
