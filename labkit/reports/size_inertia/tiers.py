"""Ways to answer that differ in quality and in cost: a model alone, with notes looked up, by a majority of its samples.

Two small models may be right equally often, and then there is nothing to route between. Notes put into the prompt
(retrieval) and a majority over samples (self-consistency, arXiv 2203.11171) make tiers of the same models. Questions
are answered in blocks, a cell each, so that a run that is killed loses minutes.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from labkit import device, models
from labkit.cell import cell, data, environment
from labkit.decoding.decode import VERSIONS
from labkit.reports.size_inertia import generated, matrix
from labkit.reports.size_inertia.params import SizeInertia
from labkit.routing import deciding, questions
from labkit.routing.deciding import DecidingSpec
from labkit.routing.questions import Question

N_NOTES = 2
"""Notes that a tier with notes gets."""
TEMPERATURE = 0.7
"""Of the samples that a majority is taken over."""
BLOCK = 131
"""Questions of a cell: an eighth of them all, some minutes of a small model."""
LEAST_APART = 0.15
"""Least difference of the shares of right answers between the tiers; below it routing has nothing to decide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """A block of the generated questions, and how it is answered.

    Raises:
        ValueError: a count out of its range.
    """

    model: str
    """A name or folder that `labkit.models.load` takes."""
    dtype: str
    """Type the weights are held in."""
    notes: int = 0
    """Notes looked up for each question."""
    samples: int = 1
    """Answers whose majority counts; one is decoded greedily."""
    first: int = 0
    """Place of the first question among the generated ones."""
    n_questions: int
    """Questions from there on."""
    max_new_tokens: int = 24
    """Longest answer."""
    threads: int
    """CPU threads."""
    device: str = "cpu"
    """Where it runs."""

    def __post_init__(self) -> None:
        for name, least in (("n_questions", 1), ("samples", 1), ("max_new_tokens", 1), ("notes", 0), ("first", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@cell(
    "inertia.tier",
    version=1,
    data=lambda spec: data.weights(spec.model) | data.shipped(generated.SHIPPED),
    packages=("transformers", "tokenizers", "scikit-learn", "scipy"),
    timing=("seconds", "joules", "energy_state", *VERSIONS),
    timed=True,  # a query's seconds are what routing weighs against its quality
    onednn=environment.WITHOUT_AMX,
)
def answer_block(spec: BlockSpec, progress: Callable[[int, int], object] | None = None) -> dict[str, Any]:
    """Let one tier answer a block of the generated questions.

    Args:
        spec: the block and the tier.
        progress: called with the queries done and their number after each.

    Returns:
        plain JSON: rows (see `matrix.COLUMNS`; seconds and tokens are those of looking up and of all samples together,
        the answer and its confidence are the majority's), weights, and counts of what was asked.

    Raises:
        ValueError: the block ends beyond the questions there are.
    """
    asked = generated.load()[spec.first : spec.first + spec.n_questions]
    if len(asked) < spec.n_questions:
        raise ValueError(f"questions {spec.first} to {spec.first + spec.n_questions - 1} are not all there")
    device.set_threads(spec.threads)
    loaded = models.load(spec.model, dtype=getattr(torch, spec.dtype), device=spec.device)
    rows = []
    with models.quiet_transformers():
        _ask(loaded.model, loaded.tokenizer, asked[0], spec, seed=0)
        for done, question in enumerate(asked, 1):
            rows.append(_ask(loaded.model, loaded.tokenizer, question, spec, seed=spec.first + done))
            if progress is not None:
                progress(done, len(asked))
    frame = "chat template" if loaded.tokenizer.chat_template is not None else "question and answer text"
    told = {"frame": frame, "temperature": TEMPERATURE if spec.samples > 1 else 0.0, "torch": str(torch.__version__)}
    return {"rows": rows, "weights": loaded.weights.as_dict(), "protocol": asdict(spec) | told}


def _ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: Question, spec: BlockSpec, seed: int
) -> dict[str, Any]:
    """Answer one question, and grade the answer."""
    with device.energy_meter(model.device.type) as meter:
        start = time.perf_counter()
        found = generated.looked_up([question.prompt], spec.notes)[0] if spec.notes else []
        ids = matrix.encode(tokenizer, generated.with_notes(question.prompt, found)).to(model.device)
        texts, n_tokens, confidence = _sampled(model, tokenizer, ids, spec, seed)
        best = majority(texts)
        seconds = time.perf_counter() - start
    return {
        "model": spec.model,
        "query": question.id,
        "category": question.category,
        "prompt": question.prompt,
        "answer": texts[best[0]],
        "quality": questions.grade(question, texts[best[0]]),
        "seconds": seconds,
        "joules": meter.energy.joules,
        "energy_state": meter.energy.state,
        "tokens_in": ids.shape[1],
        "tokens_out": sum(n_tokens),
        "confidence": statistics.fmean(confidence[i] for i in best),
    }


@torch.inference_mode()
def _sampled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, spec: BlockSpec, seed: int
) -> tuple[list[str], list[int], list[float]]:
    """Decode the samples side by side; return their texts, numbers of tokens, and mean log-probabilities in nats."""
    completes = tokenizer.chat_template is None
    ends = matrix.ends(model, tokenizer)
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    if spec.samples > 1:
        options |= {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        options |= {"num_return_sequences": spec.samples}
        torch.manual_seed(seed)
    options |= {"max_new_tokens": spec.max_new_tokens, "eos_token_id": ends, "pad_token_id": ends[0]}
    stops = StoppingCriteriaList([matrix.LineBreak(tokenizer)] if completes else [])
    shared = {"attention_mask": torch.ones_like(ids), "stopping_criteria": stops}
    out = model.generate(ids, **options, **shared, return_dict_in_generate=True, output_logits=True)
    chosen = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True).float()
    texts, counts, confidence = [], [], []
    for made, scores in zip(out.sequences[:, ids.shape[1] :].tolist(), chosen.tolist(), strict=True):
        n = next((i for i, token in enumerate(made, 1) if _is_last(tokenizer, token, ends, completes)), len(made))
        text = tokenizer.decode(made[:n], skip_special_tokens=True)
        texts.append(text.partition("\n")[0].strip() if completes else text.strip())
        counts.append(n)
        confidence.append(statistics.fmean(scores[:n]))
    return texts, counts, confidence


def _is_last(tokenizer: PreTrainedTokenizerBase, token: int, ends: Sequence[int], completes: bool) -> bool:
    """Say whether an answer ends with a token; what follows in its row is padding."""
    return token in ends or (completes and "\n" in tokenizer.decode([token]))


def majority(texts: Sequence[str]) -> list[int]:
    """Return the places of the answers that most samples agree on, the first such group where several are as large.

    Answers agree if they state the same first number, or without digits the same words.
    """
    keys = [_key(text) for text in texts]
    counts = Counter(keys)
    best = max(keys, key=lambda key: counts[key])
    return [i for i, key in enumerate(keys) if key == best]


def _key(text: str) -> str:
    folded = questions.normalise(text)
    number = re.search(r"-?\d[\d,]*(?:\.\d+)?", folded)
    return number.group().replace(",", "") if number else " ".join(re.findall(r"\w+", folded))


@cell(
    "inertia.tier_deciding",
    version=1,
    data=lambda spec: data.shipped(generated.SHIPPED),
    packages=("scikit-learn", "scipy"),
    timing=("seconds",),
    timed=True,
    onednn=environment.WITHOUT_AMX,
)
def measure_deciding(spec: DecidingSpec) -> dict[str, Any]:
    """Let each policy that reads prompts decide on generated questions.

    Returns:
        plain JSON as `deciding.measure_deciding` returns for the written questions.
    """
    prompts = {question.id: question.prompt for question in generated.load()}
    return deciding.decided([prompts[query] for query in spec.queries], spec.gains)


def parsed(tier: str) -> tuple[str, int, int]:
    """Return model, notes and samples of a tier's name: `gemma-3-270m+notes*3` has two notes and three samples."""
    rest, _, samples = tier.partition("*")
    model, notes, _ = rest.partition("+notes")
    return model, N_NOTES if notes else 0, int(samples or 1)


def specs(params: SizeInertia, tier: str) -> list[BlockSpec]:
    """Return the blocks of a tier, in their order."""
    model, notes, samples = parsed(tier)
    own = {"model": model, "notes": notes, "samples": samples, "dtype": params.weights_dtype, "device": params.device}
    own |= {"max_new_tokens": params.answer_tokens, "threads": params.workers * params.threads}
    n = params.generated_questions
    return [BlockSpec(**own, first=first, n_questions=min(BLOCK, n - first)) for first in range(0, n, BLOCK)]


def frame(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Return the answers of several tiers as `matrix.frame` does, with the tier's name in place of the model's."""
    return matrix.frame({**row, "model": tier} for tier, own in rows.items() for row in own)


def void(answers: pd.DataFrame) -> list[str]:
    """Say which tiers are not worth their price beside the next cheaper one: too close to it, or worse.

    Args:
        answers: one row an answer, with model and quality; the cheapest tier first.
    """
    shares = answers.groupby("model", sort=False)["quality"].mean()
    return [
        f"{above} is right {high - low:+.1%} against {below}, and {LEAST_APART:+.0%} are needed"
        for (below, low), (above, high) in zip(shares.iloc[:-1].items(), shares.iloc[1:].items(), strict=True)
        if high - low < LEAST_APART and not math.isclose(high - low, LEAST_APART)
    ]
