"""The watch over losses: one stands out, they rise for good, surge, fall, or are not finite.

Ladder: each signal by itself (tests/signals) on the same losses. Cannot see: what a warmup makes of it.
"""

import math

import pytest

from edgewise.signals.losses import LossTrend, RiseAlarm, SpikeGuard
from edgewise.warmup.watch import LossWatch

CALM = [1.0, 1.2, 0.8, 1.1] * 30


def watching(losses):
    """Return the shares, and at which losses the rate is to be halved."""
    watch, shares, rises = LossWatch(), [], []
    for update, loss in enumerate(losses):
        watch.add(loss, update, recovery=0.3)
        shares.append(watch.share)
        rises += [update] * watch.rises
    return shares, rises


def test_it_says_what_guard_and_alarm_say():
    losses = [*CALM, 30.0, *CALM, *[5.0] * 20]
    guard, alarm, shares, rings = SpikeGuard(), RiseAlarm(), [], []
    for update, loss in enumerate(losses):
        guard.add(loss, recovery=0.3)
        alarm.add(loss)
        shares.append(guard.share)
        rings += [update] * alarm.rings
    assert watching(losses) == (shares, rings)
    assert min(shares) < 1
    assert rings != []


def test_two_losses_that_surge_halve_at_once_and_the_alarm_knows():
    """Where there are too few losses for an alarm; it does not ring once more for what is known."""
    assert watching([*CALM[:8], 5.0, 5.1, *CALM[:40]])[1] == [9]
    for high in ([5.0] * 60, [5.0, 5.2] * 30):
        assert watching([*CALM[:18], *high])[1] == [19]


def test_a_single_loss_that_stands_out_is_no_surge():
    assert watching([*CALM, 50.0, *CALM])[1] == []


def test_the_trend_is_that_of_the_finite_losses_at_their_updates():
    watch, trend = LossWatch(), LossTrend()
    for update, loss in enumerate([*CALM[:40], math.nan, *CALM[:40]]):
        watch.add(loss - 0.02 * update, 3 * update, recovery=0.3)
        if math.isfinite(loss):
            trend.add(loss - 0.02 * update, 3 * update)
    assert watch.trend.value == trend.value > 0


def test_a_loss_that_is_not_finite_is_no_average_and_halves_where_its_update_was_made():
    shares, rises = watching([*CALM, math.nan, *CALM])
    assert rises == [len(CALM) + 1]
    assert shares == [1.0] * len(shares)


def test_an_alarm_that_rang_rings_no_longer_at_a_loss_that_is_not_finite():
    watch = LossWatch()
    for update, loss in enumerate([*CALM, *[5.0] * 20]):
        watch.add(loss, update, recovery=0.3)
        if watch.rises:
            break
    assert watch.rises
    watch.add(math.nan, update + 1, recovery=0.3)
    assert watch.alarm.rings
    assert not watch.rises


@pytest.mark.parametrize(("end", "last"), [(1, 199), (50, 199), (51, 203), (1000, 3999)], ids=str)
def test_it_lasts_for_four_lengths_of_the_warmup_of_fifty_updates_at_least(end, last):
    watch = LossWatch()
    assert watch.lasts(None, 10**9)
    assert watch.lasts(end, last)
    assert not watch.lasts(end, last + 1)
