"""wiki-sample: 106 English Wikipedia articles that travel inside a wheel on the package index.

Two things are cached beside the wheel (see labkit.base.wheels): the article dump as it is in it, and the text made from
it.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import warnings
from pathlib import Path
from xml.etree import ElementTree

from labkit.base import wheels
from labkit.base.files import write_atomically
from labkit.base.wheels import Wheel

from .base import SPLITS, MissingData, only_one
from .markup import article_text, is_article, recipe

_WHEEL = Wheel(
    file="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    requirement="gensim==4.4.0",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    platform=(
        "--platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --python-version 3.11 --implementation cp "
        "--abi cp311 --only-binary :all: --no-deps"
    ),
)
WHEEL = _WHEEL.file
"""File name of the wheel that holds the articles."""
_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_MEMBER_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
_HELD_OUT_SHARE = 0.05
_SOURCE = (
    "English Wikipedia, 106 articles of the dump of spring 2016, CC BY-SA 3.0 (authors: each article's history on "
    "en.wikipedia.org); from the test data of the gensim 4.4.0 wheel"
)
_XML = "{http://www.mediawiki.org/xml/export-0.10/}"


def read(folder: Path | None, cache: Path) -> tuple[str, dict[str, tuple[str, ...]], str]:
    """Read wiki-sample from the cache, or build it from the wheel in `folder`, in the cache, or fetched by pip.

    Returns:
        name, documents by split, source.

    Raises:
        MissingData: the wheel is nowhere and pip could not fetch it, or the file found is not the pinned one.
    """
    path = cache / f"wiki-sample-{recipe()}.json"
    with only_one(path):
        articles = _read_articles(path) if path.exists() else None
        if articles is None:
            articles = _articles(_dump(folder, cache))
            write_atomically(path, json.dumps({"sha256": _digest(articles), "articles": articles}).encode())
    return "wiki-sample", _split(articles), _SOURCE


def _read_articles(path: Path) -> dict[str, str] | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["sha256"] == _digest(stored["articles"]):
            return stored["articles"]
        problem = "its text does not match its checksum"
    except (ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    warnings.warn(f"{path} is damaged ({problem}); building it again", stacklevel=4)
    return None


def _digest(articles: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(articles, sort_keys=True).encode()).hexdigest()


def _articles(dump: bytes) -> dict[str, str]:
    pages = ElementTree.fromstring(bz2.decompress(dump)).iter(f"{_XML}page")
    main = (page for page in pages if page.findtext(f"{_XML}ns") == "0" and page.find(f"{_XML}redirect") is None)
    markup = {page.findtext(f"{_XML}title"): page.findtext(f"{_XML}revision/{_XML}text") for page in main}
    return {title: article_text(title, text) for title, text in markup.items() if is_article(text)}


def _split(articles: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Deal articles in the order of their titles' SHA-256: to test until it holds 5 % of the bytes, then to validation.

    An article longer than a quarter of a held-out split goes to train, so that no held-out split hangs on one subject.
    """
    size = {title: len(text.encode()) for title, text in articles.items()}
    wanted = _HELD_OUT_SHARE * sum(size.values())
    titles: dict[str, list[str]] = {split: [] for split in SPLITS}
    for title in sorted(articles, key=lambda title: hashlib.sha256(title.encode()).digest()):
        unfilled = (split for split in ("test", "validation") if sum(map(size.get, titles[split])) < wanted)
        titles[next(unfilled, "train") if size[title] <= wanted / 4 else "train"].append(title)
    return {split: tuple(articles[title] for title in chosen) for split, chosen in titles.items()}


def _dump(folder: Path | None, cache: Path) -> bytes:
    stored = cache / Path(_MEMBER).name
    if stored.exists() and hashlib.sha256(content := stored.read_bytes()).hexdigest() == _MEMBER_SHA256:
        return content
    buffer = io.BytesIO()
    wheels.copy_member(wheels.locate(_WHEEL, folder, cache, "wiki-sample"), _MEMBER, buffer)
    content = buffer.getvalue()
    if (found := hashlib.sha256(content).hexdigest()) != _MEMBER_SHA256:
        raise MissingData(f"wiki-sample: {_MEMBER} has sha256 {found}, expected {_MEMBER_SHA256}")
    write_atomically(stored, content)
    return content
