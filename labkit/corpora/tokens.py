"""Text to token streams: a byte-level BPE trained on the training split, and the counts a score needs."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from labkit.base import paths
from labkit.base.files import write_atomically

from .base import SPLITS, Corpus, check_split, only_one
from .scores import Score

SEPARATOR = "<|doc|>"
"""Special token, id 0, that precedes every document and closes a stream."""
_SMALLEST = 258
"""256 bytes, the separator and one merge."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokens:
    """A tokenized corpus. A stream is `<|doc|> document <|doc|> document … <|doc|>`; a model predicts stream[1:]."""

    train: NDArray[np.int64]
    """Token ids of the training stream."""
    validation: NDArray[np.int64]
    """Token ids of the validation stream."""
    test: NDArray[np.int64]
    """Token ids of the test stream."""
    tokenizer: Tokenizer
    """The byte-level BPE the streams were made with."""
    token_bytes: NDArray[np.int64]
    """[V] bytes of text each token stands for; 0 for the separator."""
    vocab_size: int
    """Number of token ids, V."""
    n_words: dict[str, int]
    """Whitespace-separated words of the original text, per split."""
    n_bytes: dict[str, int]
    """UTF-8 bytes of the original text, per split."""
    base_protocol: str
    """Id of text and tokenizer, `wiki-sample@1a2b3c4d/bpe-4096@5e6f7a8b`."""

    def stream(self, split: str) -> NDArray[np.int64]:
        """Return the token ids of a split. Raises ValueError for an unknown split."""
        return getattr(self, check_split(split))

    def protocol(self, context: int, stride: int, split: str) -> str:
        """Return the id under which scores compare: text, tokenizer, context and stride in tokens, split.

        Raises:
            ValueError: unknown split, or not 1 <= stride <= context.
        """
        if not 1 <= stride <= context:
            raise ValueError(f"stride={stride} must lie between 1 and context={context}")
        return f"{self.base_protocol}/ctx{context}/stride{stride}/{check_split(split)}"

    def score(self, split: str, nats: NDArray[np.floating], *, context: int, stride: int) -> Score:
        """Score the nats paid for each of stream[1:], separators included (they cost nats and have no bytes).

        Raises:
            ValueError: not exactly one value per predicted token, or a value that is not finite.
        """
        expected = len(self.stream(split)) - 1
        if nats.shape != (expected,):
            raise ValueError(f"nats has shape {nats.shape}; the {split} stream has {expected} predicted tokens")
        return Score(
            protocol=self.protocol(context, stride, split),
            total_nats=float(np.sum(nats, dtype=np.float64)),
            n_tokens=expected,
            n_bytes=self.n_bytes[split],
            n_words=self.n_words[split],
        )


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose id 0 is the separator; it encodes any text and decodes it back exactly.

    Raises:
        ValueError: vocab_size below 258, or the documents hold too few distinct pairs to fill it.
    """
    if vocab_size < _SMALLEST:
        raise ValueError(f"vocab_size={vocab_size} must be at least {_SMALLEST} (256 bytes, {SEPARATOR}, one merge)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if (reached := tokenizer.get_vocab_size()) != vocab_size:
        raise ValueError(f"vocab_size={vocab_size} is too large for this text: its pairs ran out at {reached}")
    return _as_text(tokenizer)


def tokenize(corpus: Corpus, vocab_size: int, *, cache: Path | None = None) -> Tokens:
    """Tokenize a corpus with a BPE trained on its training split, from the cache when it is there.

    Raises:
        ValueError: see `train_bpe`.
    """
    stem = (cache or paths.cache()) / "tokens" / f"{corpus.name}-{corpus.revision[:16]}-bpe{vocab_size}-{_recipe()}.npz"
    with only_one(stem):
        found = _read(stem) if stem.exists() else None
        tokenizer, streams = found or _build(corpus, vocab_size, stem)
    return Tokens(
        **streams,
        tokenizer=tokenizer,
        token_bytes=_token_bytes(tokenizer),
        vocab_size=vocab_size,
        n_words={split: corpus.n_words(split) for split in SPLITS},
        n_bytes={split: corpus.n_bytes(split) for split in SPLITS},
        base_protocol=f"{corpus.protocol}/bpe-{vocab_size}@{_tokenizer_id(tokenizer)}",
    )


def _recipe() -> str:
    """Return an id of what turns text into tokens: this file and the version of tokenizers."""
    definition = Path(__file__).read_bytes() + tokenizers.__version__.encode()
    return hashlib.sha256(definition).hexdigest()[:12]


def _as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Have the separator's spelling inside a document encoded as ordinary text (the setting is not serialised)."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def _build(corpus: Corpus, vocab_size: int, path: Path) -> tuple[Tokenizer, dict[str, NDArray[np.int64]]]:
    tokenizer = train_bpe(corpus.train, vocab_size)
    streams = {split: _stream(tokenizer, corpus.split(split)) for split in SPLITS}
    small = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    definition = np.frombuffer(tokenizer.to_str().encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, tokenizer=definition, **{split: ids.astype(small) for split, ids in streams.items()})
    write_atomically(path, buffer.getvalue())
    return tokenizer, streams


def _read(path: Path) -> tuple[Tokenizer, dict[str, NDArray[np.int64]]] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            tokenizer = _as_text(Tokenizer.from_str(stored["tokenizer"].tobytes().decode()))
            return tokenizer, {split: stored[split].astype(np.int64) for split in SPLITS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is damaged ({error!r}); building it again", stacklevel=3)
        return None


def _stream(tokenizer: Tokenizer, documents: Iterable[str]) -> NDArray[np.int64]:
    ids = [0]
    for encoding in tokenizer.encode_batch(list(documents)):
        ids += encoding.ids
        ids.append(0)
    return np.array(ids, dtype=np.int64)


def _token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return [V] bytes per token: in the byte-level alphabet one character stands for one byte."""
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token == SEPARATOR else len(token)
    return lengths


def _tokenizer_id(tokenizer: Tokenizer) -> str:
    model = json.loads(tokenizer.to_str())["model"]
    definition = json.dumps([sorted(model["vocab"].items()), model["merges"]])
    return hashlib.sha256(definition.encode()).hexdigest()[:8]
