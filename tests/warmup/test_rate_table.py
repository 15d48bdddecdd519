"""The table of rates that were found.

Ladder: closed form (tables of a few entries, linear warmup). Cannot see: how a warmup fills it.
"""

import math

import pytest

from edgewise.warmup.rate_table import RateTable


def factors(table, num=12):
    return [table.factor_at(update) for update in range(num)]


def test_a_factor_holds_until_the_next_and_the_first_is_that_of_linear_warmup():
    table = RateTable(10)
    table.set(3, 0.2)
    table.set(5, 1.0)
    assert factors(table, 7) == [0.1, 0.1, 0.1, 0.2, 0.2, 1.0, 1.0]
    assert (table.reached, table.highest) == (5, 1.0)
    assert table.factor_at(-1) == 0.1


def test_an_update_that_was_skipped_has_the_later_factor():
    table = RateTable(10)
    table.set(3, 0.2)
    table.set(3, 0.3)
    assert table.rates == [(0, 0.1), (3, 0.3)]
    assert table.reached is None


def test_it_is_halved_down_to_a_floor():
    table = RateTable(10)
    table.begin(0, 0.5)
    for halved in range(9):
        assert not table.is_lowest(halved)
        table.step_back(halved)
        assert table.factor_at(halved) == 0.5 ** (2 + halved)
    assert table.num_step_backs == 9
    assert table.is_lowest(9)
    table.step_back(9)
    assert table.factor_at(9) == 2.0**-10


def test_linear_warmup_goes_on_from_where_it_is():
    table = RateTable(10)
    table.begin(0, 0.5)
    end = table.go_linear(4, 0.5)
    assert factors(table, 12) == pytest.approx([0.5] * 5 + [0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])
    assert (table.reached, end) == (9, 10)


def test_it_grows_exponentially_up_to_the_target():
    table = RateTable(10)
    table.begin(0, 0.125)
    table.grow(2, math.log(2) / 2)
    assert table.factor_at(2) == pytest.approx(0.25)
    table.grow(4, -math.log(2) / 2)
    assert table.factor_at(4) == pytest.approx(0.125)
    table.grow(5, 1e4)  # what slopes of other gradients may say
    assert table.factor_at(5) == 1.0
