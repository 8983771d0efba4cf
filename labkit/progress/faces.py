"""Three faces of progress: a widget in JupyterLab, a bar in a terminal, plain lines where output is a file.

A bar that redraws itself floods a log, and a log in a notebook pushes the figures away: each reader gets the one that
suits the place. All three say the same words.
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

HEADLESS = "LABKIT_HEADLESS"
"""Environment variable that asks for plain lines, also in a terminal or a notebook."""


class Face(Protocol):
    """Where progress is shown: a total, what is done of it, and a line of words."""

    def start(self, done: int, total: int, words: str) -> None: ...
    def update(self, done: int, total: int, words: str) -> None: ...
    def stop(self, done: int, total: int, words: str) -> None: ...


def choose(stream: TextIO, every_seconds: float, clock: Callable[[], float]) -> Face:
    """Return the face for where this process shows things.

    Args:
        stream: where a bar or lines go; only what goes to the process's own stderr may become a widget.
        every_seconds: least time between two plain lines.
        clock: seconds from any fixed start.
    """
    if os.environ.get(HEADLESS) != "1":
        if stream is sys.stderr and in_notebook():
            return Widget()
        if stream.isatty():
            return Bar(stream)
    return Lines(stream, every_seconds, clock)


def in_notebook() -> bool:
    """Say whether this process is a kernel that can show widgets."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return shell is not None and hasattr(shell, "kernel")


class Lines:
    """Plain lines: the first, the last, and between them at most one per period."""

    def __init__(self, stream: TextIO, every_seconds: float, clock: Callable[[], float]) -> None:
        self._stream, self._every_seconds, self._clock = stream, every_seconds, clock
        self._printed = clock()

    def start(self, done: int, total: int, words: str) -> None:
        self._print(words)

    def update(self, done: int, total: int, words: str) -> None:
        if self._clock() - self._printed >= self._every_seconds:
            self._print(words)

    def stop(self, done: int, total: int, words: str) -> None:
        self._print(words)

    def _print(self, words: str) -> None:
        self._printed = self._clock()
        print(words, file=self._stream, flush=True)


class Bar:
    """A bar that redraws itself in a terminal."""

    def __init__(self, stream: TextIO) -> None:
        text = TextColumn("{task.description}", markup=False)
        self._bar = RichProgress(BarColumn(bar_width=24), text, console=Console(file=stream))

    def start(self, done: int, total: int, words: str) -> None:
        self._bar.start()
        self._row = self._bar.add_task(words, total=total, completed=done)

    def update(self, done: int, total: int, words: str) -> None:
        self._bar.update(self._row, completed=done, total=total, description=words)

    def stop(self, done: int, total: int, words: str) -> None:
        self.update(done, total, words)
        self._bar.stop()


class Widget:
    """A bar with its words below a notebook's cell; a page without a kernel shows the words it began with."""

    def __init__(self) -> None:
        import ipywidgets

        # Some front ends send the value of a slider back to the kernel; a progress bar only listens.
        self._bar = ipywidgets.IntProgress(min=0, layout={"width": "12em"})
        self._words = ipywidgets.HTML()
        self._box = ipywidgets.HBox([self._bar, self._words])

    def start(self, done: int, total: int, words: str) -> None:
        from IPython.display import display

        self.update(done, total, words)
        view = self._box._repr_mimebundle_()
        display(view | {"text/plain": words}, raw=True)

    def update(self, done: int, total: int, words: str) -> None:
        # A total of zero would draw an endless animation.
        self._bar.max, self._bar.value = max(total, 1), done if total else 1
        self._words.value = html.escape(words)

    def stop(self, done: int, total: int, words: str) -> None:
        self.update(done, total, words)
        self._bar.bar_style = "success" if done >= total else "warning"
