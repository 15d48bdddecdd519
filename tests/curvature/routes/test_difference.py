"""Differences of gradients: their step, their error bar, and where they are refused.

Ladder: the dense float64 Hessian of `torch.func`; measurements in float64; exact counts of loss evaluations. Cannot
see: an error along directions that no product has had.
"""

import math

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import CASES, MLP, cross_entropy, train_step
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
def test_the_error_bar_holds_along_the_eigenvector_that_is_found(make, optimizer):
    """The first direction is random, and tells little of one on which the loss curves on a shorter scale."""
    model, loss_fn, batch = make()
    measure, extra = ew.sharpness, ()
    if optimizer is not None:
        measure, extra = ew.preconditioned_sharpness, (optimizer(model.parameters(), eps=1e-2),)
    true = measure(model, loss_fn, [batch], *extra, dtype=torch.float64, rtol=1e-6).value
    for rtol in (1e-2, 1e-3):
        found = measure(model, loss_fn, [batch], *extra, hvp="difference", rtol=rtol)
        assert abs(found.value - true) <= (found.hvp_error + rtol) * true or not found.converged
        again = measure(model, loss_fn, [batch], *extra, hvp="difference", rtol=rtol, start=found)
        assert abs(again.value - true) <= (again.hvp_error + rtol) * true or not again.converged


def test_the_step_is_chosen_again_where_it_is_too_long_for_the_eigenvector():
    model, loss_fn, batch = small_embeddings()
    true = ew.sharpness(model, loss_fn, [batch], rtol=1e-4).value
    found = ew.sharpness(model, loss_fn, [batch], hvp="difference", rtol=1e-2)
    assert found.converged
    assert found.hvp_error < 0.02  # 31 % with the first step
    assert found.value == pytest.approx(true, rel=0.02)
    short = ew.sharpness(model, loss_fn, [batch], hvp="difference", rtol=1e-2, max_hvps=9)
    assert not short.converged


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
