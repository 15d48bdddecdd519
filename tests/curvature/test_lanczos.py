"""The eigensolver against dense eigenvalues.

Ladder: closed form (diagonal matrices) → torch.linalg.eigvalsh in float64, with hypothesis. Cannot see:
whether the operator is the right one; test_sharpness does.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgewise.curvature.lanczos import Basis, RitzPairs, random_directions, top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.status import Status
from oracles import top

EPS = torch.finfo(torch.float64).eps


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.size, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device

    def matvec(self, vector):
        return self.matrix @ vector


def solve(matrix, *, num=1, rtol=1e-6, max_products=2000, start=None, seed=0, **options):
    operator = MatrixOperator(matrix)
    generator = torch.Generator().manual_seed(seed)
    start = random_directions(operator, 1, generator) if start is None else start
    return top_eigenpairs(
        operator,
        num=num,
        rtol=rtol,
        max_products=max_products,
        start=start,
        generator=generator,
        **options,
    )


def with_spectrum(values, seed=0):
    """A dense symmetric matrix with these eigenvalues, and its eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())
    matrix = rotation @ torch.diag(values) @ rotation.T
    return (matrix + matrix.T) / 2, rotation


def check_evidence(matrix, result, rtol=None):
    """What a result promises about itself: orthonormal vectors, a true residual, an eigenvalue within it."""
    vectors, values = result.vectors, result.values.to(matrix.dtype)
    slack = 100 * torch.finfo(matrix.dtype).eps * float(matrix.norm()) + 1e-300
    torch.testing.assert_close(
        vectors.T @ vectors, torch.eye(vectors.shape[1], dtype=matrix.dtype), rtol=0, atol=1e-10
    )
    residuals = (matrix @ vectors - vectors * values).norm(dim=0)
    assert abs(float(residuals[0]) - result.residual) <= slack
    spectrum = torch.linalg.eigvalsh(matrix)
    for value, residual in zip(values, residuals, strict=True):
        assert float((spectrum - value).abs().min()) <= float(residual) + slack
    assert result.value == float(result.values[0])
    assert (result.values.diff() <= 0).all()
    if rtol is not None:
        assert (residuals <= rtol * values.abs() + slack).all()
        assert result.status is Status.CONVERGED
        assert result.converged


@given(st.integers(1, 40), st.integers(0, 10_000), st.integers(1, 3))
def test_random_matrices_have_their_dense_eigenvalues(size, seed, num):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    num = min(num, size)
    result = solve(matrix, num=num, rtol=1e-8, seed=seed)
    # a residual r misses its eigenvalue by at most r = 1e-8·λ
    atol = 1e-8 * float(matrix.norm())
    torch.testing.assert_close(result.values, top(matrix, num), rtol=0, atol=atol)
    check_evidence(matrix, result, rtol=1e-8)


@pytest.mark.parametrize("ratio", [1.01, 2.0, 3.0])
def test_the_most_positive_wins_over_a_larger_negative_one(ratio):
    matrix, _ = with_spectrum(torch.cat([torch.linspace(-ratio, 0.9, 59), torch.tensor([1.0])]))
    result = solve(matrix, rtol=1e-6)
    assert result.value == pytest.approx(1.0, abs=2e-6)
    check_evidence(matrix, result, rtol=1e-6)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_several_eigenvalues_in_descending_order(num):
    matrix, rotation = with_spectrum(torch.linspace(-1, 1, 30))
    result = solve(matrix, num=num, rtol=1e-8)
    torch.testing.assert_close(result.values, top(matrix, num), rtol=1e-8, atol=0)
    assert result.vectors.shape == (30, num)
    overlap = (rotation.flip(1)[:, :num].T @ result.vectors).abs()
    # sin∠(v, eigenvector) ≤ residual/gap = 1e-8·1/(2/29): the diagonal misses 1 by its square
    torch.testing.assert_close(overlap.diagonal(), torch.ones(num).double(), rtol=0, atol=1e-12)
    check_evidence(matrix, result, rtol=1e-8)


def test_a_start_costs_fewer_products_and_gives_the_same_value():
    matrix, _ = with_spectrum(torch.cat([torch.linspace(-1, 0.97, 199), torch.tensor([1.0])]))
    cold = solve(matrix)
    drift = torch.randn(200, 200, dtype=torch.float64)
    moved = matrix + 1e-4 * (drift + drift.T) / 20
    warm, again = solve(moved, start=cold.subspace.T), solve(moved)
    assert warm.num_products < again.num_products / 2
    # both within their residuals 1e-6·λ; quadratic convergence of Ritz values makes it far less
    assert warm.value == pytest.approx(again.value, rel=2e-6)
    check_evidence(moved, warm, rtol=1e-6)


def test_a_start_sees_the_top_two_cross():
    """From the eigenvector alone of what used to be the top, the solver would be content with the second."""
    spectrum = torch.cat([torch.linspace(-1, 1, 98), torch.tensor([3.0, 2.0])])
    before, rotation = with_spectrum(spectrum)
    earlier = solve(before, rtol=1e-9)
    assert earlier.value == pytest.approx(3.0)
    after = rotation @ torch.diag(torch.cat([spectrum[:98], spectrum[98:].flip(0)]).double()) @ rotation.T
    result = solve((after + after.T) / 2, start=earlier.subspace.T, rtol=1e-6)
    assert result.value == pytest.approx(3.0, rel=2e-6)
    assert abs(float(result.vectors[:, 0] @ rotation[:, 99])) == pytest.approx(1.0)


def test_a_start_need_not_be_orthonormal_nor_finite_in_rank():
    matrix, rotation = with_spectrum(torch.linspace(-1, 1, 30))
    vector = rotation[:, 29]
    start = torch.stack([vector, 5 * vector, torch.zeros(30).double()])
    result = solve(matrix, start=start, rtol=1e-6)
    assert result.value == pytest.approx(1.0)
    check_evidence(matrix, result, rtol=1e-6)


def test_an_exhausted_budget_says_so_and_keeps_its_evidence():
    matrix, _ = with_spectrum(torch.linspace(0.9, 1, 500))
    result = solve(matrix, rtol=1e-9, max_products=5)
    assert result.status is Status.BUDGET_EXHAUSTED
    assert not result.converged
    assert result.num_products == 5
    assert result.residual > 1e-9
    check_evidence(matrix, result)


def test_the_budget_holds_for_a_long_start():
    matrix, rotation = with_spectrum(torch.linspace(0.5, 1, 50))
    assert solve(matrix, start=rotation.T[:10], max_products=3, rtol=1e-12).num_products == 3


@pytest.mark.parametrize("size", [1, 2, 20])
def test_a_zero_matrix_has_sharpness_zero(size):
    result = solve(torch.zeros(size, size, dtype=torch.float64))
    assert result.value == 0.0
    assert result.residual == 0.0
    assert result.status is Status.CONVERGED


def test_a_negative_definite_matrix_gives_its_least_negative_eigenvalue():
    matrix, _ = with_spectrum(-torch.linspace(1, 5, 40))
    result = solve(matrix, rtol=1e-8)
    assert result.value == pytest.approx(-1.0, rel=1e-8)
    check_evidence(matrix, result, rtol=1e-8)


@pytest.mark.parametrize(
    "values", [[2.0, 2.0, 1.0, 0.0, -3.0], [1.0, 1.0, 1.0, 1.0], [2.0, 2.0] + 40 * [0.5]]
)
def test_a_degenerate_top_is_found_twice(values):
    matrix, _ = with_spectrum(values)
    result = solve(matrix, num=2, rtol=1e-8)
    torch.testing.assert_close(result.values, top(matrix, 2), rtol=1e-8, atol=0)
    check_evidence(matrix, result, rtol=1e-8)


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_a_matrix_of_size_one(value):
    result = solve(torch.tensor([[value]], dtype=torch.float64))
    assert result.value == value
    assert result.num_products == 1
    assert result.status is Status.CONVERGED


@pytest.mark.parametrize("num", [1, 3])
def test_restarts_go_on_beyond_the_basis(num):
    """Top gaps of 1e-3 of the spread: by Saad's bound far more than 32 products, so several restarts."""
    values = torch.cat([torch.linspace(-1, 0.996, 297), torch.tensor([0.998, 0.999, 1.0])])
    matrix, _ = with_spectrum(values)
    result = solve(matrix, num=num, rtol=1e-6)
    assert result.num_products > 3 * 32
    torch.testing.assert_close(result.values, top(matrix, num), rtol=2e-6, atol=0)
    check_evidence(matrix, result, rtol=1e-6)


def test_float32_converges_to_what_its_precision_allows():
    matrix, _ = with_spectrum(torch.linspace(-3, 1, 100))
    result = solve(matrix.float(), rtol=1e-4)
    # the residual, and the rounding of the matrix to float32: n·ε·‖A‖
    assert result.value == pytest.approx(1.0, abs=1e-4 + 100 * 1.2e-7 * 3)
    assert result.converged
    assert result.vectors.dtype == torch.float32
    assert result.values.dtype == torch.float64


def test_the_same_seed_gives_the_same_bits():
    matrix, _ = with_spectrum(torch.linspace(-1, 1, 60))
    first, second, other = solve(matrix, seed=3), solve(matrix, seed=3), solve(matrix, seed=4)
    assert first.value == second.value
    assert torch.equal(first.vectors, second.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_the_subspace_is_orthonormal_and_starts_with_the_vectors():
    matrix, _ = with_spectrum(torch.linspace(-1, 1, 60))
    result = solve(matrix, num=2)
    assert result.subspace.shape == (60, 4)
    torch.testing.assert_close(result.subspace.T @ result.subspace, torch.eye(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.subspace[:, :2], result.vectors, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_negative_dominated_spectra_without_a_sign_error(dtype):
    """|λ_min| up to 3 λ_max, also when the start is the eigenvector of λ_min; residual bounds hold in all cases."""
    generator = torch.Generator().manual_seed(0)
    for case in range(500):
        size = 6 + case % 19
        ratio = 1 + 2 * float(torch.rand(1, generator=generator))
        values = torch.rand(size, generator=generator, dtype=torch.float64) * (0.9 + ratio) - ratio
        values[0], values[-1] = -ratio, 1.0
        matrix, rotation = with_spectrum(values, seed=case)
        start = rotation[:, :1].T.to(dtype) if case % 3 == 0 else None
        rtol = 10.0 ** -(1 + case % 5)
        result = solve(matrix.to(dtype), rtol=rtol, start=start, seed=case)
        assert result.converged
        assert result.value > 0, (case, result.value)
        assert float((values - result.value).abs().min()) <= result.residual, (case, result)
        if rtol <= 1e-3:
            assert result.value == pytest.approx(1.0, rel=1e-3), case


def nearly_blind(values, component, seed=0):
    """A start with normal random components along the axes, but that along the first is given."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, len(values), generator=generator, dtype=torch.float64)
    start[0, 0] = component
    return start


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(-6, 0))
def test_no_start_hides_more_than_the_chance_allows(seed, width, exponent):
    """|vᵀg| is at most what the bound says, in a diagonal matrix, at each width, also where Ritz values are no good."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(40, generator=generator, dtype=torch.float64) * 2 - 1
    values[0] = 1.1
    start = nearly_blind(values, 10**exponent, seed)
    basis = Basis(MatrixOperator(torch.diag(values)), generator)
    basis.extend(start[0])
    for _ in range(width - 1):
        basis.extend(RitzPairs(basis, 1).residuals[0])
    ritz = RitzPairs(basis, 1)
    if 0 < float(ritz.values[0]) < 1.1 / 1.05:
        component = 40**0.5 * 10**exponent / float(start.norm())
        assert ritz.chance_of_missing(basis, 1.05) >= min(1.0, (2 / torch.pi) ** 0.5 * component) * (1 - 1e-6)


def test_a_start_that_hides_the_top_is_doubted():
    """Of 1 and 0.9, whose residual is small enough soon; the chance of so small a component is 0.8 %."""
    values = torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0, 0.3, 98)]).double()
    start = nearly_blind(values, 0.01)
    matrix = torch.diag(values)
    content = solve(matrix, rtol=1e-2, start=start)
    assert content.value == pytest.approx(0.9, rel=1e-3)
    sure = solve(matrix, rtol=1e-2, start=start, most_chance=1 / 1000)
    assert sure.value == pytest.approx(1.0, rel=1e-3)
    assert sure.num_products > content.num_products


def test_doubts_end_with_the_budget_and_with_the_matrix():
    values = torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0, 0.3, 98)]).double()
    start = nearly_blind(values, 0.01)
    content = solve(torch.diag(values), rtol=1e-2, start=start)
    most = content.num_products
    cut = solve(torch.diag(values), rtol=1e-2, start=start, most_chance=1e-12, max_products=most)
    assert (cut.num_products, cut.value, cut.converged) == (most, content.value, True)
    identity = solve(
        torch.eye(50).double(), rtol=1e-2, most_chance=1e-12
    )  # one vector is the whole Krylov space
    assert (identity.num_products, identity.converged) == (1, True)


def test_the_chance_is_that_of_its_formula():
    values = torch.cat([torch.linspace(-1, 1, 39), torch.tensor([1.5])]).double()
    basis = Basis(MatrixOperator(torch.diag(values)), torch.Generator())
    basis.extend(torch.ones(40).double())
    for _ in range(6):
        basis.extend(RitzPairs(basis, 1).residuals[0])
    *others, value = torch.linalg.eigvalsh(basis.projection).tolist()
    ritz = RitzPairs(basis, 1)
    growth = torch.tensor([(1.05 * value - other) / (value - other) for other in others]).double().prod()
    x = ritz.vectors[0]  # along the start, of norm √40, it has 1ᵀx/√40 of its length
    bound = float(ritz.residual_norms[0] * x.sum().abs() / (0.05 * value * growth))
    assert ritz.chance_of_missing(basis, 1.05) == pytest.approx((2 / torch.pi) ** 0.5 * bound, rel=1e-6)


def test_where_a_residual_is_rounding_there_is_no_doubt():
    """The start has three eigenvectors: after three products nothing is left to look along."""
    start = torch.zeros(1, 40).double()
    start[0, :3] = 1.0
    found = solve(torch.diag(torch.linspace(1, 0, 40).double()), rtol=1e-2, start=start, most_chance=1e-30)
    assert (found.num_products, found.value) == (3, pytest.approx(1.0))


def test_a_coarse_tolerance_looks_for_nothing_nearer_than_five_times_itself():
    """1 lies 11 % above 0.9: to be found at rtol 1e-2, and none of what a tenth is about."""
    values = torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0, 0.3, 98)]).double()
    start, matrix = nearly_blind(values, 0.01), torch.diag(values)
    content = solve(matrix, rtol=0.1, start=start)
    assert solve(matrix, rtol=0.1, start=start, most_chance=0.01).num_products == content.num_products
    assert solve(matrix, rtol=1e-2, start=start, most_chance=0.001).value == pytest.approx(1, rel=1e-3)
