"""Run everything report 003 needs on this machine: rates tuned, arms compared over budgets and seeds, side questions.

Every run is a pure function of one frozen description and stored as soon as it is there; a rerun asks the store first,
so a run killed at any moment loses at most what was under way. Runs of the comparison share a pool of workers, seed by
seed and arm by arm, so that a slow minute of the machine meets all arms; pieces that are timed by themselves run alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from labkit import corpora, paths
from labkit.files import DiskFull
from labkit.hybrid import growth, oracle, original, train
from labkit.hybrid.arms import ARMS
from labkit.hybrid.growth import GrowthSpec
from labkit.hybrid.oracle import OracleSpec
from labkit.hybrid.original import OriginalSpec
from labkit.hybrid.train import Run
from labkit.progress import Progress
from labkit.record import Store, cell_key, source_hash
from labkit.schema_predict_phase import PredictPhase
from labkit.workers import process_pool

ORACLE_SEEDS = 3
MAX_EXTENSIONS = 3
"""Rates beyond the declared ones that are tried before an optimum at the edge is taken as not found."""


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: PredictPhase
    """What was asked for."""
    results: dict[Run, dict[str, Any]] = field(default_factory=dict)
    """What `train.train` returned, tuning runs included."""
    failures: dict[str, str] = field(default_factory=dict)
    """Error of each piece that has no result."""
    diverged: dict[Run, dict[str, Any]] = field(default_factory=dict)
    """Runs that ended without a finite loss: they learned nothing, so they have the loss they started from."""
    best_rate: dict[str, float] = field(default_factory=dict)
    """Chosen peak rate, by arm."""
    interior: dict[str, bool] = field(default_factory=dict)
    """Whether it lies inside the rates tried."""
    originals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `original.measure_original` returned, by initialisation."""
    oracles: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What `oracle.measure_oracle` returned, by seed."""
    growth: dict[str, Any] | None = None
    """What `growth.measure_growth` returned."""
    cached: int = 0
    """Pieces that were found finished."""

    def comparison(self) -> pd.DataFrame:
        """Return one row a run of the comparison: arm, steps, seed, seconds, loss and what it did.

        A run that diverged has the loss it started from; one that failed is in `failures` and has no row.
        """
        runs = compared_runs(self.params, self.best_rate)
        return pd.DataFrame([self._row(run) for run in runs if run in self.results or run in self.diverged])

    def _row(self, run: Run) -> dict[str, Any]:
        row = {"arm": run.arm, "steps": run.steps, "seed": run.seed, "rate": run.learning_rate}
        if run in self.diverged:
            own = self.diverged[run]
            return row | {"seconds": own["seconds"], "loss": own["loss_nats"], "diverged": True}
        result = self.results[run]
        made = sum(bool(jump["accepted"]) for jump in result["jumps"])
        kept = ("seconds", "real_steps", "probe_forwards", "tokens", "peak_bytes")
        return (
            row
            | {name: result[name] for name in kept}
            | {
                "loss": result["loss_nats"],
                "predicted_steps": result["phases"].get("predict", 0),
                "jumps": made,
                "refused": len(result["jumps"]) - made,
                "diverged": False,
            }
        )


def run_study(params: PredictPhase) -> Study:
    """Run or load every piece.

    Raises:
        MissingData: the text is not here and cannot be fetched.
        ValueError: the text is too short for the held-out windows or the vocabulary.
    """
    corpora.tokenize(corpora.load(params.corpus), params.vocab_size)
    study = Study(params)
    with Progress(n_pieces(params), "predict phase") as progress, process_pool(params.workers) as pool:
        runner = _Runner(study, progress, pool)
        for spec in original_specs(params):
            if found := runner.alone(f"original, {spec.initialisation} init", spec, original.measure_original):
                study.originals[spec.initialisation] = found
        runner.tune()
        runner.together(compared_runs(params, study.best_rate))
        base = baseline_run(params, study.best_rate)
        runner.oracles(base)
        growth_spec = GrowthSpec(run=base, predicted_steps=params.memory_steps)
        study.growth = runner.alone("memory", growth_spec, growth.measure_growth)
    return study


class _Runner:
    """Walks through the pieces with one store and one progress display."""

    def __init__(self, study: Study, progress: Progress, pool: Executor) -> None:
        self._study, self._progress, self._pool, self._params = study, progress, pool, study.params
        self._store = Store(paths.runs(study.params.hardware, study.params.report_id()) / "cells")
        self._text = corpora.load(study.params.corpus).revision

    def _inputs(self, spec: Any) -> dict[str, Any]:
        source = source_hash([type(spec).__module__])
        return {"piece": spec.inputs(), "source": source, "data": self._text, "torch": torch.__version__}

    def alone(self, label: str, spec: Any, work: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any] | None:
        """Load a piece, or run it while the other workers wait."""
        inputs = self._inputs(spec)
        if (stored := self._store.load(cell_key(inputs))) is not None:
            self._found(label)
            return stored
        return self._keep(label, inputs, self._pool.submit(work, spec))

    def together(self, runs: Iterable[Run]) -> None:
        """Load runs, or train them in the pool in the order they are given."""
        study = self._study
        wanted = [run for run in dict.fromkeys(runs) if run not in study.results and run not in study.diverged]
        for run, found in self._each({run: run.name for run in wanted}, _train):
            self._take(run, found)

    def oracles(self, base: Run) -> None:
        """Ask the oracle on the tuning seed and on those after it."""
        specs = [OracleSpec(run=replace(base, seed=base.seed + i)) for i in range(ORACLE_SEEDS)]
        labels = {spec: f"oracle, seed {spec.run.seed}" for spec in specs}
        self._study.oracles = {spec.run.seed: found for spec, found in self._each(labels, oracle.measure_oracle)}

    def _each(self, labels: Mapping[Any, str], work: Callable[[Any], Mapping[str, Any]]) -> Iterator[tuple[Any, dict]]:
        """Yield every piece with its result: the stored ones, then the others as the pool finishes them."""
        missing = {}
        for spec, label in labels.items():
            inputs = self._inputs(spec)
            if (stored := self._store.load(cell_key(inputs))) is not None:
                self._found(label)
                yield spec, stored
            else:
                missing[spec] = inputs
        waiting = {self._pool.submit(work, spec): spec for spec in missing}
        for future in as_completed(waiting):
            spec = waiting[future]
            if found := self._keep(labels[spec], missing[spec], future):
                yield spec, found

    def _take(self, run: Run, found: dict[str, Any]) -> None:
        if found.get("diverged"):
            self._study.diverged[run] = found
        else:
            self._study.results[run] = found

    def _found(self, label: str) -> None:
        self._study.cached += 1
        self._progress.skip(1, label)

    def _keep(self, label: str, inputs: Mapping[str, Any], future: Future) -> dict[str, Any] | None:
        try:
            self._store.save(cell_key(inputs), inputs, future.result())
            return self._store.load(cell_key(inputs))
        except (RuntimeError, MemoryError, DiskFull) as error:
            self._study.failures[label] = f"{type(error).__name__}: {error}"
            return None
        finally:
            self._progress.advance(1, label)

    def tune(self) -> None:
        """Sweep the rate of every arm on the tuning seed, further while the best one lies at the edge."""
        losses: dict[str, dict[float, float]] = {arm: {} for arm in tuned_arms(self._params)}
        wanted = {arm: list(self._params.learning_rates) for arm in losses}
        for extension in range(MAX_EXTENSIONS + 1):
            asked = [(arm, rate) for arm, rates in wanted.items() for rate in rates]
            self._progress.extend(len(asked) if extension else 0)
            runs = {pair: tuning_run(self._params, *pair) for pair in asked}
            self.together(runs.values())
            for (arm, rate), run in runs.items():
                losses[arm][rate] = self._loss(run)
            wanted = {arm: further for arm, own in losses.items() if (further := next_rate(own))}
            if not wanted:
                break
        for arm in self._params.arms:
            own = losses[ARMS[arm].tuned_as or arm]
            self._study.best_rate[arm] = min(own, key=own.__getitem__)
            self._study.interior[arm] = not next_rate(own)

    def _loss(self, run: Run) -> float:
        found = self._study.results.get(run)
        return float("inf") if found is None else found["loss_nats"]


def _train(run: Run) -> dict[str, Any]:
    """Train a run in a worker; one that diverges is a result, with the loss of the weights it started from."""
    began = time.perf_counter()
    try:
        return train.train(run)
    except FloatingPointError as error:
        seconds = time.perf_counter() - began
        start = train.score(train.build(run), train.Text(run).held_out(), run.batch_size)
        return {"diverged": str(error), "loss_nats": float(start.mean()), "seconds": seconds}


def next_rate(losses: Mapping[float, float]) -> list[float]:
    """Return the rate to try next if the best one lies at the edge of those tried, by the ratio of the first two."""
    tried = sorted(losses)
    best = min(tried, key=losses.__getitem__)
    ratio = tried[1] / tried[0] if len(tried) > 1 else 2.0
    if best == tried[-1]:
        return [best * ratio]
    return [best / ratio] if best == tried[0] else []


def tuned_arms(params: PredictPhase) -> list[str]:
    """Return the arms whose rate is tuned; the others take over that of one of them."""
    return list(dict.fromkeys(ARMS[arm].tuned_as or arm for arm in params.arms))


def tuning_run(params: PredictPhase, arm: str, rate: float) -> Run:
    """Return a run of the sweep, at the longest budget."""
    return _run(params, arm, rate, params.steps, params.tuning_seed)


def baseline_run(params: PredictPhase, rates: Mapping[str, float]) -> Run:
    """Return the baseline at its tuned rate and the longest budget, on the tuning seed."""
    return tuning_run(params, "adamw", rates["adamw"])


def compared_runs(params: PredictPhase, rates: Mapping[str, float]) -> list[Run]:
    """Return the runs of the comparison: seeds outermost, so that all arms of a seed run close together."""
    pairs = itertools.product(params.seeds, budgets(params), params.arms)
    return [_run(params, arm, rates[arm], steps, seed) for seed, steps, arm in pairs]


def budgets(params: PredictPhase) -> list[int]:
    """Return the schedules' lengths in steps."""
    return [max(2, round(share * params.steps)) for share in params.budgets]


def _run(params: PredictPhase, arm: str, rate: float, steps: int, seed: int) -> Run:
    own = {"arm": arm, "learning_rate": rate, "steps": steps, "seed": seed}
    shared = {name: getattr(params, name) for name in Run.__dataclass_fields__ if name not in own}
    return Run(**own, **shared)


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


def n_pieces(params: PredictPhase) -> int:
    """Return the pieces of a study whose sweeps need no extension."""
    sweeps = len(tuned_arms(params)) * len(params.learning_rates)
    compared = len(params.seeds) * len(params.budgets) * len(params.arms)
    return sweeps + compared + len(original.INITIALISATIONS) + ORACLE_SEEDS + 1
