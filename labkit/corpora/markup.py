"""Wiki markup to prose: what a reader of the article sees, without tables, notes, pictures and navigation.

mwparserfromhell builds the tree; this module decides what each node reads as. A line whose meaning hangs on something
without plain text (a formula) is dropped whole, because half a sentence is worse training text than none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, HTMLEntity, Node, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

_LOST = "\x00"
"""Stands for something without plain text, until its line is dropped."""
_HOLE = "\x01"
"""Stands for a computed number, until the parenthesis around it is dropped."""

_ITEM = "\x02"
"""Opens a list item; one of fewer than _SHORTEST_ITEM words is a name or a title rather than a sentence, and goes."""
_SHORTEST_ITEM = 6

_DROPPED_TAGS = {
    "ref", "references", "table", "tr", "td", "th", "gallery", "imagemap", "timeline", "score", "source",
    "syntaxhighlight", "pre", "includeonly", "noinclude", "hr", "s",
}  # fmt: skip
_BACK_MATTER = re.compile(
    r"\b(references?|bibliography|filmography|discography|see also|external links|further reading|footnotes|cited)\b"
    r"|citations|literature$|^(list of |selected )?(works|books|publications)$|^(explanatory )?notes|sources$"
    r"|^(links|general|gallery|editions|documentaries|related (pages|articles))$",
    re.IGNORECASE,
)
_FIRST_ARGUMENT = {
    "nowrap", "small", "smaller", "big", "quote", "blockquote", "sc", "smallcaps", "angbr", "angle bracket", "vr",
    "vanchor", "sub", "sup", "abbr", "tooltip", "mvar", "noitalic", "nobold", "keypress", "visible anchor",
    "quotation", "cquote", "nihongo", "flag", "flagcountry", "as written", "sic",
}  # fmt: skip
_LAST_ARGUMENT = {"lang", "transl", "script", "resize", "unicode"}
_LITERAL = {
    "'": "'", "'s": "'s", "nbsp": " ", "spaces": " ", "ndash": "–", "mdash": "—", "snd": " – ", "spnd": " – ",
    "spaced ndash": " – ", "mdashb": "—", "·": "·", "!": "|", "=": "=",
}  # fmt: skip
_COMPUTED = ("inflation", "formatnum:", "formatprice", "age", "years ago", "time ago")
_RANGE_WORDS = {"-": "–", "–": "–", "to": " to ", "and": " and ", "by": " by ", "x": " by ", "or": " or "}

_DISAMBIGUATION = re.compile(r"\{\{\s*(disambig|hndis|geodis)", re.I)
_INVISIBLE = re.compile(
    r"<!--.*?-->|^:+[ \t]*''[^\n]*''[ \t]*$|</?(b|i|u|em|strong|small|big|center|font|span|div)\b[^<>]*>",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
"""Comments, notes that send the reader to another article, and tags that only style (and are often left unclosed)."""
_HEADING = re.compile(r"^(={1,6})([^=\n].*?)\1[ \t]*$", re.MULTILINE)
_NAMESPACE = re.compile(r"^:?(file|image|category|media|wikt|[a-z]{2,3}|simple|wikipedia|portal|template|s):", re.I)
_LINE_RULES = [
    (re.compile(rf" ?\([^()]*{_HOLE}[^()]*\)|[{_HOLE}{_ITEM}]|'{{2,}}|__[A-Z]+__|[\u200b\u200e\u200f\ufeff]"), ""),
    (re.compile(r"[ \t\u00a0\u2009]+"), " "),
    (re.compile(r"([(\[])[\s,;:–—/]+"), r"\1"),
    (re.compile(r"[\s,;:–—/]+([)\]])"), r"\1"),
    (re.compile(r" ?(\(\)|\[\])"), ""),
    (re.compile(r" +([,.;:!?])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;:])[,;:]+"), r"\1"),
]
_RESIDUE = re.compile(rf"\{{\{{|\}}\}}|\[\[|\]\]|\{{\||\|\}}|^[|!]|</?\w+[^>]*>|\bISBN\b|{_LOST}")


def recipe() -> str:
    """Return an id of what turns markup into text: this file and the parser's version."""
    definition = Path(__file__).read_bytes() + mwparserfromhell.__version__.encode()
    return hashlib.sha256(definition).hexdigest()[:12]


def is_article(markup: str) -> bool:
    """Tell an article from a page that only lists the meanings of its title."""
    return not _DISAMBIGUATION.search(markup)


def article_text(title: str, markup: str) -> str:
    """Return an article as its title line followed by paragraphs and section titles, one a line.

    Sections of back matter (references, links) go with everything under them; a section left empty loses its title.
    """
    lines, skipped_level = [title], 7
    for level, heading, body in _sections(_INVISIBLE.sub("", markup)):
        if level > skipped_level:
            continue
        name = _line(_render(mwparserfromhell.parse(heading)))
        skipped_level = level if _BACK_MATTER.search(name) else 7
        if skipped_level == 7 and (paragraphs := _paragraphs(body)):
            lines += [name, *paragraphs] if name else paragraphs
    return "\n".join(lines) + "\n"


def _sections(markup: str) -> Iterator[tuple[int, str, str]]:
    """Yield (level, heading, body). Cut before parsing: an unclosed tag must not swallow the sections after it."""
    _, *parts = _HEADING.split("\n== ==\n" + markup)
    for mark, heading, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield len(mark), heading, body


def _paragraphs(body: str) -> list[str]:
    text = _render(mwparserfromhell.parse(body))
    lines = (line for line in text.split("\n") if not _RESIDUE.search(line))
    kept = (_line(line) for line in lines if not (line.startswith(_ITEM) and len(line.split()) < _SHORTEST_ITEM))
    return [line for line in kept if any(character.isalnum() for character in line)]


def _line(text: str) -> str:
    for pattern, replacement in _LINE_RULES:
        text = pattern.sub(replacement, text)
    return text.strip().lstrip("*#:; ")


def _render(code: Wikicode | None) -> str:
    return "".join(_render_node(node) for node in code.nodes) if code is not None else ""


def _render_node(node: Node) -> str:
    if isinstance(node, Text):
        return str(node.value)
    if isinstance(node, Wikilink):
        return _link(node)
    if isinstance(node, Template):
        return _template(node)
    if isinstance(node, Tag):
        return _tag(node)
    if isinstance(node, ExternalLink):
        return _render(node.title)
    return node.normalize() or "" if isinstance(node, HTMLEntity) else ""


def _link(node: Wikilink) -> str:
    title = _render(node.title)
    if _NAMESPACE.match(title):
        return ""
    return _render(node.text) if node.text is not None else title.lstrip(":")


def _tag(node: Tag) -> str:
    name = str(node.tag).strip().lower()
    if name == "math":
        return _LOST
    if name == "li" and node.wiki_markup:
        return _ITEM
    if name == "br":
        return " "
    return "" if name in _DROPPED_TAGS else _render(node.contents)


def _template(node: Template) -> str:
    """Return what an inline template reads as; navigation, notes and boxes are unknown here and read as nothing."""
    name = " ".join(str(node.name).replace("_", " ").split()).lower()
    values = [_render(parameter.value).strip() for parameter in node.params if not parameter.showkey]
    if name in _LITERAL:
        return _LITERAL[name]
    if name.startswith(_COMPUTED):
        return _HOLE
    if not values:
        return ""
    if name in ("convert", "cvt"):
        return _measure(values)
    if name == "val":
        return _number(node, values[0])
    return _wording(node, name, values)


def _wording(node: Template, name: str, values: list[str]) -> str:
    if name in ("circa", "c."):
        return f"c. {values[0]}"
    if name == "as of":
        return f"{'as' if node.has('lc') else 'As'} of {values[0]}"
    if name in ("chem", "chem2"):
        return "".join(values)
    if name in _LAST_ARGUMENT or name.startswith("lang-"):
        return values[1 if name in ("lang", "script") and len(values) > 1 else -1]
    return values[0] if name in _FIRST_ARGUMENT else ""


def _number(node: Template, value: str) -> str:
    named = {key: str(node.get(key).value).strip() for key in ("e", "u", "ul") if node.has(key)}
    power = f" × 10{named['e']}" if "e" in named else ""
    unit = named.get("u") or named.get("ul") or ""
    return f"{value}{power} {unit}".strip()


def _measure(values: list[str]) -> str:
    if len(values) >= 4 and values[1] in _RANGE_WORDS:
        return f"{values[0]}{_RANGE_WORDS[values[1]]}{values[2]} {values[3]}"
    return " ".join(values[:2])
