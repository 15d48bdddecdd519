"""The creep, by itself.

Ladder: closed form (losses at known places). Cannot see: how many looks a run can pay.
"""

import math

import pytest
import torch
from torch import nn

from edgewise.critical import BestStepResult
from edgewise.status import Status
from edgewise.warmup.creep import Creep


def found(loss, resolution):
    return BestStepResult(
        **{
            name: None
            for name in BestStepResult.__dataclass_fields__
            if name not in ("loss", "resolution", "status")
        },
        loss=loss,
        resolution=resolution,
        status=Status.FOUND,
    )


@pytest.mark.parametrize(
    ("given", "exact"), [(None, False), (2.0, True), (2.0 + 7e-7, True), (2.0 + 3e-6, False), (2.02, False)]
)
def test_the_closures_loss_is_the_one_given_where_they_differ_by_rounding(given, exact):
    creep = Creep()
    creep.begin(found(2.0, 1e-7), given)
    assert creep.loss_is_exact == exact
    assert (creep.trend.lowest, creep.trend.highest) == (2.0, 2.0)


def test_a_look_compares_one_batch_at_two_places_and_leaves_the_parameters_alone():
    w = nn.Parameter(torch.tensor([3.0]))
    creep, calls = Creep(), []

    def closure():
        calls.append(w.item())
        return w.square().sum()

    creep.refer_to([w], 9)
    assert creep.next_look == 10
    with torch.no_grad():
        w.fill_(1.0)
    creep.add(1.0, closure, [w], 29)
    assert calls == [3.0]
    assert w.item() == 1.0
    assert creep.trend.value == 1.0  # from 9 to 1
    assert creep.next_look == 29 + 3
    assert [float(kept) for kept in creep.reference] == [1.0]


@pytest.mark.parametrize(("update", "value"), [(0, 1.0), (18, 1.0), (99, 0.5), (99, -1.0)])
def test_the_rate_grows_like_the_square_of_the_updates_while_the_loss_falls(update, value):
    creep = Creep()
    creep.trend.value = value
    assert creep.growth(update) == pytest.approx(min(0.1, 2 / (update + 1)) * value)


def test_twice_the_updates_are_four_times_the_rate():
    creep = Creep()
    assert math.exp(sum(creep.growth(update) for update in range(1000, 2000))) == pytest.approx(4, rel=0.01)


def test_new_parameters_are_part_of_the_reference_if_there_is_one():
    old, new = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))
    creep = Creep()
    creep.adopt([old, new])
    assert creep.reference == []
    creep.refer_to([old], 0)
    creep.after_step([old])
    creep.adopt([old, new])
    assert [tuple(kept.shape) for kept in creep.reference] == [(2,), (3,)]
    creep.give_up()
    assert creep.reference == []
