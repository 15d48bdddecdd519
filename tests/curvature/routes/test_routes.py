"""What all routes to Hessian-vector products keep: the contract of `HvpRoute`.

Ladder: dense float64 autograd by forward-over-reverse (oracles.py); for differences, their own error bar; central
differences with a step of the test's own. The dense Hessian cannot see a fault shared by all of torch's derivatives;
the difference route can, as it needs first derivatives only.
"""

import copy

import pytest
import torch
from torch import nn

from cases import BY_NAME, CASES, MLP, OnceOnly, ids, mse
from edgewise.curvature.routes.difference import CentralDifference
from edgewise.curvature.routes.forward import ForwardRoute
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.errors import SecondDerivativeError
from edgewise.isolation import isolated
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from oracles import bits, dense_gradient, dense_hessian

EXACT = 1e-9  # relative, float64: rounding of a few hundred operations, far below any wrong term
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # two evaluations of fewer than 100 terms
ROUTES = {"reverse": ReverseRoute, "forward": ForwardRoute, "difference": CentralDifference}
EXACT_ROUTES = ["reverse", "forward"]


def off_by(product, expected):
    return float((product - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_every_route_gives_the_dense_product_and_leaves_no_trace(case, name, num_batches):
    model, batches = case.build()
    batches = batches[:num_batches]
    dense = dense_hessian(model, case.loss_fn, batches)
    before = {key: bits(value) for key, value in model.state_dict().items()}
    with isolated(model) as snapshot:
        route = ROUTES[name](Objective(model, case.loss_fn, batches, snapshot=snapshot))
        torch.testing.assert_close(route.gradient(), dense_gradient(model, case.loss_fn, batches), **CLOSE)
        for vector in torch.randn(2, len(dense), dtype=torch.float64):
            product = route.product(vector)
            # a difference's bar was taken on the first vector: ten times it leaves room for rounding
            tolerance = EXACT + 10 * route.relative_error
            assert tolerance < 1e-6
            assert off_by(product, dense @ vector) <= tolerance
    assert {key: bits(value) for key, value in model.state_dict().items()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ROUTES)
def test_a_route_says_what_it_is_worth_and_counts(name):
    model, batches = MLP.build()
    with isolated(model) as snapshot:
        route = ROUTES[name](Objective(model, mse, batches, snapshot=snapshot))
        assert (route.name, route.num_products, route.graph_bytes) == (name, 0, 0)
        vector = torch.ones(26, dtype=torch.float64)
        route.product(vector)
        before = route.num_products
        route.product(vector)
    assert route.num_products == before + 1
    assert route.is_exact == (name in EXACT_ROUTES) == (route.relative_error == 0)


@pytest.mark.parametrize("name", EXACT_ROUTES)
def test_a_route_that_a_loss_does_not_allow_says_why_and_counts_nothing(name):
    model, batches = MLP.build()
    loss_fn = lambda m, b: mse(lambda x: m[2](OnceOnly.apply(m[0](x))), b)
    with isolated(model) as snapshot:
        route = ROUTES[name](Objective(model, loss_fn, batches, snapshot=snapshot))
        with pytest.raises(
            SecondDerivativeError, match=rf"^{name}-over-reverse is not possible for this loss"
        ):
            route.product(torch.ones(26, dtype=torch.float64))
        assert route.num_products == 0
        torch.testing.assert_close(route.gradient(), dense_gradient(model, mse, batches), **CLOSE)


@pytest.mark.parametrize("name", ROUTES)
def test_a_budget_that_splits_batches_changes_no_product(name):
    model, batches = MLP.build()
    sizes = []
    counting = lambda m, b: sizes.append(len(b[0])) or mse(m, b)
    vector = torch.linspace(-1, 1, 26, dtype=torch.float64)
    with isolated(model) as snapshot:
        measuring = Measuring(max_graph_bytes=900 if name == "reverse" else 200)
        route = ROUTES[name](Objective(model, counting, batches, snapshot=snapshot, measuring=measuring))
        product = route.product(vector)
    assert max(sizes[-4:]) < 9
    assert off_by(product, dense_hessian(model, mse, batches) @ vector) < EXACT + 10 * route.relative_error


@pytest.mark.parametrize("name", ROUTES)
def test_products_with_dropout_are_the_derivative_of_the_gradient(name):
    """Central differences of gradients with equal masks; error h²/6·|∂³| + ε/h·|g| ~ 1e-10 at h = 1e-5."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    _, batches = MLP.build()
    with isolated(model) as snapshot:
        objective = Objective(model, mse, batches[:1], snapshot=snapshot)
        vector = torch.randn(objective.size, dtype=torch.float64)
        route = ROUTES[name](objective)
        product = route.product(vector)
        assert torch.equal(route.product(vector), product)

        def moved(h):
            twin = copy.deepcopy(model)
            with torch.no_grad():
                flat = nn.utils.parameters_to_vector(twin.parameters())
                nn.utils.vector_to_parameters(flat + h * vector, twin.parameters())
            return Objective(twin, mse, batches[:1], snapshot=snapshot).gradient()

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(product, difference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ROUTES)
def test_a_block_is_the_block_of_the_dense_hessian(name):
    model, batches = MLP.build()
    hessian = dense_hessian(model, mse, batches, ["0.bias", "2.weight"])
    vector = torch.randn(12, dtype=torch.float64)
    with isolated(model) as snapshot:
        measuring = Measuring(params=["2.weight", "0.bias"])
        objective = Objective(model, mse, batches, snapshot=snapshot, measuring=measuring)
        assert objective.size == len(hessian) == 12
        route = ROUTES[name](objective)
        assert off_by(route.product(vector), hessian @ vector) < EXACT + 10 * route.relative_error


@pytest.mark.parametrize("name", EXACT_ROUTES)
def test_entries_without_curvature_are_zero(name):
    case = BY_NAME["linear-bias-unused"]
    model, batches = case.build()
    objective = Objective(model, case.loss_fn, batches[:1])
    product = ROUTES[name](objective).product(torch.ones(objective.size, dtype=torch.float64))
    sizes = [parameter.numel() for parameter in objective.tensors]
    parts = dict(zip(objective.originals, product.split(sizes), strict=True))
    assert (parts["offset"] == 0).all()
    assert (parts["unused"] == 0).all()
    assert parts["net.weight"].norm() > 0


@pytest.mark.parametrize("name", EXACT_ROUTES)
def test_a_loss_linear_in_all_parameters_has_a_zero_hessian(name):
    model = nn.Linear(2, 1)
    objective = Objective(model, lambda model, x: model(x).mean(), [torch.randn(4, 2)])
    assert (ROUTES[name](objective).product(torch.ones(3)) == 0).all()
    assert objective.gradient().norm() > 0


@pytest.mark.parametrize("name", ROUTES)
def test_splitting_a_batch_unevenly_changes_nothing(name):
    model, batches = MLP.build()
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    vector = torch.linspace(-1, 1, 26, dtype=torch.float64)
    products = []
    for pieces in (whole, batches):
        with isolated(model) as snapshot:
            products.append(ROUTES[name](Objective(model, mse, pieces, snapshot=snapshot)).product(vector))
    assert off_by(*products) < (1e-7 if name == "difference" else 1e-12)


def test_uneven_batches_are_not_averaged_evenly():
    """The oracle of the test above would also be met if all the pieces were equally curved."""
    model, batches = MLP.build()
    even = sum(dense_hessian(model, mse, [batch]) for batch in batches) / len(batches)
    weighted = dense_hessian(model, mse, batches)
    assert (even - weighted).norm() > 0.05 * weighted.norm()
