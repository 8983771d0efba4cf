"""Walk through the cells of report 000: shapes are timed, models questioned, arms trained.

They run one after the other in this process: each may use all threads, and no timing has a neighbour. A run that is
killed loses at most the cell under way, and of a training arm at most the steps since its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any

from labkit import device
from labkit.base import paths
from labkit.cell import CellFunction, Json, digest
from labkit.decoding import ladder, loading, quantize
from labkit.decoding.quantize import QuantizedRung
from labkit.device import memory
from labkit.dpo import arm as dpo
from labkit.dpo.arm import DpoArm
from labkit.progress import Progress, of_study
from labkit.reports.size_inertia import (
    arms,
    balanced,
    convergence,
    cost,
    coverage,
    factorial,
    fidelity,
    judged,
    matrix,
    surface,
    tiers,
)
from labkit.reports.size_inertia.coverage import CoverageSpec
from labkit.reports.size_inertia.fidelity import FidelitySpec
from labkit.reports.size_inertia.params import SizeInertia
from labkit.reports.size_inertia.specs import (
    fidelity_specs,
    loads,
    n_threads,
    quantized_rungs,
    question_specs,
    reference_specs,
    require_weights,
    rungs,
)
from labkit.reports.size_inertia.surface import SurfaceSpec
from labkit.routing import deciding
from labkit.routing.answer_table import answer_table
from labkit.training.sweep import best_rate, next_rates
from labkit.workflow import reach
from labkit.workflow.cells import Cells


@dataclass
class Study:
    """Everything a run of the report produced."""

    params: SizeInertia
    """What was asked for."""
    cells: Cells
    """The cells it stands on; those that failed are in `cells.failures`, never dropped."""
    coverage: dict[CoverageSpec, Json] = field(default_factory=dict)
    """What `coverage.measure_coverage` returned."""
    rungs: dict[str, Json] = field(default_factory=dict)
    """What `ladder.measure_rung` returned, by rung."""
    quantized: dict[QuantizedRung, Json] = field(default_factory=dict)
    """What `quantize.measure_quantized` returned."""
    fidelity: dict[FidelitySpec, Json] = field(default_factory=dict)
    """What `fidelity.measure_fidelity` returned."""
    loads: dict[str, Json] = field(default_factory=dict)
    """Cold and warm load times, by model."""
    answers: dict[str, Json] = field(default_factory=dict)
    """What `matrix.answer_questions` returned, by model."""
    decided: Json = field(default_factory=dict)
    """What `deciding.measure_deciding` returned, by policy."""
    surface: Json | None = None
    """What `surface.measure_surface` returned."""
    arms: dict[DpoArm, Json] = field(default_factory=dict)
    """What `dpo.train_arm` returned."""
    sweeps: dict[str, dict[float, float]] = field(default_factory=dict)
    """Validation loss at each learning rate tried, infinite where training diverged, by model."""
    best_rate: dict[str, float] = field(default_factory=dict)
    """Chosen peak learning rate of the tuned arms, by model."""
    report_rates: dict[str, dict[float, float]] = field(default_factory=dict)
    """Last training loss of the report's schedule at each peak rate, averaged over seeds, by model."""
    references: dict[str, Json] = field(default_factory=dict)
    """What `judged.measure_reference` returned, by model."""
    balance: Json | None = None
    """What `balanced.measure_balance` returned."""
    factorial: dict[ladder.Rung, Json] = field(default_factory=dict)
    """What `ladder.measure_rung` returned for each shape of the factorial and round."""
    tier_rows: dict[str, list[Json]] = field(default_factory=dict)
    """Rows of the answers to the generated questions, by tier."""
    tier_decided: Json = field(default_factory=dict)
    """What `tiers.measure_deciding` returned for them, by policy."""


def run_study(params: SizeInertia) -> Study:
    """Run or load every cell.

    Raises:
        MissingData: a model's weights are not here and cannot be fetched.
        MissingCells: nothing may run, and cells are not on record.
        ValueError: bad input, such as a target module that matches nothing.
    """
    study = Study(params, Cells.of(params.hardware, params.report_id()))
    if not study.cells.only_recorded:
        device.set_threads(n_threads(params))
        for model in params.models:
            require_weights(model)
    with of_study(cost.n_cells(params), "size inertia", params.hardware, params.report_id()) as study.cells.progress:
        walk = _Walk(study)
        walk.adapters()
        walk.shapes()
        walk.factorial()
        walk.questions()
        walk.generated()
        walk.texts()
        for model in params.models:
            walk.train(model)
    study.cells.require()
    return study


def count_adapters(params: SizeInertia) -> dict[CoverageSpec, Json]:
    """Run or load the cells that need neither weights nor time: what adapters reach in each model."""
    study = Study(params, Cells.of(params.hardware, params.report_id()))
    _Walk(study).adapters()
    study.cells.require()
    return study.coverage


class _Walk:
    """Asks for the cells in their order; which ones are trained follows from those before."""

    def __init__(self, study: Study) -> None:
        self._study, self._params, self._cells = study, study.params, study.cells
        self._work = paths.runs(study.params.hardware, study.params.report_id()) / "arms"

    def adapters(self) -> None:
        for spec in coverage.coverage_specs(self._params):
            label = f"adapters of {spec.model} at {', '.join(spec.targets)}"
            self._into(self._study.coverage, spec, coverage.measure_coverage, spec, label)

    def shapes(self) -> None:
        for spec in rungs(self._params):
            self._into(self._study.rungs, spec.name, ladder.measure_rung, spec, f"rung {spec.name}")
        for spec in quantized_rungs(self._params):
            label = f"rung {spec.rung.name} in {spec.weights}"
            self._into(self._study.quantized, spec, quantize.measure_quantized, spec, label)
        for spec in fidelity_specs(self._params):
            label = f"{spec.model} in {spec.weights}"
            self._into(self._study.fidelity, spec, fidelity.measure_fidelity, spec, label)
        for spec in loads(self._params):
            self._into(self._study.loads, spec.model, loading.measure_load, spec, f"load {spec.model}")

    def questions(self) -> None:
        """Let every model answer, and the policies decide between those that did."""
        for spec in question_specs(self._params):
            self._into(self._study.answers, spec.model, matrix.answer_questions, spec, f"questions to {spec.model}")
        if len(self._study.answers) > 1:
            rows = (row for answered in self._study.answers.values() for row in answered["rows"])
            spec = deciding.spec_of(answer_table(matrix.frame(rows)))
            self._study.decided = self._into({}, None, deciding.measure_deciding, spec, "routing decisions") or {}

    def factorial(self) -> None:
        for spec in factorial.rungs(self._params):
            label = f"shape {spec.name} in {spec.dtype}, round {spec.seed}"
            self._into(self._study.factorial, spec, ladder.measure_rung, spec, label)

    def generated(self) -> None:
        """Let every tier answer the generated questions, block by block, and the policies decide between tiers."""
        whole = True
        for tier in self._params.tiers:
            for spec in tiers.specs(self._params, tier):
                label = f"generated questions {spec.first} to {spec.first + spec.n_questions - 1} to {tier}"
                done = self._into({}, None, tiers.answer_block, spec, label)
                whole = whole and done is not None
                self._study.tier_rows.setdefault(tier, []).extend(done["rows"] if done else [])
        if not whole:
            # Tiers that answered other questions cannot be compared; what is there is kept as cells.
            self._study.tier_rows.clear()
        elif self._params.tiers:
            spec = deciding.spec_of(answer_table(tiers.frame(self._study.tier_rows)))
            label = "routing decisions on generated questions"
            self._study.tier_decided = self._into({}, None, tiers.measure_deciding, spec, label) or {}

    def texts(self) -> None:
        spec = SurfaceSpec(n_pairs=arms.N_PAIRS)
        self._study.surface = self._into({}, None, surface.measure_surface, spec, "words and lengths")
        if n := self._params.balanced_pairs:
            spec = balanced.BalanceSpec(n_pairs=n)
            self._study.balance = self._into({}, None, balanced.measure_balance, spec, "words of the balanced pairs")
        for spec in reference_specs(self._params):
            label = f"{spec.model} before training"
            self._into(self._study.references, spec.model, judged.measure_reference, spec, label)

    def train(self, model: str) -> None:
        """Sweep the learning rate, then run the report's arms and the tuned ones."""
        self._study.sweeps[model] = self._sweep(model)
        rate = best_rate(self._study.sweeps[model])
        self._study.report_rates[model] = self._report_rates(model)
        if rate is None:
            return
        self._study.best_rate[model] = rate
        for arm in arms.tuned_arms(self._params, model, rate):
            self._arm(arm)

    def _report_rates(self, model: str) -> dict[float, float]:
        """Run the report's schedule at every rate with every seed, and at further rates while the best is at the edge.

        Returns:
            the last training loss averaged over seeds, infinite where training diverged with one of them; nothing if
            cells are missing.
        """
        losses: dict[float, float] = {}
        n_unknown, seeds = self._cells.unknown, self._params.seeds
        wanted = list(self._params.report_rates)
        for extension in range(arms.MAX_EXTENSIONS + 1):
            self._cells.progress.extend(len(wanted) * len(seeds) if extension else 0)
            for rate in wanted:
                done = {seed: self._arm(arms.report_arm(self._params, model, seed, rate)) for seed in seeds}
                losses[rate] = convergence.mean_loss(done)
            wanted = next_rates(losses)
            if self._cells.unknown > n_unknown:
                return {}
        return losses

    def _sweep(self, model: str) -> dict[float, float]:
        """Try the declared learning rates, and further ones while the best lies at their edge.

        Returns:
            the loss on the pairs that were not trained on, infinite where training diverged; nothing if cells are
            missing, because what they would lead to is unknown.
        """
        losses: dict[float, float] = {}
        n_unknown = self._cells.unknown
        wanted = list(self._params.learning_rates)
        for extension in range(arms.MAX_EXTENSIONS + 1):
            self._cells.progress.extend(len(wanted) if extension else 0)
            for rate in wanted:
                done = self._arm(arms.sweep_arm(self._params, model, rate))
                losses[rate] = done["validation"]["loss"] if done else math.inf
            wanted = next_rates(losses)
            if self._cells.unknown > n_unknown:
                return {}
        return losses

    def _arm(self, arm: DpoArm) -> Json | None:
        """Run or load an arm; all but those of a sweep are judged on the word-balanced pairs, too, if there are any."""
        n, work, spec = self._params.balanced_pairs, dpo.train_arm, arm
        if n and arm.role != "sweep":
            work, spec = judged.train_balanced, judged.BalancedArm.of(arm, n)
        do = functools.partial(self._trained, work)
        return self._into(self._study.arms, arm, work, spec, f"arm {arm.name}", do)

    def _trained(self, work: CellFunction, arm: DpoArm) -> Json:
        """Train an arm where a killed run continues it, unless the code or the data are others by then."""
        # transformers takes seconds to import, and most who read a study train nothing.
        from labkit.metrics.trainer import TrainerMetrics

        code = reach.code_hash(work.name)
        folder = self._work / digest(work.identity(arm) | {"code": code})[:16]
        with TrainerMetrics(arm.name, dataclasses.asdict(arm)) as followed:
            shared = {"reference_dir": self._work / f"references-{code[:16]}", "callbacks": [followed]}
            return work(arm, folder, _Steps(self._cells.progress), **shared)

    def _into(self, results: dict, key: Any, work: CellFunction, spec: Any, label: str, do: Any = None) -> Json | None:
        """Load or run a cell, and keep its result, if it has one, under a key."""
        n_found = self._cells.cached
        if (found := self._cells.one(work, spec, label, do)) is not None:
            results[key] = found
        if self._cells.cached == n_found:
            memory.release()  # kernels of `labkit run` tell glibc to keep it, and a large shape needs the pages
        return found


class _Steps:
    """Shows an arm's steps as remarks: what is counted are cells."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def advance(self, n: int = 1, message: str = "") -> None:
        self._progress.note(message)
