"""Ask a real model the checkable questions one by one, and put the answers of several models side by side.

The matrix has one row for each model and query: quality, seconds, joules where a sensor is there, tokens. A model with
a chat template gets three worked examples as earlier turns of a chat, any other the same three as text, so both kinds
are shown once what an answer looks like. Decoding is greedy, one query at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from labkit import device, models
from labkit.cell import cell, data, environment
from labkit.decoding.decode import VERSIONS
from labkit.device.energy import above_idle, idle_power
from labkit.routing import questions
from labkit.routing.questions import Question

SHOTS = (
    ("What is the capital of Italy?", "Rome"),
    ("What is 20 + 11?", "31"),
    ("Is ice colder than steam? Answer yes or no.", "Yes"),
)
"""Worked examples before every question; none of them is among the questions."""
COLUMNS = (
    *("model", "query", "category", "prompt", "answer", "quality", "seconds", "joules", "energy_state"),
    *("tokens_in", "tokens_out", "confidence"),
)
"""Columns of the matrix. Seconds and joules are those of one `generate` call; quality is a grade, 0 or 1; confidence is
the mean log-probability of the decoded tokens, in nats."""
DTYPES = ("float32", "bfloat16", "float16")
IDLE_SECONDS = 5.0
"""How long the loaded model is left idle where a sensor can meter that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixSpec:
    """Which questions one model is asked, and how.

    Raises:
        ValueError: a count below 1, an unknown dtype, or more questions than there are.
    """

    model: str
    """A name or folder that `labkit.models.load` takes."""
    dtype: str
    """Type the weights are held in."""
    n_questions: int
    """Size of the subset, spread over the categories."""
    max_new_tokens: int = 24
    """Longest answer."""
    threads: int
    """CPU threads."""
    seed: int
    """Seed of the subset."""
    device: str = "cpu"
    """Where it runs."""
    questions_sha256: str = field(default_factory=questions.fingerprint)
    """The questions' file, so that answers to other questions are kept apart."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        for name in ("n_questions", "max_new_tokens", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one `generate` call gave."""

    text: str
    """The answer, without special tokens; a completion is cut at its first line break."""
    seconds: float
    """Wall time of the call, prompt included."""
    energy: device.Energy
    """Energy of the call."""
    tokens_in: int
    """Tokens of the prompt."""
    tokens_out: int
    """Tokens decoded, the one that ended the answer included."""
    confidence: float
    """Mean log-probability of those tokens, in nats."""


@cell(
    "inertia.answers",
    version=1,
    data=lambda spec: data.weights(spec.model) | data.shipped(questions.SHIPPED),
    packages=("transformers", "tokenizers"),
    timing=("seconds", "joules", "energy_state", "energy", "idle", "above_idle", *VERSIONS),
    labels=("questions_sha256",),  # the file's revision is among the data
    timed=True,  # a query's seconds and joules are what routing weighs against its quality
    onednn=environment.WITHOUT_AMX,
)
def answer_questions(spec: MatrixSpec, progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """Let a model answer the questions of a spec.

    Args:
        spec: the model and its questions.
        progress: called with the queries done and their number after each.

    Returns:
        plain JSON: rows (see `COLUMNS`), weights (the bytes they came from), protocol, energy (of all queries together,
        the pauses between them included), idle (of as many seconds without work), above_idle (the difference).

    Raises:
        ValueError: as `MatrixSpec`, `questions.load` and `models.load`; or the questions are not those of the spec.
    """
    if spec.questions_sha256 != questions.fingerprint():
        raise ValueError(f"{questions.PATH.name} is not the file with SHA-256 {spec.questions_sha256}; make a new spec")
    asked = subset(questions.load(), spec.n_questions, spec.seed)
    device.set_threads(spec.threads)
    loaded = models.load(spec.model, dtype=getattr(torch, spec.dtype), device=spec.device)
    rows = []
    idle = idle_power(IDLE_SECONDS, spec.device)
    with device.energy_meter(spec.device) as meter:
        for done, (question, answer) in enumerate(_answers(loaded.model, loaded.tokenizer, asked, spec), 1):
            rows.append(_row(loaded.weights.name, question, answer))
            if progress is not None:
                progress(done, len(asked))
    return {
        "rows": rows,
        "weights": loaded.weights.as_dict(),
        "protocol": protocol(loaded.model, loaded.tokenizer, spec),
        "energy": meter.energy.as_dict(),
        "idle": idle.as_dict(),
        "above_idle": above_idle(meter.energy, idle).as_dict(),
    }


def subset(asked: Iterable[Question], n: int, seed: int) -> tuple[Question, ...]:
    """Draw n questions, as evenly over the categories as they allow, and return them in the order of the file.

    A smaller subset of the same seed is part of a larger one.

    Raises:
        ValueError: n is below 1 or above the number of questions.
    """
    everything = tuple(asked)
    if not 1 <= n <= len(everything):
        raise ValueError(f"n_questions is {n}; there are {len(everything)} questions")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(everything))
    seen: dict[str, int] = {}
    ranked = []
    for position, index in enumerate(order):
        category = everything[index].category
        seen[category] = seen.get(category, 0) + 1
        ranked.append((seen[category], position, index))
    chosen = sorted(int(index) for _, _, index in sorted(ranked)[:n])
    return tuple(everything[index] for index in chosen)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Return the ids of a question in the protocol of its model, [1, tokens]."""
    if tokenizer.chat_template is None:
        return tokenizer(frame_text(prompt), return_tensors="pt").input_ids
    said = [text for shot in SHOTS for text in shot] + [prompt]
    messages = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


def frame_text(prompt: str) -> str:
    """Return the text that a model without a chat template completes."""
    shots = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SHOTS)
    return f"{shots}Question: {prompt}\nAnswer:"


def protocol(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: MatrixSpec) -> dict[str, Any]:
    """Return how the questions were asked, as plain JSON."""
    chat = tokenizer.chat_template is not None
    return {
        "frame": "chat template" if chat else "question and answer text",
        "shots": [list(shot) for shot in SHOTS],
        "stop": "end of turn" if chat else "end of text or first line break",
        "sampler": "greedy",
        "batch": 1,
        "warmup": 1,
        "max_new_tokens": spec.max_new_tokens,
        "dtype": spec.dtype,
        "device": spec.device,
        "threads": torch.get_num_threads(),
        "n_questions": spec.n_questions,
        "seed": spec.seed,
        "questions_sha256": spec.questions_sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": str(torch.__version__),
    }


class LineBreak(StoppingCriteria):
    """Stops at the first token that holds a line break."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        found = ["\n" in self._tokenizer.decode(row[-1:]) for row in input_ids]
        return torch.tensor(found, device=input_ids.device)


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: tuple[Question, ...], spec: MatrixSpec
) -> Iterable[tuple[Question, Answer]]:
    """Answer the first question once untimed, then each of them."""
    with models.quiet_transformers():
        ask(model, tokenizer, asked[0].prompt, spec.max_new_tokens)
        for question in asked:
            yield question, ask(model, tokenizer, question.prompt, spec.max_new_tokens)


@torch.inference_mode()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> Answer:
    """Let a model answer one prompt greedily; only the `generate` call is timed and metered."""
    ids = encode(tokenizer, prompt).to(model.device)
    completes = tokenizer.chat_template is None
    stops = ends(model, tokenizer)
    options = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": max_new_tokens}
    options |= {"eos_token_id": stops, "pad_token_id": stops[0], "attention_mask": torch.ones_like(ids)}
    options |= {"stopping_criteria": StoppingCriteriaList([LineBreak(tokenizer)] if completes else [])}
    with device.energy_meter(model.device.type) as meter:
        start = time.perf_counter()
        out = model.generate(ids, **options, return_dict_in_generate=True, output_logits=True)
        # The copy to a list waits for the device.
        made = out.sequences[0, ids.shape[1] :].tolist()
        seconds = time.perf_counter() - start
    chosen = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    text = tokenizer.decode(made, skip_special_tokens=True)
    return Answer(
        text=text.partition("\n")[0].strip() if completes else text.strip(),
        seconds=seconds,
        energy=meter.energy,
        tokens_in=ids.shape[1],
        tokens_out=len(made),
        confidence=float(chosen.float().mean()),
    )


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: those the model was published with, and the tokenizer's own."""
    stated = model.generation_config.eos_token_id
    ends = {*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id} - {None}
    if not ends:
        raise ValueError(f"{model.config.name_or_path or 'the model'} has no token that ends a text; use another")
    return sorted(ends)


def _row(model: str, question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "model": model,
        "query": question.id,
        "category": question.category,
        "prompt": question.prompt,
        "answer": answer.text,
        "quality": questions.grade(question, answer.text),
        "seconds": answer.seconds,
        "joules": answer.energy.joules,
        "energy_state": answer.energy.state,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "confidence": answer.confidence,
    }


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows of several models as a table with the columns of `COLUMNS`.

    Raises:
        ValueError: a row lacks a column, or has one more.
    """
    rows = list(rows)
    for number, row in enumerate(rows):
        if wrong := sorted(set(row) ^ set(COLUMNS)):
            raise ValueError(f"row {number} of the matrix lacks or adds {', '.join(wrong)}; take rows of one version")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"joules": float})


def to_matrix(table: pd.DataFrame, values: str = "quality") -> pd.DataFrame:
    """Return one column of a table as queries x models, both in the order of the table.

    Raises:
        ValueError: two models did not answer the same queries, or one answered a query twice.
    """
    twice = table[table.duplicated(["model", "query"])]
    if len(twice):
        raise ValueError(f"{twice.iloc[0]['model']} answered {twice.iloc[0]['query']} twice; keep one of the rows")
    by_model = {name: set(part["query"]) for name, part in table.groupby("model", sort=False)}
    first, expected = next(iter(by_model.items()))
    for name, found in by_model.items():
        if odd := sorted(expected ^ found):
            raise ValueError(
                f"{first} and {name} did not answer the same queries: {len(odd)} differ, {odd[0]} for one; "
                "give both the same n_questions and seed"
            )
    order = table["query"].drop_duplicates()
    return table.pivot(index="query", columns="model", values=values).loc[order, list(by_model)]
