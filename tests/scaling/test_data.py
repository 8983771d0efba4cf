"""Scoring against a loop over single windows with log_softmax in float64, paired comparisons against scipy's paired
t-test, and the floors against counts made by hand, on the real sample text.

Run with `pytest tests/scaling/test_data.py`.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from labkit.corpora import Tokens, ngrams
from labkit.reports.scaling_grid.baselines import Baselines, measure_baselines
from labkit.scaling.data import (
    FLOORS,
    N_BLOCKS,
    GridData,
    block_sums,
    load_tokens,
    paired_gain,
    second_halves,
    token_nats,
)
from labkit.scaling.resnet_bk import ResNetBK, ResNetBKConfig
from labkit.scaling.transformer import Transformer, TransformerConfig

CONTEXT = 32
V = 512


@pytest.fixture(scope="module")
def prepared() -> GridData:
    return GridData.of(measure_baselines(Baselines(corpus="wiki-sample", vocab_size=V, context=CONTEXT, order=2)))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return load_tokens("wiki-sample", V)[1]


def language_model(kind: str) -> torch.nn.Module:
    """A random model whose predictions differ from token to token and depend on the context."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "d_model": 32, "n_layers": 2, "context": CONTEXT, "dropout": 0.1}
    model = Transformer(TransformerConfig(**shape)) if kind == "transformer" else ResNetBK(ResNetBKConfig(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.dim() >= 2 else 1.0)
    return model


def one_window_at_a_time(model: torch.nn.Module, stream: np.ndarray, context: int) -> list[float]:
    nats = []
    with torch.no_grad():
        for start in range(0, len(stream) - 1, context):
            window = torch.as_tensor(stream[start : start + context + 1].astype(np.int64))
            log_p = model(window[None, :-1])[0].double().log_softmax(-1)
            nats += [-log_p[i, token].item() for i, token in enumerate(window[1:])]
    return nats


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT - 1])
def test_second_halves_alone_are_the_same_tokens_with_less_before_them(tokens: Tokens, context: int) -> None:
    model, stream = language_model("transformer").eval(), tokens.validation[: 7 * context + 9]
    alone = token_nats(model, stream, context, second_half=True)
    targets = second_halves(stream[1:], context)
    expected = []
    for start in range(context // 2, 7 * context, context):
        expected += one_window_at_a_time(model, stream[start : start + context - context // 2 + 1], context)
    assert len(alone) == len(targets) == 7 * (context - context // 2)
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
    late = second_halves(token_nats(model, stream, context), context)
    assert np.abs(late - alone).max() > 0.1, "a model with attention notices what was cut away"


@pytest.mark.parametrize("kind", ["resnet-bk", "transformer"])
@pytest.mark.parametrize("length", [2, CONTEXT, CONTEXT + 1, 10 * CONTEXT + 1, 1000])
def test_scores_equal_those_of_one_window_at_a_time(tokens: Tokens, kind: str, length: int) -> None:
    model, stream = language_model(kind).eval(), tokens.validation[:length]
    expected = one_window_at_a_time(model, stream, CONTEXT)
    assert len(expected) == length - 1
    np.testing.assert_allclose(token_nats(model, stream, CONTEXT), expected, rtol=0, atol=1e-5)


def test_batch_size_changes_no_score(tokens: Tokens) -> None:
    model, stream = language_model("resnet-bk"), tokens.validation[:777]
    scores = [token_nats(model, stream, CONTEXT, batch=batch) for batch in (1, 5, 32)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[0], scores[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_scoring_and_the_mode_is_given_back(tokens: Tokens, training: bool) -> None:
    model, stream = language_model("transformer").train(training), tokens.validation[:200]
    np.testing.assert_array_equal(token_nats(model, stream, CONTEXT), token_nats(model, stream, CONTEXT))
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("n", [7, N_BLOCKS, 1234])
def test_blocks_are_consecutive_nearly_equal_and_add_up(n: int) -> None:
    np.testing.assert_allclose(block_sums(np.ones(n)).sum(), n)
    assert np.ptp(block_sums(np.ones(n))) <= 1
    ends = np.cumsum(block_sums(np.ones(n))).astype(int)
    nats = np.random.default_rng(0).exponential(size=n)
    np.testing.assert_allclose(np.cumsum(block_sums(nats)), np.concatenate([[0], np.cumsum(nats)])[ends])
    assert block_sums(nats).shape == (N_BLOCKS,)


def test_paired_gain_over_its_error_is_the_paired_t_statistic() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(100, 30, N_BLOCKS)
    worse, better = difficulty + rng.normal(1, 2, N_BLOCKS), difficulty + rng.normal(0, 2, N_BLOCKS)
    gain, error = paired_gain(worse, better)
    assert gain == pytest.approx(worse.sum() - better.sum())
    assert error == pytest.approx(N_BLOCKS * stats.sem(worse - better))
    assert gain / error == pytest.approx(stats.ttest_rel(worse, better).statistic)


def test_every_floor_is_scored_on_every_token_but_the_first(prepared: GridData, tokens: Tokens) -> None:
    train, validation = tokens.train, tokens.validation
    nats = ngrams.floors(train, validation, V, order=2)
    assert tuple(nats) == tuple(prepared.floors) == FLOORS
    assert {name: len(values) for name, values in nats.items()} == dict.fromkeys(nats, len(validation) - 1)
    for name, values in nats.items():
        assert prepared.floors[name].shape == (N_BLOCKS,)
        assert prepared.floors[name].sum() == pytest.approx(values.sum())


def test_unigram_floor_equals_counting_by_hand(prepared: GridData, tokens: Tokens) -> None:
    counts, total = Counter(tokens.train.tolist()), len(tokens.train) + V
    nats = [-math.log((counts[token] + 1) / total) for token in tokens.validation[1:].tolist()]
    assert prepared.floors["unigram"].sum() == pytest.approx(sum(nats))
    size = len(nats) // N_BLOCKS + 1
    assert prepared.floors["unigram"][0] == pytest.approx(sum(nats[:size]))


def test_floors_order_as_the_context_they_see(prepared: GridData, tokens: Tokens) -> None:
    uniform = math.log(V) * (len(tokens.validation) - 1)
    unigram, bigram = prepared.floors["unigram"].sum(), prepared.floors["bigram"].sum()
    assert bigram < unigram < uniform


def test_score_divides_the_same_nats_by_tokens_words_and_bytes(prepared: GridData) -> None:
    text, tokens = load_tokens("wiki-sample", V)
    score = prepared.score(np.full(N_BLOCKS, 1000.0))
    assert score.token_perplexity == pytest.approx(math.exp(1e5 / (len(tokens.validation) - 1)))
    assert score.word_perplexity == pytest.approx(math.exp(1e5 / sum(len(d.split()) for d in text.validation)))
    n_bytes = sum(len(document.encode()) for document in text.validation)
    assert score.bits_per_byte == pytest.approx(1e5 / math.log(2) / n_bytes)
    assert prepared.train_tokens == len(tokens.train)
    assert prepared.revision == text.revision
    assert prepared.protocol.endswith(f"ctx{CONTEXT}/stride{CONTEXT}/validation")
