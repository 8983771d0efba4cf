"""What a grid says: tables and numbers of grids whose losses follow a known law, against that law, against numpy's own
fits, and against what the ledger asks for.

The losses are made up here; models, counts, text, floors and gates are the real ones.

Run with `pytest tests/scaling/test_findings.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.ledger import claims
from labkit.reports.scaling_grid import cost, findings, prices
from labkit.reports.scaling_grid.baselines import Baselines, measure_baselines
from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.findings import PUBLISHED_GRID
from labkit.reports.scaling_grid.results import grid_seconds, results
from labkit.reports.scaling_grid.study import Grid
from labkit.scaling.admission import Admission, Gate
from labkit.scaling.counts import parameter_counts, training_flops
from labkit.scaling.data import GridData
from labkit.scaling.schedule import batches
from labkit.scaling.train import Cell
from labkit.workflow import params
from labkit.workflow.cells import Cells
from labkit.workflow.record import dump_json, write_results
from labkit.workflow.store import Store
from labkit.workflow.tables import rounded

SMALL = {"d_model": [8, 16, 32, 64], "n_layers": [1, 2, 4], "context": 32, "kneser_ney_order": 2, "bootstrap": 100}
PUBLISHED = {"d_model": [64, 128, 256, 512], "n_layers": [4, 8, 12, 16]}
RATES = {"learning_rates": [1e-3, 2e-3, 4e-3]}
FLOOR, SIZE, ALPHA = 2.0, 27.0, 0.3
MODEL_GATES = ("initial loss", "causality", "parameter count")
Loss = Callable[[float], float]


def law(n: float) -> float:
    return FLOOR + SIZE / n**ALPHA


@cache
def data_of(spec: Baselines) -> GridData:
    return GridData.of(measure_baselines(spec))


def made_up(loss: Loss = law, **changes: Any) -> Grid:
    """A finished grid in which the loss of every cell at its best rate is a function of its parameters."""
    asked = params.resolve("scaling_grid", "ci", SMALL | RATES | changes)
    grid = Grid(asked, data_of(Baselines.of(asked)))
    shapes = [(mixer, d, n) for mixer in asked.mixers for d in asked.d_model for n in asked.n_layers]
    for shape in shapes:
        grid.models[shape] = Admission(tuple(Gate(name, True, "") for name in MODEL_GATES))
        grid.best_rate[shape[:2]], grid.interior[shape[:2]] = 2e-3, True
        for seed in asked.seeds:
            grid.results |= dict([made_up_cell(grid, cell_for(asked, *shape, seed, 2e-3), loss)])
    for mixer in asked.mixers:  # two rates of the sweep that were not chosen
        for rate in (1e-3, 4e-3):
            cell = cell_for(asked, mixer, asked.d_model[0], asked.n_layers[0], 0, rate)
            grid.results |= dict([made_up_cell(grid, cell, lambda n: loss(n) + 0.1)])
    return grid


def made_up_cell(grid: Grid, cell: Cell, loss: Loss) -> tuple[Cell, dict[str, Any]]:
    counts, n_tokens = parameter_counts(cell.config()), grid.data.validation_tokens - 1
    nats, text = loss(counts.total), np.minimum(grid.data.floors["unigram"], grid.data.floors["bigram"])
    steps = int(cell.epochs * grid.data.train_tokens // (cell.batch_size * cell.context))
    flops = steps * training_flops(cell.config(), cell.batch_size, cell.context)
    return cell, {
        "block_nats": (text * (nats * n_tokens / text.sum())).tolist(),
        "position_nats": [nats + 1, *[nats] * (cell.context - 1)],
        "late_block_nats": (text * nats).tolist(),
        "late_alone_block_nats": (text * (nats + 0.1)).tolist(),
        "loss_nats": nats,
        "train_loss_nats": nats - 0.05,
        "n_total": counts.total,
        "n_non_embedding": counts.non_embedding,
        "n_active": counts.active,
        "n_matmul": counts.matmul,
        "n_counted": counts.total,
        "steps": steps,
        "tokens_seen": steps * cell.batch_size * cell.context,
        "flops": flops,
        "seconds": flops / 1e9 / cell.n_layers,
        "peak_bytes": 2**29 + 16 * counts.total,
        "order_sha256": f"order of seed {cell.seed}",
    }


@pytest.fixture(scope="module")
def grid() -> Grid:
    return made_up()


# --- what needs no training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length", "right"), [(32, 128, 2), (4, 4, 4), (1, 9, 9), (2, 3, 2)])
def test_misaligned_targets_are_counted_as_the_published_loop_pairs_them(batch: int, length: int, right: int) -> None:
    # The published batch is a column per sequence; inputs are turned around before the model, targets are not.
    columns = torch.arange(batch * (length + 1)).view(batch, length + 1).T
    inputs, targets = columns[:-1].T.reshape(-1), columns[1:].reshape(-1)
    assert int((targets == inputs + 1).sum()) == right
    assert findings.misaligned_targets(batch, length) == (right, batch * length)


def test_our_own_batches_pair_every_target_with_its_input() -> None:
    (starts,) = batches(np.zeros(100_000), 1, 32, 128, 0)
    windows = starts[:, None] + np.arange(129)
    assert (windows[:, 1:] == windows[:, :-1] + 1).sum() == 32 * 128


def test_published_models_have_their_published_number_of_parameters() -> None:
    table = findings.published_parameters().set_index("cell")
    assert len(table) == 16
    assert (table["counted"] == table["formula"]).all()
    assert table["counted"]["d64_l4"] == 4_146_120
    assert table["counted"]["d512_l16"] == 98_105_744
    inside = (1 - table["embedding and head"]) * table["counted"]
    np.testing.assert_allclose(inside, table["non_embedding"], rtol=1e-9)


def test_published_mixer_reads_ahead_and_ours_does_not() -> None:
    table = findings.leak_table(params.resolve("scaling_grid", "ci"))
    published, causal = (table[table["mixer"] == name] for name in ("published", "causal"))
    assert list(published["offset"]) == list(causal["offset"]) == list(range(-12, 0))
    assert (causal["change"] == 0).all()
    assert (published["change"] > 0).all()
    assert (np.diff(published["change"]) > 0).all()
    # Without a potential, a change k sites later moves the resolvent's diagonal by a multiple of (sqrt(5) - 2)^k.
    ratios = published["change"].to_numpy()[:-1] / published["change"].to_numpy()[1:]
    assert np.median(ratios) == pytest.approx(math.sqrt(5) - 2, rel=0.2)


@pytest.mark.parametrize("context", [8, 16])
def test_leak_table_stays_within_a_short_context(context: int) -> None:
    table = findings.leak_table(params.resolve("scaling_grid", "ci", {"context": context}))
    assert list(table["offset"].unique()) == list(range(-context // 2, 0))
    assert (table[table["mixer"] == "causal"]["change"] == 0).all()


# --- fits ----------------------------------------------------------------------------------------------------------


def test_fits_find_the_law_that_the_losses_follow(grid: Grid) -> None:
    fits, refused = findings.fit_all(grid)
    assert refused == {}
    assert set(fits) == {"resnet-bk", "transformer"}
    for fit in fits.values():
        assert fit.law.alpha == pytest.approx(ALPHA, rel=0.02)
        assert abs(fit.law.E - FLOOR) < 0.02
        assert fit.held_out["floor"].relative_error == pytest.approx(0, abs=1e-3)
        assert fit.held_out["no floor"].relative_error < -1e-3


def test_power_law_is_the_straight_line_through_the_log_perplexities(grid: Grid) -> None:
    runs = findings.grid_runs(grid.runs())
    fits, _ = findings.fit_all(grid)
    for mixer, fit in fits.items():
        own = runs[runs["mixer"] == mixer]
        slope, intercept = np.polyfit(np.log(own["n_total"]), np.log(own["word_perplexity"]), 1)
        assert fit.power.b == pytest.approx(slope)
        assert fit.power.a == pytest.approx(np.exp(intercept))
        assert slope < -0.1


def test_only_the_best_rate_of_each_width_enters_a_fit(grid: Grid) -> None:
    runs = grid.runs()
    assert len(runs) == 2 * 12 + 4
    own = findings.grid_runs(runs)
    assert len(own) == 2 * 12
    assert set(own["lr"]) == {2e-3}
    assert list(own.index) == list(range(24))


def test_runs_that_are_not_admitted_enter_no_fit(grid: Grid) -> None:
    models = {shape: Admission((Gate("causality", shape[2] != 4, "leaks"),)) for shape in grid.models}
    leaky = Grid(grid.params, grid.data, grid.results, {}, models, grid.best_rate, grid.interior)
    fits, _ = findings.fit_all(leaky)
    assert fits["transformer"].law.n_runs == 8
    assert findings.fit_all(grid)[0]["transformer"].law.n_runs == 12


@pytest.mark.parametrize("mixer", ["resnet-bk", "transformer"])
def test_mixer_without_admitted_runs_is_refused_with_the_reason(grid: Grid, mixer: str) -> None:
    models = {shape: Admission((Gate("causality", shape[0] != mixer, "leaks"),)) for shape in grid.models}
    leaky = Grid(grid.params, grid.data, grid.results, {}, models, grid.best_rate, grid.interior)
    fits, refused = findings.fit_all(leaky)
    assert set(fits) | {mixer} == set(grid.params.mixers)
    assert refused[mixer].startswith("0 of 12 runs admitted; 0 distinct N")
    numbers = results(leaky, fits, 1.0)
    assert f"exponent/{mixer}" not in numbers
    assert "exponent_difference" not in numbers
    assert not any(key.startswith(f"word_perplexity/{mixer}/") for key in numbers)


def test_grid_without_any_result_is_refused_with_the_reason(grid: Grid) -> None:
    failures = dict.fromkeys(grid.results, "MemoryError: no room")
    fits, refused = findings.fit_all(Grid(grid.params, grid.data, {}, failures, grid.models))
    assert fits == {}
    assert all("0 runs admitted" in reason for reason in refused.values())


def test_fit_table_has_both_forms_of_every_mixer(grid: Grid) -> None:
    table = findings.fit_table(findings.fit_all(grid)[0])
    assert len(table) == 4
    floor = table[table["form"] == "nats = E + A / N^alpha"]
    assert (floor["largest held out"].str.rstrip("%").astype(float).abs() < 0.1).all()
    assert floor["exponent"].to_numpy() == pytest.approx(ALPHA, rel=0.02)
    assert len(findings.fit_table({})) == 0


def test_exponent_choices_leave_out_what_the_grid_did_not_choose(grid: Grid) -> None:
    choices = findings.exponent_choices(grid.runs(), bootstrap=0)
    # 1e-3 and 4e-3 were tried at the smallest width alone, and there is one seed.
    assert set(choices["rate"]) == {"best per width", "0.002"}
    assert set(choices["seeds"]) == {"all"}
    known = choices.query("convention == 'n_total' and floor")
    assert len(known) == 4
    assert known["exponent"].to_numpy() == pytest.approx(ALPHA, rel=0.02)
    two_seeds = made_up(seeds=[0, 1], mixers=["transformer"], d_model=[8, 16, 32])
    assert set(findings.exponent_choices(two_seeds.runs(), bootstrap=0)["seeds"]) == {"all", "0", "1"}


def test_mixer_without_admitted_runs_has_one_choice_that_says_so(grid: Grid) -> None:
    models = {shape: Admission((Gate("causality", shape[0] != "resnet-bk", "leaks"),)) for shape in grid.models}
    leaky = Grid(grid.params, grid.data, grid.results, {}, models, grid.best_rate, grid.interior)
    choices = findings.exponent_choices(leaky.runs(), bootstrap=0)
    (row,) = choices[choices["mixer"] == "resnet-bk"].to_dict("records")
    assert math.isnan(row["exponent"])
    assert row["reason"] == "no run is admitted"
    assert (choices["mixer"] == "transformer").sum() > 1


# --- tables --------------------------------------------------------------------------------------------------------


def test_floors_stand_beside_the_best_admitted_run_of_each_mixer(grid: Grid) -> None:
    table = findings.floors_table(grid).set_index("predictor")
    names = [f"best {mixer} d64 l4 seed 0 lr 0.002" for mixer in ("resnet-bk", "transformer")]
    assert list(table.index) == ["unigram", "bigram", "kneser-ney", *names]
    nats = law(parameter_counts(next(iter(grid.results)).config()).total)  # any cell; the best one is lower
    assert (table.loc[names, "token perplexity"] < math.exp(nats)).all()
    largest = max(result["n_total"] for cell, result in grid.results.items() if cell.mixer == "transformer")
    assert table["token perplexity"][names[1]] == round(math.exp(law(largest)), 2)


def test_gates_are_counted_per_mixer_over_the_grid_alone(grid: Grid) -> None:
    models = grid.models | {("transformer", 16, 2): Admission((Gate("causality", False, "moves"),))}
    leaky = Grid(grid.params, grid.data, grid.results, {}, models, grid.best_rate, grid.interior)
    table = findings.gates_table(leaky).set_index(["mixer", "gate"])
    assert tuple(table.loc["resnet-bk", "causality"]) == ("validity", 12, 12, "")
    assert tuple(table.loc["transformer", "causality"]) == ("validity", 11, 12, "d16 l2: moves")
    assert tuple(table.loc["transformer", "initial loss"]) == ("validity", 11, 11, "")
    assert tuple(table.loc["transformer", "beats bigram"]) == ("skill", 12, 12, "")
    assert tuple(table.loc["resnet-bk", "parameter count"]) == ("validity", 12, 12, "")
    assert table.index.is_unique


def test_gates_table_does_not_depend_on_which_cell_finished_first(grid: Grid) -> None:
    backwards = dict(reversed(grid.results.items()))
    turned = Grid(grid.params, grid.data, backwards, {}, grid.models, grid.best_rate, grid.interior)
    assert findings.gates_table(turned).equals(findings.gates_table(grid))


# --- numbers for the ledger ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_grid() -> Grid:
    """A grid of the report's own shapes, so that it has every number the ledger asks for."""
    return made_up(**PUBLISHED, seeds=[0, 1])


@pytest.fixture(scope="module")
def numbers(published_grid: Grid) -> dict[str, dict[str, Any]]:
    return results(published_grid, findings.fit_all(published_grid)[0], seconds=7200.0)


def publish(folder: Path, hardware: str, numbers: dict[str, Any], prices: dict[str, Any]) -> None:
    """Write numbers down as those of a profile, standing on no cells."""
    asked = params.resolve("scaling_grid", hardware)
    write_results(folder, asked, Cells(Store(folder / "cells")), numbers, prices)


def test_every_number_the_ledger_asks_for_is_produced_or_priced(
    published_grid: Grid, numbers: dict[str, dict[str, Any]]
) -> None:
    asked = {check.key for claim in claims.load("scaling_grid") for check in claim.checks}
    asked |= {key for claim in claims.load("scaling_grid") for check in claim.checks for key in check.resolved}
    assert asked - set(numbers) == {"hours/quick"}
    assert "hours/quick" in prices.out_of_reach(published_grid)


def test_ledger_can_judge_every_number_in_its_own_unit(
    published_grid: Grid, numbers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    told = prices.out_of_reach(published_grid)
    publish(tmp_path, "h100", numbers, told)
    judged = claims.judge(tmp_path).set_index("claim")
    assert judged["measured"]["scaling.grid.n_configurations"] == "16"
    assert judged["verdict"]["scaling.grid.n_configurations"] == "input"
    assert judged["measured"]["scaling.law.exponent"].startswith("-")
    document = json.loads((tmp_path / "results.json").read_text())
    checks = [(claim, check) for claim in claims.load("scaling_grid") for check in claim.checks]
    shown = [claim.id for claim, check in checks if check.key in numbers and not check.profiles]
    assert (judged["measured"][shown] != "").all()
    assert document["results"] == rounded(numbers)


def test_times_and_sizes_reach_the_ledger_in_its_units(numbers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    publish(tmp_path, "cpu", numbers, {})
    judged = claims.judge(tmp_path).set_index("claim")["measured"]
    assert float(judged["scaling.time.full_cpu"]) == pytest.approx(7200 / 86400, rel=1e-2)
    largest = cell_for(params.resolve("scaling_grid", "ci", PUBLISHED | {"context": 32}), "resnet-bk", 512, 16, 0, 1e-3)
    peak_bytes = 2**29 + 16 * parameter_counts(largest.config()).total  # as made up above
    assert float(judged["scaling.memory.very_large_cpu"]) == pytest.approx(peak_bytes / 1e9, rel=1e-2)


def test_results_are_those_of_the_runs_and_fits(published_grid: Grid, numbers: dict[str, dict[str, Any]]) -> None:
    runs = findings.grid_runs(published_grid.runs())
    cell = runs.query("mixer == 'resnet-bk' and d_model == 256 and n_layers == 12")
    assert numbers["word_perplexity/resnet-bk/d256_l12"]["value"] == pytest.approx(cell["word_perplexity"].mean())
    assert numbers["word_perplexity/resnet-bk/d256_l12"]["n_seeds"] == 2
    assert numbers["peak_gib/d256_l12"]["value"] == pytest.approx(cell["peak_gib"].max())
    power = findings.fit_all(published_grid)[0]["resnet-bk"].power
    line = np.polyfit(
        np.log(runs.query("mixer == 'resnet-bk'")["n_total"]),
        np.log(runs.query("mixer == 'resnet-bk'")["word_perplexity"]),
        1,
    )
    assert numbers["exponent/resnet-bk"]["value"] == pytest.approx(line[0])
    assert numbers["exponent/resnet-bk"]["ci"] == pytest.approx(list(power.b_ci))
    for sizes in (10, 100):
        ratio = numbers[f"ppl_ratio_{sizes}x/resnet-bk"]
        n = runs["n_total"].min()
        fall = power.predict(n, extrapolate=True) / power.predict(sizes * n, extrapolate=True)
        assert ratio["value"] == pytest.approx(fall)
        assert ratio["ci"][0] < ratio["value"] < ratio["ci"][1]
    dump_json(numbers)  # no NaN and no infinity anywhere


def test_difference_of_exponents_has_an_interval_around_it(numbers: dict[str, dict[str, Any]]) -> None:
    bk, tf, both = (numbers[key] for key in ("exponent/resnet-bk", "exponent/transformer", "exponent_difference"))
    assert both["value"] == pytest.approx(bk["value"] - tf["value"])
    wide = (bk["ci"][1] - bk["ci"][0]) / 2, (tf["ci"][1] - tf["ci"][0]) / 2
    # Both intervals are symmetric, for which Zou and Donner's is the usual one: the root of the sum of squares.
    assert both["value"] - both["ci"][0] == pytest.approx(math.hypot(*wide))
    assert both["ci"][1] - both["value"] == pytest.approx(math.hypot(*wide))


def test_price_of_every_published_cell_is_finite_and_grows_with_the_cell(grid: Grid) -> None:
    told = prices.out_of_reach(grid)
    cells = [f"{mixer}/d{d}_l{n}" for mixer in grid.params.mixers for d, n in PUBLISHED_GRID]
    assert len(cells) == 32
    for cell in cells:
        price = told[f"word_perplexity/{cell}"]
        assert 0 < price["seconds"] < math.inf
        assert 0.4 < price["gib"] < math.inf
        assert "wikitext-2" in price["why"]
    seconds = [told[f"word_perplexity/resnet-bk/d{d}_l16"]["seconds"] for d in (64, 128, 256, 512)]
    assert seconds == sorted(seconds)
    dump_json(told)


def trained_alone(grid: Grid) -> Callable[[str, int, int], float]:
    """The seconds of a cell of the report's own scale: its FLOPs over those a second of the largest cell that ran."""
    largest = max(grid.results, key=lambda cell: training_flops(cell.config(), 1, 32))
    rate = grid.results[largest]["flops"] / grid.results[largest]["seconds"]
    full = params.resolve("scaling_grid", "h100", {"context": 32})  # the grid's own context is no scope
    steps = int(5 * cost.n_train_tokens(full) // (32 * 32))

    def seconds(mixer: str, d_model: int, n_layers: int) -> float:
        cell = cell_for(full, mixer, d_model, n_layers, 0, 1e-3)
        return steps * training_flops(cell.config(), 32, 32) / rate

    return seconds


def test_the_price_of_a_cell_counts_five_rates_of_its_width_and_three_seeds_on_two_workers(grid: Grid) -> None:
    alone, told = trained_alone(grid), prices.out_of_reach(grid)
    first, own = alone("transformer", 256, 4), alone("transformer", 256, 8)
    price = told["word_perplexity/transformer/d256_l8"]
    assert price["seconds"] == pytest.approx((5 * first + 3 * own) / 2)
    # At the depth of the sweep one of its five rates is the first seed.
    assert told["word_perplexity/transformer/d256_l4"]["seconds"] == pytest.approx(7 * first / 2)
    memory = cost.cell_bytes(
        cell_for(params.resolve("scaling_grid", "h100", {"context": 32}), "transformer", 256, 8, 0, 1e-3)
    )
    assert price["gib"] == pytest.approx(2 * memory / 2**30), "two at a time"


def test_the_price_of_a_memory_or_a_wall_time_is_that_of_the_cells_it_is_about(grid: Grid) -> None:
    alone, told = trained_alone(grid), prices.out_of_reach(grid)
    assert told["peak_gib/d512_l16"]["seconds"] == pytest.approx(alone("resnet-bk", 512, 16))
    assert told["hours/grid"]["seconds"] == pytest.approx(sum(alone("resnet-bk", d, n) for d, n in PUBLISHED_GRID))
    quick = sum(alone("resnet-bk", d, n) for d in (64, 128) for n in (4, 8))
    assert told["hours/quick"]["seconds"] == pytest.approx(quick * 3 / 5)


def test_the_price_of_a_law_counts_every_seed_and_rate_and_that_of_a_difference_both_mixers(grid: Grid) -> None:
    alone, told = trained_alone(grid), prices.out_of_reach(grid, {"resnet-bk": "one size"})
    whole = {
        mixer: sum(3 * alone(mixer, d, n) for d, n in PUBLISHED_GRID)
        + 4 * sum(alone(mixer, d, 4) for d in (64, 128, 256, 512))
        for mixer in grid.params.mixers
    }
    assert set(whole) == {"resnet-bk", "transformer"}
    assert told["exponent/resnet-bk"]["seconds"] == pytest.approx(whole["resnet-bk"] / 2)
    assert told["exponent_difference"]["seconds"] == pytest.approx(sum(whole.values()) / 2)
    assert "exponent/transformer" not in told


def test_run_at_the_reports_own_scale_prices_nothing(grid: Grid) -> None:
    stated = Grid(params.resolve("scaling_grid", "h100"), grid.data, grid.results)
    assert prices.out_of_reach(stated) == {}


def test_hours_are_the_training_time_over_the_workers(grid: Grid) -> None:
    seconds = [result["seconds"] for result in grid.results.values()]
    assert grid_seconds(grid) == pytest.approx(sum(seconds) / 2)
    numbers = results(grid, {}, grid_seconds(grid))
    assert numbers["hours/grid"]["value"] == pytest.approx(sum(seconds) / 2 / 3600)
