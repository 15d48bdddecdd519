"""What losses say, signal by signal; what a warmup makes of it is in tests/warmup.

Ladder: closed form (losses that alternate, jump or are random with known moments) → the equation written out again
(of the trend: weighted least squares over all losses at once).
Cannot see: whether a run is better for it; the recipe `edge-warmup` measures that.
"""

import math

import numpy as np
import pytest
import torch

from edgewise.signals.losses import LossTrend, Overflows, RiseAlarm, SpikeGuard, Surge


def noise(num, seed=0):
    return np.random.default_rng(seed).standard_normal(num)


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


def test_an_alarm_that_is_told_of_a_rise_takes_the_next_loss_for_the_level():
    alarm = RiseAlarm()
    for loss in [*ALTERNATING[:100], 4.0]:
        alarm.add(loss)
    assert not alarm.value
    alarm.restart()
    for loss in (5.1, 4.9) * 50:
        alarm.add(loss)
        assert not alarm.value
    assert alarm.level == pytest.approx(5.0, abs=0.05)
    assert rung([*ALTERNATING[:100], 4.0, *(5.1, 4.9) * 50]) != []  # untold


# Losses that surge


def surged(losses):
    """Return at which of the losses there is a surge."""
    surge, found = Surge(), []
    for t, loss in enumerate(losses):
        surge.add(loss)
        found += [t] * surge.value
    return found


def surged_by_all_before(losses):
    """From the definition, over lists of all losses: those above are part of "before" once a second one has come."""
    before, waiting, found = [], [], []
    for t, loss in enumerate(losses):
        is_above = 5 <= t < 20 and loss - max(before) > max(before) - min(before) > 0
        if is_above and not waiting:
            waiting = [loss]
        else:
            found += [t] * (is_above and bool(waiting))
            before, waiting = [*before, *waiting, loss], []
    return found


FIVE = [1.0, 1.5, 1.0, 2.0, 1.2]  # two in a row above 3 surge


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([*FIVE, 3.1, 3.1], [6]),
        ([*FIVE, 3.0, 3.1, 3.1, 5.0], []),  # 3 is not above, and 5 is the highest from then on
        ([*FIVE[:4], 3.1, 3.1, 3.1], []),  # the fifth loss is one of those before
        ([*FIVE, 9.0, 2.0, 9.1], []),  # not in a row: the first of them is one of those before
        ([*FIVE, 4.0, 4.0, 7.0, 7.1], [6]),
        ([*FIVE, 4.0, 4.0, 7.1, 7.1], [6, 8]),
        ([*FIVE, 9.0, 3.1, 17.1, 17.1], [6, 8]),
        ([*FIVE, -50.0, -51.0], []),
        ([1.0] * 5 + [1.5, 1.5, 1.5], []),  # a rounding of losses that are all the same
        ([*FIVE, *[1.0] * 13, 9.0, 9.0], [19]),
        ([*FIVE, *[1.0] * 14, 9.0, 9.0, 99.0, 99.0], []),  # the alarm knows their noise by now
    ],
)
def test_two_losses_in_a_row_that_are_above_all_by_more_than_these_lie_apart_surge(losses, expected):
    assert surged(losses) == surged_by_all_before(losses) == expected


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.0**-20, 0.0), (4.0, -1024.0), (1.0, 512.0)])
def test_surges_are_those_of_the_definition_whatever_the_scale_and_what_was_added(scale, offset):
    """In numbers without rounding; among losses that double now and then."""
    generator = np.random.default_rng(0)
    total = 0
    for _ in range(200):
        losses = np.round(8 * 2 ** generator.uniform(0, 6, 12)) / 8
        expected = surged_by_all_before(losses.tolist())
        assert surged((scale * losses + offset).tolist()) == expected
        total += len(expected)
    assert total >= 5


def test_noise_and_a_loss_that_falls_do_not_surge():
    for seed in range(20):
        normal = noise(1000, seed)
        for losses in (normal, 3 * np.arange(1, 1001) ** -0.3 + 0.1 * normal, np.ones(1000)):
            assert surged(losses.tolist()) == []


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


# Whether the loss falls


def trend_of(losses, updates=None):
    trend = LossTrend()
    for update, loss in enumerate(losses) if updates is None else zip(updates, losses, strict=True):
        trend.add(loss, update)
    return trend


def weights(num):
    """Of all losses: each remembers 1 − 1/max(10, n/8) of those before."""
    kept = 1 - 1 / np.maximum(10.0, np.arange(1, num + 1) / 8)
    return np.append(np.cumprod(kept[:0:-1])[::-1], 1.0)


def deviation_of(losses):
    """Weighted standard deviation, without bias."""
    w = weights(len(losses)) / weights(len(losses)).sum()
    mean = w @ losses
    return mean, math.sqrt(w @ (losses - mean) ** 2 / (1 - (w**2).sum()))


def bounded(losses):
    """The losses as they count."""
    counted = list(losses[:20])
    for loss in losses[20:]:
        mean, deviation = deviation_of(np.array(counted))
        counted.append(min(loss, mean + 6 * deviation))
    return np.array(counted)


def trend_by_least_squares(losses):
    """z, s, and whether the loss has fallen: from the definition, with a solver of `numpy`, instead of recursively."""
    losses = bounded(losses)
    w = weights(len(losses))
    design = np.stack([np.ones(len(losses)), np.log(np.arange(len(losses)) + 10.0)], axis=1)
    line, *_ = np.linalg.lstsq(design * np.sqrt(w)[:, None], losses * np.sqrt(w), rcond=None)
    unexplained = w @ (losses - design @ line) ** 2 / (w.sum() ** 2 / (w**2).sum() - 2)
    z = line[1] / math.sqrt(unexplained * np.linalg.inv(design.T @ (w[:, None] * design))[1, 1])
    mean, deviation = deviation_of(losses)
    has_fallen = losses[:10].mean() - mean > 3 * deviation
    return z, max(-1.0, min(1.0, -(z + has_fallen) / 2)), has_fallen


@pytest.mark.parametrize("num", [20, 33, 80, 81, 300, 1000])
@pytest.mark.parametrize("shape", ["falls", "stands", "falls and stands", "rises", "spikes"])
def test_the_trend_is_that_of_weighted_least_squares(num, shape):
    t = np.arange(num)
    losses = (
        0.1 * noise(num)
        + {
            "falls": -0.15 * np.log(t + 10),
            "stands": 0.0 * t,
            "falls and stands": np.where(t < 10, 2.0, 0.0),
            "rises": 0.02 * np.log(t + 10),
            "spikes": np.where(t % 29 == 24, 7.0, 0.0),
        }[shape]
    )
    z, expected, has_fallen = trend_by_least_squares(losses)
    trend = trend_of(losses.tolist())
    assert trend._slope_in_errors == pytest.approx(z, rel=1e-6)
    assert trend.value == pytest.approx(expected, abs=1e-6)
    assert has_fallen or shape != "falls and stands" or num == 20
    assert not has_fallen or shape in ("falls", "falls and stands")


def test_of_the_first_twenty_losses_it_says_nothing():
    trend, values = LossTrend(), []
    for update in range(25):
        trend.add(-float(update), update)
        values.append(trend.value)
    assert values[:19] == [0.0] * 19
    assert min(values[19:]) > 0.9


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, 1.0), (1.0, -1.0), (-1e-9, 1.0), (1e-9, -1.0)])
def test_losses_on_a_line_are_beyond_doubt_and_losses_that_stand_still_say_nothing(slope, expected):
    """A line over the logarithm of the update."""
    for start in (0.0, 3.0):
        losses = [start + slope * math.log(update + 10) for update in range(300)]
        assert trend_of(losses[:20]).value == trend_of(losses).value == expected
        trend = trend_of([start] * 300)
        assert trend.value == 0.0
        trend.add(start + slope, 300)
        assert abs(trend.value) <= 1.0


def test_losses_of_one_update_say_nothing_about_time():
    assert trend_of([1.0, 0.9, 0.7] * 20, [5] * 60).value == 0.0


def test_before_the_loss_has_fallen_by_three_deviations_chance_is_no_reason_to_slow_down():
    """Without a slope: −½ where the loss has come down, 0 on a plateau."""
    flat = 0.1 * noise(400)
    flat[200:] = -flat[199::-1]  # no mean, and about no slope
    plateau = trend_of(flat.tolist())
    z = plateau._slope_in_errors
    assert abs(z) < 1
    for first, doubt in ((0.25, 0.0), (0.5, 1.0)):  # the deviation is about 0.1
        losses = flat.copy()
        losses[:10] += first - losses[:10].mean()
        trend = trend_of(losses.tolist())
        assert trend._slope_in_errors == pytest.approx(z, abs=0.1)
        assert trend.value == pytest.approx(-(trend._slope_in_errors + doubt) / 2, rel=1e-12)


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, -5.0), (2.0, 4.0), (1e6, 0.0)])
def test_neither_scale_nor_sign_of_the_loss_matter_to_the_trend(scale, offset):
    losses = [1.0 + 0.05 * each for each in noise(300)]
    losses[:30] = [loss + 0.5 for loss in losses[:30]]
    losses[250] = 50.0
    trend, expected = LossTrend(), LossTrend()
    values = []
    for update, loss in enumerate(losses):
        trend.add(scale * loss + offset, update)
        expected.add(loss, update)
        assert trend.value == pytest.approx(expected.value, abs=1e-6)
        values.append(expected.value)
    assert min(values) == -1.0 < 0.9 < max(values)


@pytest.mark.parametrize("extreme", [-1e308, 1e308])
def test_losses_too_far_apart_for_a_float_have_no_trend(extreme):
    trend = LossTrend()
    for update, loss in enumerate([1.0, extreme] * 20):
        trend.add(loss, update)
        assert trend.value == 0.0


def test_one_loss_that_stands_out_counts_as_six_deviations():
    losses = [*(1.0 + 0.1 * noise(200)).tolist()]
    mean, deviation = deviation_of(np.array(losses))
    before = trend_of(losses)
    pictures = []
    for spike in (mean + 6 * deviation, mean + 7 * deviation, 1e9):
        trend = trend_of([*losses, spike])
        pictures.append(list(trend.state_dict().values()))
    assert pictures[1] == pytest.approx(pictures[0], rel=1e-9)
    assert pictures[2] == pytest.approx(pictures[0], rel=1e-9)
    assert trend.mean == pytest.approx(before.mean + 6 * deviation / weights(201).sum(), rel=1e-9)
    low = trend_of([*losses, mean - 12 * deviation])  # a fall is no accident
    assert low.mean == pytest.approx(before.mean - 12 * deviation / weights(201).sum(), rel=1e-9)
