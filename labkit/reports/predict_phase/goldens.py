"""Goldens of report 003's cells: tiny runs that reach every predictor and both leads, jumps kept, refused and undone.

Learning rates are those at which jumps are kept, which hardly happens at tuned ones, and at which no decision is so
narrow that another instruction set would take another one.
"""

from __future__ import annotations

from dataclasses import replace

from labkit.reports.predict_phase.costs import CostSpec, measure_costs
from labkit.reports.predict_phase.floors import FloorSpec, measure_floors
from labkit.reports.predict_phase.growth import GrowthSpec, measure_growth
from labkit.reports.predict_phase.noise import NoiseSpec, measure_noise
from labkit.reports.predict_phase.oracle import OracleSpec, measure_oracle
from labkit.reports.predict_phase.original import OriginalSpec, measure_original
from labkit.reports.predict_phase.tasks import CNN, Run
from labkit.reports.predict_phase.train import train

_RUN = Run(
    task="text-0.1m",
    arm="adamw",
    learning_rate=4e-3,
    steps=48,
    seed=1,
    corpus="wiki-sample",
    vocab_size=288,
    context=8,
    batch_size=4,
    held_out_windows=8,
    weight_decay=0.1,
    beta2=0.95,
    warmup_fraction=0.1,
    grad_clip=1.0,
    device="cpu",
    dtype="float32",
    threads=1,
)
_ORIGINAL = OriginalSpec(
    task="text-0.1m",
    vocab_size=64,
    initialisation="published",
    steps=17,
    batch_size=4,
    context=8,
    learning_rate=6e-4,
    seed=1,
    device="cpu",
    threads=1,
)


def _text(arm: str, **values: object) -> Run:
    return replace(_RUN, arm=arm, **values)


def _digits(arm: str, **values: object) -> Run:
    return replace(_RUN, task=CNN, arm=arm, batch_size=16, **values)


GOLDENS = {
    train: (
        _text("adamw-tail", steps=96, held_out_windows=70),
        _text("adamw", task="text-1m", steps=2),
        _text("adamw", task="text-1m-fused", steps=2),
        _text("adamw", task="text-10m", steps=2),
        _text("interval-1", learning_rate=5e-4),
        _text("horizon-8"),
        _text("memory-optimized", learning_rate=1e-3, steps=40),
        _text("muon-block-trend", learning_rate=1e-4, batch_size=8),
        _text("last-update", task="tiny-qwen2-lora", learning_rate=1e-2, steps=16),
        _digits("modal", learning_rate=3e-4, steps=100),
        _digits("learned", learning_rate=3e-4, steps=100),
        _digits("coasting", learning_rate=1e-3, steps=100),
        _digits("rejecting", learning_rate=1e-2, steps=40),
        _digits("random", learning_rate=1e-3),
        _digits("frozen", learning_rate=1e-3),
        _digits("muon-ema-nesterov", learning_rate=1e-4, steps=40),
        _digits("outer-nesterov", learning_rate=1e-3, steps=45),
        _digits("lookahead", learning_rate=1e-3, steps=20),
        _text("adamw-cosine"),
        _text("constant", steps=60),
        _text("muon-constant", learning_rate=1e-3, steps=30),
        _text("wsd", steps=40),
        _text("schedule-free"),
        _text("ademamix"),
        _text("noise-matched"),
    ),
    measure_costs: (
        CostSpec(run=_text("adamw", steps=3), arms=("adamw", "constant-ema", "last-update", "ema-nesterov"), rounds=2),
    ),
    measure_floors: (FloorSpec(corpus="wiki-sample", vocab_size=288, context=8, held_out_windows=70),),
    measure_original: (_ORIGINAL, replace(_ORIGINAL, initialisation="usual")),
    measure_oracle: (OracleSpec(run=_text("adamw")),),
    measure_noise: (NoiseSpec(run=_text("adamw", steps=12)),),
    measure_growth: (GrowthSpec(run=_text("adamw"), predicted_steps=40),),
}
