"""Two more optimizers for the real steps, as torch optimizers: schedule-free AdamW and AdEMAMix.

Both are written out from their papers' update; tests hold them against a plain loop over numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LONG_SHARE = 0.25
"""AdEMAMix: horizon of the slow mean as a share of the schedule, so that it means the same at every budget."""
_EPS = 1e-8


class ScheduleFree(torch.optim.Optimizer):
    """AdamW without a schedule (Defazio et al., 2024, arXiv 2405.15682, algorithm 1).

    z takes the steps, x is their mean weighted by the square of the largest rate so far, and the gradient is taken at
    y = (1 - beta1) z + beta1 x, which is what the model holds. `averages` returns x, which is read out.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = _EPS
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._largest, self._weights, self._steps = 0.0, 0.0, 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step at the present rate of the groups."""
        self._steps += 1
        self._largest = max(self._largest, self.param_groups[0]["lr"])
        self._weights += self._largest**2
        share = self._largest**2 / self._weights if self._weights else 0.0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group, share)

    def _move(self, y: nn.Parameter, group: dict[str, Any], share: float) -> None:
        state, (beta1, beta2), rate = self.state[y], group["betas"], group["lr"]
        if not state:
            state |= {"z": y.detach().clone(), "exp_avg_sq": torch.zeros_like(y)}
        state["exp_avg_sq"].mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**self._steps)).sqrt_().add_(group["eps"])
        step = (y.grad / scale).add_(y, alpha=group["weight_decay"])
        x = self._average(y, state["z"], beta1)
        state["z"].sub_(step, alpha=rate)
        x.lerp_(state["z"], share)
        y.copy_(x).lerp_(state["z"], 1 - beta1)

    def _average(self, y: Tensor, z: Tensor, beta1: float) -> Tensor:
        return (y.detach() - (1 - beta1) * z) / beta1

    def averages(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """Return x of each parameter; the parameter itself before its first step."""
        beta1 = self.param_groups[0]["betas"][0]
        pairs = [(p, self.state[p].get("z", p.detach())) for p in parameters]
        return [self._average(y, z, beta1) for y, z in pairs]


class AdEMAMix(torch.optim.Optimizer):
    """AdamW with a slow mean of the gradient beside the fast one (Pagliardini et al., 2024, arXiv 2409.03137).

    The step is (m1 / (1 - beta1^t) + alpha m2) / (sqrt(v / (1 - beta2^t)) + eps) + decay w; alpha rises linearly over
    the schedule, and the half-life of m2 does too (equations 2 to 4 of the paper's section 3).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        total: int,
        betas: tuple[float, float] = (0.9, 0.95),
        alpha: float = 5.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": _EPS, "weight_decay": 0.0})
        self._total, self._alpha, self._steps = total, alpha, 0
        self._slow = max(betas[0], 1 - 1 / max(2.0, LONG_SHARE * total))

    def mixing(self, step: int) -> tuple[float, float]:
        """Return alpha and the decay of the slow mean at a step, counted from 1."""
        share, first = min(1.0, step / self._total), self.param_groups[0]["betas"][0]
        start, end = math.log(first), math.log(self._slow)
        decay = math.exp(start * end / ((1 - share) * end + share * start))
        return share * self._alpha, min(decay, self._slow)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step at the present rate of the groups."""
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        for name in () if state else ("exp_avg", "exp_avg_slow", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter)
        alpha, beta3 = self.mixing(self._steps)
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_slow"].lerp_(gradient, 1 - beta3)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**self._steps)).sqrt_().add_(group["eps"])
        mixed = (state["exp_avg"] / (1 - beta1**self._steps)).add_(state["exp_avg_slow"], alpha=alpha)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mixed / scale, alpha=group["lr"])
