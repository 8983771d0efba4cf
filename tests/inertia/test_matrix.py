"""The routing matrix on tiny random models with tokenizers built here, saved as folders and loaded like real ones.

The reference for decoding is a loop that runs the whole text through the model for every token, without a cache; for
subsets and tables it is counting by hand.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit import models
from labkit.models import Loaded
from labkit.reports.size_inertia import matrix
from labkit.reports.size_inertia.matrix import (
    COLUMNS,
    SHOTS,
    MatrixSpec,
    answer_questions,
    ask,
    encode,
    frame,
    subset,
    to_matrix,
)
from labkit.routing import questions

N_WORDS = 300
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)
QUESTIONS = questions.load()


def words(renamed: dict[int, str]) -> dict[str, int]:
    """Give each id a word, the first ones to what the protocol itself says."""
    own = ["<end>", "<unk>", "Question", "Answer", ":", "<user>", "<assistant>", "<go>", "Rome", "31", "Yes"]
    names = dict(enumerate([*own, *(f"w{i}" for i in range(len(own), N_WORDS))])) | renamed
    return {name: i for i, name in names.items()}


def tokenizer(chat: bool, renamed: dict[int, str]) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel(words(renamed), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(":", "isolated")]
    )
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")
    made.chat_template = TEMPLATE if chat else None
    return made


def folder(path: Path, *, chat: bool = False, seed: int = 0, renamed: dict[int, str] | None = None) -> Path:
    """Save a random two-layer model and a word tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=N_WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer(chat, renamed or {}).save_pretrained(path)
    return path


def loaded(path: Path) -> Loaded:
    return models.load(path)


def spec(path: Path, **changes: object) -> MatrixSpec:
    values = {"model": str(path), "dtype": "float32", "n_questions": 9, "threads": 1, "seed": 0, "max_new_tokens": 5}
    return MatrixSpec(**{**values, **changes})


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: torch.Tensor, n: int) -> list[int]:
    """Decode n tokens by running the whole text every time."""
    for _ in range(n):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, -n:].tolist()


PROMPT = "What is w20 w30 w40 ?"


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_is_the_greedy_continuation_of_the_protocols_prompt(tmp_path: Path, chat: bool) -> None:
    it = loaded(folder(tmp_path / "m", chat=chat))
    ids = encode(it.tokenizer, PROMPT)
    answer = ask(it.model, it.tokenizer, PROMPT, 6)
    expected = greedy(it.model, ids, 6)
    assert 0 not in expected
    assert answer.text == it.tokenizer.decode(expected)
    assert (answer.tokens_in, answer.tokens_out) == (ids.shape[1], 6)


def test_confidence_is_the_mean_log_probability_of_the_decoded_tokens(tmp_path: Path) -> None:
    it = loaded(folder(tmp_path / "m"))
    ids = encode(it.tokenizer, PROMPT)
    whole = torch.cat([ids, torch.tensor([greedy(it.model, ids, 6)])], 1)
    with torch.no_grad():
        log_probs = it.model(input_ids=whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(1, whole[0, ids.shape[1] :, None]).mean().item()
    assert ask(it.model, it.tokenizer, PROMPT, 6).confidence == pytest.approx(expected, rel=1e-4)


def first_new(tokens: list[int]) -> int:
    """Return an index after the first whose token did not come before it."""
    return next(i for i in range(1, len(tokens)) if tokens[i] not in tokens[:i])


@pytest.mark.parametrize("chat", [False, True])
def test_decoding_stops_at_a_token_that_ends_a_text_and_leaves_it_out(tmp_path: Path, chat: bool) -> None:
    it = loaded(folder(tmp_path / "m", chat=chat))
    tokens = greedy(it.model, encode(it.tokenizer, PROMPT), 6)
    end = first_new(tokens)
    it.model.generation_config.eos_token_id = [0, tokens[end]]
    answer = ask(it.model, it.tokenizer, PROMPT, 6)
    assert answer.tokens_out == end + 1


def test_a_completion_stops_at_the_first_line_break_and_a_chat_goes_on(tmp_path: Path) -> None:
    first = loaded(folder(tmp_path / "a"))
    tokens = greedy(first.model, encode(first.tokenizer, PROMPT), 6)
    end = first_new(tokens)
    broken = loaded(folder(tmp_path / "b", renamed={tokens[end]: "x.\ny"}))
    answer = ask(broken.model, broken.tokenizer, PROMPT, 6)
    assert answer.tokens_out == end + 1
    assert answer.text == f"{first.tokenizer.decode(tokens[:end])} x."
    chat = loaded(folder(tmp_path / "c", chat=True))
    tokens = greedy(chat.model, encode(chat.tokenizer, PROMPT), 6)
    chat = loaded(folder(tmp_path / "d", chat=True, renamed={tokens[first_new(tokens)]: "x.\ny"}))
    assert ask(chat.model, chat.tokenizer, PROMPT, 6).tokens_out == 6


def test_both_protocols_show_the_same_examples_and_end_where_the_answer_begins() -> None:
    text = matrix.frame_text(PROMPT)
    assert text.endswith(f"Question: {PROMPT}\nAnswer:")
    ids = encode(tokenizer(True, {}), PROMPT)[0].tolist()
    roles = [i for i in ids if i in (5, 6, 7)]
    assert roles == [5, 6] * len(SHOTS) + [5, 7]
    assert ids[-1] == 7
    for place, (question, answer) in enumerate(SHOTS):
        assert f"Question: {question}\nAnswer: {answer}\n" in text
        assert ids[[i for i, t in enumerate(ids) if t == 6][place] + 1] == 8 + place


def test_no_worked_example_is_among_the_questions_or_answers_one() -> None:
    prompts = {q.prompt for q in QUESTIONS}
    assert not prompts & {question for question, _ in SHOTS}
    for question, answer in SHOTS:
        assert question.endswith(("?", "no."))
        assert answer
    right = sum(questions.grade(q, answer) for q in QUESTIONS for _, answer in SHOTS if q.grader != "yes-no")
    assert right <= 1


@pytest.mark.parametrize("n", [1, 9, 25, 60, 100, 135])
def test_a_subset_is_spread_evenly_seeded_and_part_of_a_larger_one(n: int) -> None:
    chosen = subset(QUESTIONS, n, 0)
    assert len(chosen) == len(set(chosen)) == n
    counts = Counter(q.category for q in chosen)
    assert max(counts.values()) - min(counts[c] for c in questions.CATEGORIES) <= 1
    assert list(chosen) == sorted(chosen, key=QUESTIONS.index)
    assert chosen == subset(QUESTIONS, n, 0)
    assert set(chosen) <= set(subset(QUESTIONS, n + 5, 0))
    assert n < 5 or chosen != subset(QUESTIONS, n, 1)


@pytest.mark.parametrize("n", [0, len(QUESTIONS) + 1])
def test_a_subset_larger_than_the_set_or_empty_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="n_questions"):
        subset(QUESTIONS, n, 0)


@pytest.mark.parametrize(
    "change", [{"dtype": "int8"}, {"n_questions": 0}, {"max_new_tokens": 0}, {"threads": 0}], ids=str
)
def test_a_bad_spec_is_refused_by_field(tmp_path: Path, change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        spec(tmp_path, **change)


def test_a_spec_made_for_other_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make a new spec"):
        answer_questions(spec(tmp_path, questions_sha256="0" * 64))


def test_two_models_give_a_matrix_with_one_graded_row_for_each_query(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    results = [
        answer_questions(spec(folder(tmp_path / name, chat=chat, seed=chat)), lambda *at: seen.append(at))
        for name, chat in (("plain", False), ("chat", True))
    ]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert seen == [(i, 9) for i in range(1, 10)] * 2
    rows = [row for result in results for row in result["rows"]]
    table = frame(rows)
    assert list(table.columns) == list(COLUMNS)
    assert table["model"].tolist() == ["plain"] * 9 + ["chat"] * 9
    by_id = {q.id: q for q in QUESTIONS}
    for row in rows:
        assert row["quality"] == questions.grade(by_id[row["query"]], row["answer"])
        assert row["seconds"] > 0
        assert 1 <= row["tokens_out"] <= 5 < row["tokens_in"]
        assert (row["joules"] is None) == (row["energy_state"] == "unavailable")
        assert row["joules"] != 0
    assert to_matrix(table, "tokens_out").shape == (9, 2)
    for result, chat in zip(results, (False, True), strict=True):
        assert result["protocol"]["frame"].startswith("chat") == chat
        assert len(result["weights"]["sha256"]) == 64
        assert result["energy"]["state"] in ("measured", "unavailable")


def test_the_same_spec_gives_the_same_answers(tmp_path: Path) -> None:
    one = spec(folder(tmp_path / "m"), n_questions=3)
    texts = [[row["answer"] for row in answer_questions(one)["rows"]] for _ in range(2)]
    assert texts[0] == texts[1]
    assert any(texts[0])


def test_only_the_generate_call_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = loaded(folder(tmp_path / "m", chat=True))
    decode, generate = it.tokenizer.decode, it.model.generate
    monkeypatch.setattr(it.tokenizer, "decode", lambda *a, **k: (time.sleep(1.0), decode(*a, **k))[1])
    assert ask(it.model, it.tokenizer, PROMPT, 2).seconds < 1.0
    monkeypatch.setattr(it.model, "generate", lambda *a, **k: (time.sleep(1.0), generate(*a, **k))[1])
    assert ask(it.model, it.tokenizer, PROMPT, 2).seconds > 1.0


def test_the_first_query_is_asked_once_before_it_is_timed(tmp_path: Path) -> None:
    it = loaded(folder(tmp_path / "m"))
    calls = []
    it.model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    answers = matrix._answers(it.model, it.tokenizer, QUESTIONS[:2], spec(tmp_path, max_new_tokens=1))
    assert [len(calls) for _ in answers] == [2, 3]


def rows_of(model: str, queries: str, quality: float = 1.0) -> list[dict]:
    empty = dict.fromkeys(COLUMNS)
    return [empty | {"model": model, "query": q, "quality": quality} for q in queries]


def test_a_matrix_keeps_the_order_of_queries_and_models() -> None:
    table = to_matrix(frame([*rows_of("small", "zab", 0.0), *rows_of("large", "abz", 1.0)]))
    assert list(table.index) == ["z", "a", "b"]
    assert list(table.columns) == ["small", "large"]
    assert table.to_numpy().tolist() == [[0.0, 1.0]] * 3


@pytest.mark.parametrize(
    ("second", "message"), [("ab", "c for one"), ("abcd", "d for one"), ("abcc", "answered c twice")]
)
def test_models_that_did_not_answer_the_same_queries_are_refused(second: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_matrix(frame([*rows_of("small", "abc"), *rows_of("large", second)]))


def test_a_row_without_a_column_is_refused() -> None:
    row = rows_of("small", "a")[0]
    del row["seconds"]
    with pytest.raises(ValueError, match="seconds"):
        frame([row])


def test_joules_that_nobody_measured_are_missing_and_not_zero() -> None:
    table = frame(rows_of("small", "ab"))
    assert isinstance(table, pd.DataFrame)
    assert table["joules"].isna().all()
