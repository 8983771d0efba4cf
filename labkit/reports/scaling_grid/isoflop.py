"""Which models are compared at equal training FLOPs, and for how many steps each is trained.

At a budget C the sizes lie around the one that 20 tokens a parameter would make best (Hoffmann et al. 2022, approaches
2 and 3), a factor of eight from the smallest to the largest; none is so small that C trains it for more than
`isoflop_epochs` passes over the text. A size is met by a real shape: a width of the list, and as many layers as are
needed. Budgets are ascending and seeds outermost, so that a study that is stopped early has something to say.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from labkit.reports.scaling_grid.cells import cell_for
from labkit.reports.scaling_grid.params import ScalingGrid
from labkit.scaling.counts import training_flops
from labkit.scaling.train import Cell, model_config

SPAN = 8.0
"""The largest size of a budget over its smallest, in training FLOPs per token."""
TOKENS_PER_PARAMETER = 20.0
"""Tokens a parameter of the middle size (Hoffmann et al. 2022, table 3)."""
MOST_LAYERS = 32
_ASPECT = 32.0
_ASPECT_WEIGHT = 0.1
CONTROLS = ("no-mixer", "published")
"""ResNet-BK with its mixer removed, and with the one that reads later tokens; both are trained, and in no law."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model at a budget."""

    budget: float
    """Training FLOPs."""
    mixer: str
    """Architecture."""
    d_model: int
    """Width."""
    n_layers: int
    """Depth."""
    steps: int
    """Optimizer steps that spend the budget."""


def at_equal_flops(params: ScalingGrid) -> ScalingGrid:
    """Return a grid's parameters with the vocabulary and seeds of this design, without dropout: text repeats little."""
    own = {"vocab_size": params.isoflop_vocab_size, "seeds": params.isoflop_seeds, "dropout": 0.0, "scorings": 1}
    return params.model_copy(update=own)


def sizes(params: ScalingGrid, budget: float, mixer: str, n_train_tokens: int) -> list[Size]:
    """List the models of a budget, smallest first; two sizes that the same shape meets best are one.

    Args:
        params: of `at_equal_flops`.
        budget: training FLOPs, C.
        mixer: architecture.
        n_train_tokens: tokens of the training split.
    """
    middling = 6 * math.sqrt(budget / (6 * TOKENS_PER_PARAMETER))
    smallest = max(middling / math.sqrt(SPAN), budget / (params.isoflop_epochs * n_train_tokens))
    places = [i / max(1, params.isoflop_sizes - 1) for i in range(params.isoflop_sizes)]
    shapes = dict.fromkeys(_shape(params, mixer, smallest * SPAN**place) for place in places)
    return [_spent(params, budget, mixer, *shape) for shape in shapes]


def _spent(params: ScalingGrid, budget: float, mixer: str, d_model: int, n_layers: int) -> Size:
    a_step = flops_per_token(params, mixer, d_model, n_layers) * params.batch_size * params.context
    steps = max(1, round(budget / a_step))
    return Size(budget=budget, mixer=mixer, d_model=d_model, n_layers=n_layers, steps=steps)


def _shape(params: ScalingGrid, mixer: str, target: float) -> tuple[int, int]:
    """Return the width and depth whose training FLOPs per token are nearest; of near ones the best proportioned."""

    def miss(shape: tuple[int, int]) -> float:
        off = abs(math.log(flops_per_token(params, mixer, *shape) / target))
        return off + _ASPECT_WEIGHT * abs(math.log(shape[0] / shape[1] / _ASPECT))

    return min(((d, layers) for d in params.isoflop_widths for layers in range(1, MOST_LAYERS + 1)), key=miss)


def flops_per_token(params: ScalingGrid, mixer: str, d_model: int, n_layers: int) -> float:
    """Return the training FLOPs of a shape per token of a whole window."""
    return _flops_per_token(mixer, d_model, n_layers, params.vocab_size, params.context, params.n_experts)


@functools.cache
def _flops_per_token(mixer: str, d_model: int, n_layers: int, vocab_size: int, context: int, n_experts: int) -> float:
    shape = _Shape(mixer, d_model, n_layers, vocab_size, context, n_experts)
    return training_flops(model_config(shape), 1, context) / context


@dataclass(frozen=True, slots=True)
class _Shape:
    mixer: str
    d_model: int
    n_layers: int
    vocab_size: int
    context: int
    n_experts: int
    dropout: float = 0.0


def middle(found: list[Size]) -> Size:
    """Return the middle size of a budget."""
    return found[len(found) // 2]


def cell_of(params: ScalingGrid, size: Size, seed: int, rate: float, start: float, mixer: str | None = None) -> Cell:
    """Return the cell that trains a size.

    Args:
        params: of `at_equal_flops`.
        size: the model and its steps.
        seed: of initialisation and data order.
        rate: peak learning rate.
        start: factor on the start of ResNet-BK's potential.
        mixer: a control to train in its place.
    """
    name = mixer or size.mixer
    own = {"steps": size.steps, "epochs": 1.0, "potential_start": 1.0 if name == "transformer" else start}
    return cell_for(params, name, size.d_model, size.n_layers, seed, rate, **own)


def sweep_sizes(params: ScalingGrid, n_train_tokens: int) -> dict[tuple[str, int], Size]:
    """Return for each mixer and width the size its rate is chosen at: the middle one of its smallest budget."""
    chosen: dict[tuple[str, int], Size] = {}
    for budget in sorted(params.isoflop_budgets):
        for mixer in params.mixers:
            by_width: dict[int, list[Size]] = {}
            for size in sizes(params, budget, mixer, n_train_tokens):
                by_width.setdefault(size.d_model, []).append(size)
            chosen |= {(mixer, width): middle(own) for width, own in by_width.items() if (mixer, width) not in chosen}
    return chosen


def planned(params: ScalingGrid, n_train_tokens: int) -> list[Cell]:
    """List the cells of the design if every optimum lies inside the declared rates and starts.

    Args:
        params: a grid's own.
        n_train_tokens: tokens of the training split at this design's vocabulary, or an estimate.
    """
    if not params.isoflop_budgets:
        return []
    own = at_equal_flops(params)
    rates, seeds, first = params.isoflop_learning_rates, own.seeds, own.seeds[0]
    smallest = min(params.isoflop_budgets)
    cells = [cell_of(own, size, first, r, 1.0) for size in sweep_sizes(own, n_train_tokens).values() for r in rates]
    if "resnet-bk" in own.mixers:
        tried = middle(sizes(own, smallest, "resnet-bk", n_train_tokens))
        cells += [cell_of(own, tried, first, r, start) for start in own.potential_starts for r in rates]
        cells += [cell_of(own, tried, seed, rates[0], 1.0, control) for control in CONTROLS for seed in seeds]
    for budget in params.isoflop_budgets:
        for mixer in own.mixers:
            found = sizes(own, budget, mixer, n_train_tokens)
            cells += [cell_of(own, size, seed, rates[0], 1.0) for size in found for seed in seeds]
    return cells
