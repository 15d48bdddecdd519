"""The creep, by itself.

Ladder: closed form (a rate that grows like a power of the update's number). Cannot see: whether a trend is right.
"""

import math

import pytest

from edgewise.warmup.creep import creep_growth


@pytest.mark.parametrize("update", [0, 18, 19, 20, 99, 10_000])
@pytest.mark.parametrize("trend", [1.0, 0.5, 0.0, -0.5, -1.0])
def test_the_rate_grows_by_twice_the_trend_over_the_updates_and_by_a_tenth_at_most(update, trend):
    assert creep_growth(trend, update) == pytest.approx(min(0.1, 2 / (update + 1)) * trend, rel=1e-12)


def test_twice_the_updates_are_four_times_the_rate_or_a_quarter():
    for trend, expected in ((1.0, 4.0), (-1.0, 0.25), (0.5, 2.0)):
        growth = sum(creep_growth(trend, update) for update in range(1000, 2000))
        assert math.exp(growth) == pytest.approx(expected, rel=0.01)


def test_no_update_changes_the_rate_by_more_than_a_tenth():
    growths = [creep_growth(trend, update) for trend in (1.0, -1.0) for update in range(50)]
    assert max(growths) == 0.1 == -min(growths)
