"""Controls beside an answer: a widget where a kernel runs, a picture with its words where none does, text elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from labkit.base import paths

_DPI = 90
_PROFILES = ("cpu-24gb", "cpu", "ci")
"""Profiles whose records are shown unless one is named, the first published one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an explorer says to one choice of its controls."""

    text: str
    """In words: all that can be read off the picture, for whoever does not see it."""
    figure: Figure | None = None
    """As a picture."""
    table: str = ""
    """As a table, in HTML."""


class Explorer:
    """A panel: labelled controls, and an answer that follows them."""

    def __init__(self, title: str, controls: Mapping[str, widgets.Widget], answer: Callable[..., Answer]) -> None:
        """Show the answer to the controls' first values.

        Args:
            title: what is explored, as a question.
            controls: widgets with a description, by the argument of `answer` they set.
            answer: turns the controls' values into an answer.
        """
        self.title, self.controls, self._answer = title, dict(controls), answer
        self._shown = widgets.HTML()
        for control in self.controls.values():
            control.style.description_width = "initial"
            control.observe(self._show, names="value")
        heading = widgets.HTML(f"<b>{html.escape(title)}</b>")
        self.widget = widgets.VBox([heading, widgets.VBox(list(self.controls.values())), self._shown])
        self._show()

    @property
    def answer(self) -> Answer:
        """The answer to the present values."""
        return self._answer(**{name: control.value for name, control in self.controls.items()})

    @property
    def shown(self) -> str:
        """What the panel shows below its controls, as HTML."""
        return self._shown.value

    def _show(self, change: Any = None) -> None:
        self._shown.value = to_html(self.answer)

    def __str__(self) -> str:
        return f"{self.title}\n{self.answer.text}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Offer the widget first; a page without a kernel shows the picture, a terminal the text."""
        own = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        static = f"<b>{html.escape(self.title)}</b>{self.shown}"
        return {**(own or {}), "text/html": static, "text/plain": str(self)}


def to_html(answer: Answer) -> str:
    """Write an answer as HTML; the words are the picture's alternative and stand below it."""
    words = html.escape(answer.text)
    picture = f'<img alt="{words}" src="data:image/png;base64,{_png(answer.figure)}">' if answer.figure else ""
    return f'{picture}{answer.table}<p style="white-space: pre-line">{words}</p>'


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return base64.b64encode(buffer.getvalue()).decode()


def axes(width: float = 7.0, height: float = 3.8) -> tuple[Figure, Any]:
    """Return a figure that no pyplot keeps, with axes in fixed margins: to find good ones takes a second drawing."""
    figure = Figure(figsize=(width, height), layout="none")
    return figure, figure.add_axes((0.12, 0.15, 0.85, 0.82))


def published(report: str, file: str, hardware: str | None = None, folder: Path | None = None) -> tuple[str, Path]:
    """Return the profile whose file is explored, and the file: from LABKIT_OUTPUT, else from the repository.

    Args:
        report: which report.
        file: its name among the report's outputs.
        hardware: which profile; the largest published one where not given.
        folder: where a notebook has just written it; then nothing published is looked at.

    Raises:
        FileNotFoundError: no profile has published it; the message has the command that does.
    """
    if folder is not None:
        return hardware or "this run", folder / file
    asked = [hardware] if hardware else _PROFILES
    for name in asked:
        for root in filter(None, (paths.output_root(), paths.repository())):
            folder = paths.figures_of(root, name, report)
            if (folder / file).exists():
                return name, folder / file
    raise FileNotFoundError(
        f"no {file} of {report} is published for {' or '.join(asked)}; run `labkit run {report} --hw {asked[-1]}`"
    )
