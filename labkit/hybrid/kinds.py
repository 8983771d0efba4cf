"""Predictors by name."""

from __future__ import annotations

from labkit.hybrid.leads import EmaNesterov, Lead, OuterNesterov
from labkit.hybrid.learned import Learned
from labkit.hybrid.modal import Modal
from labkit.hybrid.noisy import NoiseMatched
from labkit.hybrid.predictors import BlockTrend, Coasting, Frozen, LastUpdate, Predictor, RandomDirection

JUMPS: dict[str, type[Predictor]] = {
    "block-trend": BlockTrend,
    "last-update": LastUpdate,
    "modal": Modal,
    "coasting": Coasting,
    "learned": Learned,
    "frozen": Frozen,
    "random": RandomDirection,
    "noise-matched": NoiseMatched,
}
"""Predictors that jump."""
LEAD_KINDS: dict[str, type[Lead]] = {"ema-nesterov": EmaNesterov, "outer-nesterov": OuterNesterov}
"""Predictors that skip nothing."""
