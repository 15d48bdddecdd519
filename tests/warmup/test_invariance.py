"""What is added to a loss, or multiplied with it, changes nothing that a warmup does.

Ladder: each warmup against itself on the loss aL + b. In float64, with a a power of two and losses on a grid that b
does not leave, only moving averages are rounded. Cannot see: a unit that hides in the optimizer itself, such as ε.
"""

import functools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam

from edgewise import CatapultWarmup, EdgeWarmup, GIAdamW, LinearWarmup, critical_lr
from edgewise.signals.losses import LossTrend, RiseAlarm, SpikeGuard, Surge

WARMUPS = {
    "critical": lambda o: LinearWarmup(o, warmup_steps=30, lr_init="critical"),
    "catapult": lambda o: CatapultWarmup(o, smoothing=0.8),
    "edge": EdgeWarmup,
    "edge, unpaid": lambda o: EdgeWarmup(o, max_overhead=None),
}
GRID = 2.0**-36  # of the losses in float64


def sgd(parameters, *, scale, lr):
    return SGD(parameters, lr=lr / scale, momentum=0.5)


def adam(parameters, *, scale, lr):
    return Adam(parameters, lr=lr, betas=(0.7, 0.9), eps=1e-6 * scale)


def gi_adamw(parameters, *, scale, lr):
    return GIAdamW(parameters, lr=lr, betas=(0.7, 0.9), eps=1e-6 * scale, weight_decay=0.1)


def rates_of(
    make, make_optimizer, *, lr, scale=1.0, added=0.0, steps=60, dtype=torch.float64, give_loss=True
):
    """Return the rates within the updates, over the target, and the warmup's report, for the loss scale·L + added."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)
    inputs = torch.randn(steps, 16, 6, dtype=dtype)
    targets = torch.stack([inputs[..., :3].sum(-1), inputs[..., 3:].sum(-1)], -1).sin()
    optimizer = make_optimizer(model.parameters(), scale=scale, lr=lr)
    warmup = make(optimizer)
    target = optimizer.param_groups[0]["lr"]
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"] / target))

    def loss_at(step):
        loss = (model(inputs[step]) - targets[step]).square().mean()
        if dtype == torch.float64:
            loss = loss + ((loss / GRID).round() * GRID - loss).detach()
        return scale * loss + added

    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        warmup.observe(functools.partial(loss_at, step), loss=loss.detach() if give_loss else None)
        optimizer.step()
        warmup.step()
    return rates, warmup


every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
every_optimizer = pytest.mark.parametrize(
    ("make_optimizer", "lr"), [(sgd, 4.0), (adam, 0.3), (gi_adamw, 1.0)], ids=["sgd", "adam", "gi-adamw"]
)


@every_warmup
@every_optimizer
@pytest.mark.parametrize("give_loss", [True, False], ids=["given", "not given"])
@pytest.mark.parametrize("added", [-1.0, 2.0**10, -(2.0**10)])
def test_a_constant_added_to_the_loss_changes_nothing(make, make_optimizer, lr, give_loss, added):
    plain, before = rates_of(make, make_optimizer, lr=lr, give_loss=give_loss)
    shifted, after = rates_of(make, make_optimizer, lr=lr, added=added, give_loss=give_loss)
    assert shifted == pytest.approx(plain, rel=1e-6)
    assert after.report().num_forwards == before.report().num_forwards
    assert after.fallback == before.fallback
    assert len(set(plain)) > 10 or isinstance(before, CatapultWarmup)


@every_warmup
@every_optimizer
@pytest.mark.parametrize("scale", [2.0**-10, 2.0**12])
def test_a_constant_factor_of_the_loss_changes_nothing(make, make_optimizer, lr, scale):
    plain, before = rates_of(make, make_optimizer, lr=lr)
    scaled, after = rates_of(make, make_optimizer, lr=lr, scale=scale)
    assert scaled == plain  # bit for bit
    assert after.report().num_forwards == before.report().num_forwards


@every_warmup
@every_optimizer
@pytest.mark.parametrize(("scale", "added"), [(1.0, 8.0), (1.0, -8.0), (3.0, 0.0)])
def test_in_float32_rounding_alone_is_seen(make, make_optimizer, lr, scale, added):
    options = {"lr": 0.1 * lr, "steps": 20, "dtype": torch.float32}
    plain, _ = rates_of(make, make_optimizer, **options)
    other, warmup = rates_of(make, make_optimizer, scale=scale, added=added, **options)
    assert warmup.fallback is None
    assert other == pytest.approx(plain, rel=1e-2)


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.integers(-1000, 1000), min_size=30, max_size=80),
    scale=st.integers(-20, 20),
    added=st.integers(-(2**20), 2**20),
)
@example(losses=[*[0, 8] * 20, 500, *[0, 8] * 20], scale=3, added=2**18)
def test_signals_are_those_of_any_loss_that_differs_by_a_constant_or_a_factor(losses, scale, added):
    guards, alarms, trends, surges = (
        [make() for _ in range(2)] for make in (SpikeGuard, RiseAlarm, LossTrend, Surge)
    )
    shapes = (lambda x: x / 8, lambda x: math.ldexp(x / 8 + added, scale))
    for update, here in enumerate(losses):
        for guard, alarm, trend, surge, shape in zip(guards, alarms, trends, surges, shapes, strict=True):
            guard.add(shape(here), recovery=0.1)
            alarm.add(shape(here))
            trend.add(shape(here), update)
            surge.add(shape(here))
        assert guards[1].share == pytest.approx(guards[0].share, rel=1e-3)
        assert surges[1].value == surges[0].value
        assert trends[1].value == pytest.approx(trends[0].value, abs=1e-9)
    assert alarms[1].sum == pytest.approx(alarms[0].sum, abs=1e-3) or alarms[0].noise < 1e-6


def test_the_paper_s_tolerance_of_critical_lr_is_a_share_of_the_loss_as_documented():
    """δ|L(θ)|, also where something was added: the public argument keeps the paper's meaning."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = SGD(model.parameters(), lr=0.02)
    for added in (0.0, 3.0):
        loss_fn = lambda model, x, added=added: 0.5 * model(x).square().mean() + added
        found = critical_lr(
            model, optimizer, loss_fn, torch.tensor([[2.0]], dtype=torch.float64), tolerance=0.02
        )
        assert 0 < found.rise <= 0.02 * (2.0 + added)
    assert found.rise > 0.02 * 2.0
