"""The house look of a figure and the one way to publish it: PNG and SVG, a CSV of exactly what was plotted, alt text.

A figure's files are deterministic (saving it again, in this process or another, gives the same bytes) as long as its
provenance holds no clock time, and they carry that provenance inside, so that a copied image can still be traced:

    name.png  tEXt chunks Title (caption), Description (alt text), labkit (provenance as JSON)
    name.svg  <title> (alt text) and Dublin Core Description (provenance as JSON)
    name.csv  the twin: what was plotted, floats with seven digits (labkit.workflow.tables)

Colour never stands alone: `style` gives each series its own colour, marker and line style.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.figure
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from PIL import Image

from labkit.base.files import write_atomically
from labkit.workflow import tables
from labkit.workflow.shown import Shown

PNG_DPI = 150
MIN_ALT_CHARS = 20

# seaborn's ten colour-blind safe colours, those with the strongest contrast on white first.
_COLORS = [sns.color_palette("colorblind").as_hex()[i] for i in (0, 3, 2, 4, 1, 5, 9, 7, 6, 8)]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "h"]
_LINE_STYLES: list[Any] = [
    "-",
    "--",
    "-.",
    ":",
    (0, (7, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (5, 1)),
    (0, (1, 3)),
    (0, (8, 2, 2, 2)),
    (0, (2, 1)),
]
_REPRODUCIBLE = {"svg.hashsalt": "labkit", "svg.fonttype": "path", "savefig.bbox": None}
_THEME = {
    "figure.figsize": (7.2, 4.5),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=_COLORS),
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "image.cmap": "cividis",
    **_REPRODUCIBLE,
}
_DC_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def use_theme() -> None:
    """Apply the house look to every figure made afterwards in this process."""
    mpl.rcParams.update(_THEME)


def style(series_names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Give each series its own colour, marker and line style, as keyword arguments of `Axes.plot`.

    A list keeps its order and a set is sorted, so the same names always look the same. Pass all the series of a report,
    also where one figure draws only some of them.

    Raises:
        ValueError: more series than styles that can be told apart (10).
    """
    names = sorted(series_names) if isinstance(series_names, set | frozenset) else list(dict.fromkeys(series_names))
    if len(names) > len(_COLORS):
        raise ValueError(f"{len(names)} series in one figure: at most {len(_COLORS)} can be told apart: split it")
    looks = zip(names, _COLORS, _MARKERS, _LINE_STYLES, strict=False)
    return {name: {"color": color, "marker": marker, "linestyle": line} for name, color, marker, line in looks}


def bars(table: pd.DataFrame, label: str, value: str) -> matplotlib.figure.Figure:
    """Draw one horizontal bar a row, the first row on top, with its value written at its end."""
    fig, axes = plt.subplots(figsize=(7.2, 0.45 * len(table) + 1.0))
    drawn = axes.barh(table[label].astype(str), table[value], color=_COLORS[0])
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(value)
    axes.grid(visible=False, axis="y")
    return fig


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Figure:
    """A published figure; as the last value of a notebook cell it shows the image with its alt text and caption."""

    name: str
    """File name of the three files, without suffix."""
    png: Path
    """The image at 150 dpi."""
    svg: Path
    """The image as vectors."""
    csv: Path
    """The plotted data."""
    alt: str
    """What the figure shows, for readers who do not see it."""
    caption: str
    """The line below the figure."""
    n_rows: int
    """Rows of the plotted data."""
    png_bytes: bytes = field(compare=False)
    """The image itself, because a run may move its files after the cell was executed."""

    def __repr__(self) -> str:
        """Name the figure without a memory address, which nbval would see change."""
        return f"Figure({self.name}, {self.n_rows} rows)"

    def _repr_html_(self) -> str:
        """Return a <figure> with alt text: nbconvert's lab template drops the alt text of a plain image output."""
        image = base64.b64encode(self.png_bytes).decode("ascii")
        return (
            f'<figure><img alt="{html.escape(self.alt)}" style="max-width: 100%" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


Plot = Callable[..., tuple[matplotlib.figure.Figure, pd.DataFrame]]
"""Draws rows, and returns the figure with exactly those that it drew."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with the rows it was made from, and what is said of it wherever it is published."""

    figure: matplotlib.figure.Figure
    """The figure."""
    data: pd.DataFrame
    """The rows it was made from."""
    name: str
    """Name of its files."""
    caption: str
    """What it shows, in a sentence."""
    alt: str
    """The same for whoever does not see it: what is drawn against what."""

    def __iter__(self) -> Iterator[Any]:
        """Unpack as `figure, data`."""
        return iter((self.figure, self.data))


def captioned(name: str, *, caption: str, alt: str) -> Callable[[Plot], Callable[..., Drawing]]:
    """Say beside a plot function what its figure is called and shows; it returns figure and rows as before."""

    def wrap(plot: Plot) -> Callable[..., Drawing]:
        @functools.wraps(plot)
        def made(*args: Any, **kwargs: Any) -> Drawing:
            return Drawing(*plot(*args, **kwargs), name=name, caption=caption, alt=alt)

        return made

    return wrap


def shower(out_dir: Path, provenance: Mapping[str, Any]) -> Callable[[Drawing | pd.DataFrame], Figure | Shown]:
    """Return what a notebook shows with: a table as people read it, a figure as `save` publishes it."""
    use_theme()

    def show(what: Drawing | pd.DataFrame) -> Figure | Shown:
        if isinstance(what, pd.DataFrame):
            return Shown(what)
        said = {"caption": what.caption, "alt": what.alt}
        return save(what.figure, what.name, data=what.data, **said, out_dir=out_dir, provenance=provenance)

    return show


def save(
    fig: matplotlib.figure.Figure,
    name: str,
    *,
    data: pd.DataFrame,
    alt: str,
    caption: str,
    out_dir: Path,
    provenance: Mapping[str, Any],
) -> Figure:
    """Write name.png, name.svg and name.csv into out_dir, each in one step, and close the figure.

    The caption is printed over the figure, unless it has a title or a legend with one.
    Nothing is written unless all three can be. A named index of `data` becomes columns of the twin; a nameless one is
    row numbering and stays out.

    Raises:
        ValueError: empty data, missing or short alt text, no caption, a name that is no plain file name, or provenance
            that JSON cannot hold.
        DiskFull: no room for a file.
    """
    _check(name, data, alt, caption)
    record = _to_json(name, provenance)
    _print_title(fig, caption)
    _freeze_layout(fig)
    png = {"Title": caption, "Description": alt, "labkit": record, "Software": None}
    svg = {"Title": alt, "Description": record, "Date": None, "Creator": None}
    contents = {
        ".png": _render(fig, "png", png),
        ".svg": _render(fig, "svg", svg),
        ".csv": _twin(data),
    }
    plt.close(fig)
    paths = {suffix: out_dir / f"{name}{suffix}" for suffix in contents}
    for suffix, content in contents.items():
        write_atomically(paths[suffix], content)
    return Figure(
        name=name,
        png=paths[".png"],
        svg=paths[".svg"],
        csv=paths[".csv"],
        alt=alt,
        caption=caption,
        n_rows=len(data),
        png_bytes=contents[".png"],
    )


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance inside a PNG or SVG that `save` wrote, wherever the file was copied to.

    Raises:
        ValueError: another kind of file, or one without provenance (an image editor may have stripped it).
    """
    readers = {".png": _png_record, ".svg": _svg_record}
    if path.suffix not in readers:
        raise ValueError(f"{path}: provenance is kept in .png and .svg files only")
    try:
        return json.loads(readers[path.suffix](path) or "")
    except (json.JSONDecodeError, ElementTree.ParseError, Image.UnidentifiedImageError) as error:
        raise ValueError(
            f"{path} holds no labkit provenance: it was not written by labkit, or a program that rewrote it "
            "dropped its metadata"
        ) from error


def _check(name: str, data: pd.DataFrame, alt: str, caption: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"figure name {name!r}: use letters, digits, _ and - only")
    if data.empty:
        raise ValueError(f"figure {name}: data is empty; pass the rows that were plotted")
    if len(alt.strip()) < MIN_ALT_CHARS:
        raise ValueError(
            f"figure {name}: alt text {alt!r} is shorter than {MIN_ALT_CHARS} characters; say what is drawn against "
            "what and what it shows"
        )
    if not caption.strip():
        raise ValueError(f"figure {name}: caption is empty")


def _to_json(name: str, provenance: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(provenance), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"figure {name}: provenance does not fit into JSON: {error}") from error


def _print_title(fig: matplotlib.figure.Figure, caption: str) -> None:
    """Print what a figure shows over it. Layout keeps no room between a title and a legend above: that has its own."""
    if not fig.get_suptitle() and not any(legend.get_title().get_text() for legend in fig.legends):
        fig.suptitle(caption.removesuffix("."), fontsize=mpl.rcParams["axes.titlesize"])


def _freeze_layout(fig: matplotlib.figure.Figure) -> None:
    """Place the axes once: constrained layout moves them a little at every draw, so a second save would differ."""
    with mpl.rc_context(_REPRODUCIBLE):
        fig.draw_without_rendering()
    fig.set_layout_engine("none")


def _render(fig: matplotlib.figure.Figure, file_format: str, metadata: Mapping[str, str | None]) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(_REPRODUCIBLE):
        fig.savefig(buffer, format=file_format, dpi=PNG_DPI, metadata=dict(metadata))
    return buffer.getvalue()


def _twin(data: pd.DataFrame) -> bytes:
    named_index = any(level is not None for level in data.index.names)
    return tables.to_csv(data, index=named_index)


def _png_record(path: Path) -> str | None:
    with Image.open(path) as image:
        return image.info.get("labkit")


def _svg_record(path: Path) -> str | None:
    return ElementTree.parse(path).getroot().findtext(f".//{_DC_DESCRIPTION}")
