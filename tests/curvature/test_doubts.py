"""Second derivatives that torch has and that are wrong: not symmetric, not finite, jumping, or left out.

Ladder: closed form; the dense float64 Hessian by `torch.autograd.functional.hessian`, where it is right; central
differences otherwise, which need first derivatives only. Cannot see: a formula that is wrong, symmetric and smooth;
`hvp="checked"` does.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import edgewise as ew
from cases import MLP, CutProduct, CutTanh, cross_entropy, mlp
from edgewise.curvature.doubts import Doubts
from edgewise.errors import SecondDerivativeError
from edgewise.loss.precision import rounding_of_products


def cut_product():
    """L = Σ(uᵢvᵢ − 1)²/2 at u = 1, v = 2: H = [[4, 3], [3, 1]] for each i, top (5 + √45)/2."""
    model = nn.ParameterDict({"u": torch.ones(3), "v": torch.full((3,), 2.0)})
    loss_fn = lambda m, _: 0.5 * (CutProduct.apply(m["u"], m["v"]) - 1).square().sum()
    return model, loss_fn, [torch.ones(1)], (5 + math.sqrt(45)) / 2


def weight_normed():
    """torch's double backward of weight_norm is not symmetric; spelled out, it is."""
    torch.manual_seed(0)
    model = nn.Sequential(weight_norm(nn.Linear(5, 8)), nn.Tanh(), weight_norm(nn.Linear(8, 3)))
    batch = torch.randn(16, 5), torch.randint(0, 3, (16,))
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def spelled_out(flat):
        parts = dict(zip(names, flat.split(sizes), strict=True))
        x = batch[0].double()
        for i, shape in ((0, (8, 5)), (2, (3, 8))):
            g, v = (parts[f"{i}.parametrizations.weight.original{k}"] for k in (0, 1))
            v = v.view(shape)
            x = F.linear(x, g[:, None] * v / v.norm(dim=1, keepdim=True), parts[f"{i}.bias"])
            x = torch.tanh(x) if i == 0 else x
        return F.cross_entropy(x, batch[1])

    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    true = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(spelled_out, flat))[-1])
    return model, cross_entropy, [batch], true


def norm_at_zero():
    """(Σᵢ exp(−‖xᵢ‖²) − 1)²/2 + b² of two points at 0, by way of the norm: H = −2 I in x, 2 in b."""
    model = nn.ParameterDict({"x": torch.zeros(2, 3), "b": torch.zeros(1)})
    loss_fn = lambda m, _: (
        0.5 * (torch.exp(-(torch.linalg.norm(m["x"], dim=1) ** 2)).sum() - 1).square() + m["b"].square().sum()
    )
    return model, loss_fn, [torch.ones(1)], 2.0


def square_of_a_norm():
    """1.5‖x‖² + ‖y‖² at x = 0."""
    model = nn.ParameterDict({"x": torch.zeros(4), "y": torch.ones(2)})
    loss_fn = lambda m, _: 1.5 * m["x"].norm().square() + m["y"].square().sum()
    return model, loss_fn, [torch.ones(1)], 3.0


SINGULAR = [norm_at_zero, square_of_a_norm]
ASYMMETRIC = [cut_product, weight_normed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", ASYMMETRIC)
def test_products_that_are_not_symmetric_give_way_to_differences(make, dtype):
    model, loss_fn, batches, true = make()
    found = ew.sharpness(model, loss_fn, batches, dtype=dtype)
    assert (found.hvp, found.status) == ("difference", ew.Status.CONVERGED)
    assert abs(found.value - true) <= (found.hvp_error + 1e-3) * true
    seen = "not symmetric" if make is weight_normed else "a custom autograd.Function's is off"
    assert seen in found.hvp_reason


@pytest.mark.parametrize("make", ASYMMETRIC)
def test_a_route_that_was_asked_for_is_refused_where_it_is_not_symmetric(make):
    model, loss_fn, batches, _ = make()
    with pytest.raises(SecondDerivativeError, match=r"products are not symmetric.*use hvp=\"difference\""):
        ew.sharpness(model, loss_fn, batches, hvp="reverse")


@pytest.mark.parametrize("max_hvps", [2, 3, 200])
def test_products_that_were_given_up_count_in_the_budget(max_hvps):
    """Two show that they are not symmetric; what is left is for differences, or nothing is."""
    model, loss_fn, batches, _ = weight_normed()
    if max_hvps == 2:
        with pytest.raises(SecondDerivativeError, match="not symmetric"):
            ew.sharpness(model, loss_fn, batches, dtype=torch.float64, max_hvps=max_hvps)
        return
    found = ew.sharpness(model, loss_fn, batches, dtype=torch.float64, max_hvps=max_hvps)
    assert found.converged == (max_hvps == 200)
    assert found.num_hvps > 3  # the two, and those by differences with their calibration


def test_preconditioned_products_that_are_not_symmetric_give_way_too():
    """P = 1 of SGD with half the rate for v: P^{-1/2}HP^{-1/2} = [[4, 3/√2], [3/√2, 1/2]], top by its trace and det."""
    model, loss_fn, batches, _ = cut_product()
    optimizer = torch.optim.SGD([{"params": [model["u"]]}, {"params": [model["v"]], "lr": 0.05}], lr=0.1)
    found = ew.preconditioned_sharpness(model, loss_fn, batches, optimizer)
    true = (4.5 + math.sqrt(4.5**2 - 4 * (2 - 4.5))) / 2
    assert found.hvp == "difference"
    assert found.value == pytest.approx(true, rel=found.hvp_error + 1e-3)


def test_rounding_is_told_from_a_wrong_formula_by_a_look_in_float64(monkeypatch):
    """A loss near zero leaves float32 few digits; here nothing is put down to rounding, so that all is looked at."""
    looks = []
    original = Doubts._asymmetry
    monkeypatch.setattr(Doubts, "_asymmetry", lambda self, *args: looks.append(1) or original(self, *args))
    model, batches = MLP.build()
    model, batches = model.float(), [tuple(t.float() for t in batch) for batch in batches]
    monkeypatch.setattr("edgewise.curvature.doubts.rounding_of_products", lambda *_: 1e-9)
    found = ew.sharpness(model, MLP.loss_fn, batches)
    assert looks
    assert (found.hvp, found.converged) == ("reverse", True)
    looks.clear()
    monkeypatch.undo()
    assert ew.sharpness(model, MLP.loss_fn, batches).num_hvps < found.num_hvps
    assert not looks


@pytest.mark.parametrize("make", SINGULAR)
def test_a_second_derivative_that_is_nan_at_a_point_gives_way_to_differences(make):
    model, loss_fn, batches, true = make()
    found = ew.sharpness(model, loss_fn, batches)
    assert (found.hvp, found.status) == ("difference", ew.Status.CONVERGED)
    assert found.value == pytest.approx(true, rel=found.hvp_error + 1e-3)
    assert "not finite, though gradients are" in found.hvp_reason
    with pytest.raises(SecondDerivativeError, match="not finite, though gradients are"):
        ew.sharpness(model, loss_fn, batches, hvp="reverse")


@pytest.mark.parametrize("make", SINGULAR)
def test_the_forward_route_is_right_or_refuses_at_such_a_point(make):
    model, loss_fn, batches, true = make()
    try:
        found = ew.sharpness(model, loss_fn, batches, hvp="forward")
    except SecondDerivativeError:
        return
    assert found.value == pytest.approx(true, rel=1e-3)


def masked_norm():
    """The centre of a kernel on a data point: forward-over-reverse drops a term there, and is finite and symmetric."""
    model = nn.ParameterDict({"c": torch.tensor([[0.0, 0.0], [1.0, 2.0]]), "w": torch.tensor([1.0, 0.5])})
    batch = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.3, 0.2])

    def loss_fn(model, batch, squared=lambda d: torch.linalg.norm(d, dim=-1) ** 2):
        kernel = torch.exp(-squared(batch[0][:, None] - model["c"]))
        return (kernel @ model["w"] - batch[1]).square().mean()

    return model, loss_fn, batch


def test_forward_products_that_jump_beside_the_parameters_are_refused():
    model, loss_fn, batch = masked_norm()
    smooth = lambda m, b: loss_fn(m, b, lambda d: d.square().sum(-1))
    true = ew.sharpness(model, smooth, [batch], rtol=1e-5).value
    with pytest.raises(SecondDerivativeError, match="as soon as the parameters move"):
        ew.sharpness(model, loss_fn, [batch], hvp="forward")
    assert ew.sharpness(model, loss_fn, [batch]).value == pytest.approx(true, rel=1e-3)
    assert ew.sharpness(model, smooth, [batch], hvp="forward").value == pytest.approx(true, rel=1e-3)


def test_an_infinite_second_derivative_is_not_finite():
    """|x|^{3/2} at 0, and exp so large that its second derivative overflows: no route is at fault."""
    root = nn.ParameterDict({"x": torch.zeros(3)})
    steep = nn.ParameterDict({"x": torch.full((1,), 44.0)})
    for model, loss_fn in (
        (root, lambda m, _: m["x"].abs().pow(1.5).sum()),
        (steep, lambda m, _: torch.exp(2 * m["x"]).sum()),
    ):
        for route in ("auto", "reverse"):
            found = ew.sharpness(model, loss_fn, [torch.ones(1)], hvp=route)
            assert (found.value, found.status) == (math.inf, ew.Status.NOT_FINITE)


class FusedHead(torch.autograd.Function):
    """Linear layer and cross entropy at once, which saves the gradients, as fused heads of language models do."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (hidden, weight)]
            loss = F.cross_entropy(leaves[0] @ leaves[1].T, targets)
            ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
        return loss.detach()

    @staticmethod
    def backward(ctx, gradient):
        return *(gradient * saved for saved in ctx.saved_tensors), None


class RightTanh(torch.autograd.Function):
    """tanh, whose backward can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh().square())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("measure", [ew.sharpness, ew.preconditioned_sharpness])
@pytest.mark.parametrize("function", [FusedHead, CutTanh, RightTanh])
def test_custom_functions_are_compared_with_differences(function, measure, tied):
    """Symmetric, smooth and wrong: a wrong sharpness of 0.17 for 0.48 converged with the fused head."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8, bias=False))
    if tied:
        model[2].weight = model[0].weight
    batch = torch.randn(16, 8), torch.randint(0, 8, (16,))

    def fused(model, batch):
        hidden = model[0](batch[0])
        if function is FusedHead:
            return FusedHead.apply(torch.tanh(hidden), model[2].weight, batch[1])
        return F.cross_entropy(model[2](function.apply(hidden)), batch[1])

    extra = (
        (torch.optim.Adam(model.parameters(), eps=1e-2),) if measure is ew.preconditioned_sharpness else ()
    )
    true = measure(model, cross_entropy, [batch], *extra, rtol=1e-5).value
    found = measure(model, fused, [batch], *extra)
    assert found.hvp == ("reverse" if function is RightTanh else "difference")
    assert found.converged
    assert abs(found.value - true) <= (found.hvp_error + 1e-3) * true


class Rounded(torch.autograd.Function):
    """Rounds to eighths, with the gradient of the identity, as in training for quantized weights."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_custom_functions_with_a_gradient_of_their_own_are_taken_as_they_differentiate(dtype):
    """Differences know no better than a gradient that is not the loss's; the same without a class is the oracle."""
    torch.manual_seed(0)
    model = mlp(3)
    batch = torch.randn(64, 3), torch.randint(0, 3, (64,))
    loss_of = lambda rounded: lambda m, b: F.cross_entropy(m[2](rounded(torch.tanh(m[0](b[0])))), b[1])
    found = ew.sharpness(model, loss_of(Rounded.apply), [batch], dtype=dtype)
    straight = lambda h: h + ((8 * h).round() / 8 - h).detach()
    spelled_out = ew.sharpness(model, loss_of(straight), [batch], dtype=dtype)
    assert (found.hvp, found.value) == ("reverse", pytest.approx(spelled_out.value, rel=1e-6))


class FusedSquare(torch.autograd.Function):
    """Σx²/2, whose gradient is computed in forward, as fused heads do: it has no graph to x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        return 0.5 * x.square().sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].detach()


@pytest.mark.parametrize("hvp", ["auto", "reverse"])
def test_a_gradient_without_a_graph_to_the_parameters_is_not_a_linear_loss(hvp):
    model = nn.Linear(3, 1, bias=False)
    loss_fn = lambda m, x: FusedSquare.apply(m.weight) * 3
    if hvp == "reverse":
        with pytest.raises(SecondDerivativeError, match="a product is zero, though gradients differ"):
            ew.sharpness(model, loss_fn, [torch.ones(1, 3)], hvp=hvp)
        return
    found = ew.sharpness(model, loss_fn, [torch.ones(1, 3)])
    assert (found.hvp, found.converged) == ("difference", True)
    assert found.value == pytest.approx(3.0, rel=1e-3)


def test_losses_that_are_linear_or_have_kinks_alone_have_a_hessian_of_zero():
    torch.manual_seed(0)
    x = torch.randn(8, 3)
    for loss_fn in (
        lambda m, x: m(x).mean(),
        lambda m, x: torch.relu(m(x)).mean(),
        lambda m, x: torch.relu(m(x).square().mean() - 100),
    ):
        found = ew.sharpness(nn.Linear(3, 1), loss_fn, [x])
        assert (found.value, found.status, found.hvp) == (0.0, ew.Status.CONVERGED, "reverse")


@pytest.mark.parametrize("hvp", ["auto", "forward", "difference"])
@pytest.mark.parametrize("measure", [ew.sharpness, ew.preconditioned_sharpness])
def test_a_loss_that_does_not_depend_on_the_parameters_is_refused(measure, hvp):
    model = mlp()
    other = nn.Parameter(torch.ones(()))
    extra = (torch.optim.Adam(model.parameters()),) if measure is ew.preconditioned_sharpness else ()
    with pytest.raises(ew.LossError, match="does not depend on the selected parameters"):
        measure(model, lambda m, x: other * x.mean(), [torch.ones(4, 3)], *extra, hvp=hvp)


def test_a_loss_that_depends_on_other_parameters_than_those_selected_is_refused():
    model, batches = MLP.build()
    model.extra = nn.Linear(2, 2).double()
    with pytest.raises(ew.LossError, match="does not depend on the selected parameters"):
        ew.sharpness(model, lambda m, b: m[2](m[1](m[0](b[0]))).square().mean(), batches, params="extra.*")
    found = ew.sharpness(model, lambda m, b: m[2](m[1](m[0](b[0]))).square().mean(), batches)
    assert found.value > 0


@pytest.mark.parametrize(
    ("precision", "dtype", "most"),
    [
        ("highest", torch.float32, 2.0**-11),
        ("high", torch.float32, 2.0**-6),
        ("medium", torch.float32, 2.0**-4),
    ],
)
def test_rounding_of_products_knows_of_shorter_multiplications(precision, dtype, most):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert rounding_of_products(dtype, torch.device("cpu")) == pytest.approx(most, rel=0.5)
        assert rounding_of_products(torch.float64, torch.device("cpu")) == 2.0**-26
    finally:
        torch.set_float32_matmul_precision(before)
