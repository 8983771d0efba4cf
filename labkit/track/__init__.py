"""Runs followed by a tracker: `labkit run REPORT --track aim`, or in a notebook or script of your own

    with labkit.track.follow("aim", "my report", "my machine"):
        ...

What measures writes lines to a file (`labkit.metrics`); an idle process reads them and talks to the tracker.
"""

from __future__ import annotations

from labkit.track.following import Following, choose, follow
from labkit.track.trackers import Tracker

__all__ = ["Following", "Tracker", "choose", "follow"]
