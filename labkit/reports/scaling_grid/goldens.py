"""Goldens of report 004: both architectures trained on real text, gates that fail, the n-gram predictors, the leak."""

from __future__ import annotations

from dataclasses import replace

from labkit.reports.scaling_grid.baselines import Baselines, measure_baselines
from labkit.reports.scaling_grid.gates import Untrained, gates_of
from labkit.reports.scaling_grid.leak import Leak, measure_leak
from labkit.scaling.train import Cell, train_cell

_TEXT = {"corpus": "wiki-sample", "vocab_size": 288}
_TRAINING = {"device": "cpu", "dtype": "float32", "threads": 1, "weight_decay": 0.3, "beta2": 0.9, "grad_clip": 0.4}
_TRAINING |= {"warmup_fraction": 0.13, "final_rate_fraction": 0.2, **_TEXT}

# More tokens a step than logits are held at a time (1,820 of them), and sequences that the resolvent cuts into blocks.
_RESNET_BK = Cell(
    mixer="resnet-bk", d_model=16, n_layers=2, seed=3, learning_rate=0.02, context=80, batch_size=24, epochs=0.0235,
    n_experts=3, balance_loss=0.5, dropout=0.0, **_TRAINING,
)  # fmt: skip
# A batch of one sequence that is too short for blocks, one expert, no decay.
_SMALLEST = Cell(
    mixer="resnet-bk", d_model=8, n_layers=1, seed=0, learning_rate=0.03, context=24, batch_size=1, epochs=0.00015,
    n_experts=1, balance_loss=0.1, dropout=0.0, **_TRAINING | {"grad_clip": 10.0, "weight_decay": 0.0},
)  # fmt: skip
# Counted steps, scored twice on the way, a potential that starts wide; in 16 bits no expert's rows fill whole tiles.
_COUNTED = Cell(
    mixer="resnet-bk", d_model=16, n_layers=2, seed=2, learning_rate=0.02, context=40, batch_size=5, epochs=1.0,
    n_experts=3, balance_loss=0.1, dropout=0.0, steps=7, scorings=2, potential_start=10.0, **_TRAINING,
)  # fmt: skip
_NARROW = replace(_COUNTED, dtype="bfloat16", scorings=1)
_NARROW_ATTENTION = replace(_NARROW, mixer="transformer", potential_start=1.0)
_NO_MIXER = replace(_COUNTED, mixer="no-mixer", scorings=1)
# Two attention heads, dropout, more steps than a curve has points, and windows that end where the validation text does.
_TRANSFORMER = Cell(
    mixer="transformer", d_model=64, n_layers=1, seed=1, learning_rate=0.01, context=18, batch_size=2, epochs=0.00128,
    n_experts=1, balance_loss=0.0, dropout=0.1, **_TRAINING,
)  # fmt: skip
# The first reads ahead. The second has one unit, which LayerNorm makes constant: it neither memorises a batch, so that
# both attempts run to their end, nor uses its context.
_PUBLISHED = Untrained(
    mixer="published", d_model=16, n_layers=1, seed=5, context=72, n_experts=3, dropout=0.2, threads=1, **_TEXT
)
_CONSTANT = Untrained(
    mixer="transformer", d_model=1, n_layers=2, seed=1, context=40, n_experts=1, dropout=0.0, threads=1, **_TEXT
)

GOLDENS = {
    train_cell: (_RESNET_BK, _SMALLEST, _TRANSFORMER, _COUNTED, _NARROW, _NARROW_ATTENTION, _NO_MIXER),
    gates_of: (_PUBLISHED, _CONSTANT),
    measure_baselines: (Baselines(**_TEXT, context=16, order=4), Baselines(**_TEXT, context=24, order=1)),
    measure_leak: (Leak(context=128, n_experts=4, threads=1), Leak(context=30, n_experts=1, threads=1)),
}
"""Tiny specs by cell function."""
