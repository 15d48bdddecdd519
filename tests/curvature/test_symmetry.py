"""Operators that are not symmetric, as a property of the solver: noticed, or without effect on what is promised.

Ladder: dense float64 eigenvalues of the symmetric part of what was multiplied, over matrices S + sE with random E of
several shapes, by hypothesis and by a seeded table; real losses have S as their Hessian and S + sE as their double
backward, by a custom function. Cannot see: a symmetric part of E, which no product shows; `hvp="checked"` does.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

import edgewise as ew
from cases import MLP, CutProduct, CutTanh, cross_entropy
from edgewise.curvature.doubts import Doubts
from edgewise.curvature.lanczos import Basis, random_directions, top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.routes.second_derivative import WrongDerivativeError
from edgewise.errors import SecondDerivativeError

DTYPES = [torch.float32, torch.float64]


class Claimed(SymmetricOperator):
    """A matrix that is said to be symmetric; what is more than √ε of it, or than is allowed, is refused."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.asked = []

    def matvec(self, vector):
        return self.matrix @ vector

    def check_symmetric(self, asymmetry, one, other, allowed=math.inf):
        self.asked.append(allowed)
        seen = abs(float(one @ (self.matrix @ other) - other @ (self.matrix @ one)))
        assert asymmetry == pytest.approx(
            seen, abs=1e3 * torch.finfo(self.dtype).eps * float(self.matrix.norm())
        )
        if asymmetry > min(allowed, torch.finfo(self.dtype).eps ** 0.5 * float(self.matrix.norm())):
            raise WrongDerivativeError("not symmetric")


def spectrum(kind, size, random):
    """Eigenvalues: over four decades, normal, most of them very negative, two that are close, or one alone."""
    match kind:
        case "wide":
            return torch.logspace(0, -4, size).double()
        case "normal":
            return random(size)
        case "negative":
            return torch.cat([torch.ones(1), -torch.logspace(3, -1, size - 1)]).double()
        case "twins":
            return torch.cat([torch.tensor([1.0, 0.999]).double(), 0.5 * random(size - 2).clamp(-1, 1)])
    return torch.eye(size, dtype=torch.float64)[0]


def asymmetric(kind, size, random):
    """A random matrix E that is not symmetric, of norm about 1."""
    part, error = max(1, size // 3), torch.zeros(size, size, dtype=torch.float64)
    match kind:
        case "dense":
            error = random(size, size) / size**0.5
        case "antisymmetric":
            error = random(size, size) / size**0.5
            error = error - error.T
        case "rank one":
            error = torch.outer(random(size), random(size)) / size
        case "one entry":
            error[int(random(1).abs() * 1e6) % size, 0] = 1.0
            error = error.roll(1, 1)
        case "one parameter":
            error[:part, :part] = random(part, part) / part**0.5
        case "one way":  # of one parameter's gradient by the others, but not the other way round
            error[:part, part:] = random(part, size - part) / size**0.5
    return error


SPECTRA = ["wide", "normal", "negative", "twins", "one"]
ERRORS = ["dense", "antisymmetric", "rank one", "one entry", "one parameter", "one way"]
SIZES = [2, 3, 7, 30, 200]


def pair(size, spectral, error, scale, seed, dtype):
    """S and S + sE, s relative to the top eigenvalue."""
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(random(size, size))
    matrix = rotation @ torch.diag(spectrum(spectral, size, random)) @ rotation.T
    matrix = ((matrix + matrix.T) / 2).to(dtype)
    top = abs(float(torch.linalg.eigvalsh(matrix.double())[-1]))
    return matrix, matrix + (scale * top * asymmetric(error, size, random)).to(dtype)


def distance(found, matrix):
    """How far the values are from eigenvalues of a matrix, at the most."""
    truth = torch.linalg.eigvalsh(matrix.double())
    return max(float((truth - value).abs().min()) for value in found.values)


def symmetric_part(matrix):
    return (matrix.double() + matrix.double().T) / 2


@given(
    st.sampled_from(SIZES),
    st.sampled_from(SPECTRA),
    st.sampled_from(ERRORS),
    st.floats(-9, 1),
    st.integers(0, 10_000),
    st.sampled_from([1e-2, 1e-3, 1e-6]),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
)
def test_asymmetry_is_noticed_or_within_what_is_promised(size, spectral, error, log, seed, rtol, num, dtype):
    _, matrix = pair(size, spectral, error, 10**log, seed, dtype)
    operator, generator = Claimed(matrix), torch.Generator().manual_seed(seed)
    try:
        found = top_eigenpairs(
            operator,
            num=min(num, size),
            rtol=rtol,
            max_products=2000,
            start=random_directions(operator, 1, generator),
            generator=generator,
        )
    except WrongDerivativeError:
        return
    if found.converged and found.num_products > 1:  # of one there is nothing to compare
        promised = max(rtol * float(found.values.abs().max()), 2 * found.residual)
        assert distance(found, symmetric_part(matrix)) <= promised


@pytest.mark.parametrize("width", [2, 5, 9])
def test_the_asymmetry_of_a_basis_outlives_a_restart(width):
    """V(A − Aᵀ)Vᵀ by its definition, also when rows were given up and others have come."""
    generator = torch.Generator().manual_seed(width)
    matrix = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    operator = Claimed(matrix)
    operator.check_symmetric = lambda *_: None
    basis = Basis(operator, generator)
    for direction in random_directions(operator, 12, generator):
        basis.extend(direction)
    basis.restart(torch.linalg.qr(random_directions(operator, width, generator).T[:12]).Q.T)
    for direction in random_directions(operator, 3, generator):
        basis.extend(direction)
    rows = basis.vectors(torch.eye(basis.width, dtype=torch.float64))
    torch.testing.assert_close(basis.asymmetry, rows @ (matrix - matrix.T) @ rows.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num", [1, 2])
def test_what_is_small_beside_the_norm_is_looked_at_where_it_is_not_beside_the_value(num):
    """λ = 1 and 0.9 beside −10⁴: an asymmetry of 1 in float32 is less than √ε‖A‖, and mixes the two with others."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.diag(torch.tensor([1.0, 0.9, 0.5, 0.3, -1e4]))
    start = torch.eye(5)[:4] if num == 2 else torch.eye(5)[[0, 2]]
    error = torch.zeros(5, 5)
    error[2 if num == 1 else 3, num - 1] = 0.5  # of the last pair alone
    with pytest.raises(WrongDerivativeError):
        top_eigenpairs(
            Claimed(matrix + error), num=num, rtol=0.6, max_products=50, start=start, generator=generator
        )
    symmetric = Claimed(matrix)
    top_eigenpairs(symmetric, num=num, rtol=0.6, max_products=50, start=start, generator=generator)
    assert all(math.isinf(allowed) for allowed in symmetric.asked)


class _Slope(torch.autograd.Function):
    """Sx, whose derivative is said to be that of Ax."""

    @staticmethod
    def forward(ctx, x, right, taken):
        ctx.save_for_backward(taken)
        return right @ x

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0] @ gradient, None, None


class _Quadratic(torch.autograd.Function):
    """xᵀSx/2 with the gradient Sx, and A in place of the Hessian S."""

    @staticmethod
    def forward(ctx, x, right, taken):
        ctx.save_for_backward(x, right, taken)
        return 0.5 * x @ (right @ x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * _Slope.apply(*ctx.saved_tensors), None, None


class Quadratic(nn.Module):
    """L = xᵀSx/2 of two parameters, a third of the entries in the first; products are with A."""

    def __init__(self, right, taken, seed):
        super().__init__()
        generator, part = torch.Generator().manual_seed(seed), max(1, len(right) // 3)
        x = torch.randn(len(right), generator=generator, dtype=torch.float64).to(right)
        self.parts = nn.ParameterList([nn.Parameter(piece) for piece in (x[:part].clone(), x[part:].clone())])
        self.register_buffer("right", right)
        self.register_buffer("taken", taken)

    def forward(self, _):
        return _Quadratic.apply(torch.cat([*self.parts]), self.right, self.taken)


def loss_of(model, batch):
    return model(batch)


@pytest.mark.parametrize("spectral", SPECTRA)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_whose_double_backward_is_not_symmetric(error, spectral, dtype):
    """Of a result by the exact route, the symmetric part of what was multiplied has the eigenvalue; else S has it."""
    for i, scale in enumerate([1e-9, 1e-5, 1e-4, 1e-3, 1e-2, 1.0]):
        hvp = ("reverse", "auto")[i % 3 == 2]
        size, rtol = SIZES[(i + len(spectral)) % len(SIZES)], (1e-3, 1e-5)[i % 2]
        right, taken = pair(size, spectral, error, scale, i, dtype)
        model = Quadratic(right, taken, i)
        try:
            found = ew.sharpness(model, loss_of, [torch.ones(1, dtype=dtype)], rtol=rtol, hvp=hvp, seed=i)
        except SecondDerivativeError:
            assert scale > 1e-9
            continue
        if not found.converged or found.num_hvps == 1:
            continue
        promised = (
            max(rtol * abs(found.value), found.residual, 1e-30)
            + max(found.hvp_error, 1e-12) * right.norm().double()
        )
        exact = found.hvp == "reverse"
        assert distance(found, symmetric_part(taken) if exact else right) <= promised
        assert scale < 0.1 or not exact or (taken == taken.T).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wide_preconditioner_hides_no_asymmetry(dtype):
    """P = 10⁻⁸ of one parameter makes vectors 10⁴ long, whose rounding says nothing of λ = 1 in the other."""
    right = torch.diag(torch.tensor([1e-9, 1e-9, 1.0, 0.5, 0.2, 0.1], dtype=dtype))
    taken = right.clone()
    taken[3, 2] = 0.3

    def measured(matrix):
        model = Quadratic(right, matrix, 0)
        groups = [{"params": [model.parts[1]], "lr": 1.0}, {"params": [model.parts[0]], "lr": 1e8}]
        batches = [torch.ones(1, dtype=dtype)]
        return ew.preconditioned_sharpness(model, loss_of, batches, torch.optim.SGD(groups), hvp="reverse")

    assert measured(right).value == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(SecondDerivativeError, match="not symmetric"):
        measured(taken)


def test_a_warm_start_of_one_product_has_nothing_to_compare():
    """What docs/sharpness.md says of it: e₁ is an eigenvector of A = [[1, 1], [0, 0]], not of its symmetric part."""
    matrix = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()
    options = {"num": 1, "rtol": 1e-3, "max_products": 9, "generator": torch.Generator().manual_seed(0)}
    found = top_eigenpairs(Claimed(matrix), start=torch.eye(2).double()[:1], **options)
    assert (found.value, found.num_products) == (1.0, 1)
    with pytest.raises(WrongDerivativeError):
        top_eigenpairs(Claimed(matrix), start=torch.eye(2).double(), **options)


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
def test_symmetric_losses_are_asked_for_no_look(monkeypatch, rtol):
    looks = []
    original = Doubts._asymmetry
    monkeypatch.setattr(Doubts, "_asymmetry", lambda self, *args: looks.append(1) or original(self, *args))
    model, batches = MLP.build()
    batches = [tuple(t.float() for t in batch) for batch in batches]
    assert ew.sharpness(model.float(), MLP.loss_fn, batches, rtol=rtol, num=2).hvp == "reverse"
    assert not looks


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x):
        return CutProduct.apply(x, self.gain.expand_as(x))


class Activation(nn.Module):
    """Without a parameter: what is wrong of it lies in the entries of those before."""

    def forward(self, x):
        return CutTanh.apply(x)


class Unit(nn.Module):
    def forward(self, x):
        return x / (1 + x.norm(dim=-1, keepdim=True))


class Blocks(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def network(place, layer):
    """Four modules between the first and the last layer, of which one is another."""
    torch.manual_seed(0)
    inside = [nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8)]
    inside[place] = layer()
    return Blocks(nn.Linear(5, 8), *inside, nn.Linear(8, 3))


FAULTY = {
    "parametrized": (
        3,
        lambda: weight_norm(nn.Linear(8, 8)),
        "layers.4.parametrizations.weight.0 (_WeightNorm)",
    ),
    "old weight_norm": (0, lambda: old_weight_norm(nn.Linear(8, 8)), "layers.1 (Linear)"),
    "custom function": (2, Gain, "layers.3 (Gain)"),
    "in the middle of others": (1, Gain, "layers.2 (Gain)"),
}


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 5, generator=generator), torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", FAULTY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_that_is_not_symmetric_is_named(case, dtype):
    place, layer, name = FAULTY[case]
    with pytest.raises(SecondDerivativeError) as raised:
        ew.sharpness(network(place, layer), cross_entropy, [images()], hvp="reverse", dtype=dtype)
    assert f"; in {name}): use" in str(raised.value)
    found = ew.sharpness(network(place, layer), cross_entropy, [images()], dtype=dtype)
    assert found.hvp == "difference"
    assert f"; in {name}): use" in found.hvp_reason


def test_an_activation_is_named_and_not_the_parameters_before_it():
    found = ew.sharpness(network(1, Activation), cross_entropy, [images()])
    assert "off by" in found.hvp_reason
    assert "; in layers.2 (Activation)): use" in found.hvp_reason


def test_a_module_whose_second_derivative_is_not_finite_is_named():
    model, (x, targets) = network(1, Unit), images()
    nn.init.zeros_(model.layers[1].weight)
    nn.init.zeros_(model.layers[1].bias)
    found = ew.sharpness(model, cross_entropy, [(x, targets)])
    assert found.hvp == "difference"
    assert "not finite, though gradients are, as of a norm at 0; in layers.2 (Unit)" in found.hvp_reason


def test_many_are_counted():
    torch.manual_seed(0)
    model = nn.Sequential(*[weight_norm(nn.Linear(5, 5)) for _ in range(5)], nn.Linear(5, 3))
    with pytest.raises(
        SecondDerivativeError, match=r"in 0\.par.*, 1\.par.*, 2\.par.* \(_WeightNorm\) and 2 more\)"
    ):
        ew.sharpness(model, cross_entropy, [images()], hvp="reverse", dtype=torch.float64)


def test_what_the_loss_function_does_itself_is_no_module_s_fault():
    model = nn.ParameterDict({"u": torch.ones(3), "v": torch.full((3,), 2.0)})
    loss_fn = lambda m, _: 0.5 * (CutProduct.apply(m["u"], m["v"]) - 1).square().sum()
    with pytest.raises(SecondDerivativeError, match="it could not be told in which module"):
        ew.sharpness(model, loss_fn, [torch.ones(1)], hvp="reverse")


class Clipped(torch.autograd.Function):
    """relu: a kink is no wrong second derivative, though differences across it are not zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


class Kinks(nn.Module):
    def forward(self, x):
        return Clipped.apply(x)


def test_a_right_custom_function_beside_the_wrong_one_is_not_named():
    torch.manual_seed(0)
    model = Blocks(nn.Linear(5, 8), Kinks(), nn.BatchNorm1d(8), nn.Dropout(0.1), Gain(), nn.Linear(8, 3))
    with pytest.raises(SecondDerivativeError, match=r"; in layers\.4 \(Gain\)\)"):
        ew.sharpness(model, cross_entropy, [images()], hvp="reverse", dtype=torch.float64)


def test_looking_for_the_module_leaves_no_trace():
    torch.manual_seed(0)
    model = Blocks(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), Gain(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    observed = lambda: ew.sharpness(model, cross_entropy, [images()])
    assert "layers.3 (Gain)" in ew.assert_no_side_effects(model, optimizer, observed).hvp_reason
    assert not any(module._forward_hooks for module in model.modules())
