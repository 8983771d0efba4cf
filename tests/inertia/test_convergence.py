"""Who converges faster: each model at its best rate, over seeds, and nothing where the protocol voids it.

References: losses made up here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from labkit.dpo.arm import DpoArm
from labkit.ledger import claims
from labkit.reports.size_inertia import arms, convergence, results
from labkit.reports.size_inertia.study import Study
from labkit.workflow import params
from labkit.workflow.cells import Cells

CFG = params.resolve("size_inertia", "cpu-24gb")
SMALL, LARGE = CFG.models


def done(loss: float) -> dict[str, Any]:
    pairs = [{"id": f"p{i}", "margin": 1.0, "logp_chosen": 1.0, "logp_rejected": 0.0} for i in range(6)]
    return {"curve": [{"loss": loss}] * 75, "held_out": pairs, "seconds_per_step": 1.0}


def trained(losses: dict[str, list[float]]) -> tuple[dict[DpoArm, dict], dict[str, dict[float, float]]]:
    """Arms of every rate and seed; a model's list holds the mean loss at each rate, infinite for one that diverged."""
    found: dict[DpoArm, dict] = {}
    rates: dict[str, dict[float, float]] = {}
    for model, means in losses.items():
        for rate, mean in zip(CFG.report_rates, means, strict=True):
            rates.setdefault(model, {})[rate] = mean
            for seed in CFG.seeds:
                if math.isfinite(mean):
                    found[arms.report_arm(CFG, model, seed, rate)] = done(mean + 0.01 * (seed - 1))
    return found, rates


def test_each_model_is_read_at_its_own_best_rate_over_seeds() -> None:
    found, rates = trained({SMALL: [0.5, 0.2, 0.1, 0.3], LARGE: [0.4, 0.3, 0.35, math.inf]})
    number = convergence.results(found, rates)["loss_difference/step_75"]
    assert number["value"] == pytest.approx(0.3 - 0.1)
    assert number["n_seeds"] == 3
    assert number["ci"] == pytest.approx([0.2, 0.2]), "seeds that move both alike leave no width"
    table = convergence.table(found, rates).set_index(["model", "peak rate"])
    assert table.loc[(LARGE, CFG.report_rates[1]), "best"] == "best"


@pytest.mark.parametrize("means", [[0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], [math.inf] * 4])
def test_a_best_rate_at_the_edge_voids_the_difference_and_says_so(means: list[float]) -> None:
    found, rates = trained({SMALL: means, LARGE: [0.4, 0.3, 0.35, 0.5]})
    assert convergence.results(found, rates) == {}
    assert convergence.void(rates)[0].startswith(f"the best rate of {SMALL}")
    assert convergence.void({SMALL: {5e-5: 0.1}}), "one rate alone compares no rates"


def study_of(losses: dict[str, list[float]], references: dict[str, Any] | None = None) -> Study:
    found, rates = trained(losses)
    study = Study(CFG, Cells.of("cpu-24gb", "size_inertia"), arms=found, report_rates=rates)
    study.references = references or {}
    return study


def test_what_is_void_is_no_result_and_is_told_as_out_of_reach() -> None:
    study = study_of({SMALL: [0.5, 0.4, 0.3, 0.2], LARGE: [0.4, 0.3, 0.35, 0.5]})
    assert "lies at the edge" in results.voided(study)["loss_difference/step_75"]
    assert "loss_difference/step_75" not in results.convergence_results(study)
    assert results.out_of_reach(study)["loss_difference/step_75"]["why"].startswith("void: the best rate of")


def test_shuffled_labels_that_are_told_from_chance_void_the_margins_of_their_model() -> None:
    reference = {"held_out": {f"p{i}": [-5.0, -7.0, 3, 3] for i in range(40)}, "balanced": {}}
    cells = Cells.of("cpu-24gb", "size_inertia")
    rng = np.random.default_rng(0)

    def void_with(share: float) -> dict[str, str]:
        study = Study(CFG, cells, references={LARGE: reference})
        for arm in arms.tuned_arms(CFG, LARGE, 1e-3):
            signs = np.where(rng.random(40) < share, 1.0, -1.0)
            rows = [{"id": f"p{i}", "margin": s, "logp_chosen": s, "logp_rejected": 0.0} for i, s in enumerate(signs)]
            study.arms[arm] = {"held_out": rows, "curve": [{"loss": 0.5}]}
        return results.voided(study)

    assert void_with(0.5) == {}
    leaked = void_with(0.97)
    assert list(leaked) == [f"preference/margin/held_out/{LARGE}"]
    assert "told from chance" in next(iter(leaked.values()))


def test_words_that_tell_balanced_pairs_apart_void_them() -> None:
    scored = {f"topic {i} frame 1": [-5.0, -7.0, 3, 3] for i in range(8)}
    study = Study(CFG, Cells.of("cpu-24gb", "size_inertia"), references={SMALL: {"held_out": {}, "balanced": scored}})
    study.balance = {"words": [0.0] * 8}
    assert results.voided(study) == {}
    assert f"preference/sum/balanced/{SMALL}/untrained" in results.preference_results(study)
    study.balance = {"words": [0.0] * 7 + [1.0]}
    assert "a bag of words prefers 56.2%" in results.voided(study)[f"preference/sum/balanced/{SMALL}"]
    assert results.allowed(results.preference_results(study), study) == {}


def test_the_row_of_the_small_models_loss_is_judged_by_its_preference_where_that_is_measured() -> None:
    reference = {"held_out": {f"p{i}": [-5.0, -7.0, 3, 3] for i in range(6)}}
    study = study_of({SMALL: [0.5, 0.2, 0.1, 0.3], LARGE: [0.4, 0.3, 0.35, math.inf]}, {SMALL: reference})
    found = convergence.preference_loss(study.arms, study.report_rates, study.references)["preference_loss/smaller"]
    assert found["value"] == pytest.approx(np.log1p(np.exp(-3.0)))
    row = next(
        claim
        for claim in claims.read_ledger(claims.ledgers("size_inertia")[0]).claims
        if claim.id == "inertia.loss.qwen_0_5b.step_75"
    )
    assert "preference_loss/smaller" in [check.key for check in row.checks]
