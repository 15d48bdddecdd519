"""The climb, by itself.

Ladder: closed form (on a quadratic ζ is the share of the critical rate). Cannot see: the noise of batches.
"""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from edgewise.ranks import Ranks
from edgewise.warmup.climb import Climb, forgetting


def climbed(lr, *, steps=2, **options):
    """Return a climb along the curvature 4, whose critical rate is ½, with gradients after the last update."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer, climb = SGD([w], lr=lr, **options), Climb()
    for _ in range(steps):
        optimizer.zero_grad()
        (2 * w.square()).sum().backward()
        climb.add([w], Ranks())
        growth = climb.growth(optimizer)
        if growth is not None:
            climb.go_on([w])
        optimizer.step()
        climb.after_step([w])
    return climb, growth, w


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.29, 0.31, 0.4])
def test_the_rate_grows_by_what_the_updates_fall_short_of(lr):
    climb, growth, _ = climbed(lr)
    assert growth == pytest.approx(max(0.0, 0.3 * (1 - lr / 0.5 / 0.6)))
    assert not climb.is_high  # by the slopes of one update


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.29, 0.31, 0.4])
def test_it_is_high_beyond_a_share_of_the_critical_rate_by_five_updates_at_least(lr):
    highs = [climbed(lr, steps=steps)[0].is_high for steps in range(2, 10)]
    assert highs == [False] * 4 + [lr > 0.3] * 4


def test_a_first_update_says_nothing_and_is_measured():
    climb, growth, _ = climbed(0.1, steps=1)
    assert growth is None
    assert not climb.is_high
    assert len(climb.slopes.kept) == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: SGD(p, lr=1.0), 0.3),
        (lambda p: SGD(p, lr=1.0, momentum=0.9), 0.1),
        (lambda p: Adam(p, lr=1.0, betas=(0.8, 0.99)), 0.2),
    ],
)
def test_momentum_has_forgotten_a_share_of_an_update_by_the_next(make, expected):
    assert forgetting(make([nn.Parameter(torch.ones(1))])) == pytest.approx(expected)


def test_adam_climbs_at_half_of_that():
    climb, _, w = climbed(0.1)
    speeds = [climb.growth(make([w])) for make in (lambda p: SGD(p, lr=1.0, momentum=0.9), Adam)]
    assert speeds[1] == pytest.approx(speeds[0] / 2)


def test_new_parameters_end_the_measurement_of_one_update_and_the_end_that_of_all():
    climb, _, w = climbed(0.1)
    climb.adopt([w, nn.Parameter(torch.ones(3))])
    assert climb.slopes.kept == []
    assert climb.slopes.at_start > 0
    assert climb.is_on
    assert climb.ended is None
    climb.end(7)
    assert not climb.is_on
    assert climb.ended == 7
    assert climb.slopes.at_start == 0
    assert climb.slopes.kept == []
