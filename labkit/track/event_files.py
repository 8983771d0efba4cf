"""TensorBoard's event files as a tracker, one folder for each run: `tensorboard --logdir runs/tensorboard`.

The records are TensorBoard's own; the files are written here, because its writer puts the host's name into theirs.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from labkit.track.published import numbers, pictures
from labkit.track.trackers import Step


class EventFiles:
    """Runs of one report on one profile in a log folder."""

    def __init__(self, folder: Path, report: str, hardware: str) -> None:
        """Take the folder; a run's own is made when it begins.

        Args:
            folder: what TensorBoard is started on.
            report: first part of a run's folder name.
            hardware: second part of it.
        """
        self._folder, self._title = folder, f"{report} {hardware}"
        self._files: dict[str, _EventFile] = {}

    def begin(self, run: str, about: Mapping[str, Any]) -> None:
        """Open a folder of its own for a run; its settings are a text."""
        if run in self._files:
            self._files[run].close()
        folder = _fresh(self._folder, re.sub(r"[^\w .,=+()-]", "_", f"{self._title} {run}"))
        self._files[run] = _EventFile(folder)
        listing = "    " + json.dumps(dict(about), indent=1, default=str).replace("\n", "\n    ")
        self._files[run].write(text("about", listing), 0, time.time())

    def step(self, line: Step) -> None:
        """Write each number; a word such as the phase is a part of its tag."""
        ending = "".join(f"/{word}" for word in line.words.values())
        tagged = {f"{name}{ending}": value for name, value in line.numbers.items()}
        tagged |= {f"grad_norm/{adapter}": norm for adapter, norm in line.adapters.items()}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tagged.items()]
        self._files[line.run].write(Summary(value=values), line.step, line.time)

    def figures(self, folder: Path) -> None:
        """Put pictures and numbers into a run of their own."""
        found = numbers(folder)
        self.begin("results", found)
        values = [Summary.Value(tag=key, simple_value=value) for key, value in found.items()]
        values += [Summary.Value(tag=name, image=_encoded(image)) for name, image, _ in pictures(folder)]
        self._files["results"].write(Summary(value=values), 0, time.time())
        for name, _, caption in pictures(folder):
            self._files["results"].write(text(f"{name} caption", caption), 0, time.time())

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class _EventFile:
    """A file of TensorBoard's records; each is on the disk before the next."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._file = (folder / f"events.out.tfevents.{int(time.time())}.labkit").open("wb", buffering=0)
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, summary: Summary, step: int, when: float) -> None:
        self._records.write(Event(wall_time=when, step=step, summary=summary).SerializeToString())

    def close(self) -> None:
        self._file.close()


def _fresh(parent: Path, name: str) -> Path:
    """Return a folder that is not there yet: a rerun has one of its own."""
    names = itertools.chain([name], (f"{name} {n}" for n in itertools.count(2)))
    return next(parent / each for each in names if not (parent / each).exists())


def _encoded(image: Image.Image) -> Summary.Image:
    held = io.BytesIO()
    image.save(held, format="png")
    return Summary.Image(
        height=image.height, width=image.width, colorspace=len(image.getbands()), encoded_image_string=held.getvalue()
    )
