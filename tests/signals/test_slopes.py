"""What slopes say of the rate of an update.

Ladder: closed form (on a quadratic the share of the critical rate is exact). Cannot see: noise on a network.
"""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD

from edgewise.ranks import Ranks
from edgewise.signals.slopes import RateShare


@pytest.mark.parametrize("lr", [0.05, 0.25, 0.375, 0.5])
def test_the_share_of_the_critical_rate_is_exact_on_a_quadratic(lr):
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer, share = SGD([w], lr=lr), RateShare()
    for _ in range(2):
        optimizer.zero_grad()
        (2 * w.square()).sum().backward()  # curvature 4: critical is 2/4
        share.add([w], Ranks())
        share.before_step([w])
        optimizer.step()
        share.after_step([w])
    assert share.value == pytest.approx(lr / 0.5, rel=1e-12)


def test_of_many_entries_a_block_of_each_parameter_is_enough_and_all_get_their_turn(monkeypatch):
    monkeypatch.setattr("edgewise.signals.slopes._MOST_ENTRIES", 6)
    sizes = [(4, 5), (3,), ()]
    parameters = [nn.Parameter(torch.arange(1.0, 1 + math.prod(s)).reshape(s)) for s in sizes]
    optimizer = SGD(parameters, lr=0.1)
    share, seen = RateShare(), set()
    for _ in range(8):
        optimizer.zero_grad()
        sum(2 * p.square().sum() for p in parameters).backward()  # critical is 2/4
        share.add(parameters, Ranks())
        assert share.value is None or share.value == pytest.approx(0.1 / 0.5, rel=1e-5)
        share.before_step(parameters)
        assert [kept.numel() for kept in share.kept] == [5, 1, 1]
        seen.update((share.kept[0] / parameters[0][0, 0]).round().int().tolist())  # all shrink alike
        optimizer.step()
        share.after_step(parameters)
    assert seen == set(range(1, 21))


def measured(lr=0.1):
    """Return slopes that hold an update of ½|w|², and its parameter with the gradient after it."""
    w, share = nn.Parameter(torch.ones(2)), RateShare()
    w.grad = w.detach().clone()
    share.before_step([w])
    with torch.no_grad():
        w.sub_(lr * w.grad)
    share.after_step([w])
    w.grad = w.detach().clone()
    return share, w


def test_of_frozen_parameters_nothing_is_kept_and_they_take_no_share_of_the_entries(monkeypatch):
    monkeypatch.setattr("edgewise.signals.slopes._MOST_ENTRIES", 3)
    w, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1000), requires_grad=False)
    optimizer, share = SGD([w, frozen], lr=0.1), RateShare()
    for _ in range(2):
        optimizer.zero_grad()
        (2 * w.square()).sum().backward()
        share.add([w, frozen], Ranks())
        share.before_step([w, frozen])
        assert [kept.numel() for kept in share.kept] == [3, 0]
        optimizer.step()
        share.after_step([w, frozen])
    assert share.value == pytest.approx(0.1 / 0.5, rel=1e-5)


def test_before_there_is_an_update_slopes_say_nothing():
    w, share = nn.Parameter(torch.ones(2)), RateShare()
    w.grad = torch.ones(2)
    share.add([w], Ranks())
    assert share.value is None
    share.before_step([w])
    share.add([w], Ranks())  # it was skipped
    assert share.value is None


def test_gradients_that_are_not_finite_say_nothing_and_the_update_is_kept_for_the_next():
    share, w = measured()
    finite = w.grad.clone()
    w.grad.fill_(math.nan)
    share.add([w], Ranks())
    assert share.value is None
    w.grad.copy_(finite)
    share.add([w], Ranks())
    assert share.value == pytest.approx(0.1 / 2)


def test_an_update_that_moves_nothing_is_given_up():
    share, w = measured(lr=0.0)
    share.add([w], Ranks())
    assert share.value is None
    assert share.kept == []


def test_a_copy_that_is_given_up_leaves_the_averages():
    share, w = measured()
    share.add([w], Ranks())
    averages = (share.at_start, share.at_end)
    share.give_up_copies()
    share.add([w], Ranks())
    assert share.value is None
    assert (share.at_start, share.at_end) == averages != (0.0, 0.0)
