"""Parts of the samples before the whole, against dense eigenvalues and against the solver without parts.

Ladder: closed form (what a corrected part is) → dense float64 Hessians. Cannot see: whether parts save time.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgewise import preconditioned_sharpness, sharpness
from edgewise.curvature import coarse
from edgewise.curvature.coarse import _Corrected, _Guide
from edgewise.curvature.hessian import hessian
from edgewise.curvature.lanczos import Basis, random_directions, top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.loss.batches import Batches
from edgewise.loss.parts import Part, can_be_parted
from edgewise.ranks import Ranks
from edgewise.status import Status
from oracles import bits, dense_hessian, top

NUM_SAMPLES = 64


class MatrixOperator(SymmetricOperator):
    """A dense symmetric matrix that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.num = matrix, 0
        self.size, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device

    def matvec(self, vector):
        self.num += 1
        return self.matrix @ vector


class Refusing(MatrixOperator):
    """Raises at its second product."""

    def matvec(self, vector):
        if self.num == 1:
            raise ValueError("too few samples")
        return super().matvec(vector)


def symmetric(size, seed):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (matrix + matrix.T) / 2


def spread(size, seed):
    """A symmetric matrix with eigenvalues 1, 0.9, 0.9², …: takes many products from a random start."""
    rotation, _ = torch.linalg.qr(symmetric(size, seed))
    return rotation @ torch.diag(0.9 ** torch.arange(size, dtype=torch.float64)) @ rotation.T


def solve(matrix, part=None, *, start=None, num=1, rtol=1e-6, seed=0):
    operator, generator = MatrixOperator(matrix), torch.Generator().manual_seed(seed)
    start = random_directions(operator, 1, generator) if start is None else start
    guide = None if part is None else _Guide(part, rtol, generator)
    return top_eigenpairs(
        operator, num=num, rtol=rtol, max_products=500, start=start, generator=generator, expand=guide
    )


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_a_corrected_part_is_symmetric_and_agrees_on_the_basis(seed, width):
    """B = αC + WVᵀ + VWᵀ − V(VᵀW)Vᵀ, written out in full."""
    whole, part = symmetric(12, seed), symmetric(12, seed + 1)
    operator, generator = MatrixOperator(whole), torch.Generator().manual_seed(seed)
    basis = Basis(operator, generator)
    for vector in random_directions(operator, width, generator):
        basis.extend(vector)
    v = torch.stack([basis.vector(row) for row in range(width)]).T  # (n, width)
    corrected = _Corrected(MatrixOperator(part), basis, list((part @ v).T))
    dense = torch.stack([corrected.matvec(unit) for unit in torch.eye(12, dtype=torch.float64)])
    alpha = ((whole @ v) * (part @ v)).sum() / (part @ v).square().sum()
    w = whole @ v - alpha * part @ v
    torch.testing.assert_close(
        dense, alpha * part + w @ v.T + v @ w.T - v @ (v.T @ w) @ v.T, rtol=0, atol=1e-10
    )
    torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(dense @ v, whole @ v, rtol=0, atol=1e-10)


@given(st.integers(5, 40), st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.0, 0.3, 1.0]))
def test_no_part_misleads_to_another_value(size, seed, num, closeness):
    """However little a part has to do with the matrix, what converges are its dense eigenvalues."""
    matrix = symmetric(size, seed)
    part = closeness * matrix + (1 - closeness) * symmetric(size, seed + 1)
    result = solve(matrix, MatrixOperator(part), num=num, rtol=1e-8, seed=seed)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(
        result.values, top(matrix, num), rtol=0, atol=1e-8 * float(matrix.norm())
    )  # a residual of 1e-8·λ


@pytest.mark.parametrize(
    "part", [Refusing(symmetric(200, 3)), MatrixOperator(torch.full((200, 200), torch.nan).double())]
)
def test_a_part_that_fails_is_left(part):
    matrix = spread(200, 1)
    result = solve(matrix, part)
    assert result.status is Status.CONVERGED
    assert result.value == pytest.approx(1.0, abs=1e-6)


def test_a_part_near_the_whole_saves_products():
    """From the part's own top, half of the products at least."""
    matrix = spread(200, 1)
    part = matrix + 0.02 * symmetric(200, 2) / 200**0.5
    start = torch.linalg.eigh(part).eigenvectors[:, -1:].T
    plain, guided = solve(matrix, start=start), solve(matrix, MatrixOperator(part), start=start)
    assert guided.value == pytest.approx(plain.value, rel=1e-9)
    assert guided.num_products <= plain.num_products / 2


def test_a_part_that_misleads_costs_two_directions():
    """Twenty directions that the part has and the whole has not, each larger than all that the whole has."""
    matrix = spread(200, 1)
    spurious, _ = torch.linalg.qr(symmetric(200, 5)[:, :20])
    values = torch.linspace(2, 4, 20, dtype=torch.float64)
    misleading = MatrixOperator(matrix + spurious @ torch.diag(values) @ spurious.T)
    start = torch.linalg.eigh(matrix + 0.1 * symmetric(200, 2) / 200**0.5).eigenvectors[:, -1:].T
    plain, guided = solve(matrix, start=start), solve(matrix, misleading, start=start)
    assert 0 < misleading.num <= 2 * 16  # a basis vector and fifteen products, twice
    assert guided.num_products <= plain.num_products + 2


def a_network():
    """1,174 parameters in float64, and 64 samples of two classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 6)
    ).double()
    x = torch.randn(NUM_SAMPLES, 16, dtype=torch.float64)
    return model, (x, x[:, :6].tanh())


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def in_pieces(batch, sizes):
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


BATCHES = {
    "one batch": lambda batch: [batch],
    "uneven batches": lambda batch: in_pieces(batch, [3, 30, 1, 30]),
    "a loader": lambda batch: DataLoader(TensorDataset(*batch), batch_size=10),
}


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("kind", BATCHES)
def test_the_value_is_that_of_the_whole(kind, num):
    model, batch = a_network()
    result = sharpness(model, mse, BATCHES[kind](batch), num=num, rtol=1e-8)
    torch.testing.assert_close(result.values, top(dense_hessian(model, mse, [batch]), num), rtol=1e-9, atol=0)
    assert result.num_hvps < result.cost < result.num_hvps + 200 / 16  # parts had their say


def test_the_preconditioner_is_that_of_the_whole():
    model, batch = a_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()
    with hessian(model, mse, [batch], optimizer=optimizer) as operator:
        dense = torch.stack([operator.matvec(unit) for unit in torch.eye(operator.size).double()])
        part = operator.part(1 / 16)
        scale, unit = operator._scale, torch.eye(operator.size).double()[5]
        cut = tuple(tensor[::16] for tensor in batch)
        expected = scale * (dense_hessian(model, mse, [cut]) @ (scale * unit))
        torch.testing.assert_close(part.matvec(unit), expected, rtol=1e-9, atol=1e-12)
    result = preconditioned_sharpness(model, mse, [batch], optimizer, rtol=1e-8)
    assert result.value == pytest.approx(float(top(dense)), rel=1e-9)
    assert result.cost > result.num_hvps


def test_a_start_needs_no_parts():
    model, batch = a_network()
    first = sharpness(model, mse, [batch])
    assert f"parts worth {first.cost - first.num_hvps:.2g} more)" in str(first)
    again = sharpness(model, mse, [batch], start=first)
    assert again.cost == again.num_hvps < first.num_hvps
    assert "parts" not in str(again)


def refuses_parts(model, batch):
    if len(batch[0]) < NUM_SAMPLES:
        raise ValueError("64 samples, please")
    return mse(model, batch)


def test_a_loss_that_refuses_parts_is_measured_without(monkeypatch):
    model, batch = a_network()
    refused = sharpness(model, refuses_parts, [batch])
    monkeypatch.setattr(coarse, "_SHARES", ())
    plain = sharpness(model, mse, [batch])
    assert refused.converged
    assert refused.cost == refused.num_hvps
    assert refused.value == pytest.approx(plain.value, rel=1e-5)


def test_batch_norm_is_no_obstacle(monkeypatch):
    """In training it has other statistics over a part: a start is only a start."""
    model, batch = a_network()
    model.insert(1, nn.BatchNorm1d(32).double())
    before = [bits(tensor) for tensor in model.state_dict().values()]
    result = sharpness(model, mse, [batch], rtol=1e-8)
    assert result.cost > result.num_hvps
    monkeypatch.setattr(coarse, "_SHARES", ())
    assert result.value == pytest.approx(sharpness(model, mse, [batch], rtol=1e-8).value, rel=1e-9)
    assert [bits(tensor) for tensor in model.state_dict().values()] == before


def seen_sizes(loss_fn=mse):
    sizes = set()

    def wrapped(model, batch):
        sizes.add(len(batch[0]))
        return loss_fn(model, batch)

    return wrapped, sizes


def test_parts_are_a_sixteenth():
    model, batch = a_network()
    loss_fn, sizes = seen_sizes()
    sharpness(model, loss_fn, [batch])
    assert sizes == {NUM_SAMPLES, NUM_SAMPLES // 16}


@pytest.fixture
def compiler():
    """What is compiled inside is not known outside."""
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_nothing_compiled_sees_another_shape():
    model, batch = a_network()
    compiled = torch.compile(mse, backend="eager")
    for inside in (compiled, lambda model, batch: 2 * compiled(model, batch)):
        loss_fn, sizes = seen_sizes(inside)
        sharpness(model, loss_fn, [batch])
        assert sizes == {NUM_SAMPLES}
    compiled_model = torch.compile(model, backend="eager")
    loss_fn, sizes = seen_sizes()
    sharpness(compiled_model, loss_fn, [batch])
    assert sizes == {NUM_SAMPLES}


def test_a_budget_counts_all_graphs():
    model, batch = a_network()
    result = sharpness(model, mse, [batch], max_graph_bytes=10**8)
    assert result.cost == result.num_hvps
    assert result.graph_bytes > 0


def test_small_problems_are_measured_whole():
    model = nn.Linear(16, 1).double()
    x = torch.randn(NUM_SAMPLES, 16, dtype=torch.float64)
    result = sharpness(model, lambda model, x: model(x).square().mean(), [x])
    assert result.cost == result.num_hvps


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ([64], 1 / 16, [[0, 16, 32, 48]]),
        ([3, 30], 0.5, [[0, 1, 2], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24]]),
        ([4, 4], 1.0, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        ([5], 0.01, [[0]]),
    ],
)
def test_a_part_is_of_rows_evenly_apart(sizes, share, expected):
    part = Part(Batches([torch.arange(size) for size in sizes]), share)
    assert [batch.tolist() for batch in part] == expected
    assert [batch.tolist() for batch in part] == expected  # each pass anew


def test_a_part_fetches_no_batch_that_it_does_not_take():
    fetched = []

    class Loader:
        def __iter__(self):
            for i in range(4):
                fetched.append(i)
                yield torch.full((4,), i)

    batches = Batches(Loader())
    fetched.clear()
    assert [batch.tolist() for batch in Part(batches, 0.25)] == [[0, 0, 0, 0]]
    assert fetched == [0]


def test_what_has_no_rows_has_no_part():
    alone = Ranks()
    assert can_be_parted(Batches([torch.ones(60), torch.ones(4)]), 1 / 64, alone)
    assert not can_be_parted(Batches([torch.ones(64)]), 1 / 65, alone)
    assert not can_be_parted(Batches([torch.ones(63)]), 1 / 16, alone)
    assert not can_be_parted(Batches([torch.tensor(1.0)]), 1 / 16, alone)
