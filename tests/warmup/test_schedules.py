"""Warmup as pure functions.

Ladder: closed form; bounds and monotony by hypothesis. Cannot see: how a scheduler counts its updates;
test_linear does.
"""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.warmup.schedules import cosine, cosine_decay, linear, linear_decay, linear_from, steps_to_target

steps = st.integers(1, 10_000)
updates = st.integers(0, 30_000)
factors = st.floats(0, 1)


def test_the_papers_rates():
    """η_t = η_init + (η_trgt − η_init)·t/T for t = 1, 2, …: update 0 is t = 1."""
    assert [linear(u, warmup_steps=4) for u in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [linear(u, warmup_steps=4, init=0.5) for u in range(5)] == [0.625, 0.75, 0.875, 1, 1]


@given(updates, steps, factors)
def test_linear_is_between_its_start_and_one_and_never_zero(update, warmup_steps, init):
    value = linear(update, warmup_steps=warmup_steps, init=init)
    assert 0 < value <= 1 + 1e-15  # init + (1 − init) may round up by one ulp
    assert value >= init
    assert linear(update + 1, warmup_steps=warmup_steps, init=init) >= value
    if update + 1 >= warmup_steps:
        assert value == pytest.approx(1.0, abs=1e-15)


@given(updates, factors)
def test_one_step_is_a_constant_rate(update, init):
    assert linear(update, warmup_steps=1, init=init) == pytest.approx(1.0, abs=1e-15)


@given(updates, steps)
def test_a_start_at_the_target_is_a_constant_rate(update, warmup_steps):
    assert linear(update, warmup_steps=warmup_steps, init=1.0) == 1.0
    assert linear_from(update, warmup_steps=warmup_steps, start=1.0) == 1.0


@given(updates, steps, st.floats(1e-6, 1))
def test_linear_from_has_the_slope_of_plain_warmup(update, warmup_steps, start):
    value = linear_from(update, warmup_steps=warmup_steps, start=start)
    assert start <= value <= 1
    step = linear_from(update + 1, warmup_steps=warmup_steps, start=start) - value
    # differences of numbers below 1: two roundings of ε/2 each
    assert 0 <= step <= 1 / warmup_steps + 1e-15
    if value + 1 / warmup_steps < 1:
        assert step == pytest.approx(1 / warmup_steps, abs=1e-15)


@given(steps, st.floats(1e-6, 1))
def test_the_target_is_reached_when_it_is_said_to_be(warmup_steps, start):
    """After T_reach = ⌈T(1 − start)⌉ updates, and not before; 1e-9 of an update is rounding."""
    reach = steps_to_target(warmup_steps=warmup_steps, start=start)
    assert 0 <= reach <= warmup_steps
    assert linear_from(reach, warmup_steps=warmup_steps, start=start) == pytest.approx(1.0, abs=1e-9)
    if reach > 0:
        assert linear_from(reach - 1, warmup_steps=warmup_steps, start=start) < 1


@pytest.mark.parametrize(
    ("warmup_steps", "start", "reach"),
    [(100, 0.25, 75), (100, 0.3, 70), (10, 0.95, 1), (10, 1.0, 0), (3, 0.5, 2)],
)
def test_steps_to_target_in_closed_form(warmup_steps, start, reach):
    assert steps_to_target(warmup_steps=warmup_steps, start=start) == reach
    assert math.isclose(linear_from(reach, warmup_steps=warmup_steps, start=start), 1.0)


@given(steps, factors)
def test_cosine_in_closed_form_and_held_at_its_end(num_steps, final):
    """final + (1 − final)·cos²(πt/2(n − 1)), another form of the same; a few roundings of numbers below 1."""
    for update in {0, num_steps // 3, num_steps // 2, num_steps - 2, num_steps - 1} & set(range(num_steps)):
        angle = math.pi / 2 * update / max(1, num_steps - 1)
        expected = final + (1 - final) * math.cos(angle) ** 2
        assert cosine(update, num_steps=num_steps, final=final) == pytest.approx(expected, abs=1e-15)
    for update in range(max(1, num_steps - 1), num_steps + 3):
        assert cosine(update, num_steps=num_steps, final=final) == final


@given(updates, steps, factors)
def test_cosine_never_rises_and_stays_between_its_ends(update, num_steps, final):
    value = cosine(update, num_steps=num_steps, final=final)
    assert final <= value <= 1 + 1e-15
    assert cosine(update + 1, num_steps=num_steps, final=final) <= value


def test_a_cosine_of_one_update_runs_at_the_start_and_is_then_at_its_end():
    assert [cosine(update, num_steps=1, final=0.1) for update in range(3)] == [1.0, 0.1, 0.1]


decays = pytest.mark.parametrize("decay", [linear_decay, cosine_decay])


@given(st.integers(1, 50), st.integers(1, 50))
def test_decays_in_closed_form(warmup_steps, more):
    """x and cos²(π(1 − x)/2) of the share x of the decay that is left."""
    num_steps = warmup_steps + more
    for update in {warmup_steps, warmup_steps + more // 2, num_steps - 1}:
        left = (num_steps - update) / more
        shared = {"warmup_steps": warmup_steps, "num_steps": num_steps}
        assert linear_decay(update, **shared) == pytest.approx(left, rel=1e-12)
        squared = math.cos(math.pi / 2 * (1 - left)) ** 2
        assert cosine_decay(update, **shared) == pytest.approx(squared, rel=1e-12, abs=1e-15)


@decays
def test_a_decay_starts_at_one_falls_and_is_zero_from_its_end_on(decay):
    values = [decay(update, warmup_steps=5, num_steps=12) for update in range(5, 16)]
    assert values[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(values[:8]))
    assert values[7:] == [0.0] * 4


@decays
def test_a_warmup_that_took_the_whole_run_leaves_nothing(decay):
    assert [decay(update, warmup_steps=9, num_steps=9) for update in (9, 10)] == [0.0, 0.0]
    assert decay(20, warmup_steps=20, num_steps=9) == 0.0
