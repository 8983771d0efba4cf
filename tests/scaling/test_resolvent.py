"""The blocked resolvent diagonal against three independent references: the inverse of the dense complex128 matrix, the
tridiagonal solver of LAPACK (for the leading blocks of long sequences), and finite differences for the gradient.

Run with `pytest tests/scaling/test_resolvent.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from labkit.scaling.resolvent import _geometry, resolvent_diagonal

LENGTHS = [1, 2, 3, 31, 32, 33, 59, 60, 61, 97, 143, 144, 145, 211, 1021]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def random_potential(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw a potential from U(-3, 3), the range ResNet-BK clamps to."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 6 - 3).to(dtype)


def dense_operator(potential: Tensor, z: complex) -> Tensor:
    """Build H - zI as a full complex128 matrix, [N] -> [N, N]."""
    off = torch.ones(len(potential) - 1, dtype=torch.complex128)
    diagonal = potential.to(torch.complex128) - 2 - torch.tensor(z, dtype=torch.complex128)
    return diagonal.diag() + off.diag(1) + off.diag(-1)


def last_row_of_leading_block(potential: Tensor, z: complex, size: int) -> np.ndarray:
    """Return the last row of the inverse of the leading size x size block, by LAPACK's banded solver."""
    banded = np.ones((3, size), dtype=np.complex128)
    banded[1] = potential[:size].numpy() - 2 - z
    return solve_banded((1, 1), banded, np.eye(1, size, size - 1, dtype=np.complex128)[0])


def jacobian(potential: Tensor, causal: bool) -> Tensor:
    """Return dG_ii / dv_j = -(A^-1)_ij^2 at z = i, A the operator or, if causal, its leading i x i block."""
    if not causal:
        return -torch.linalg.inv(dense_operator(potential, 1j)).square()
    n = len(potential)
    rows = [np.pad(last_row_of_leading_block(potential, 1j, size), (0, n - size)) for size in range(1, n + 1)]
    return -torch.from_numpy(np.stack(rows)).square()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("z", [1j, 0.7 + 0.6j, -1.3 + 2.5j])
@pytest.mark.parametrize("length", LENGTHS)
def test_bidirectional_diagonal_equals_the_diagonal_of_the_dense_inverse(
    length: int, z: complex, dtype: torch.dtype
) -> None:
    potential = random_potential(length, seed=length, dtype=dtype)
    expected = torch.linalg.inv(dense_operator(potential.double(), z)).diagonal()
    torch.testing.assert_close(
        resolvent_diagonal(potential, z, causal=False).to(torch.complex128), expected, rtol=0, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("z", [1j, 0.7 + 0.6j])
@pytest.mark.parametrize("length", [1, 2, 3, 61, 145])
def test_causal_entry_equals_the_last_diagonal_entry_of_the_inverse_of_the_leading_block(
    length: int, z: complex, dtype: torch.dtype
) -> None:
    potential = random_potential(length, seed=length, dtype=dtype)
    operator = dense_operator(potential.double(), z)
    expected = torch.stack([torch.linalg.inv(operator[:size, :size])[-1, -1] for size in range(1, length + 1)])
    actual = resolvent_diagonal(potential, z).to(torch.complex128)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[dtype])


def test_both_modes_equal_the_references_at_2048_sites() -> None:
    potential = random_potential(2048)
    inverse = torch.linalg.inv(dense_operator(potential, 1j)).diagonal()
    leading = torch.tensor(
        [last_row_of_leading_block(potential, 1j, size)[-1] for size in range(1, 2049)], dtype=torch.complex128
    )
    for dtype, tolerance in TOLERANCE.items():
        both = resolvent_diagonal(potential.to(dtype), causal=False).to(torch.complex128)
        causal = resolvent_diagonal(potential.to(dtype)).to(torch.complex128)
        torch.testing.assert_close(both, inverse, rtol=0, atol=tolerance)
        torch.testing.assert_close(causal, leading, rtol=0, atol=tolerance)


@pytest.mark.parametrize("z", [1j, 0.3 + 0.2j, 2 + 0.05j])
@pytest.mark.parametrize("potential", [random_potential(6000), torch.full((6000,), 2.0, dtype=torch.float64)])
def test_blocks_equal_one_sequential_pass_to_rounding_for_slowly_decaying_resolvents(
    potential: Tensor, z: complex
) -> None:
    fraction, sequential = 0j, []
    for value in potential.tolist():
        fraction = 1 / (value - 2 - z - fraction)
        sequential.append(fraction)
    actual = resolvent_diagonal(potential, z)
    torch.testing.assert_close(actual, torch.tensor(sequential, dtype=torch.complex128), rtol=0, atol=1e-13)


def test_sequences_longer_than_a_block_are_cut_at_z_equal_i() -> None:
    assert _geometry(random_potential(200), 1j)[1] > 0
    assert _geometry(random_potential(128, dtype=torch.float32), 1j)[1] > 0


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("z", [1j, 0.4 + 0.8j])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (2, 3, 5), (118,)])
def test_gradient_equals_finite_differences(shape: tuple[int, ...], z: complex, causal: bool) -> None:
    potential = random_potential(*shape, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: resolvent_diagonal(v, z, causal), (potential,))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 9, 500])
def test_gradient_equals_the_squared_entries_of_the_inverse(length: int, causal: bool) -> None:
    potential = random_potential(length, seed=9).requires_grad_()
    upstream = torch.randn(length, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    (actual,) = torch.autograd.grad((resolvent_diagonal(potential, causal=causal) * upstream).real.sum(), potential)
    expected = (upstream @ jacobian(potential.detach(), causal)).real
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("potential", [-3.0, 0.0, 3.0, None], ids=["-3", "0", "3", "random"])
def test_values_and_gradients_are_finite_and_bounded_at_65536_sites(potential: float | None, causal: bool) -> None:
    n = 65_536
    v = random_potential(n, dtype=torch.float32) if potential is None else torch.full((n,), potential)
    v.requires_grad_()
    g = resolvent_diagonal(v, causal=causal)
    torch.view_as_real(g).sum().backward()
    assert torch.isfinite(torch.view_as_real(g)).all()
    assert g.abs().max() <= 1 + 1e-6
    assert torch.isfinite(v.grad).all()
    assert v.grad.abs().max() < 10


def test_published_determinant_recursion_overflows_where_the_fractions_do_not() -> None:
    theta = [1.0 + 0j, -2 - 1j]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(1023):
            theta.append(np.complex128(-2 - 1j) * theta[-1] - theta[-2])
    assert not np.isfinite(theta[-1])
    assert torch.isfinite(torch.view_as_real(resolvent_diagonal(torch.zeros(1024)))).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (3, 2)])
def test_leading_dimensions_are_a_batch(batch: tuple[int, ...], causal: bool) -> None:
    potential = random_potential(*batch, 150)
    actual = resolvent_diagonal(potential, causal=causal)
    rows = [resolvent_diagonal(row, causal=causal) for row in potential.reshape(-1, 150)]
    assert actual.shape == potential.shape
    torch.testing.assert_close(actual, torch.stack(rows).reshape(potential.shape), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("dtype", "result"), [(torch.float32, torch.complex64), (torch.float64, torch.complex128)])
def test_precision_follows_the_potential(dtype: torch.dtype, result: torch.dtype) -> None:
    for causal in (True, False):
        assert resolvent_diagonal(torch.zeros(100, dtype=dtype), causal=causal).dtype == result


def test_causal_entries_ignore_later_potentials_and_bidirectional_ones_do_not() -> None:
    potential = random_potential(2, 300, dtype=torch.float32)
    for cut in (1, 59, 60, 128, 299):
        changed = potential.clone()
        changed[:, cut:] = 2.5
        assert torch.equal(resolvent_diagonal(changed)[:, :cut], resolvent_diagonal(potential)[:, :cut])
        before, after = (resolvent_diagonal(v, causal=False)[:, cut - 1] for v in (potential, changed))
        assert (before - after).abs().min() > 1e-3


def test_published_mixer_leaks_the_next_potential_by_seven_hundredths() -> None:
    potential = torch.zeros(8, dtype=torch.float64)
    raised = potential.clone()
    raised[5] += 1
    moved = (resolvent_diagonal(raised, causal=False) - resolvent_diagonal(potential, causal=False)).abs()
    assert moved[[4, 3, 2]].numpy() == pytest.approx([0.0708, 0.0163, 0.0038], abs=5e-5)
    assert torch.equal(resolvent_diagonal(raised)[:5], resolvent_diagonal(potential)[:5])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.complex64, torch.bool])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="float32"):
        resolvent_diagonal(torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize("z", [0, 1, -1j, 1 - 0.5j, complex("nan"), complex(0, float("inf")), 1e-9j])
def test_spectral_parameters_off_the_upper_half_plane_are_refused(z: complex) -> None:
    with pytest.raises(ValueError, match="Im z"):
        resolvent_diagonal(torch.zeros(4), z)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_empty_potentials_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one site"):
        resolvent_diagonal(torch.zeros(shape))


@pytest.mark.parametrize("causal", [True, False])
def test_second_derivative_is_refused_rather_than_wrong(causal: bool) -> None:
    potential = random_potential(5).requires_grad_()
    diagonal = resolvent_diagonal(potential, causal=causal)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(diagonal.real.sum(), potential, create_graph=True)
