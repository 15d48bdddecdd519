"""Reverse-over-reverse: kept graphs, the gradient that they are shared with, and their end.

Ladder: dense float64 autograd by forward-over-reverse (oracles.py); counted evaluations. What graphs hold:
test_memory.py. Cannot see: memory of the backward pass.
"""

import pytest
import torch

from cases import MLP, mse
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.errors import SecondDerivativeError
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from oracles import dense_gradient, dense_hessian

# Two float64 evaluations of sums of fewer than 100 terms of order 1: they agree to a few 100 ε.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def counting_route(batches, max_graph_bytes=None):
    """MLP's model and route, and the list that grows with each evaluation."""
    model, _ = MLP.build()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    measuring = Measuring(max_graph_bytes=max_graph_bytes)
    return model, ReverseRoute(Objective(model, counting, batches, measuring=measuring)), calls


@pytest.mark.parametrize("gradient_first", [False, True])
def test_a_kept_graph_gives_gradient_and_products_from_one_forward(gradient_first):
    _, batches = MLP.build()
    model, route, calls = counting_route(batches[:1])
    vector = torch.ones(26, dtype=torch.float64)
    hessian = dense_hessian(model, mse, batches[:1])
    if gradient_first:
        gradient = route.gradient()
        assert not gradient.requires_grad
        torch.testing.assert_close(gradient, dense_gradient(model, mse, batches[:1]), **CLOSE)
    for _ in range(2):
        torch.testing.assert_close(route.product(vector), hessian @ vector, **CLOSE)
    assert calls == [5]
    assert route.num_products == 2
    # A graph holds no gradient, so that one asked for later, as nothing does, costs a forward of its own.
    torch.testing.assert_close(route.gradient(), dense_gradient(model, mse, batches[:1]), **CLOSE)
    assert calls == [5, 5]


def test_of_several_batches_graphs_are_kept_within_a_budget_alone():
    _, batches = MLP.build()
    vector = torch.ones(26, dtype=torch.float64)
    for budget, again in ((None, [5, 9, 2]), (10**9, [])):
        model, route, calls = counting_route(batches, budget)
        torch.testing.assert_close(route.gradient(), dense_gradient(model, mse, batches), **CLOSE)
        assert (route.graph_bytes > 0) == (budget is not None)
        calls.clear()
        torch.testing.assert_close(
            route.product(vector), dense_hessian(model, mse, batches) @ vector, **CLOSE
        )
        assert calls == again


def test_a_route_that_is_released_keeps_nothing_and_still_multiplies():
    _, batches = MLP.build()
    model, route, calls = counting_route(batches[:1], 10**9)
    vector = torch.ones(26, dtype=torch.float64)
    route.product(vector)
    assert route.graph_bytes > 0
    route.release()
    calls.clear()
    for count in (1, 2):
        torch.testing.assert_close(
            route.product(vector), dense_hessian(model, mse, batches[:1]) @ vector, **CLOSE
        )
        assert (route.graph_bytes, len(calls)) == (0, count)


class NoGraph(torch.autograd.Function):
    """tanh whose backward cannot be recorded."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        assert not torch.is_grad_enabled()
        return gradient * (1 - ctx.saved_tensors[0].square())


def test_a_gradient_without_a_graph_is_there_and_products_say_why():
    model, batches = MLP.build()
    loss_fn = lambda m, b: mse(lambda x: m[2](NoGraph.apply(m[0](x))), b)
    route = ReverseRoute(Objective(model, loss_fn, batches[:1]))
    torch.testing.assert_close(route.gradient(), dense_gradient(model, mse, batches[:1]), **CLOSE)
    with pytest.raises(SecondDerivativeError, match="reverse-over-reverse is not possible"):
        route.product(torch.ones(26, dtype=torch.float64))
    assert route.num_products == 0


def test_custom_functions_are_noticed():
    model, batches = MLP.build()
    route = ReverseRoute(Objective(model, mse, batches))
    route.gradient()
    assert not route.has_custom_functions

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    route = ReverseRoute(Objective(model, lambda m, b: Twice.apply(mse(m, b)), batches[:1]))
    route.product(torch.ones(26, dtype=torch.float64))
    assert route.has_custom_functions
