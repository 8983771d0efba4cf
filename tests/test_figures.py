"""Checks labkit.workflow.figures against the files themselves, read by other programs.

PNG chunks are parsed byte by byte, the SVG by an XML parser, the twin by the csv module, and the alt text is
looked for in a page made by nbconvert from a notebook executed in a real kernel.

Run: pytest tests/test_figures.py
"""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from labkit.workflow import figures

ALT = 'Two lines: "a" <rises> & b falls as x grows from 1 to 3.'
CAPTION = "Lines a & b, α = 1 <sketch>."
PROVENANCE = {"report": "scaling_grid", "seeds": [0, 1], "note": "é\x01\n", "lr": 1e-05}
DATA = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 1 / 3, 2.0**0.5], "series": ["a", "b", "a, b"]})

DRAW_AND_SAVE = f"""
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from labkit.workflow import figures
figures.use_theme()
fig, axes = plt.subplots(1, 2)
axes[0].plot([1, 2, 3], [0.1, 0.2, 0.3], label="a", **figures.style(["a"])["a"])
axes[0].legend(loc="upper left")
fig.colorbar(axes[1].imshow(np.arange(4.0).reshape(2, 2)))
shown = figures.save(fig, "lines", data=pd.DataFrame({{"x": [1.5], "y": [1 / 3]}}), alt={ALT!r}, caption={CAPTION!r},
                     out_dir=Path(OUT), provenance={{"report": "scaling_grid"}})
"""


def save(out_dir: Path, fig: Figure | None = None, **changes: Any) -> figures.Figure:
    settings = {"data": DATA, "alt": ALT, "caption": CAPTION, "provenance": PROVENANCE} | changes
    return figures.save(fig or draw(), settings.pop("name", "lines"), out_dir=out_dir, **settings)


def draw() -> Figure:
    fig, axes = plt.subplots(1, 2, layout="constrained")
    axes[0].plot([1, 2, 3], [0.1, 1 / 3, 2.0**0.5], label="a")
    axes[0].legend()
    fig.colorbar(axes[1].imshow(np.arange(4.0).reshape(2, 2)))
    return fig


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def png_chunks(png: bytes) -> list[tuple[str, bytes]]:
    """Split a PNG into (type, data) as its specification says, without any imaging library."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8].decode("ascii"), png[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


class ImageFinder(HTMLParser):
    """Collect the attributes of every <img> and the text of every <figcaption>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.captions: list[str] = []
        self._open_tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open_tag = tag
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self._open_tag == "figcaption":
            self.captions.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open_tag = ""


def test_saving_the_same_figure_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    fig = draw()
    save(tmp_path / "first", fig)
    save(tmp_path / "second", fig)
    save(tmp_path / "redrawn")
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == contents(tmp_path / "redrawn")


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for i, hash_seed in enumerate(["1", "2"]):
        code = DRAW_AND_SAVE.replace("OUT", repr(str(tmp_path / str(i))))
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert set(contents(tmp_path / "0")) == {"lines.png", "lines.svg", "lines.csv"}


def test_twin_holds_what_was_plotted_with_seven_digits(tmp_path: Path) -> None:
    with save(tmp_path).csv.open(newline="") as twin:
        rows = [(int(row["x"]), row["y"], row["series"]) for row in csv.DictReader(twin)]
    assert rows == [(1, "0.1", "a"), (2, "0.3333333", "b"), (3, "1.414214", "a, b")]


def test_twin_keeps_a_named_index_and_drops_row_numbers(tmp_path: Path) -> None:
    indexed = save(tmp_path, data=DATA.set_index("series")).csv.read_text()
    filtered = save(tmp_path, data=DATA[DATA.x > 1]).csv.read_text()
    assert indexed.startswith("series,x,y\n")
    assert filtered.startswith("x,y,series\n2,")


def test_image_is_fine_enough_to_read(tmp_path: Path) -> None:
    header = png_chunks(save(tmp_path).png.read_bytes())[0]
    width, height = struct.unpack(">II", header[1][:8])
    assert header[0] == "IHDR"
    assert (width, height) >= (6.4 * 150, 4.8 * 150)


def test_png_carries_provenance_and_alt_text_in_its_chunks(tmp_path: Path) -> None:
    chunks = png_chunks(save(tmp_path).png.read_bytes())
    texts = dict(data.split(b"\0", 1) for kind, data in chunks if kind == "tEXt")
    assert json.loads(texts[b"labkit"]) == PROVENANCE
    assert texts[b"Description"].decode("latin-1") == ALT


def test_svg_carries_provenance_and_alt_text_as_xml(tmp_path: Path) -> None:
    root = ElementTree.parse(save(tmp_path).svg).getroot()
    names = {"svg": "http://www.w3.org/2000/svg", "dc": "http://purl.org/dc/elements/1.1/"}
    assert root.findtext("svg:title", namespaces=names) == ALT
    assert json.loads(root.findtext(".//dc:description", namespaces=names) or "") == PROVENANCE
    assert root.find(".//dc:date", names) is None


def test_provenance_is_read_back_from_a_renamed_copy(tmp_path: Path) -> None:
    saved = save(tmp_path)
    for path in (saved.png, saved.svg):
        copy = tmp_path / f"downloaded{path.suffix}"
        copy.write_bytes(path.read_bytes())
        assert figures.read_provenance(copy) == PROVENANCE


def test_files_without_provenance_are_refused_by_name(tmp_path: Path) -> None:
    for suffix in (".png", ".svg"):
        draw().savefig(tmp_path / f"plain{suffix}")
        (tmp_path / f"broken{suffix}").write_text("no image")
    (tmp_path / "lines.csv").write_text("x\n1\n")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            figures.read_provenance(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alt": ""}, "alt text"),
        ({"alt": "too short"}, "alt text"),
        ({"alt": " " * 40}, "alt text"),
        ({"caption": " "}, "caption is empty"),
        ({"data": DATA.iloc[:0]}, "data is empty"),
        ({"name": "../lines"}, "figure name"),
        ({"provenance": {"loss": float("nan")}}, "JSON"),
        ({"provenance": {"path": Path("x")}}, "JSON"),
    ],
)
def test_an_incomplete_figure_is_refused_and_leaves_no_file(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        save(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_drawn_keeps_the_published_one(tmp_path: Path) -> None:
    save(tmp_path)
    published = contents(tmp_path)
    fig = draw()
    fig.axes[0].set_title("$unbalanced_{$")
    with pytest.raises(ValueError, match="unbalanced"):
        save(tmp_path, fig)
    assert contents(tmp_path) == published


def test_saving_closes_the_figure(tmp_path: Path) -> None:
    fig = draw()
    save(tmp_path, fig)
    assert not plt.fignum_exists(fig.number)


def test_shown_figure_names_itself_without_an_address(tmp_path: Path) -> None:
    assert repr(save(tmp_path)) == "Figure(lines, 3 rows)"


def test_shown_figure_outlives_its_files_and_escapes_its_text(tmp_path: Path) -> None:
    shown = save(tmp_path)
    shown.png.unlink()
    page = ImageFinder(shown._repr_html_())
    assert [image["alt"] for image in page.images] == [ALT]
    assert "".join(page.captions) == CAPTION


def test_alt_text_survives_execution_and_nbconvert(tmp_path: Path) -> None:
    code = DRAW_AND_SAVE.replace("OUT", repr(str(tmp_path / "figures"))) + "shown"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    page = ImageFinder(html)
    assert "No description has been provided" not in html
    assert [image["alt"] for image in page.images] == [ALT]
    outputs = notebook.cells[0].outputs
    assert [output["data"]["text/plain"] for output in outputs] == ["Figure(lines, 1 rows)"]


def test_series_differ_in_colour_and_marker_and_line() -> None:
    names = [f"series {i}" for i in range(10)]
    looks = figures.style(names)
    for part in ("color", "marker", "linestyle"):
        assert len({str(look[part]) for look in looks.values()}) == len(names)
    assert list(looks) == names


def test_a_series_looks_the_same_whatever_order_a_set_has() -> None:
    declared = ["causal", "published", "attention", "d64", "d128", "d256", "d512", "bigram"]
    assert figures.style(set(declared)) == figures.style(sorted(declared))
    assert figures.style(declared)["causal"] == figures.style(declared[:1])["causal"]


def test_more_series_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="11 series"):
        figures.style([str(i) for i in range(11)])
