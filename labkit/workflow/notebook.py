"""The executed notebook as it is published: outputs that a page shows without a kernel, and nothing of one machine.

Times, widget state, progress lines and places of this machine go; a figure becomes a plain image, which pages of code
hosts show, with its caption below it. The same run gives the same bytes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from labkit.base.files import write_atomically

NAME = "notebook.ipynb"
ANSWER = "answer"
"""Id of the cell below a notebook's question, into which a run writes what came out."""
MOST_BYTES = 1_500_000
"""Largest published notebook; code hosts refuse to draw larger ones."""
_KEPT_METADATA = ("kernelspec",)
_SHOWN = ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/latex", "text/plain")
_FIGURE = re.compile(
    r'<figure><img alt="(?P<alt>[^"]*)"[^>]* src="data:image/png;base64,(?P<png>[^"]*)">'
    r"<figcaption>(?P<caption>.*?)</figcaption></figure>",
    re.DOTALL,
)
# What pandas' Styler adds to a table: random names, and classes of a style sheet that pages of code hosts leave out.
_STYLER = re.compile(
    r'<style type="text/css">\s*</style>\s*| id="T_\w+"| class="(?:data|col_heading|row_heading|index_name|blank)[^"]*"'
)
_INJECTED = "injected-parameters"


def lead_with(executed: Path, answer: Callable[[], str]) -> None:
    """Write an answer below the question of an executed notebook, so that its page opens with what came out.

    A notebook without a cell for it stays as it is, and nothing is asked.

    Args:
        executed: the notebook that papermill wrote.
        answer: makes the answer, as Markdown.
    """
    document = nbformat.read(executed, as_version=4)
    places = [cell for cell in document.cells if cell.id == ANSWER]
    for cell in places:
        cell.source = answer()
    if places:
        write_atomically(executed, nbformat.writes(document).encode())


def published(executed: Path, places: Iterable[tuple[Path, str]]) -> bytes:
    """Return an executed notebook as it is published.

    Args:
        executed: the notebook that papermill wrote.
        places: folders of this machine, each with what stands in the text instead.

    Raises:
        ValueError: it is larger than MOST_BYTES.
    """
    document = nbformat.read(executed, as_version=4)
    document.metadata = NotebookNode({k: document.metadata[k] for k in _KEPT_METADATA if k in document.metadata})
    for cell in document.cells:
        tags = cell.metadata.get("tags", [])
        cell.id = _INJECTED if _INJECTED in tags else cell.id  # papermill draws it
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in _outputs(output)]
    text = nbformat.writes(document)
    for place, name in sorted(places, key=lambda pair: -len(str(pair[0]))):
        text = text.replace(str(place), name)
    content = (text.rstrip("\n") + "\n").encode()
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{NAME} of {executed} has {len(content):,} bytes; at most {MOST_BYTES:,} are shown by code hosts"
        )
    return content


def _outputs(output: NotebookNode) -> list[NotebookNode]:
    """Return what is kept of an output: nothing of progress lines, an image and its caption of a figure."""
    if output.output_type == "stream":
        return [output] if output.name == "stdout" else []
    if "data" not in output:
        return [output]
    figure = _FIGURE.fullmatch(_text(output.data.get("text/html", "")))
    if figure:
        words = html.unescape(figure["caption"]), html.unescape(figure["alt"])
        image = {"image/png": figure["png"], "text/plain": words[1]}
        caption = {"text/markdown": f"*{words[0]}*", "text/plain": words[0]}
        return [nbformat.v4.new_output("display_data", data) for data in (image, caption)]
    output.data = NotebookNode({kind: _plain(kind, value) for kind, value in output.data.items() if kind in _SHOWN})
    output.metadata = NotebookNode()
    return [output] if output.data else []


def _plain(kind: str, value: Any) -> Any:
    """Leave out what differs from run to run: names that pandas draws, places in memory."""
    if kind.startswith("text/"):
        return re.sub(r" at 0x[0-9a-f]+", "", _STYLER.sub("", _text(value)))
    return value


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)
