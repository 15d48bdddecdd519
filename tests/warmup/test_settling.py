"""When a rate has settled.

Ladder: closed form (sequences of factors whose changes are known). Cannot see: whether that is a good time to end.
"""

import pytest

from edgewise.warmup.settling import Settling


def settled(factors, start=0):
    """Return the first update, from `start` on, at which the rate has settled."""
    settling = Settling()
    settling.begin(start, factors[0])
    for update, factor in enumerate(factors, start=start):
        settling.add(update, factor)
        if settling.value:
            return update
    return None


@pytest.mark.parametrize(("start", "expected"), [(0, 50), (100, 150), (200, 300)])
def test_it_has_stood_for_a_third_of_the_updates_and_for_fifty(start, expected):
    assert settled([0.5] * 400, start) == expected


@pytest.mark.parametrize("change", [1.19, 1 / 1.19])
def test_a_change_by_less_than_a_fifth_is_none(change):
    assert settled([0.5, *[0.5 * change] * 100]) == 50


@pytest.mark.parametrize("change", [1.21, 1 / 1.21])
def test_a_larger_one_is_up_or_down(change):
    assert settled([*[0.5] * 10, *[0.5 * change] * 100]) == 10 + 50


def test_many_small_ones_add_up():
    assert settled([0.9 * 0.99**update for update in range(300)]) is None


def test_the_target_counts_from_the_update_that_arrives_there():
    assert settled([*[0.95] * 10, *[1.0] * 100]) == 10 + 50
    assert settled([1.0] * 100) == 50
