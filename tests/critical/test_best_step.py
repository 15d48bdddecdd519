"""How far one update lowers the loss most.

Ladder: closed form on quadratics → a dense scan of the loss along the update. Cannot see: whether that is a good rate.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW

from edgewise import Status, assert_no_side_effects
from edgewise.critical import search_best_step


def quadratic(make_optimizer, curvature):
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    loss_fn = lambda: 0.5 * (torch.tensor(curvature, dtype=torch.float64) * w.square()).sum()
    loss_fn().backward()
    return w, make_optimizer([w]), loss_fn


@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("max_lr", [1e3, 1e5])
def test_on_a_quadratic_it_is_half_the_critical_rate_to_a_factor(curvature, max_lr):
    _, optimizer, loss_fn = quadratic(lambda p: SGD(p, lr=0.1), [curvature, curvature])
    found = search_best_step(optimizer, loss_fn, max_lr=max_lr, max_change=math.inf, max_forwards=30)
    assert found.status is Status.FOUND
    assert 1 / 3 < found.lr * curvature < 1.5  # 1/h, by a parabola through rates a factor of four apart
    assert found.slope == pytest.approx(-(curvature**2) * 5)
    assert found.loss == pytest.approx(2.5 * curvature)


@pytest.mark.parametrize("make_optimizer", [SGD, Adam, lambda p, lr: AdamW(p, lr=lr, weight_decay=0.1)])
def test_it_lies_beside_the_minimum_of_a_scan(make_optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    inputs, targets = torch.randn(64, 5, dtype=torch.float64), torch.randint(3, (64,))
    loss_fn = lambda: nn.functional.cross_entropy(3 * model(inputs), targets)
    optimizer = make_optimizer(model.parameters(), lr=1.0)
    loss_fn().backward()
    found = search_best_step(optimizer, loss_fn, max_lr=100.0, max_change=math.inf, max_forwards=30)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    updates = [p.detach() - start for p, start in zip(model.parameters(), before, strict=True)]

    def loss_at(lr):
        with torch.no_grad():
            for p, start, update in zip(model.parameters(), before, updates, strict=True):
                p.copy_(start + lr * update)
            return loss_fn().item()

    rates = np.geomspace(1e-4, 100, 400)
    best = rates[np.argmin([loss_at(lr) for lr in rates])]
    assert best / 4 < found.lr < 4 * best


def test_a_loss_that_falls_all_the_way_is_said_to():
    _, optimizer, loss_fn = quadratic(lambda p: SGD(p, lr=0.1), [1.0, 1.0])
    options = {"max_lr": 0.1, "max_change": math.inf, "max_forwards": 10}
    found = search_best_step(optimizer, loss_fn, **options)
    assert (found.status, found.lr, found.num_forwards) == (Status.ABOVE_MAX_LR, 0.1, 4)
    known = search_best_step(optimizer, loss_fn, **options, known=loss_fn().item())
    assert (known.status, known.lr, known.num_forwards) == (Status.ABOVE_MAX_LR, 0.1, 3)


def test_an_update_that_changes_the_parameters_more_is_not_tried():
    _, optimizer, loss_fn = quadratic(lambda p: SGD(p, lr=0.1), [1.0, 1.0])  # the update is the parameters
    found = search_best_step(optimizer, loss_fn, max_lr=1e3, max_change=0.1, max_forwards=10)
    assert (found.status, found.num_forwards) == (Status.ABOVE_MAX_LR, 4)
    assert found.lr == pytest.approx(0.1)


@pytest.mark.parametrize("max_lr", [0.05, 1.0, 1e3])
def test_a_step_that_is_capped_is_shortened_until_it_changes_no_more(max_lr):
    """Adafactor's first step is min(η, 1) times the parameters' root mean square, of entries ±1."""
    w = nn.Parameter(torch.tensor([[1.0, -2.0], [2.0, 1.0]], dtype=torch.float64))
    loss_fn = lambda: 0.5 * w.square().sum()
    loss_fn().backward()
    optimizer = Adafactor([w], lr=1.0)
    found = search_best_step(optimizer, loss_fn, max_lr=max_lr, max_change=0.01, max_forwards=10)
    optimizer.param_groups[0]["lr"] = found.lr
    before = w.detach().clone()
    optimizer.step()
    assert (w.detach() - before).norm() / before.norm() == pytest.approx(0.01, rel=0.02)


def test_the_budget_is_kept_and_said_to_be_spent():
    _, optimizer, loss_fn = quadratic(lambda p: SGD(p, lr=0.1), [1.0, 1.0])
    calls = []
    closure = lambda: calls.append(0) or loss_fn()
    found = search_best_step(optimizer, closure, max_lr=1e9, max_change=math.inf, max_forwards=6)
    assert (found.status, found.lr) == (Status.BUDGET_EXHAUSTED, 0.0)
    assert found.num_forwards == len(calls) == 6


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (
            lambda grad: grad.neg_(),
            Status.OTHER_GRADIENT,
        ),  # SGD's update turns with it: the loss rises at every rate
        (lambda grad: grad.fill_(math.nan), Status.NOT_A_DESCENT_DIRECTION),
        (lambda grad: grad.mul_(2.0**14), Status.SCALED_GRADIENT),
    ],
)
def test_a_gradient_that_is_not_the_loss_s_gives_no_rate(spoil, status):
    w, optimizer, loss_fn = quadratic(lambda p: SGD(p, lr=0.1), [1.0, 1.0])
    spoil(w.grad)
    found = search_best_step(optimizer, loss_fn, max_lr=1e3, max_change=math.inf, max_forwards=40)
    assert (found.status, found.lr) == (status, 0.0)


def test_it_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
    optimizer = Adam(model.parameters(), lr=0.1)
    inputs = torch.randn(16, 3)
    loss_fn = lambda: model(inputs).square().mean()
    loss_fn().backward()
    assert_no_side_effects(
        model,
        optimizer,
        lambda: search_best_step(optimizer, loss_fn, max_lr=1.0, max_change=math.inf, max_forwards=20),
    )
