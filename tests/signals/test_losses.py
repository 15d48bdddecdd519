"""What losses say, signal by signal; what a warmup makes of it is in tests/warmup.

Ladder: closed form (losses that alternate, jump or are random with known moments) → the equation written out again.
Cannot see: whether a run is better for it; the recipe `edge-warmup` measures that.
"""

import math

import pytest
import torch

from edgewise.signals.losses import LossTrend, Overflows, RiseAlarm, SpikeGuard

# Losses that stand out


def test_an_update_on_a_batch_that_stands_out_takes_a_share_of_the_rate_and_gets_it_back():
    guard = SpikeGuard()
    losses = [1.0, 1.2, 0.8, 1.1] * 30
    for loss in losses:
        guard.add(loss, recovery=0.1)
    assert guard.share == 1.0
    mean, deviation = guard.mean, guard.deviation
    assert 0.95 < mean < 1.1
    assert 0.1 < deviation < 0.2
    guard.add(mean + 6 * deviation, recovery=0.1)
    assert guard.share == 1.0
    mean, deviation = guard.mean, guard.deviation
    guard.add(mean + 60 * deviation, recovery=0.1)
    assert guard.share == pytest.approx(0.1)
    assert guard.mean == pytest.approx(mean + 0.6 * deviation)
    assert guard.deviation == pytest.approx(1.25 * deviation)
    shares = []
    for loss in losses[:30]:
        guard.add(loss, recovery=0.1)
        shares.append(guard.share)
    assert shares == pytest.approx([min(1.0, 0.1 * math.exp(0.1 * k)) for k in range(1, 31)])


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, -10.0), (1.0, 5.0)])
def test_neither_scale_nor_sign_of_the_loss_matter_to_the_guard(scale, offset):
    guard, expected = SpikeGuard(), SpikeGuard()
    generator = torch.Generator().manual_seed(0)
    for loss in [*(1 + torch.rand(300, generator=generator)).tolist(), 9.0, *[1.5] * 9, 40.0]:
        guard.add(scale * loss + offset, recovery=0.1)
        expected.add(loss, recovery=0.1)
    assert expected.share < 0.2
    assert guard.share == pytest.approx(expected.share, rel=1e-4)


def test_losses_that_are_all_zero_or_all_the_same_hold_nothing_back():
    for losses in ([*[0.0] * 500, 1.0], [*[2.0] * 500, 2.1, 2.0]):
        guard = SpikeGuard()
        for loss in losses:
            guard.add(loss, recovery=0.1)
            assert guard.share == 1.0


def test_a_loss_that_stays_high_is_the_average_soon():
    guard = SpikeGuard()
    for loss in [*[1.0, 1.1] * 50, *[100.0] * 100]:
        guard.add(loss, recovery=0.1)
    assert guard.share == 1.0
    assert guard.mean == pytest.approx(100.0, rel=0.01)


# Losses that rise for good


def rung(losses):
    """Return at which of the losses an alarm rings."""
    alarm, rings = RiseAlarm(), []
    for t, loss in enumerate(losses):
        alarm.add(loss)
        rings += [t] * alarm.rings
    return rings


ALTERNATING = [1.1, 0.9] * 200  # the level is 1, the noise 0.1


@pytest.mark.parametrize(("rise", "after"), [(100.0, 4), (6.0, 4), (3.0, 10), (1.4, None)])
def test_a_rise_of_many_deviations_rings_soon_and_one_that_chance_explains_never(rise, after):
    rings = rung([*ALTERNATING, *(loss + 0.1 * rise for loss in ALTERNATING)])
    assert rings == ([] if after is None else [pytest.approx(400 + after, abs=1)])


def test_a_rise_over_a_hundred_updates_rings():
    """By 3 % of the noise an update: a lowest level that followed sooner would have gone along."""
    rising = [1 + 0.003 * t + noise for t, noise in enumerate([0.1, -0.1] * 60)]
    assert rung([*ALTERNATING[:30], *rising]) == [pytest.approx(30 + 97, abs=5)]


def test_the_sum_is_that_of_the_equation():
    losses = [*ALTERNATING[:200], 1.4, 1.2, 1.5, 3.0, 1.0]
    level, deviation, total, lowest, noise = losses[0], 0.0, 0.0, math.inf, math.inf
    alarm, sums = RiseAlarm(), []
    for t, loss in enumerate(losses, start=1):
        alarm.add(loss)
        change = min(loss - level, 6 * deviation) if t > 20 else loss - level
        level += change / max(10, (t - 1) / 8)
        deviation += (abs(change) - deviation) / max(1, (t - 1) / 8, min(t - 1, 20))
        if t > 20:
            if level <= lowest:
                lowest, noise, total = level, deviation, 0.0
            lowest += (level - lowest) * 0.5 / t
            noise = min(deviation, noise + (deviation - noise) * 0.5 / t)
            total = max(0.0, total + min(6, (loss - lowest) / noise) - 1.5)
            sums.append(total)
            assert alarm.sum == pytest.approx(total, rel=1e-12)
    assert max(sums) < 15
    assert sums[-2] == pytest.approx(sums[-3] + 4.5)
    assert sums[-1] == pytest.approx(sums[-2] - 1.5, abs=0.3)


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, -5.0), (1.0, 4.0)])
def test_neither_scale_nor_sign_of_the_loss_matter_to_the_alarm(scale, offset):
    losses = [*ALTERNATING, *[1.5] * 20]
    assert rung([scale * loss + offset for loss in losses]) == rung(losses) != []


def test_noise_and_a_loss_that_falls_or_stands_do_not_ring():
    """However long: of ever more averages the lowest is ever lower, and has to be forgotten."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(10_000, generator=generator)
    exponential = -(1 - torch.rand(10_000, generator=generator)).log()
    falling = 3 * torch.arange(1, 10_001) ** -0.3 + 0.1 * normal
    for losses in (3 + 0.3 * normal, 0.3 * normal, exponential, falling, torch.zeros(500), torch.ones(500)):
        assert rung(losses.tolist()) == []


# Losses that are not finite


def test_one_or_two_in_a_row_are_none_three_are_and_one_that_was_updated_on():
    nan = math.nan
    for losses, events in (
        ([(1.0, 0), (nan, 1), (1.0, 1), (nan, 2), (math.inf, 2), (1.0, 2)], []),  # skipped
        ([(nan, 1), (nan, 1), (nan, 1), (nan, 1), (nan, 1), (nan, 1), (1.0, 1)], [2, 5]),
        ([(1.0, 0), (nan, 1), (1.0, 2), (1.0, 3)], [2]),  # updated on
        ([(nan, 1), (nan, 2), (nan, 3), (1.0, 3)], [1, 2]),
    ):
        overflows = Overflows()
        found = []
        for k, loss in enumerate(losses):
            overflows.add(*loss)
            found += [k] * overflows.value
        assert found == events


# Whether the loss of fresh batches falls


def test_the_trend_is_one_while_every_look_finds_a_fall_and_minus_one_while_none_does():
    for change, expected in ((-0.1, 1.0), (0.1, -1.0), (0.0, 0.0)):
        trend = LossTrend()
        trend.begin(1.0)
        for look in range(10):
            trend.add(1.0 + (look + 1) * change, 1.0 + look * change)
            assert trend.value == pytest.approx(expected)


def test_a_rise_by_more_than_all_losses_lie_apart_is_told_once():
    trend = LossTrend()
    trend.begin(2.0)
    told = []
    for here, before in ((1.0, 2.0), (1.9, 1.0), (2.2, 1.0), (2.3, 2.2), (1.0, math.inf), (9.0, 1.0)):
        trend.add(here, before)
        told.append(trend.rises)
    assert told == [False, False, True, False, False, True]


def test_a_trend_that_is_held_allows_no_growth_and_still_a_fall():
    trend = LossTrend()
    trend.hold()
    assert trend.value == 0.0
    trend.value = -0.5
    trend.hold()
    assert trend.value == -0.5


def test_a_fall_from_infinity_is_a_fall_of_bounded_weight():
    trend = LossTrend()
    trend.begin(1.0)
    trend.add(0.9, 1.0)
    trend.add(0.8, math.inf)
    assert trend.value == 1.0
    for _ in range(6):
        trend.add(1.0, 0.9)
    assert trend.value < 0
