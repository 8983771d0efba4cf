"""Write the executed notebooks as HTML that needs nothing but itself: no network, no script, no other file.

nbconvert's lab template loads MathJax, require.js and mermaid from the network and fills in a placeholder where an
image has no alt text. Here those scripts are left out; a page that would fetch or run anything is refused, and so is an
image without a description. The error names the cell.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

from labkit.base import paths
from labkit.base.files import read_json, write_atomically
from labkit.ledger import claims
from labkit.workflow.judged import judge_profile

# A browser then refuses what the inspection below may have missed.
_POLICY = "default-src 'none'; img-src data:; font-src data:; style-src 'unsafe-inline'"
_TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="{{ resources.policy }}">
{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
details.code { display: table-cell; vertical-align: top; }
details.code > summary { cursor: pointer; font-size: small; }
details.code > .jp-InputArea-editor { display: block; overflow-x: auto; }
figure { margin: 0; }
</style>
{%- endblock -%}
{%- block input -%}<details class="code" open><summary>code</summary>{{ super() }}</details>{%- endblock -%}
"""
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; }}
th, td {{ padding-right: 1em; }}</style>
</head>
<body><main>
<h1>{title}</h1>
<ul>
{links}
</ul>
<h2>Verdicts</h2>
{verdicts}
</main></body>
</html>
"""
_STATIC_OUTPUTS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
_PLACEHOLDER = "No description has been provided for this image"
_SOURCES = {"src", "srcset", "poster", "data", "background"}
_CSS_SOURCE = re.compile(r"@import\b|url\(\s*+['\"]?+(?!data:|#)[^)]", re.IGNORECASE)


def write_html(hardware: str) -> Path:
    """Write runs/<profile>/html: a page for each report and an index with the profile's verdicts.

    Args:
        hardware: which profile.

    Returns:
        the index.

    Raises:
        ValueError: a report was not run on the profile, an image has no alt text, or a page would need the network;
            nothing was written.
        DiskFull: no room.
    """
    reports = paths.reports()
    pages = {report: to_html(_executed(report, hardware), paths.notebook(report).parent) for report in reports}
    pages["index"] = _index(hardware, reports)
    folder = paths.runs(hardware, "html")
    for name, page in pages.items():
        write_atomically(folder / f"{name}.html", page.encode())
    return folder / "index.html"


def to_html(notebook: Path, images: Path) -> str:
    """Return an executed notebook as one self-contained HTML page; code can be folded away.

    Args:
        notebook: the executed notebook.
        images: the folder that image paths in its text start from.

    Raises:
        ValueError: an image without alt text or something to be fetched; the message names the notebook and the cell.
    """
    document = _opened(notebook)
    document.metadata.pop("widgets", None)
    exporter = HTMLExporter(raw_template=_TEMPLATE, embed_images=True)
    exporter.config.NbConvertBase.display_data_priority = _STATIC_OUTPUTS
    about = {"metadata": {"path": str(images), "name": title(notebook)}, "policy": _POLICY}
    page, _ = exporter.from_notebook_node(document, about)
    _Inspector(notebook).feed(page)
    return page


def _opened(notebook: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook} is damaged: no notebook ({error}); run its report again") from error


def title(notebook: Path) -> str:
    """Return the first heading of a notebook, else its file name."""
    cells = _opened(notebook).cells
    lines = (line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), notebook.stem)


class _Inspector(HTMLParser):
    """Refuses a page that fetches something or shows an image without describing it."""

    def __init__(self, notebook: Path) -> None:
        super().__init__()
        self._notebook, self._cell, self._in_style = notebook, "its head", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        if given.get("id", "").startswith("cell-id="):
            self._cell = f"cell {given['id'].removeprefix('cell-id=')!r}"
        if tag == "script":
            self._refuse("it runs a script, which a page on paper or without network cannot; show a figure or a table")
        if tag == "img" and given.get("alt", "").strip() in ("", _PLACEHOLDER):
            self._refuse(
                "an image has no alt text; publish it with labkit.workflow.figures.save, or write ![what it shows](…)"
            )
        links = {"href", "xlink:href"} if tag in ("link", "image", "use") else set()
        for name in (_SOURCES | links) & given.keys():
            self._check_source(given[name])
        self._check_css(given.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self._check_css(data)

    def _check_source(self, source: str) -> None:
        if not source.startswith(("data:", "#")):
            self._refuse(f"it fetches {source[:80]!r}; put what it needs into the page")

    def _check_css(self, css: str) -> None:
        if found := _CSS_SOURCE.search(css):
            self._refuse(f"its style fetches {css[found.start() :][:80]!r}; put what it needs into the page")

    def _refuse(self, why: str) -> None:
        raise ValueError(f"{self._notebook}, {self._cell}: {why}")


def _executed(report: str, hardware: str) -> Path:
    path = paths.runs(hardware, report) / "executed.ipynb"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `labkit run {report} --hw {hardware}` first")
    return path


def _index(hardware: str, reports: list[str]) -> str:
    verdicts = claims.summary(judge_profile(hardware))
    return _INDEX.format(
        policy=_POLICY,
        title=f"Reports on {escape(hardware)}",
        links="\n".join(_link(report, hardware) for report in reports),
        verdicts=verdicts.to_html(index=False, border=0, justify="left"),
    )


def _link(report: str, hardware: str) -> str:
    made = _run_record(report, hardware)
    ran = made.get("run") or {}
    commit = ran.get("git", {}).get("commit") or "no commit"
    told = f"{report}: {made['scale']} scale, {ran.get('finished', 'not run here')}, {commit[:12]}"
    heading = title(_executed(report, hardware))
    return f'<li><a href="{report}.html">{escape(heading)}</a><br>{escape(told)}</li>'


def _run_record(report: str, hardware: str) -> dict[str, Any]:
    path = paths.figures(hardware, report) / "run.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `labkit run {report} --hw {hardware}` first")
    return read_json(path, "scale", remedy=f"`labkit run {report} --hw {hardware}` makes it again")
