"""What is read out of a run whose rate stays constant: means of its weights, or their extrapolation to a limit.

Every read-out is kept up to date along the run, so that one run is read at several steps and never told beforehand
how long it will be. A read-out changes no weight of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from labkit.hybrid.vectors import Tensors, copies

MEANS = {"mean-5": 0.05, "mean-10": 0.1, "mean-20": 0.2}
"""Exponential means by name: how far their centre lies behind, as a share of the steps so far."""
RIDGES = {"rre": 0.0, "rre-ridge": 0.1}
"""Reduced-rank extrapolations by name, with their ridge; 0 is the plain formula."""
N_BLOCKS = 5
"""Block means that an extrapolation goes through."""
BLOCK_SHARE = 0.05
"""Length of such a block, as a share of the steps at which it is read."""


class PowerMean:
    """The mean of all weights so far with weights t^gamma: an exponential mean whose horizon grows with the run.

    m_t = m_{t-1} + (1 - (1 - 1/t)^(gamma + 1)) (w_t - m_{t-1}) (Karras et al., 2024, arXiv 2312.02696, section 3.1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lag: float) -> None:
        """Follow parameters; the centre of the mean lies `lag` times the steps so far behind the last one."""
        self._parameters, self._power = list(parameters), 1 / lag - 2
        self._mean = copies(parameters)

    @torch.no_grad()
    def observe(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        weight = 1 - (1 - 1 / step) ** (self._power + 1)
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._parameters], weight)

    def values(self) -> Tensors:
        """Return the mean."""
        return self._mean


class BlockMeans:
    """Means of the weights over the last blocks before the steps at which they are asked for."""

    def __init__(self, parameters: Sequence[nn.Parameter], read_at: Sequence[int]) -> None:
        """Follow parameters in the N_BLOCKS blocks that end at each of some steps."""
        self._parameters = list(parameters)
        self._lengths = {end: max(1, round(BLOCK_SHARE * end)) for end in read_at}
        self._sums: dict[int, list[Tensors]] = {}

    @torch.no_grad()
    def observe(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        for end, length in self._lengths.items():
            if not end - N_BLOCKS * length < step <= end:
                continue
            blocks = self._sums.setdefault(end, [])
            if (step - end) % length == 1 % length:
                blocks.append([torch.zeros_like(p) for p in self._parameters])
            torch._foreach_add_(blocks[-1], [p.detach() for p in self._parameters], alpha=1 / length)

    def take(self, end: int) -> list[Tensors]:
        """Return the blocks that end at a step, oldest first, and forget them."""
        return self._sums.pop(end)


def extrapolate(points: Sequence[Tensors], ridge: float = 0.0) -> Tensors:
    """Return the limit that reduced-rank extrapolation reads from a sequence (Eddy 1979; Mesina 1977).

    With u_i = x_{i+1} - x_i it is the sum of c_i x_i whose c add up to 1 and make the length of the sum of c_i u_i
    least. The ridge adds its multiple of |U'U| c'c to that (Scieur et al., 2016, arXiv 1606.04133).

    Args:
        points: k + 1 points, oldest first; a linear iteration of k dimensions gives its fixed point.
        ridge: how dear unequal shares are; 0 for the plain formula.
    """
    steps = [[new.double() - old.double() for new, old in zip(*pair, strict=True)] for pair in _pairs(points)]
    gram = torch.tensor([[_dot(left, right) for right in steps] for left in steps], dtype=torch.float64)
    if not gram.isfinite().all():
        return points[-1]  # the run diverged, and its last point says so when it is scored
    gram += ridge * torch.linalg.matrix_norm(gram, 2) * torch.eye(len(steps), dtype=torch.float64)
    shares = _least(gram)
    columns = zip(*points[:-1], strict=True)
    return [sum(c * x.double() for c, x in zip(shares, own, strict=True)).to(own[0].dtype) for own in columns]


def _least(gram: Tensor) -> list[float]:
    """Return the c with sum 1 that makes c' gram c least, also where the matrix is singular."""
    # The last share is 1 less the others: gram c = 1 has no solution where the matrix is singular.
    rest = gram[:-1, :-1] - gram[:-1, -1:] - gram[-1:, :-1] + gram[-1, -1]
    first = torch.linalg.pinv(rest, hermitian=True, rtol=1e-14) @ (gram[-1, -1] - gram[:-1, -1])
    return [*first.tolist(), float(1 - first.sum())]


def _pairs(points: Sequence[Tensors]) -> list[tuple[Tensors, Tensors]]:
    return list(zip(points[1:], points[:-1], strict=True))


def _dot(left: Tensors, right: Tensors) -> float:
    return float(sum(float((a * b).sum()) for a, b in zip(left, right, strict=True)))


class Readouts:
    """The read-outs that an arm asks for, by name."""

    def __init__(
        self,
        names: Sequence[str],
        parameters: Sequence[nn.Parameter],
        read_at: Sequence[int],
        averages: Callable[[Sequence[nn.Parameter]], Tensors] | None = None,
    ) -> None:
        """Follow parameters.

        Args:
            names: keys of MEANS and RIDGES, "last" for the weights themselves, "average" for the optimizer's own.
            parameters: what is trained.
            read_at: steps at which they will be asked for.
            averages: returns the optimizer's own mean of the weights, where it keeps one.
        """
        self._parameters, self._names, self._averages = list(parameters), list(names), averages
        self._means = {name: PowerMean(parameters, MEANS[name]) for name in names if name in MEANS}
        self._blocks = BlockMeans(parameters, read_at) if set(names) & set(RIDGES) else None

    def observe(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        for mean in self._means.values():
            mean.observe(step)
        if self._blocks:
            self._blocks.observe(step)

    def values(self, step: int) -> dict[str, Tensors]:
        """Return every read-out after a step that was announced: tensors like the parameters."""
        points = self._blocks.take(step) if self._blocks else []
        return {name: self._value(name, points) for name in self._names}

    def _value(self, name: str, points: Sequence[Tensors]) -> Tensors:
        if name in self._means:
            return self._means[name].values()
        if name in RIDGES:
            return extrapolate(points, RIDGES[name])
        return self._averages(self._parameters) if name == "average" else copies(self._parameters)
