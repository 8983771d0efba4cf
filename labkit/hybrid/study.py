"""Run everything report 003 needs on this machine: rates tuned, arms compared over budgets and seeds, side questions.

Every run is a pure function of one frozen description and stored as soon as it is there; a rerun asks the store first,
so a run killed at any moment loses at most what was under way. Runs of the comparison share a pool of workers, seed by
seed and arm by arm, so that a slow minute of the machine meets all arms; pieces that are timed by themselves run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from labkit import corpora, metrics, models, paths, recorded_metrics
from labkit.files import DiskFull
from labkit.hybrid import growth, noise, oracle, original, train
from labkit.hybrid.arms import SETTINGS
from labkit.hybrid.contest import Contest, next_rate
from labkit.hybrid.growth import GrowthSpec
from labkit.hybrid.noise import NoiseSpec
from labkit.hybrid.oracle import OracleSpec
from labkit.hybrid.original import OriginalSpec
from labkit.hybrid.tasks import ADAPTED, CNN, Run
from labkit.progress import Progress, of_study
from labkit.record import Store, cell_key, source_hash
from labkit.schema_predict_phase import PredictPhase
from labkit.workers import process_pool

ORACLE_SEEDS = 3
BY_BATCH = ["adamw", "block-trend", "horizon-8", "last-update"]
"""Arms that are compared over batch sizes: the baseline, jumps with and without a gate, the last update."""
MAX_EXTENSIONS = 3
"""Rates beyond the declared ones that are tried before an optimum at the edge is taken as not found."""


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: PredictPhase
    """What was asked for."""
    scratch: Contest
    """The comparison of ways to train from scratch."""
    adapted: Contest | None
    """The comparison of ways to fine-tune a pretrained model; None where the profile leaves it out."""
    digits: Contest | None
    """That of the small network on digits; None where the profile leaves it out."""
    settings: Contest | None
    """Single settings at the longest budget, all at the baseline's rate; None where the profile leaves them out."""
    by_batch: dict[int, Contest] = field(default_factory=dict)
    """The comparison from scratch again with other batch sizes, by windows of a step."""
    failures: dict[str, str] = field(default_factory=dict)
    """Error of each piece that has no result."""
    originals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `original.measure_original` returned, by initialisation."""
    oracles: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What `oracle.measure_oracle` returned from scratch, by seed."""
    adapted_oracles: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The same of the pretrained model, by seed."""
    noises: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What `noise.measure_noise` returned, by windows of a step."""
    growth: dict[str, Any] | None = None
    """What `growth.measure_growth` returned."""
    cached: int = 0
    """Pieces that were found finished."""

    def contests(self) -> list[Contest]:
        """Return the comparisons there are."""
        return [*self.text_contests(), *self.other_contests()]

    def text_contests(self) -> list[Contest]:
        """Return those that train from scratch on text, whose times are held against each other."""
        return [self.scratch, *([self.settings] if self.settings else []), *self.by_batch.values()]

    def other_contests(self) -> list[Contest]:
        """Return those of other models."""
        return [contest for contest in (self.adapted, self.digits) if contest]


def run_study(params: PredictPhase) -> Study:
    """Run or load every piece.

    Raises:
        MissingData: the text or a model is not here and cannot be fetched.
        ValueError: the text is too short for the held-out windows or the vocabulary.
    """
    study = make_study(params)
    _prepare(study)
    shown = of_study(n_pieces(params), "predict phase", params.hardware, params.report_id())
    with shown as progress, process_pool(params.workers) as pool:
        runner = _Runner(study, progress, pool)
        for spec in original_specs(params):
            if found := runner.alone(f"original, {spec.initialisation} init", spec, original.measure_original):
                study.originals[spec.initialisation] = found
        for contest in study.contests():
            runner.tune(contest)
        runner.together(run for own in (study.text_contests(), study.other_contests()) for run in by_seed(own))
        runner.noises()
        base = study.scratch.baseline_run()
        study.oracles = runner.oracles(base, ORACLE_SEEDS)
        if study.adapted:
            study.adapted_oracles = runner.oracles(study.adapted.baseline_run(), n_adapted_oracles(params))
        growth_spec = GrowthSpec(run=base, predicted_steps=params.memory_steps)
        study.growth = runner.alone("memory", growth_spec, growth.measure_growth)
    return study


def make_study(params: PredictPhase) -> Study:
    """Return an empty study with its comparisons."""
    results: dict[Run, dict[str, Any]] = {}
    sizes = ("task", "vocab_size", "context", "batch_size", "held_out_windows")
    names = (*sizes, "steps", "budgets", "arms", "learning_rates", "seeds")
    shared = {name: getattr(params, name) for name in names} | {"results": results}
    adapted = {
        "task": params.finetune_task,
        "context": params.finetune_context,
        "batch_size": params.finetune_batch_size,
        "held_out_windows": params.finetune_held_out_windows,
        "steps": params.finetune_steps,
        "budgets": params.finetune_budgets,
        "arms": params.finetune_arms,
        "learning_rates": params.finetune_learning_rates,
        "seeds": params.finetune_seeds,
    }
    digits = {"task": CNN, "steps": params.cnn_steps, "batch_size": params.cnn_batch_size, "arms": params.cnn_arms}
    side = shared | {"seeds": params.side_seeds}
    varied = ["adamw", *(arm for family in params.settings for arm in SETTINGS[family])]
    return Study(
        params,
        scratch=Contest(params, **shared),
        adapted=Contest(params, **shared | adapted) if params.finetune_steps else None,
        digits=Contest(params, **shared | digits) if params.cnn_steps else None,
        settings=Contest(params, **side | {"arms": varied, "budgets": [1.0]}) if params.settings else None,
        by_batch={n: Contest(params, **side | {"arms": BY_BATCH, "batch_size": n}) for n in params.noise_batch_sizes},
    )


def _prepare(study: Study) -> None:
    """Fetch and tokenize before any worker starts, so that bad input is one clear error."""
    params = study.params
    corpora.tokenize(corpora.load(params.corpus), params.vocab_size)
    for contest in study.contests():
        if contest.task in ADAPTED:
            models.prepare(ADAPTED[contest.task])


_SOURCES = {
    Run: "labkit.hybrid.train",
    OriginalSpec: "labkit.hybrid.original",
    OracleSpec: "labkit.hybrid.oracle",
    NoiseSpec: "labkit.hybrid.noise",
    GrowthSpec: "labkit.hybrid.growth",
}
"""Module that computes a piece: its source is part of the piece's key."""


class _Runner:
    """Walks through the pieces with one store and one progress display."""

    def __init__(self, study: Study, progress: Progress, pool: Executor) -> None:
        self._study, self._progress, self._pool, self._params = study, progress, pool, study.params
        self._store = Store(paths.runs(study.params.hardware, study.params.report_id()) / "cells")
        self._sources = {kind: source_hash([module]) for kind, module in _SOURCES.items()}
        self._text = corpora.load(study.params.corpus).revision

    def _inputs(self, spec: Any) -> dict[str, Any]:
        return {
            "piece": spec.inputs(),
            "source": self._sources[type(spec)],
            "data": self._text,
            "torch": torch.__version__,
        }

    def alone(self, label: str, spec: Any, work: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any] | None:
        """Load a piece, or run it while the other workers wait."""
        return dict(self._each({spec: label}, work)).get(spec)

    def together(self, runs: Iterable[Run]) -> None:
        """Load runs, or train them in the pool in the order they are given."""
        asked, results = list(runs), self._study.scratch.results
        labels = {run: f"{run.task}: {run.name}" for run in asked if run not in results}
        self._progress.skip(len(asked) - len(labels), "shared")
        results.update(self._each(labels, train.train))

    def oracles(self, base: Run, n_seeds: int) -> dict[int, dict[str, Any]]:
        """Ask the oracle on the tuning seed and on those after it; return what it found, by seed."""
        specs = [OracleSpec(run=replace(base, seed=base.seed + i)) for i in range(n_seeds)]
        labels = {spec: f"{base.task}: oracle, seed {spec.run.seed}" for spec in specs}
        return {spec.run.seed: found for spec, found in self._each(labels, oracle.measure_oracle)}

    def noises(self) -> None:
        """Measure the noise of the gradient along the baseline of every batch size."""
        specs = {NoiseSpec(run=own.baseline_run()): size for size, own in self._study.by_batch.items()}
        labels = {spec: f"noise, {size} windows" for spec, size in specs.items()}
        self._study.noises = {specs[spec]: found for spec, found in self._each(labels, noise.measure_noise)}

    def _each(self, labels: Mapping[Any, str], work: Callable[[Any], Mapping[str, Any]]) -> Iterator[tuple[Any, dict]]:
        """Yield every piece with its result: the stored ones, then the others as the pool finishes them."""
        missing = {}
        for spec, label in labels.items():
            inputs = self._inputs(spec)
            if (stored := self._store.load(cell_key(inputs))) is not None:
                self._study.cached += 1
                self._progress.skip(1, label)
                yield spec, stored
            else:
                missing[spec] = inputs
        waiting = {self._pool.submit(work, spec): spec for spec in missing}
        for future in as_completed(waiting):
            spec = waiting[future]
            if found := self._keep(labels[spec], missing[spec], future):
                yield spec, found

    def _keep(self, label: str, inputs: Mapping[str, Any], future: Future) -> dict[str, Any] | None:
        found = None
        try:
            self._store.save(cell_key(inputs), inputs, future.result())
            found = self._store.load(cell_key(inputs))
            if found and "curve" in found:
                _tell(label, inputs["piece"], found)
        except (RuntimeError, MemoryError, DiskFull) as error:
            self._study.failures[label] = f"{type(error).__name__}: {error}"
        self._progress.advance(
            1, f"{label}, loss {found['loss_nats']:.3f}" if found and "loss_nats" in found else label
        )
        return found

    def tune(self, contest: Contest) -> None:
        """Sweep every arm's rate on the tuning seed, and beyond an edge that is best; a single rate is simply taken."""
        losses: dict[str, dict[float, float]] = {arm: {} for arm in contest.tuned_arms()}
        wanted = {arm: list(contest.learning_rates) for arm in losses}
        for extension in range(MAX_EXTENSIONS + 1):
            asked = [(arm, rate) for arm, rates in wanted.items() for rate in rates]
            self._progress.extend(len(asked) if extension else 0)
            runs = {pair: contest.tuning_run(*pair) for pair in asked}
            self.together(runs.values())
            for (arm, rate), run in runs.items():
                losses[arm][rate] = contest.loss(run)
            wanted = {arm: further for arm, own in losses.items() if (further := next_rate(own))}
            if not wanted or len(contest.learning_rates) == 1:
                break
        contest.choose(losses)


def _tell(label: str, about: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Tell who follows what a run recorded; jumps have no loss and go by their probes, at the nominal step."""
    end = {name: result[name] for name in ("seconds", "probe_forwards", "accuracy") if name in result}
    end |= {"held_out_loss": result["loss_nats"], "tokens_per_second": result["tokens"] / result["seconds"]}
    recorded_metrics.tell(label, about, curve=result["curve"], steps=result["real_steps"], end=end)
    for phase, n in result["phases"].items():
        spent = {"phase_steps": n, "phase_seconds": result["phase_seconds"].get(phase, 0.0)}
        metrics.emit(label, result["real_steps"], {"phase": phase} | spent)
    for jump in result["jumps"]:
        numbers = {name: float(value) for name, value in jump.items() if isinstance(value, int | float)}
        metrics.emit(label, jump["step"], {"phase": "predict"} | numbers)


def original_specs(params: PredictPhase) -> list[OriginalSpec]:
    """Return the report's protocol with both initialisations; it runs alone, so it has the threads of all workers."""
    return [
        OriginalSpec(
            task=params.original_task,
            vocab_size=params.original_vocab_size,
            initialisation=initialisation,
            steps=params.original_steps,
            batch_size=params.original_batch_size,
            context=params.original_context,
            learning_rate=params.original_learning_rate,
            seed=0,
            device=params.device,
            threads=params.workers * params.threads,
        )
        for initialisation in original.INITIALISATIONS
    ]


def by_seed(contests: Sequence[Contest]) -> list[Run]:
    """Return the compared runs of several contests, seeds outermost: what is held together runs close together."""
    runs = [run for contest in contests for run in contest.compared_runs()]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def n_adapted_oracles(params: PredictPhase) -> int:
    """Return on how many seeds the oracle is asked about the pretrained model: none where too few are compared."""
    return ORACLE_SEEDS if params.finetune_steps and len(params.finetune_seeds) >= ORACLE_SEEDS else 0


def n_pieces(params: PredictPhase) -> int:
    """Return the pieces of a study whose sweeps need no extension."""
    n = len(original.INITIALISATIONS) + ORACLE_SEEDS + n_adapted_oracles(params) + len(params.noise_batch_sizes) + 1
    for contest in make_study(params).contests():
        n += len(contest.tuned_arms()) * len(contest.learning_rates)
        n += len(contest.seeds) * len(contest.budgets) * len(contest.arms)
    return n
