"""What searches are asked, and how their results are read.

Ladder: closed form (a table). Cannot see: whether a status is the right one; the tests of the searches do.
"""

import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest

from edgewise import CriticalLRResult, Status
from edgewise.critical import BestStepResult, Searching

CRITICAL = CriticalLRResult(
    lr=0.129,
    bracket=(0.118, 0.129),
    scale=1.29,
    status=Status.FOUND,
    num_forwards=3,
    loss=2.3,
    rise=1e-3,
    slope=-0.4,
    noise_floor=1e-5,
)
BEST = BestStepResult(lr=0.0645, status=Status.FOUND, num_forwards=5, loss=2.3, slope=-0.4)


@pytest.mark.parametrize(
    ("status", "bracket", "ok", "text"),
    [
        (Status.FOUND, (0.118, 0.129), True, "0.129 in [0.118, 0.129] (FOUND, 3 forwards)"),
        (Status.MULTIPLE_CROSSINGS, (0.118, 0.129), True, "0.129 in [0.118, 0.129] (MULTIPLE_CROSSINGS, 3 "),
        (Status.ABOVE_MAX_LR, (1.0, math.inf), False, "1 in [1, inf] (ABOVE_MAX_LR, 3 forwards)"),
        (Status.NO_CATAPULT, (2.0**24, math.inf), False, "1.678e+07 in [1.678e+07, inf] (NO_CATAPULT, 3 "),
        (Status.BELOW_RESOLUTION, (0.0, 1e-9), False, "0 in [0, 1e-09] (BELOW_RESOLUTION, 3 forwards)"),
        (
            Status.NOT_A_DESCENT_DIRECTION,
            (0.0, math.inf),
            False,
            "0 in [0, inf] (NOT_A_DESCENT_DIRECTION, 3 ",
        ),
        (Status.SCALED_GRADIENT, (0.1, 0.2), False, "0.1 in [0.1, 0.2] (SCALED_GRADIENT, 3 forwards)"),
        (Status.OTHER_GRADIENT, (0.1, 0.2), False, "0.1 in [0.1, 0.2] (OTHER_GRADIENT, 3 forwards)"),
        (Status.BUDGET_EXHAUSTED, (0.1, 0.2), False, "0.1 in [0.1, 0.2] (BUDGET_EXHAUSTED, 3 forwards)"),
    ],
)
def test_a_critical_rate_is_one_line_with_its_bracket(status, bracket, ok, text):
    low, high = bracket
    found = replace(CRITICAL, lr=high if ok else low, bracket=bracket, status=status)
    assert found.ok is ok
    assert str(found).startswith(text)


@pytest.mark.parametrize(
    ("status", "lr", "ok"),
    [
        (Status.FOUND, 0.0645, True),
        (Status.ABOVE_MAX_LR, 10.0, True),
        (Status.BELOW_RESOLUTION, 0.0, False),
        (Status.NOT_A_DESCENT_DIRECTION, 0.0, False),
        (Status.SCALED_GRADIENT, 0.0, False),
        (Status.OTHER_GRADIENT, 0.0, False),
        (Status.BUDGET_EXHAUSTED, 0.0, False),
    ],
)
def test_a_best_step_is_one_line_with_loss_and_slope(status, lr, ok):
    found = replace(BEST, lr=lr, status=status)
    assert found.ok is ok
    assert str(found) == f"{lr:g} from loss 2.3, slope -0.4 ({status.name}, 5 forwards)"


@pytest.mark.parametrize("status", Status)
def test_no_result_is_longer_than_a_line(status):
    tiny = 1.23456789e-300
    results = [
        replace(CRITICAL, lr=tiny, bracket=(tiny, tiny), status=status, num_forwards=60),
        replace(BEST, lr=tiny, loss=-tiny, slope=-tiny, status=status, num_forwards=60),
    ]
    for result in results:
        assert len(str(result)) <= 100
        assert "\n" not in str(result)


def test_one_forward_is_not_two():
    assert str(replace(CRITICAL, num_forwards=1)).endswith("(FOUND, 1 forward)")


# What is asked


def test_numbers_of_any_kind_come_back_as_floats():
    asked = Searching(guess=np.float32(0.5), max_lr=1, rtol=Fraction(1, 2), max_forwards=np.int64(7))
    assert (asked.guess, asked.max_lr, asked.rtol, asked.max_forwards) == (0.5, 1.0, 0.5, 7)
    kinds = [type(value) for value in (asked.guess, asked.max_lr, asked.rtol, asked.max_forwards)]
    assert kinds == [float, float, float, int]


def test_what_is_asked_does_not_change():
    with pytest.raises(FrozenInstanceError):
        Searching().rtol = 0.5


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (Searching(), 3.0),
        (Searching(max_lr=2.0), 2.0),
        (Searching(guess=0.5), 0.5 / math.sqrt(1 + 1 / 16)),
        (Searching(guess=0.5, max_lr=0.1), 0.1),
        (Searching(guess=CRITICAL, rtol=1.0), 0.129 / math.sqrt(2)),
        (Searching(guess=replace(CRITICAL, lr=0.0)), 3.0),  # which found nothing
    ],
)
def test_a_search_begins_where_a_rise_is_expected(asked, first):
    assert asked.first(current=3.0) == pytest.approx(first)


def test_an_earlier_result_is_trusted_where_it_found_a_rate():
    assert Searching(guess=replace(CRITICAL, exponent=2.0)).exponent == 2.0
    assert Searching(guess=CRITICAL).is_trusted
    assert not Searching(guess=replace(CRITICAL, lr=0.0)).is_trusted
    assert not Searching(guess=0.1).is_trusted


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"most_rise": -1.0}, ValueError, "most_rise must be a finite number, 0 or greater"),
        ({"most_excess": math.nan}, ValueError, "most_excess must be a finite number, 0 or greater"),
        ({"most_rise": "big"}, TypeError, "most_rise must be a number"),
        ({"max_forwards": None}, TypeError, "max_forwards must be a whole number, got None"),
    ],
)
def test_what_only_a_warmup_asks_is_checked_too(kwargs, error, message):
    with pytest.raises(error, match=message):
        Searching(**kwargs)
