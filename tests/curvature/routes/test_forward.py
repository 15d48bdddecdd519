"""Forward-over-reverse: the point it is taken at, and the random numbers that torch.func draws.

Ladder: the dense float64 Hessian of `torch.func` at moved parameters; the other routes. Cannot see: masks that differ
without another loss.
"""

import copy

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import MLP, mse
from edgewise.curvature.routes.forward import ForwardRoute
from edgewise.errors import SecondDerivativeError
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective
from oracles import dense_hessian


@pytest.mark.parametrize("step", [0.0, 0.2, -0.1])
def test_a_product_aside_is_that_of_the_moved_model_and_is_not_counted(step):
    model, batches = MLP.build()
    vector = torch.linspace(-1, 1, 26, dtype=torch.float64)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        flat = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(flat + step * vector, moved.parameters())
    with isolated(model) as snapshot:
        route = ForwardRoute(Objective(model, mse, batches, snapshot=snapshot))
        product = route.product_aside(vector, step)
    torch.testing.assert_close(product, dense_hessian(moved, mse, batches) @ vector, rtol=1e-10, atol=1e-12)
    assert route.num_products == 0


@pytest.mark.parametrize(("isolates", "expected"), [(True, [2, 1]), (False, [1, 1])])
def test_the_loss_is_compared_with_that_without_torch_func_once(isolates, expected):
    """Each product costs an evaluation, the first under a snapshot another one; without one, losses need not agree."""
    model, batches = MLP.build()
    calls = []
    counting = lambda m, b: calls.append(1) or mse(m, b)
    with isolated(model) as snapshot:
        route = ForwardRoute(Objective(model, counting, batches[:1], snapshot=snapshot if isolates else None))
        for count in expected:
            calls.clear()
            route.product(torch.ones(26, dtype=torch.float64))
            assert len(calls) == count


def transposed_dropout(x):
    return nn.functional.dropout(x.T, 0.5).T  # torch.func takes the elements in another order


def transposed_alpha_dropout(x):
    return nn.functional.alpha_dropout(x.T, 0.5, training=True).T


NOISE = {
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "alpha dropout": lambda x: nn.functional.alpha_dropout(x, 0.5, training=True),
    "feature dropout": lambda x: nn.functional.dropout1d(x, 0.5),
    "rrelu": lambda x: nn.functional.rrelu(x, training=True),
    "rand": lambda x: x * torch.rand(x.shape, dtype=x.dtype),
    "bernoulli": lambda x: (x.T * torch.bernoulli(torch.full_like(x.T, 0.5))).T,
    "transposed dropout": transposed_dropout,
    "transposed alpha dropout": transposed_alpha_dropout,
}


@pytest.mark.parametrize("num_batches", [1, 2])
@pytest.mark.parametrize("noise", NOISE)
def test_the_forward_route_sees_the_masks_of_the_others_or_refuses(noise, num_batches):
    model, batches = MLP.build()

    def loss_fn(model, batch):
        hidden = model[1](model[0](batch[0]))
        # another batch than the one that is evaluated to see that the loss repeats
        spoiled = NOISE[noise](hidden) if num_batches == 1 or len(hidden) == 9 else hidden
        return (model[2](spoiled) - batch[1]).square().mean()

    measured, refusal = {}, ""
    for route in ("reverse", "forward", "difference"):
        torch.manual_seed(3)
        try:
            measured[route] = ew.sharpness(model, loss_fn, batches[:num_batches], hvp=route, rtol=1e-6).value
        except SecondDerivativeError as error:
            refusal = str(error)
    assert measured["difference"] == pytest.approx(measured["reverse"], rel=1e-5)
    assert measured.get("forward", measured["reverse"]) == pytest.approx(measured["reverse"], rel=1e-5)
    assert ("under torch.func" in refusal) == ("transposed" in noise)
