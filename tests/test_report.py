"""Reports as HTML: a page reads whole without a network and describes every image, or an error names the cell.

Pages are judged with regular expressions over their text, not with the parser that labkit uses to refuse them.
"""

import base64
import html
import json
import re
import shutil
import sys

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from labkit import cli
from labkit.base import paths
from labkit.workflow import figures
from labkit.workflow import html as report
from labkit.workflow.judged import judge_profile

REPOSITORY = paths.root()
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c4944415478da63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
    )
).decode()
SOURCE = r"\b(?:src|href|srcset|poster|data)\s*=\s*[\"']?(?!data:|#)[^\"'>\s]"
FETCHED = re.compile(rf"<(?!a\b)[a-z]+\b[^>]*{SOURCE}", re.IGNORECASE)
FETCHED_BY_STYLE = re.compile(r"@import|url\(\s*[\"']?(?!data:|#)", re.IGNORECASE)


def html_output(content):
    return v4.new_output("display_data", data={"text/html": content, "text/plain": "shown as text"})


def write_executed(path, *cells, heading="# Does <it> hold?"):
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(heading, id="title"), *cells])
    notebook.metadata["language_info"] = {"name": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def shown(content, cell_id="cell-07"):
    return v4.new_code_cell("show()", id=cell_id, execution_count=1, outputs=[html_output(content)])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with everything our notebooks show, and some of what others do."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "pixel.png").write_bytes(base64.b64decode(PIXEL))
    table = pd.DataFrame({"size": [1, 2], "loss": [3.5, 3.25]})
    drawn = figures.save(
        figures.bars(table, "size", "loss"),
        "losses",
        data=table,
        alt='Bars: the loss of "small" & large models.',
        caption="Losses.",
        out_dir=folder,
        provenance={},
    )
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "a slider at 3"}
    script = {"application/javascript": "alert(1)", "text/plain": "a script"}
    cells = [
        v4.new_markdown_cell("Look: ![one pixel](pixel.png), see [the source](https://example.org).", id="text"),
        v4.new_markdown_cell("```mermaid\ngraph TD; a-->b\n```\n\n$$x^2$$", id="diagram"),
        v4.new_code_cell(
            "fit(\n    data)", id="fit", execution_count=1, outputs=[v4.new_output("stream", text="done")]
        ),
        shown(drawn._repr_html_(), "figure"),
        shown(table.style.hide(axis="index").to_html(), "table"),
        v4.new_code_cell("slide()", id="widget", outputs=[v4.new_output("display_data", data=widget)]),
        v4.new_code_cell("alert()", id="script", outputs=[v4.new_output("display_data", data=script)]),
    ]
    return report.to_html(write_executed(folder / "executed.ipynb", *cells), folder)


def test_a_page_fetches_nothing(page):
    assert not FETCHED.search(page)
    assert not FETCHED_BY_STYLE.search(page)
    assert "<script" not in page
    for place in ("cdnjs", "unpkg", "jsdelivr", "mathjax", "require.min.js"):
        assert place not in page.lower()
    assert "default-src 'none'" in page


def test_every_image_is_inside_the_page_and_says_what_it_shows(page):
    images = re.findall(r"<img\b[^>]*>", page)
    assert len(images) == 2
    assert all('src="data:image/png;base64,' in image for image in images)
    assert 'alt="one pixel"' in images[0]
    assert 'the loss of "small" & large models.' in html.unescape(images[1])


def test_code_is_shown_and_can_be_folded_without_a_script(page):
    assert page.count('<details class="code" open') == 5
    assert page.count("<summary>code</summary>") == 5
    code = re.findall(r"<details class=\"code\".*?</details>", page, re.DOTALL)
    assert re.sub(r"<[^>]+>", "", code[0]).split() == ["code", "fit(", "data)"]


def test_outputs_that_need_a_kernel_or_a_script_fall_back_to_their_text(page):
    assert "a slider at 3" in page
    assert "a script" in page
    assert "alert(1)" not in page


def test_a_page_is_titled_by_its_first_heading_and_keeps_its_links(page):
    assert "<title>Does &lt;it&gt; hold?</title>" in page
    assert 'href="https://example.org"' in page


@pytest.mark.parametrize(
    "cell",
    [
        v4.new_markdown_cell("![](pixel.png)", id="cell-07"),
        shown(f'<img src="data:image/png;base64,{PIXEL}">'),
        shown(f'<img alt=" " src="data:image/png;base64,{PIXEL}">'),
        v4.new_code_cell("show()", id="cell-07", outputs=[v4.new_output("display_data", data={"image/png": PIXEL})]),
        v4.new_code_cell("s", id="cell-07", outputs=[v4.new_output("display_data", data={"image/svg+xml": "<svg/>"})]),
    ],
)
def test_an_image_without_a_description_is_refused_by_cell(tmp_path, cell):
    (tmp_path / "pixel.png").write_bytes(base64.b64decode(PIXEL))
    path = write_executed(tmp_path / "executed.ipynb", v4.new_markdown_cell("before", id="cell-06"), cell)
    with pytest.raises(ValueError, match=r"executed\.ipynb, cell 'cell-07': an image has no alt text"):
        report.to_html(path, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '<script src="https://example.org/plot.js"></script>',
        "<script>draw()</script>",
        '<link rel="stylesheet" href="//example.org/style.css">',
        '<img alt="a plot" src="https://example.org/plot.png">',
        '<img alt="a plot" src="plot.png">',
        '<iframe src="https://example.org"></iframe>',
        '<svg><image href="https://example.org/plot.png"/></svg>',
        "<div style=\"background: url('https://example.org/plot.png')\">x</div>",
        "<style>@import 'https://example.org/style.css';</style>",
        "<style>p { background: url( https://example.org/plot.png ) }</style>",
    ],
)
def test_whatever_would_be_fetched_or_run_is_refused_by_cell(tmp_path, content):
    path = write_executed(tmp_path / "executed.ipynb", shown("<p>fine</p>", "cell-06"), shown(content))
    with pytest.raises(ValueError, match=r"executed\.ipynb, cell 'cell-07': it(s style)? (fetches|runs)"):
        report.to_html(path, tmp_path)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile on which two reports were run."""
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "output"))
    ran = {"finished": "2026-01-02T03:04:05Z", "git": {"commit": "0123456789abcdef"}}
    made = {"scale": "smoke", "run": ran}
    for name in ("00_claims", "04_scaling_grid"):
        write_executed(tmp_path / "notebooks" / f"{name}.ipynb")
        write_executed(paths.runs("ci", name[3:]) / "executed.ipynb", shown("<p>fine</p>"))
        paths.figures("ci", name[3:]).mkdir(parents=True)
        (paths.figures("ci", name[3:]) / "run.json").write_text(json.dumps(made))
    return tmp_path


def test_the_index_links_every_report_and_counts_the_verdicts(profile, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["labkit", "html", "--hw", "ci"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    folder = paths.runs("ci", "html")
    assert (left.value.code, capsys.readouterr().out) == (0, f"wrote {folder / 'index.html'}\n")
    index = (folder / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["claims.html", "scaling_grid.html"]
    assert {path.name for path in folder.iterdir()} == {"index.html", "claims.html", "scaling_grid.html"}
    assert "smoke scale, 2026-01-02T03:04:05Z, 0123456789ab" in index
    assert "Does &lt;it&gt; hold?" in index
    assert not FETCHED.search(index)
    rows = re.findall(r"<td>([a-z ]+)</td>\s*<td>(\d+)</td>", index)
    counts = judge_profile("ci")["verdict"].value_counts()
    assert {verdict: int(n) for verdict, n in rows if int(n)} == counts.to_dict()


@pytest.mark.parametrize("missing", ["runs/ci/claims/executed.ipynb", "figures/ci/claims/run.json"])
def test_a_report_that_was_not_run_is_an_error_with_the_command_and_writes_nothing(profile, missing):
    (profile / "output" / missing).unlink()
    with pytest.raises(ValueError, match=rf"{missing} does not exist; run `labkit run claims --hw ci` first"):
        report.write_html("ci")
    assert not paths.runs("ci", "html").exists()


def test_one_page_that_is_refused_leaves_the_old_pages(profile):
    report.write_html("ci")
    before = {path.name: path.read_bytes() for path in paths.runs("ci", "html").iterdir()}
    write_executed(paths.runs("ci", "claims") / "executed.ipynb", shown("<p>better</p>"))
    write_executed(paths.runs("ci", "scaling_grid") / "executed.ipynb", shown("<img src='plot.png'>"))
    with pytest.raises(ValueError, match="scaling_grid/executed"):
        report.write_html("ci")
    assert {path.name: path.read_bytes() for path in paths.runs("ci", "html").iterdir()} == before
