"""Differences of gradients: their step, their error bar, and where they are refused.

Ladder: the dense float64 Hessian of `torch.func`; measurements in float64; exact counts of loss evaluations. Cannot
see: an error along directions that no product has had.
"""

import math

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import CASES, MLP, cross_entropy, in_float32_only, train_step
from edgewise.curvature.routes.difference import CentralDifference
from edgewise.errors import SecondDerivativeError
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective
from oracles import bits, dense_hessian

REPEATS = 2  # evaluations of the first batch, to see that its loss repeats


def test_a_difference_costs_two_gradients_and_its_calibration_is_counted():
    model, batches = MLP.build()
    calls = []
    loss_fn = lambda m, b: calls.append(1) or MLP.loss_fn(m, b)
    found = ew.sharpness(model, loss_fn, batches[:1], hvp="difference")
    assert len(calls) == REPEATS + 2 * found.num_hvps


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_error_bar_covers_the_error_in_float32(case):
    model, batches = case.build()
    dense = dense_hessian(model, case.loss_fn, batches)
    model.float()
    batches = [(x.float(), y.float() if y.is_floating_point() else y) for x, y in batches]
    vector = torch.randn(len(dense), dtype=torch.float64)
    with isolated(model) as snapshot:
        route = CentralDifference(Objective(model, case.loss_fn, batches, snapshot=snapshot))
        product = route.product(vector.float()).double()
    error = (product - dense @ vector).norm() / (dense @ vector).norm()
    assert error <= 2 * route.relative_error + 1e-5  # 1e-5: what float32 gradients themselves are off by
    assert route.relative_error < 0.01


def small_embeddings():
    """LayerNorm varies on the scale of its small inputs: a step for θ as a whole is long for them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(32, 8), nn.LayerNorm(8), nn.Linear(8, 32, bias=False))
    nn.init.normal_(model[0].weight, std=0.02)
    tokens = torch.randint(0, 32, (128,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(50):
        train_step(model, optimizer, cross_entropy, (tokens, tokens))
    return model, cross_entropy, (tokens, tokens)


def one_steep_direction():
    """L = Σᵢ xᵢ²/2 + ln cosh(200 y)/800: 50·cosh⁻²(200 y) along one of 2,001 directions, of a scale of its own."""
    model = nn.ParameterDict({"x": torch.full((2000,), 0.05), "y": torch.zeros(1)})
    log_cosh = lambda y: (y + nn.functional.softplus(-2 * y) - math.log(2)).sum()
    loss_fn = lambda m, _: 0.5 * m["x"].square().sum() + log_cosh(200 * m["y"]) / 800
    return model, loss_fn, torch.ones(1)


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
@pytest.mark.parametrize("make", [small_embeddings, one_steep_direction])
@pytest.mark.parametrize("restrict", [lambda loss_fn: loss_fn, in_float32_only], ids=["any", "float32"])
def test_the_error_bar_holds_along_the_eigenvector_that_is_found(make, optimizer, restrict):
    """The first direction is random, and tells little of one on which the loss curves on a shorter scale.

    What is promised is that some eigenvalue is that near: by Adam's P two of the embeddings' are within 0.15 %.
    """
    model, loss_fn, batch = make()
    measure, extra = ew.sharpness, ()
    if optimizer is not None:
        measure, extra = ew.preconditioned_sharpness, (optimizer(model.parameters(), eps=1e-2),)
    true = measure(model, loss_fn, [batch], *extra, dtype=torch.float64, rtol=1e-6, num=2).values
    for rtol in (1e-2, 1e-3):
        options = {"hvp": "difference", "rtol": rtol}
        found = measure(model, restrict(loss_fn), [batch], *extra, **options)
        again = measure(model, restrict(loss_fn), [batch], *extra, **options, start=found)
        for result in (found, again):
            off = ((true - result.value).abs() / true).min()
            assert off <= result.hvp_error + rtol or not result.converged
            assert result.converged or restrict is in_float32_only


def test_the_step_is_chosen_again_where_it_is_too_long_for_the_eigenvector():
    model, loss_fn, batch = small_embeddings()
    true = ew.sharpness(model, loss_fn, [batch], rtol=1e-4).value
    found = ew.sharpness(model, loss_fn, [batch], hvp="difference", rtol=1e-2)
    assert found.converged
    assert found.hvp_error < 0.02  # 31 % with the first step
    assert found.value == pytest.approx(true, rel=0.02)
    short = ew.sharpness(model, loss_fn, [batch], hvp="difference", rtol=1e-2, max_hvps=9)
    assert not short.converged


def test_steps_are_as_long_as_the_parameters_that_a_direction_moves():
    """ln cosh(100 y)/100 at y = 0.003, beside parameters of norm 100: 100·cosh⁻²(0.3) along y, 1 across."""
    model = nn.ParameterDict({"x": torch.full((10_000,), 1.0), "y": torch.full((1,), 0.003)})
    log_cosh = lambda y: (y + nn.functional.softplus(-2 * y) - math.log(2)).sum()
    loss_fn = lambda m, _: 0.5 * m["x"].square().sum() + log_cosh(100 * m["y"]) / 100
    with isolated(model) as snapshot:
        route = CentralDifference(Objective(model, loss_fn, [torch.ones(1)], snapshot=snapshot))
        vector = torch.zeros(10_001)
        vector[-1] = 2.0
        product = route.product(vector)
    assert float(product[-1]) == pytest.approx(200 / math.cosh(0.3) ** 2, rel=2e-3)
    assert (
        route.num_products == 3
    )  # the first step is good; by the norm of all parameters it is 10⁴ times as long


# Float64


def test_what_float32_is_too_coarse_for_is_taken_in_float64():
    """That leaves the error of the eigenvalue, of the second order in the residual."""
    model, loss_fn, batch = small_embeddings()
    true = ew.sharpness(model, loss_fn, [batch], dtype=torch.float64, rtol=1e-6).value
    found = ew.sharpness(model, loss_fn, [batch], hvp="difference", rtol=1e-4)
    assert found.converged
    assert found.hvp_error < 1e-6
    assert found.value == pytest.approx(true, rel=1e-6)
    assert "Differences are taken in float64" in found.hvp_reason
    assert all(p.dtype is torch.float32 for p in model.parameters())


def test_what_float32_is_good_for_stays_in_it_and_is_looked_at_in_float64():
    model, batches = MLP.build()
    model.float()
    batches = [(x.float(), y.float()) for x, y in batches]
    seen = []
    loss_fn = lambda m, b: seen.append(b[0].dtype) or MLP.loss_fn(m, b)
    found = ew.sharpness(model, loss_fn, batches[:1], hvp="difference", rtol=1e-2)
    true = ew.sharpness(model, MLP.loss_fn, batches[:1], rtol=1e-6, dtype=torch.float64).value
    assert (found.hvp_reason, found.converged) == ("", True)
    assert abs(found.value - true) <= (found.hvp_error + 1e-2) * true
    assert seen.count(torch.float64) == 4  # two gradients, a step aside and two
    assert len(seen) == REPEATS + 2 * found.num_hvps  # counted in either precision


def test_what_is_compiled_is_not_compiled_anew_for_float64():
    model, loss_fn, batch = small_embeddings()
    seen = set()
    compiled = torch.compile(loss_fn, backend="eager")
    looking = lambda m, b: seen.add(m[2].weight.dtype) or compiled(m, b)
    found = ew.sharpness(model, looking, [batch], hvp="difference", rtol=1e-2)
    true = ew.sharpness(model, loss_fn, [batch], rtol=1e-4).value
    assert seen == {torch.float32}
    assert abs(found.value - true) <= (found.hvp_error + 1e-2) * true or not found.converged


def test_a_loss_that_computes_in_float32_gains_nothing_by_float64():
    """A step of float64's is then lost in the rounding."""
    model, batches = MLP.build()
    model.float()
    batches = [(x.float(), y.float()) for x, y in batches]

    def loss_fn(m, b):
        weights = {name: p.float() for name, p in m.named_parameters()}
        out = torch.func.functional_call(m, weights, (b[0].float(),))
        return 0.5 * (out - b[1].float()).square().sum(1).mean()

    true = ew.sharpness(model, loss_fn, batches[:1], rtol=1e-5).value
    found = ew.sharpness(model, loss_fn, batches[:1], hvp="difference", rtol=1e-3)
    assert found.converged
    assert abs(found.value - true) <= (found.hvp_error + 1e-3) * true


def test_float32_that_does_not_converge_goes_over_to_float64():
    """The first direction is smooth, and all that follow hold a share of y, whose gradient is rounded to 10⁻³."""
    model = nn.ParameterDict({"x": torch.linspace(1, 2, 40), "y": torch.ones(1)})
    rough = lambda y: (y * 1e3).round() / 1e3 if y.dtype is torch.float32 else y

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            ctx.save_for_backward(y)
            return 2 * y.square()

        @staticmethod
        def backward(ctx, gradient):
            (y,) = ctx.saved_tensors
            return gradient * 4 * rough(y)

    curvatures = torch.linspace(1, 3, 40)
    loss_fn = lambda m, _: (
        (curvatures.to(m["x"]) * m["x"].square()).sum() / 2
        + (m["x"][:3].sum() * m["y"]).sum() / 5
        + Rounded.apply(m["y"]).sum()
    )
    found = ew.sharpness(model, loss_fn, [torch.ones(1)], hvp="difference", rtol=1e-3)
    dense = torch.diag(torch.cat([curvatures, torch.tensor([4.0])])).double()
    dense[-1, :3] = dense[:3, -1] = 0.2
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
    assert found.converged
    assert "too coarse for what was found" in found.hvp_reason
    assert found.num_hvps < 50


# Kinks


def densely_kinked(at):
    """½w² with a kink every 10⁻⁴, half of it in slope each: L″ = 1 between kinks, and 1.5 on average."""
    model = nn.ParameterDict({"w": torch.tensor([at])})
    kinks = at + 1e-4 * (torch.arange(-400, 400, dtype=torch.float64) + 0.37)
    loss_fn = lambda m, _: 0.5 * m["w"].square().sum() + 0.5e-4 * torch.relu(m["w"] - kinks.to(m["w"])).sum()
    return model, loss_fn


@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("at", [0.3, 1.0, 3.0])
def test_dense_kinks_are_no_curvature(at, dtype):
    model, loss_fn = densely_kinked(at)
    found = ew.sharpness(model, loss_fn, [torch.ones(1)], hvp="difference", dtype=dtype)
    assert found.converged
    assert found.value == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("at", [0.3, 1.0, 3.0])
def test_dense_kinks_are_refused_where_float32_is_all_there_is(at):
    model, loss_fn = densely_kinked(at)
    with pytest.raises(SecondDerivativeError, match="along the eigenvector that was found"):
        ew.sharpness(model, in_float32_only(loss_fn), [torch.ones(1)], hvp="difference")


@pytest.mark.parametrize("seed", range(5))
def test_relu_networks_have_the_curvature_between_their_kinks(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    batch = torch.randn(64, 4), torch.randint(3, (64,))
    true = ew.sharpness(model, cross_entropy, [batch], dtype=torch.float64, rtol=1e-6).value
    found = ew.sharpness(model, cross_entropy, [batch], hvp="difference")
    assert found.converged
    assert found.hvp_error < 5e-4
    assert abs(found.value - true) <= (found.hvp_error + 1e-3) * true


# Refusals


def test_an_infinite_second_derivative_is_refused():
    """|x|^{3/2} has a finite gradient at 0, and differences that grow as the step shrinks."""
    model = nn.ParameterDict({"x": torch.zeros(1)})
    loss_fn = lambda m, _: m["x"].abs().pow(1.5).sum()
    with pytest.raises(SecondDerivativeError, match="are off by about"):
        ew.sharpness(model, loss_fn, [torch.ones(1)], hvp="difference")


class Coarse(torch.autograd.Function):
    """The identity, whose gradient is off by what looks like rounding to three digits."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 1e-3 * torch.sin(1e12 * gradient)


def test_differences_refuse_when_gradients_are_too_coarse():
    model, batches = MLP.build()
    loss_fn = lambda m, b: 0.5 * (Coarse.apply(m(b[0])) - b[1]).square().sum(1).mean()
    with pytest.raises(SecondDerivativeError, match="central differences of the gradient are off by about"):
        ew.sharpness(model, loss_fn, batches, hvp="difference")


def test_differences_of_a_constant_gradient_are_zero():
    model = nn.Linear(3, 1).double()
    inputs = torch.randn(5, 3, dtype=torch.float64)
    found = ew.sharpness(model, lambda model, x: model(x).mean(), [inputs], hvp="difference")
    assert abs(found.value) < 1e-9


def test_parameters_come_back_when_a_difference_raises():
    model, batches = MLP.build()
    before = [bits(p) for p in model.parameters()]
    calls = []
    loss_fn = lambda m, b: calls.append(1) or MLP.loss_fn(m, b) * (math.nan if len(calls) == 3 else 1.0)
    with pytest.raises(ew.LossError, match="nan"):
        ew.sharpness(model, loss_fn, batches[:1], hvp="difference")
    assert [bits(p) for p in model.parameters()] == before


def test_a_budget_that_is_spent_is_no_refusal():
    """The squares behind BatchNorm hardly change, and it knows float32 alone: looks are coarse, and cannot go on.

    A refusal may be of the first product only, which is too coarse at any step.
    """
    ends = set()
    for seed in range(12):
        torch.manual_seed(seed)
        norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        loss_fn = lambda m, x, norm=norm: norm(m(x)).square().mean()
        try:
            found = ew.sharpness(model, loss_fn, [torch.randn(8, 3)], hvp="difference", max_hvps=3, rtol=0.5)
            ends.add(found.status.name)
        except SecondDerivativeError as error:
            ends.add(str(error).partition("%")[2].partition(",")[0].strip())
    assert "BUDGET_EXHAUSTED" in ends
    assert ends <= {"BUDGET_EXHAUSTED", "CONVERGED", "at the best of several steps"}
