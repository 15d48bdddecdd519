"""What a trial means, from its numbers alone.

Ladder: closed form (parabolas, straight lines in log η, linear warmup itself). Cannot see: whether the constants are
good for real networks, which benchmarks/advice.py measures.
"""

import dataclasses
import itertools
import math

import pytest

from edgewise.advice.rates import (
    bearable_rate,
    best_rate,
    next_rate,
    run_rate,
    suggest,
    warmup_length,
)
from edgewise.advice.trials import Path, ShortRun, Trial


def runs_of(loss, rates):
    return [ShortRun(lr=lr, losses=(1.0,), final=loss(lr)) for lr in rates]


def path_of(*rates, num_step_backs=0, **changes):
    return Path(
        rates=rates,
        losses=(1.0,) * len(rates),
        diverged=False,
        num_step_backs=num_step_backs,
        climbed=True,
        fallback=None,
        **changes,
    )


def trial_of(path, runs, start=2.0):
    return Trial(
        lr=0.1,
        ceiling=100.0,
        start=start,
        path=path,
        runs=tuple(runs),
        num_updates=100,
        num_forwards=30,
        max_updates=200,
        num_passes=1,
    )


def parabola(lowest_at):
    return lambda lr: 1.0 + 0.1 * math.log(lr / lowest_at) ** 2


@pytest.mark.parametrize("lowest_at", [0.06, 0.1, 0.19])
@pytest.mark.parametrize("rates", [(0.025, 0.1, 0.4), (0.4, 0.02, 0.1), (0.01, 0.1, 0.2, 0.4)])
def test_the_best_rate_is_the_lowest_point_of_a_parabola(lowest_at, rates):
    assert best_rate(runs_of(parabola(lowest_at), rates)) == pytest.approx(lowest_at)


def test_the_best_rate_is_one_that_was_tried_where_there_is_no_parabola():
    assert best_rate(runs_of(lambda lr: lr, (0.1, 0.4))) == 0.1
    assert best_rate(runs_of(lambda lr: -lr, (0.1, 0.4))) == 0.4
    assert best_rate(runs_of(lambda lr: -lr if lr < 1 else math.inf, (0.1, 0.4, 1.6))) == 0.4
    assert best_rate(runs_of(lambda lr: 1.0, (0.1, 0.4, 1.6))) == 0.1
    assert best_rate(runs_of(parabola(0.3), (0.3,))) == 0.3


def test_the_bearable_rate_lies_where_the_loss_crosses_what_is_allowed():
    straight = lambda lr: 1.0 + 0.2 * abs(math.log2(lr))
    runs = runs_of(straight, (0.25, 1.0, 4.0, 16.0))
    for allowed in (1.1, 1.4, 1.5):
        assert bearable_rate(runs, allowed) == pytest.approx(2 ** ((allowed - 1) / 0.2))
    assert bearable_rate(runs, 9.0) == 16.0
    to_nowhere = runs_of(lambda lr: straight(lr) if lr < 3 else math.inf, (0.25, 1.0, 4.0))
    assert bearable_rate(to_nowhere, 1.1) == pytest.approx(2.0)


def test_short_runs_go_to_the_better_side_until_the_best_lies_between_others():
    for lowest_at in (0.001, 0.09, 0.3, 50.0):
        runs, path = [], path_of(0.01, 0.1)
        for _ in range(8):
            runs += runs_of(parabola(lowest_at), [next_rate(path, runs)])
        assert [run.lr for run in runs[:2]] == [0.1, 0.4]
        rates = [run.lr for run in runs]
        assert min(rates) < lowest_at < max(rates)
        assert best_rate(runs) == pytest.approx(lowest_at)
        assert len(set(rates)) == len(rates)


def test_a_short_run_rises_to_its_rate_and_falls_to_zero():
    rates = [run_rate(i, 50, lr=1.0, first=0.01) for i in range(50)]
    assert max(rates) == 1.0 == rates[9]
    assert all(b / a == pytest.approx(rates[1] / rates[0]) for a, b in itertools.pairwise(rates[:10]))
    falls = [a - b for a, b in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([1 / 40] * 39)
    assert rates[-1] == pytest.approx(1 / 40)
    down = [run_rate(i, 50, lr=0.01, first=1.0) for i in range(50)]
    assert down[0] == 0.01 == max(down)


@pytest.mark.parametrize("length", [10, 37, 100])
def test_linear_warmup_has_its_own_length(length):
    rates = [(i + 1) / length for i in range(length + 20)]
    assert warmup_length(rates, 1.0) == (pytest.approx(length, abs=1), False)
    assert warmup_length(rates[: length - 1], 1.0)[1]


def test_no_warmup_is_needed_where_the_first_rate_is_high_enough():
    assert warmup_length([0.5, 0.6], 0.5) == (0, False)


def test_a_suggestion_follows_its_formula():
    runs = runs_of(parabola(0.2), (0.05, 0.2, 0.8))
    found = suggest(trial_of(path_of(0.01, 0.1), runs))
    assert found.lr_short == pytest.approx(0.2)
    assert found.lr_path == 0.1
    allowed = 1.0 + 0.03 * (2.0 - 1.0)
    assert found.lr_bearable == pytest.approx(bearable_rate(runs, allowed))
    assert found.lr == pytest.approx(0.8 * math.sqrt(0.1 * found.lr_bearable))
    assert found.lr_largest == pytest.approx(5.5 * found.lr_bearable)
    assert found.lr < found.lr_largest
    flat = suggest(trial_of(path_of(0.2, 5.0), runs_of(lambda lr: 1.0, (0.2, 0.8, 3.2))))
    assert flat.lr == pytest.approx(0.8 * 1.5 * 0.2)


def test_the_lowest_rate_that_failed_is_told():
    fails = lambda lr: 1.0 + lr if lr < 0.5 else (2.0 if lr < 1 else math.inf)
    found = suggest(trial_of(path_of(0.01, 0.1), runs_of(fails, (0.1, 0.2, 0.8, 3.2))))
    assert found.lr_failed == 0.8
    found = suggest(trial_of(path_of(0.01, 0.1), runs_of(fails, (0.1, 0.2))))
    assert found.lr_failed is None


def test_scaling_all_rates_scales_the_suggestion():
    ones = suggest(trial_of(path_of(0.01, 0.1), runs_of(parabola(0.2), (0.05, 0.2, 0.8))))
    path, runs = path_of(1.0, 10.0), runs_of(parabola(20.0), (5.0, 20.0, 80.0))
    hundreds = suggest(trial_of(path, runs))
    assert hundreds.lr == pytest.approx(100 * ones.lr)
    assert hundreds.lr_largest == pytest.approx(100 * ones.lr_largest)
    assert hundreds.warmup_steps == ones.warmup_steps


def test_how_the_path_went_is_told():
    def pattern(*rates, **changes):
        runs = runs_of(parabola(0.1), (0.025, 0.1, 0.4))
        return suggest(trial_of(path_of(*rates, **changes), runs))

    at_once, climbs = pattern(*[0.2] * 30), pattern(*[0.01] * 30, 0.1)
    assert (at_once.pattern, at_once.needs_warmup, at_once.warmup_steps) == ("at once", False, 0)
    assert (climbs.pattern, climbs.needs_warmup, climbs.warmup_is_bound) == ("climbs", True, False)
    assert pattern(0.01, 0.2, 0.1, num_step_backs=1).pattern == "was halved"
    low = pattern(*[0.01] * 30)
    assert (low.pattern, low.warmup_is_bound) == ("not reached", True)


def test_a_short_path_far_below_the_suggested_rate_does_not_say_that_no_warmup_is_needed():
    runs = runs_of(parabola(0.1), (0.025, 0.1, 0.4))
    low = suggest(trial_of(path_of(*[0.001] * 4), runs))
    assert (low.needs_warmup, low.warmup_steps <= 10, low.warmup_is_bound) == (None, True, True)
    near = suggest(trial_of(path_of(*[0.08] * 4), runs))
    assert near.needs_warmup is False


def test_nothing_is_suggested_where_nothing_was_seen():
    runs = runs_of(lambda lr: 3.0, (0.1, 0.4))
    fell_back = dataclasses.replace(path_of(), fallback="the loss is a constant")
    for trial, reason in [
        (trial_of(path_of(0.1), runs), "no short run lowered the loss"),
        (trial_of(path_of(0.1), []), "no short run lowered the loss"),
        (trial_of(dataclasses.replace(path_of(), diverged=True), []), "not finite"),
        (trial_of(fell_back, []), "the loss is a constant"),
        (trial_of(path_of(), []), "no scale"),
    ]:
        found = suggest(trial)
        assert found.lr is found.lr_largest is found.warmup_steps is None
        assert found.pattern == "unknown"
        assert reason in found.reason
