"""Diagonal of the resolvent of a tridiagonal operator: the token mixer of ResNet-BK, in O(N) and without overflow.

H = tridiag(1, -2 + v_i, 1) is the discrete Laplacian plus a potential, and G = (H - zI)^-1 with Im z > 0. With
a_i = v_i - 2 - z the left and the right continued fractions

    l_i = 1 / (a_i - l_{i-1}),    r_i = 1 / (a_i - r_{i+1}),    G_ii = 1 / (a_i - l_{i-1} - r_{i+1})

stay inside |.| <= 1 / Im z whatever the potential, where the determinant recursions theta, phi of report 004 overflow
complex128 near N = 960. l_i is itself the last diagonal entry of the inverse of the leading i x i block, so it sees no
later site: that is the causal mixer.

A fraction forgets where it started: w -> 1 / (a - w) shifts the upper half plane by i Im z and then inverts it, which
shrinks hyperbolic distances by 1 + (Im z)^2 for every real potential. The recursion can therefore run on all blocks of
a sequence at once, each one warmed up on the few dozen sites to its left, and still be exact to the last bit of the
floating-point type. Its adjoint is a linear recursion with the same contraction, blocked the same way.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # fewest sites per block: shorter ones would repeat more warm-up than they save steps
WALL = 1e18  # a potential so high that no neighbour sees across it, yet its square is finite in float32


def resolvent_diagonal(potential: Tensor, z: complex = 1j, causal: bool = True) -> Tensor:
    """Return diag((H - zI)^-1) of H = tridiag(1, -2 + v_i, 1), differentiable once in the potential.

    Args:
        potential: v, real, [..., N]; float32 gives complex64, float64 gives complex128.
        z: spectral parameter, Im z > 0; the blocks grow like 1 / (Im z)^2, up to one block with as many steps as sites.
        causal: entry i is the last diagonal entry of the inverse of the leading i x i block of H - zI, which no later
            site can reach; False gives the diagonal of the full inverse, as published (report 004, original code).

    Returns:
        [..., N] complex, |G_ii| <= 1 / Im z.

    Raises:
        TypeError: the potential is not float32 or float64.
        ValueError: the potential has no site, or Im z is not in [1e-6, 1e6].
        RuntimeError: on a backward pass that asks for a second derivative.
    """
    if potential.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"potential has dtype {potential.dtype}; allowed: torch.float32, torch.float64")
    if potential.dim() == 0 or potential.shape[-1] == 0:
        raise ValueError(
            f"potential has shape {tuple(potential.shape)}; its last dimension must hold at least one site"
        )
    z = complex(z)
    if not (math.isfinite(z.real) and 1e-6 <= z.imag <= 1e6):
        raise ValueError(f"z is {z}; allowed: a finite real part, and 1e-6 <= Im z <= 1e6")
    if causal:
        return _LeftFraction.apply(potential, z)
    left, mirrored = _LeftFraction.apply(torch.stack([potential, potential.flip(-1)]), z)
    right = mirrored.flip(-1)
    return (potential - (2 + z) - F.pad(left[..., :-1], (1, 0)) - F.pad(right[..., 1:], (0, 1))).reciprocal()


class _LeftFraction(torch.autograd.Function):
    """l_i = 1 / (v_i - 2 - z - l_{i-1}) with l_0 = 0."""

    @staticmethod
    def forward(ctx, potential: Tensor, z: complex) -> Tensor:
        block, warmup = _geometry(potential, z)
        fractions = _windows(potential, block, before=warmup, fill=WALL) - (2 + z)
        rows = fractions.unbind(0)
        rows[0].reciprocal_()
        for left, row in pairwise(rows):
            row.sub_(left).reciprocal_()
        left = _join(fractions[warmup:], potential.shape[-1])
        ctx.save_for_backward(left)
        ctx.z = z
        return left

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # autograd's own marker would drop the curvature of `left` without a word
            raise RuntimeError("resolvent_diagonal is differentiable once: call backward without create_graph=True")
        # dl_i = l_i^2 (dl_{i-1} - dv_i), so t_i = l_i^2 (conj(upstream_i) + t_{i+1}) and dL/dv_i = -Re t_i.
        (left,) = ctx.saved_tensors
        block, warmup = _geometry(left, ctx.z)
        slopes = _windows(left, block, after=warmup).square_().unbind(0)
        adjoint = _windows(upstream.conj(), block, after=warmup)
        rows = adjoint.unbind(0)
        rows[-1].mul_(slopes[-1])
        for right, row, slope in zip(rows[:0:-1], rows[-2::-1], slopes[-2::-1], strict=True):
            row.add_(right).mul_(slope)
        return -_join(adjoint[:block].real, left.shape[-1]), None


def _geometry(sites: Tensor, z: complex) -> tuple[int, int]:
    """Return sites per block and the warm-up sites beside it, 0 where the sequence is too short to gain from blocks.

    After one step any two fractions lie in {Im w >= 0, |w| <= 1 / Im z}; once shifted by i Im z, they are no further
    apart than `diameter` in the hyperbolic metric, which each later step divides by 1 + (Im z)^2. The warm-up brings
    that, and with it the error relative to 1 / Im z, below half a unit in the last place.
    """
    diameter = 2 * math.asinh(z.imag**-2)
    steps = math.log(2 * diameter / torch.finfo(sites.dtype).eps) / math.log1p(z.imag**2)
    warmup = 1 + max(0, math.ceil(steps))
    block, length = max(BLOCK, warmup), sites.shape[-1]
    return (block, warmup) if length > block + warmup else (length, 0)


def _windows(x: Tensor, block: int, before: int = 0, after: int = 0, fill: float = 0.0) -> Tensor:
    """Copy [..., N] to [before + block + after, ..., blocks]: each block with its neighbours, one site per row."""
    padded = F.pad(x, (before, after + -x.shape[-1] % block), value=fill)
    return padded.unfold(-1, before + block + after, block).movedim(-1, 0).clone(memory_format=torch.contiguous_format)


def _join(blocks: Tensor, length: int) -> Tensor:
    """Copy [block, ..., blocks] back to [..., N]."""
    return blocks.movedim(0, -1).flatten(-2)[..., :length]
