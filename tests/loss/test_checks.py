"""Losses that differentiate by themselves, and what measurements make of them.

Ladder: the same loss with its derivative written in closed form or by torch.func, which needs no graph, and the dense
float64 Hessian of `torch.autograd.functional.hessian`. Cannot see: a loss that returns another value under no_grad
without raising.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgewise as ew
from edgewise.errors import LossError
from edgewise.isolation.side_effects import assert_no_side_effects
from edgewise.loss.checks import GraphOnDemand, forward_only


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()


BATCH = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)


def slope_by_grad(model, x):
    """∂u/∂x by torch.autograd.grad, as in physics-informed networks."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]


def slope_by_hand(model, x):
    """W₁ᵀ(W₂ᵀ ∘ (1 − tanh²)), the same in closed form."""
    hidden = torch.tanh(model[0](x))
    return ((1 - hidden.square()) * model[2].weight) @ model[0].weight


def slope_by_func(model, x):
    return torch.func.vmap(torch.func.grad(lambda one: model(one).squeeze()))(x)


def slope_with_grad_enabled(model, x):
    with torch.enable_grad():
        return slope_by_grad(model, x)


def equation(slope):
    """‖∇u − u‖², a differential equation."""
    return lambda model, x: (slope(model, x) - model(x)).square().mean()


def penalty(slope):
    """A critic's loss with the penalty of Wasserstein networks."""
    return lambda model, x: model(x).mean() + 10 * (slope(model, x).norm(dim=1) - 1).square().mean()


LOSSES = [equation, penalty]
SLOPES = [slope_by_grad, slope_by_func, slope_with_grad_enabled]


def top_eigenvalue(model, loss_fn):
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]
    twin = network()

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        for layer, (weight, bias) in zip((twin[0], twin[2]), (parts[:2], parts[2:]), strict=True):
            layer._parameters.clear()
            layer.weight, layer.bias = weight, bias
        return loss_fn(twin, BATCH)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_differentiates_is_measured_as_one_that_does_not(loss, slope):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    own, by_hand = loss(slope), loss(slope_by_hand)
    true = top_eigenvalue(model, by_hand)
    measured = assert_no_side_effects(model, optimizer, lambda: ew.sharpness(model, own, [BATCH], rtol=1e-8))
    assert measured.value == pytest.approx(true, rel=1e-6)
    found, expected = (ew.critical_lr(model, optimizer, fn, BATCH) for fn in (own, by_hand))
    assert found.lr == pytest.approx(expected.lr, rel=1e-6)
    assert found.num_forwards == expected.num_forwards
    row = ew.Monitor(model, optimizer, own, every=1).observe(BATCH)
    assert row.sharpness == pytest.approx(true, rel=2e-2)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: ew.EdgeWarmup(o, num_steps=60),
        ew.CatapultWarmup,
        lambda o: ew.LinearWarmup(o, warmup_steps=10, lr_init="critical"),
    ],
    ids=["edge", "catapult", "linear"],
)
def test_a_warmup_sees_a_loss_that_differentiates_as_one_that_does_not(make):
    def rates(loss_fn):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        warmup, seen = make(optimizer), []
        for _ in range(20):
            optimizer.zero_grad()
            loss = loss_fn(model, BATCH)
            loss.backward()
            warmup.observe(lambda: loss_fn(model, BATCH), loss=loss.detach())
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            warmup.step()
        assert warmup.fallback is None
        return seen

    assert rates(equation(slope_by_grad)) == pytest.approx(rates(equation(slope_by_hand)), rel=1e-6)


def test_dropout_and_buffers_start_anew_when_an_evaluation_is_made_again():
    """A failed evaluation has drawn random numbers and moved averages before it came to the gradient."""
    model = network()
    model = nn.Sequential(model[0], nn.BatchNorm1d(6).double(), nn.Dropout(0.5), *model[1:])
    by_grad, by_func = (
        lambda m, x: m(x).square().mean() + slope_by_grad(m[4], torch.ones(1, 6).double()).square().mean(),
        lambda m, x: m(x).square().mean() + m[4].weight.square().mean(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for measure in (
        lambda fn: ew.sharpness(model, fn, [BATCH], rtol=1e-8).value,
        lambda fn: ew.critical_lr(model, optimizer, fn, BATCH).lr,
    ):
        assert measure(by_grad) == pytest.approx(measure(by_func), rel=1e-6)
    assert model[1].num_batches_tracked == 0


def test_micro_batches_of_a_loss_that_differentiates():
    model = network()
    whole = ew.sharpness(model, equation(slope_by_grad), [BATCH], rtol=1e-6)
    split = ew.sharpness(model, equation(slope_by_grad), [BATCH], rtol=1e-6, max_graph_bytes=6000)
    assert split.value == pytest.approx(whole.value, rel=1e-6)


def test_an_evaluation_that_lacks_a_graph_is_made_again_once_and_later_ones_at_once():
    grad_modes = []
    forward = GraphOnDemand([])

    def evaluate():
        grad_modes.append(torch.is_grad_enabled())
        return slope_by_grad(network(), BATCH)

    with forward_only():
        forward(evaluate)
        forward(evaluate)
    assert grad_modes == [False, True, True]


@pytest.mark.parametrize(
    "error", [RuntimeError("out of cheese"), ValueError("x"), LossError("requires grad, mine")]
)
def test_another_error_comes_through_at_once(error):
    calls = []

    def evaluate():
        calls.append(1)
        raise error

    with forward_only(), pytest.raises(type(error)) as caught:
        GraphOnDemand([])(evaluate)
    assert caught.value is error
    assert len(calls) == 1


def test_an_error_of_the_evaluation_with_a_graph_is_the_users_own():
    def evaluate():
        slope_by_grad(network(), BATCH)
        raise KeyError("mine")

    with forward_only(), pytest.raises(KeyError, match="mine"):
        GraphOnDemand([])(evaluate)


def inner_backward(inner):
    def loss_fn(model, x):
        inner.zero_grad()
        F.mse_loss(inner(x), model(x).detach()).backward()
        return F.mse_loss(model(x), inner(x) - inner.weight.grad.sum())

    return loss_fn


def own_backward(model, x):
    model(x).mean().backward()
    return model(x).square().mean()


@pytest.mark.parametrize("loss", ["inner", "own"])
def test_a_loss_that_calls_backward_is_refused(loss):
    """It adds to gradients that training uses, of another model or of this one."""
    model = network()
    inner = nn.Linear(2, 1).double()
    loss_fn = inner_backward(inner) if loss == "inner" else own_backward
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LossError, match=r"calls backward\(\) itself"):
        ew.sharpness(model, loss_fn, [BATCH])
    with pytest.raises(LossError, match=r"calls backward\(\) itself"):
        ew.critical_lr(model, optimizer, loss_fn, BATCH)
    model(BATCH).mean().backward()
    with pytest.raises(LossError, match=r"calls backward\(\) itself"):
        ew.LinearWarmup(optimizer, warmup_steps=5, lr_init="critical").observe(lambda: loss_fn(model, BATCH))
