"""A call of `observe` that raises leaves the warmup as it was.

Ladder: closed form (the state before equals the state after; a run whose closures raise at times, and which observes
again, equals one whose closures do not). Cannot see: a process that is killed.
"""

import copy

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import mse
from edgewise.errors import LossError
from edgewise.signals.losses import Surge

WARMUPS = {
    "critical": lambda o: ew.LinearWarmup(o, warmup_steps=9, lr_init="critical"),
    "edge": ew.EdgeWarmup,
    "edge-tight": lambda o: ew.EdgeWarmup(o, num_steps=60, max_overhead=None),
    "catapult": ew.CatapultWarmup,
    "catapult-full": lambda o: ew.CatapultWarmup(o, smoothing=0.0, max_overhead=1.0),
}


class Interrupted(BaseException):
    """Not even an Exception, as KeyboardInterrupt."""


def not_a_number(loss):
    return float(loss)


def interrupted(loss):
    raise Interrupted


def train(make, spoil=None, given=False, num_steps=60):
    """Return the rates; every observation is first tried with a spoilt closure, on its call 1, 2, …"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batches = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(num_steps)]
    warmup = make(optimizer)
    rates, num_raised = [], 0
    for batch in batches:
        optimizer.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        value = loss.detach() if given else None
        for last in (1, 2, 5) if spoil else ():
            calls = []

            def closure(batch=batch, calls=calls, last=last):
                calls.append(1)
                loss = mse(model, batch)
                return spoil(loss) if len(calls) == last else loss

            before = copy.deepcopy(warmup.state_dict()), warmup.report(), optimizer.param_groups[0]["lr"]
            saved = copy.deepcopy(warmup.__dict__)
            try:
                warmup.observe(closure, loss=value)
            except (LossError, Interrupted):
                num_raised += 1
                after = warmup.state_dict(), warmup.report(), optimizer.param_groups[0]["lr"]
                assert repr(after) == repr(before)
                assert warmup.__dict__.keys() == saved.keys()
            else:
                break
        else:
            warmup.observe(lambda batch=batch: mse(model, batch), loss=value)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return rates, num_raised


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("spoil", [not_a_number, interrupted])
@pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)
def test_a_closure_that_raises_leaves_the_warmup_as_it_was(make, spoil, given):
    rates, num_raised = train(make, spoil, given)
    assert num_raised > 0
    assert rates == train(make, None, given)[0]


@pytest.mark.parametrize("make", [ew.EdgeWarmup, ew.CatapultWarmup])
@pytest.mark.parametrize("loss", ["low", torch.ones(2)])
def test_a_loss_that_is_none_leaves_the_averages_alone(make, loss):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    warmup = make(optimizer)
    loss_fn = lambda: parameter.square().sum()
    loss_fn().backward()
    warmup.observe(loss_fn, loss=loss_fn().detach())
    before = repr((warmup.state_dict(), vars(warmup)))
    with pytest.raises((LossError, TypeError, ValueError)):
        warmup.observe(loss_fn, loss=loss)
    assert repr((warmup.state_dict(), vars(warmup))) == before


def test_an_interrupt_between_two_signals_leaves_a_warmup_alone_that_is_over(monkeypatch):
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    warmup = ew.EdgeWarmup(optimizer, num_steps=8)

    def interrupt(*args):
        raise KeyboardInterrupt

    for _ in range(8):
        value = parameter.square().sum()
        optimizer.zero_grad()
        value.backward()
        warmup.observe(lambda: parameter.square().sum(), loss=value)
        optimizer.step()
        warmup.step()
    assert warmup.finished
    parameter.square().sum().backward()
    before = repr((warmup.state_dict(), vars(warmup)))
    monkeypatch.setattr(Surge, "add", interrupt)  # the last of those that see the loss
    with pytest.raises(KeyboardInterrupt):
        warmup.observe(lambda: parameter.square().sum(), loss=123.0)
    assert repr((warmup.state_dict(), vars(warmup))) == before
