"""What routing policies that read a prompt decide, and how long deciding takes: a part of what routing costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.cell import cell, data, environment
from labkit.routing import questions
from labkit.routing.answer_table import AnswerTable, text_encoder

if TYPE_CHECKING:
    from labkit.routing.policies import Policy

KEYWORDS, LENGTH, LEARNED = "keyword rule (report)", "length", "learned router"
"""Names of the policies that read a prompt."""
SMALL_WORDS = ("what is", "calculate", "how many", "+")
LARGE_WORDS = ("consciousness", "meaning", "should", "why", "purpose")
SHORT_CHARACTERS = 20
"""Lists and limit of the report's rule (dp-web4/HRM, sage/irp/demo_sage_orchestration.py, select_resource)."""
_FOLDS = 5
_TIMED_PROMPTS = 20


class CannotRoute(ValueError):
    """A policy lacks something in the matrix that it decides by."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What a policy that reads prompts makes of them."""

    scores: tuple[float, ...]
    """[n] one for each prompt; the higher, the rather it goes to the most expensive model."""
    seconds: float
    """Measured seconds per prompt that deciding takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecidingSpec:
    """Questions that are decided on, and what a router can learn from."""

    queries: tuple[str, ...]
    """Ids of the questions."""
    gains: tuple[int, ...]
    """1 for each of them that the more expensive model answers better, else 0."""


@cell(
    "inertia.deciding",
    version=1,
    data=lambda spec: data.shipped(questions.SHIPPED),
    packages=("scikit-learn", "scipy"),
    timing=("seconds",),
    timed=True,
    onednn=environment.WITHOUT_AMX,
)
def measure_deciding(spec: DecidingSpec) -> dict[str, Any]:
    """Let each policy that reads prompts decide on questions.

    Returns:
        plain JSON by the name of the policy: `scores` and `seconds` as in `Decided`, or `why` it cannot.
    """
    prompts = questions.prompts()
    return decided([prompts[query] for query in spec.queries], spec.gains)


def decided(asked: Sequence[str], gains: Sequence[int]) -> dict[str, Any]:
    """Return what `measure_deciding` does, for prompts and what a router can learn from them."""
    found = {KEYWORDS: asdict(by_keywords(asked)), LENGTH: asdict(by_length(asked))}
    try:
        return found | {LEARNED: asdict(by_learning(asked, np.array(gains)))}
    except CannotRoute as error:
        return found | {LEARNED: {"why": str(error)}}


def spec_of(table: AnswerTable) -> DecidingSpec:
    """Return what is decided on after several models have answered."""
    return DecidingSpec(queries=table.queries, gains=tuple(gains_of(table).tolist()))


def gains_of(table: AnswerTable) -> np.ndarray:
    """Say which queries the most expensive model answers better than the cheapest, [n] of 0 and 1."""
    return (table.quality[:, -1] > table.quality[:, 0]).astype(int)


def with_decisions(policy: Policy, decided: Mapping[str, Mapping[str, Any]]) -> Policy:
    """Return a policy that decides as it did before.

    Args:
        policy: any policy; one that reads no prompt, or of which nothing is known, is returned as it is.
        decided: what `measure_deciding` returned, for the same questions in the same order.

    Raises:
        CannotRoute: it could not decide before.
    """
    known = decided.get(policy.name)
    if known is None:
        return policy
    if "why" in known:
        raise CannotRoute(known["why"])
    return replace(policy, decided=Decided(tuple(known["scores"]), known["seconds"]))


def by_keywords(prompts: Sequence[str]) -> Decided:
    """Score 1 what the report's rule sends to the large model, 0 the rest."""
    return _timed(lambda prompt: float(wants_large(prompt)), prompts)


def wants_large(prompt: str) -> bool:
    """Say whether the report's rule sends a prompt to its larger model."""
    text = prompt.lower()
    if any(word in text for word in SMALL_WORDS) and "?" in prompt and len(prompt) < SHORT_CHARACTERS:
        return False
    return any(word in text for word in LARGE_WORDS)


def by_length(prompts: Sequence[str]) -> Decided:
    """Score prompts by their characters."""
    return _timed(lambda prompt: float(len(prompt)), prompts)


def by_learning(prompts: Sequence[str], gains: np.ndarray, seed: int = 0) -> Decided:
    """Score each prompt by the probability that the larger model gains, from a fit to other prompts, in five folds.

    Args:
        prompts: [n] texts.
        gains: [n] of 0 and 1.
        seed: of the folds.

    Raises:
        CannotRoute: fewer than two of one kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    rarest = int(np.bincount(gains, minlength=2).min())
    if rarest < 2:
        raise CannotRoute(f"{int(gains.sum())} of {len(gains)} queries gain from the larger model: nothing to learn")
    folds = StratifiedKFold(min(_FOLDS, rarest), shuffle=True, random_state=seed)
    texts, scores, seconds = np.array(prompts, dtype=object), np.empty(len(gains)), []
    for train, unseen in folds.split(texts, gains):
        router = make_pipeline(text_encoder(), LogisticRegression(max_iter=2000))
        router.fit(texts[train], gains[train])
        scores[unseen] = router.predict_proba(texts[unseen])[:, 1]
        seconds += _times(lambda prompt, router=router: router.predict_proba([prompt]), texts[unseen])
    return Decided(tuple(scores.tolist()), float(np.median(seconds)))


def _timed(decide: Callable[[str], float], prompts: Sequence[str]) -> Decided:
    """Decide for every prompt, with the mean seconds of one."""
    start = time.perf_counter()
    scores = tuple(decide(prompt) for prompt in prompts)
    return Decided(scores, (time.perf_counter() - start) / len(prompts))


def _times(decide: Callable[[str], object], prompts: np.ndarray) -> list[float]:
    """Time single decisions, as a service makes them."""
    seconds = []
    for prompt in prompts[:_TIMED_PROMPTS]:
        start = time.perf_counter()
        decide(prompt)
        seconds.append(time.perf_counter() - start)
    return seconds
