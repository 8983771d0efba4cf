"""What a jump does to an optimizer's own state: steps are counted, momentum is calmed, second moments are left alone.

Feeding zero gradients instead would shrink the second moments by beta2 to the power of the jump and make the next steps
too long; resetting them would do so at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from labkit.hybrid.vectors import dots, norm

LEAST_MOMENTUM = 0.2
"""Share of its momentum that an optimizer keeps at least after a jump."""


def advance_steps(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: int) -> None:
    """Count predicted steps in the optimizer's own counter, which corrects the bias of young moments."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if "step" in state:
            state["step"] += steps


@torch.no_grad()
def damp_momentum(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> float:
    """Shrink the momentum by its cosine with the new gradient, to a fifth at least; return the factor."""
    pairs = [(optimizer.state[p].get("exp_avg", optimizer.state[p].get("momentum_buffer")), p.grad) for p in parameters]
    pairs = [(momentum, gradient) for momentum, gradient in pairs if momentum is not None and gradient is not None]
    if not pairs:
        return 1.0
    momenta, gradients = zip(*pairs, strict=True)
    product = float(dots(momenta, gradients, [0] * len(pairs)).sum())
    length = norm(momenta) * norm(gradients)
    factor = max(LEAST_MOMENTUM, product / length) if length else 1.0
    torch._foreach_mul_(list(momenta), factor)
    return factor
