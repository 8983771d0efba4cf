"""Run everything report 003 needs on this machine: learning rates tuned, arms compared over budgets and seeds, side
questions.

The runs of the comparison share a pool of workers, seed by seed and arm by arm, so that a slow minute of the machine
meets all arms; cells that are timed by themselves run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from labkit import corpora, metrics, models
from labkit.base.workers import process_pool
from labkit.cell import CellFunction, Json, plain
from labkit.metrics import recorded as recorded_metrics
from labkit.progress import of_study
from labkit.reports.predict_phase import costs, floors, growth, noise, oracle, original, train
from labkit.reports.predict_phase.arms import SETTINGS
from labkit.reports.predict_phase.contest import Contest
from labkit.reports.predict_phase.floors import FloorSpec
from labkit.reports.predict_phase.growth import GrowthSpec
from labkit.reports.predict_phase.noise import NoiseSpec
from labkit.reports.predict_phase.oracle import OracleSpec
from labkit.reports.predict_phase.original import OriginalSpec
from labkit.reports.predict_phase.params import PredictPhase
from labkit.reports.predict_phase.tasks import ADAPTED, CNN, Run
from labkit.reports.predict_phase.tuning import n_compared, n_tuned, tune
from labkit.workflow.cells import Cells

ORACLE_SEEDS = 3
BY_BATCH = ["adamw", "block-trend", "horizon-8", "last-update"]
"""Arms that are compared over batch sizes: the baseline, jumps with and without a gate, the last update."""


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: PredictPhase
    """What was asked for."""
    cells: Cells
    """The cells it stands on."""
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
    originals: dict[str, list[Json]] = field(default_factory=dict)
    """What `original.measure_original` returned, by initialisation: a run a seed."""
    oracles: dict[int, Json] = field(default_factory=dict)
    """What `oracle.measure_oracle` returned from scratch, by seed."""
    adapted_oracles: dict[int, Json] = field(default_factory=dict)
    """The same of the pretrained model, by seed."""
    noises: dict[int, Json] = field(default_factory=dict)
    """What `noise.measure_noise` returned, by windows of a step."""
    growth: Json | None = None
    """What `growth.measure_growth` returned."""

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
    """Run or load every cell.

    Raises:
        MissingData: the text or a model is not here and cannot be fetched.
        MissingCells: nothing may run, and cells are not on record.
        ValueError: the text is too short for the held-out windows or the vocabulary.
    """
    study = make_study(params)
    with _at_work(study) as pool:
        runner = _Runner(study, pool)
        for spec in original_specs(params):
            label = f"original, {spec.initialisation} init, seed {spec.seed}"
            if found := runner.one(original.measure_original, spec, label):
                study.originals.setdefault(spec.initialisation, []).append(found)
        for contest in study.contests():
            tune(contest, runner)
        if study.cells.unknown:
            study.cells.require()  # what is compared follows from the sweeps
        runner.train(run for own in (study.text_contests(), study.other_contests()) for run in by_seed(own))
        runner.measure_noises()
        base = study.scratch.baseline_run()
        study.oracles = runner.ask_oracle(base, n_oracles(params))
        if study.adapted:
            study.adapted_oracles = runner.ask_oracle(study.adapted.baseline_run(), n_adapted_oracles(params))
        growth_spec = GrowthSpec(run=base, predicted_steps=params.memory_steps)
        study.growth = runner.one(growth.measure_growth, growth_spec, "memory")
        for contest in (own for own in study.contests() if own.deciding):
            runner.price(contest)  # last: nothing else of the study runs beside it
    study.cells.require()
    return study


def make_study(params: PredictPhase) -> Study:
    """Return an empty study with its comparisons."""
    results: dict[Run, Json] = {}
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
    deciding = {"deciding": params.cost_rounds is not None}
    varied = ["adamw", *(arm for family in params.settings for arm in SETTINGS[family])]
    cells = Cells.of(params.hardware, params.report_id())
    if deciding["deciding"]:
        cells.untimed = frozenset({train.train.name})  # steps are priced apart
    return Study(
        params,
        cells,
        scratch=Contest(params, **shared, **deciding),
        adapted=Contest(params, **shared | adapted, **deciding) if params.finetune_steps else None,
        digits=Contest(params, **shared | digits, **deciding) if params.cnn_steps else None,
        settings=Contest(params, **side | {"arms": varied, "budgets": [1.0]}) if params.settings else None,
        by_batch={n: Contest(params, **side | {"arms": BY_BATCH, "batch_size": n}) for n in params.noise_batch_sizes},
    )


@contextmanager
def _at_work(study: Study) -> Iterator[Executor | None]:
    """Have text, models, workers and a progress display; none of them where nothing may run."""
    if study.cells.only_recorded:
        yield None
        return
    params = study.params
    # Before any worker starts, so that bad input is one clear error.
    corpora.tokenize(corpora.load(params.corpus), params.vocab_size)
    for contest in study.contests():
        if contest.task in ADAPTED:
            models.prepare(ADAPTED[contest.task])
    shown = of_study(n_cells(params), "predict phase", params.hardware, params.report_id())
    with shown as study.cells.progress, process_pool(params.workers) as pool:
        yield pool


class _Runner:
    """Walks through the cells with one pool."""

    def __init__(self, study: Study, pool: Executor | None) -> None:
        self._study, self._pool = study, pool
        self._trained: set[Run] = set()

    def each(self, work: CellFunction, labels: Mapping[Any, str]) -> dict[Any, Json]:
        """Return the result of every cell that has one, by its spec; what was trained now is told to who follows."""
        results = {}
        for spec, result, is_new in self._study.cells.each(work, labels, self._pool):
            if result is None:
                continue
            results[spec] = result
            if is_new and work is train.train:
                _tell(labels[spec], plain(spec), result)
        return results

    def one(self, work: CellFunction, spec: Any, label: str) -> Json | None:
        """Load a cell, or run it while the other workers wait."""
        return self.each(work, {spec: label}).get(spec)

    def train(self, runs: Iterable[Run]) -> None:
        """Load runs, or train them in the order they are given; comparisons share what they have in common."""
        asked, progress = list(runs), self._study.cells.progress
        labels = {run: f"{run.task}: {run.name}" for run in asked if run not in self._trained}
        self._trained |= labels.keys()
        if progress:
            progress.skip(len(asked) - len(labels), "shared")
        self._study.scratch.results.update(self.each(train.train, labels))

    def is_known(self, run: Run) -> bool:
        """Say whether a run has been asked for before."""
        return run in self._trained

    def extend(self, n: int) -> None:
        """Say that so many cells more than planned are to come."""
        if self._study.cells.progress:
            self._study.cells.progress.extend(n)

    @property
    def is_lost(self) -> bool:
        """Whether what follows from the cells cannot be told, because some are not on record and none may run."""
        return bool(self._study.cells.unknown)

    def price(self, contest: Contest) -> None:
        """Price the steps of a comparison, and find the floors under it where its tokens are our own."""
        task, spec = contest.task, contest.cost_spec(self._study.params.cost_rounds)
        contest.costs = self.one(costs.measure_costs, spec, label := f"{task}: costs of steps")
        if contest.costs is None and not self._study.cells.missing:
            raise RuntimeError(
                f"{label} failed, and no run's own time may stand in: {self._study.cells.failures[label]}"
            )
        if task == CNN or task in ADAPTED:
            return
        sizes = {name: getattr(contest, name) for name in ("vocab_size", "context", "held_out_windows")}
        floor = FloorSpec(corpus=contest.params.corpus, **sizes)
        contest.floors = self.one(floors.measure_floors, floor, f"{task}: n-gram floors") or {}

    def measure_noises(self) -> None:
        """Measure the noise of the gradient along the baseline of every batch size."""
        specs = {NoiseSpec(run=own.baseline_run()): size for size, own in self._study.by_batch.items()}
        labels = {spec: f"noise, {size} windows" for spec, size in specs.items()}
        self._study.noises = {specs[spec]: own for spec, own in self.each(noise.measure_noise, labels).items()}

    def ask_oracle(self, base: Run, n_seeds: int) -> dict[int, Json]:
        """Ask the oracle on the tuning seed and on those after it; return what it found, by seed."""
        specs = [OracleSpec(run=replace(base, seed=base.seed + i)) for i in range(n_seeds)]
        labels = {spec: f"{base.task}: oracle, seed {spec.run.seed}" for spec in specs}
        return {spec.run.seed: own for spec, own in self.each(oracle.measure_oracle, labels).items()}


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
    """Return the report's protocol on its seeds, and once with the other initialisation.

    It runs alone, so it has the threads of all workers.
    """
    published, usual = original.INITIALISATIONS
    runs = [*((published, seed) for seed in params.original_seeds), (usual, params.original_seeds[0])]
    return [
        OriginalSpec(
            task=params.original_task,
            vocab_size=params.original_vocab_size,
            initialisation=initialisation,
            steps=params.original_steps,
            batch_size=params.original_batch_size,
            context=params.original_context,
            learning_rate=params.original_learning_rate,
            seed=seed,
            device=params.device,
            threads=params.workers * params.threads,
        )
        for initialisation, seed in runs
    ]


def by_seed(contests: Sequence[Contest]) -> list[Run]:
    """Return the compared runs of several contests, seeds outermost: what is held together runs close together."""
    runs = [run for contest in contests for run in contest.compared_runs()]
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: seeds.index(run.seed))


def n_oracles(params: PredictPhase) -> int:
    """Return on how many seeds the oracle is asked: one where runs are long, since each asks for five of them."""
    return 1 if params.cost_rounds else ORACLE_SEEDS


def n_adapted_oracles(params: PredictPhase) -> int:
    """Return on how many seeds the oracle is asked about the pretrained model: none where too few are compared."""
    enough = params.finetune_steps and len(params.finetune_seeds) >= ORACLE_SEEDS
    return ORACLE_SEEDS if enough and not params.cost_rounds else 0


def n_cells(params: PredictPhase) -> int:
    """Return the cells of a study whose sweeps need no extension."""
    n = len(original_specs(params)) + n_oracles(params) + n_adapted_oracles(params) + len(params.noise_batch_sizes) + 1
    for contest in make_study(params).contests():
        n += n_tuned(contest) + n_compared(contest)
        n += contest.deciding + (contest.deciding and contest.task not in (CNN, *ADAPTED))
    return n
