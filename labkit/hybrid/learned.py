"""A predictor that learns while the run goes on: how far each group of weights will follow its own trend.

The report's idea with a direction and a target. Its ensemble forecast the loss and eight magnitudes that reached no
weight; this one forecasts, for each group, the multiple of the trend that the next block will move, from features of
the blocks before, and says how sure it is. Each member is a ridge regression fitted online on its own random share of
the blocks; the spread of the members, rescaled by their past errors, is the uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.hybrid.config import HybridConfig
from labkit.hybrid.predictors import TINY, BlockTrend, Proposal
from labkit.hybrid.vectors import GROUPS, Tensors, dots

MEMBERS = 8
N_FEATURES = 4
RIDGE = 0.1
FORGET = 0.95
"""Weight of a block against the one after it."""
_PRIOR_ERROR = 0.5


class ScaleEnsemble:
    """Online ridge regressions from features [n, N_FEATURES] to one number each, with a calibrated spread."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.moments = np.tile(RIDGE * np.eye(N_FEATURES), (MEMBERS, 1, 1))
        self.products = np.zeros((MEMBERS, N_FEATURES))
        self.squared_error, self.n_seen = _PRIOR_ERROR**2, 1.0

    def forecast(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each row's target, [n] and [n]."""
        weights = np.linalg.solve(self.moments, self.products[..., None])[..., 0]
        found = features @ weights.T
        return found.mean(1), np.sqrt(found.var(1) + self.squared_error / self.n_seen)

    def learn(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Take in the targets of a block; errors are counted before the fit sees them."""
        errors = targets - self.forecast(features)[0]
        self.squared_error = FORGET * self.squared_error + float(np.mean(errors**2))
        self.n_seen = FORGET * self.n_seen + 1
        shares = self._rng.poisson(1.0, (MEMBERS, len(targets)))
        self.moments = FORGET * self.moments + np.einsum("mn,ni,nj->mij", shares, features, features)
        self.moments += (1 - FORGET) * RIDGE * np.eye(N_FEATURES)
        self.products = FORGET * self.products + np.einsum("mn,ni,n->mi", shares, features, targets)

    def state(self) -> dict[str, Any]:
        """Return its state as plain JSON."""
        kept = {"moments": self.moments.tolist(), "products": self.products.tolist()}
        return kept | {"errors": [self.squared_error, self.n_seen], "rng": self._rng.bit_generator.state}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.moments, self.products = np.array(state["moments"]), np.array(state["products"])
        self.squared_error, self.n_seen = state["errors"]
        self._rng.bit_generator.state = state["rng"]


class Learned(BlockTrend):
    """The block trend, each group scaled by what the ensemble forecasts for it."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], config: HybridConfig) -> None:
        super().__init__(names, parameters, config)
        self.ensemble = ScaleEnsemble(config.seed)
        self._features: np.ndarray | None = None
        self._sure = 0.0

    def propose(self, steps: int, rate: float, optimizer: torch.optim.Optimizer) -> Proposal | None:
        """Extrapolate by the forecast scales; the ensemble's certainty is the confidence."""
        plain = super().propose(steps, rate, optimizer)
        return None if plain is None else Proposal(plain.jump, steps, self._sure)

    def gains(self, signal: Tensor, coherence: Tensor) -> Tensor:
        """Return how much of the trend each group keeps, [groups]."""
        length = dots(self._trend, self._trend, self.groups).sqrt().numpy()
        share = length / max(float(np.linalg.norm(length)), TINY)
        self._features = np.stack([np.ones(len(GROUPS)), signal.numpy(), coherence.numpy(), share], 1)
        mean, deviation = self.ensemble.forecast(self._features)
        certainty = np.clip(1 - deviation / np.maximum(np.abs(mean), TINY), 0, 1)
        self._sure = float((certainty * share**2).sum())
        return torch.from_numpy(np.clip(mean, 0, None))

    def _update(self, whole: Tensors) -> None:
        if self._features is not None:
            energy = dots(self._trend, self._trend, self.groups).clamp_min(TINY)
            along = dots(whole, self._trend, self.groups) / self.block_steps / energy
            self.ensemble.learn(self._features, along.clamp(-2, 2).numpy())
        super()._update(whole)

    def numbers(self) -> dict[str, Any]:
        """Return the rest of its state, as plain JSON."""
        features = None if self._features is None else self._features.tolist()
        return super().numbers() | {"ensemble": self.ensemble.state(), "features": features}

    def load(self, buffers: Mapping[str, Tensors], numbers: Mapping[str, Any]) -> None:
        """Take up a state that `buffers` and `numbers` returned."""
        super().load(buffers, numbers)
        self.ensemble.load(numbers["ensemble"])
        self._features = None if numbers["features"] is None else np.array(numbers["features"])
