"""EdgeWarmup by itself; what it shares with the others is in test_common.py.

Ladder: closed form (quadratics, counts) → the rule written out in plain Python → the warmup against itself. Cannot see:
whether the rates it finds are good; the recipe `edge-warmup` measures that.
"""

import copy
import json
import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, OneCycleLR
from torch.utils._pytree import tree_leaves

from edgewise import EdgeWarmup, GIAdam, Status
from edgewise.signals.losses import RiseAlarm, Surge

H = torch.tensor([4.0, 1.0], dtype=torch.float64)  # curvatures: SGD is stable below 2/4


class Quadratic:
    """L(w) = ½ Σ h v² + noise·z·v, v = w − offset: the noise of batches, z of the step."""

    def __init__(self, make_optimizer, *, noise=0.0, offset=0.0):
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64) + offset)
        self.offset = offset
        self.optimizer = make_optimizer([self.w])
        self.noise = noise * torch.randn(
            2100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )

    def loss(self, step, w=None):
        v = (self.w if w is None else w) - self.offset
        return 0.5 * (H * v.square()).sum() + (self.noise[step] * v).sum()

    def gradient(self, step, w):
        return H * (w - self.offset) + self.noise[step]

    def train(self, warmup, steps, *, scheduler=None, give_loss=True, observed=lambda step: True):
        """Return the rates within the updates and the parameters before them."""
        rates, places = [], []
        hook = self.optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"]))
        )
        for step in steps:
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            places.append(self.w.detach().clone())
            if observed(step):
                warmup.observe(lambda step=step: self.loss(step), loss=loss if give_loss else None)
            self.optimizer.step()
            (scheduler or warmup).step()
        hook.remove()
        return rates, places


def sgd(lr, **kwargs):
    return lambda parameters: SGD(parameters, lr=lr, **kwargs)


# Where it starts


def test_it_starts_at_a_quarter_of_the_best_step_of_the_first_update():
    run = Quadratic(sgd(10.0), offset=100.0)  # an update of 1 % of the parameters is longer
    warmup = EdgeWarmup(run.optimizer)
    rates, _ = run.train(warmup, [0])
    # ΔL(η) = −η Σg² + ½η² Σh g², smallest at Σg²/Σh g² = 17/65
    best = 17 / 65
    assert warmup.found.status is Status.FOUND
    assert best / 3 < warmup.found.lr < 1.5 * best  # a parabola in log η through rates a factor of four apart
    assert rates[0] == pytest.approx(warmup.found.lr / 4, rel=1e-12)


@pytest.mark.parametrize(("momentum", "share"), [(0.0, 0.01), (0.75, 0.0025)])
def test_the_first_update_changes_the_parameters_by_a_hundredth_at_most(momentum, share):
    run = Quadratic(sgd(10.0, momentum=momentum))
    _, places = run.train(EdgeWarmup(run.optimizer), [0])
    assert (run.w.detach() - places[0]).norm() / places[0].norm() == pytest.approx(share, rel=1e-6)


def test_parameters_that_are_all_zero_have_no_hundredth():
    run = Quadratic(sgd(10.0), offset=-1.0)
    assert run.w.count_nonzero() == 0
    warmup = EdgeWarmup(run.optimizer)
    rates, _ = run.train(warmup, [0])
    assert rates[0] == pytest.approx(warmup.found.lr / 4, rel=1e-12)


def test_a_target_below_the_start_needs_no_warmup():
    run = Quadratic(sgd(0.01), offset=100.0)
    warmup = EdgeWarmup(run.optimizer)
    scheduler = warmup.then(LambdaLR(run.optimizer, lambda update: 0.5**update))
    rates, _ = run.train(warmup, range(4), scheduler=scheduler)
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    assert (warmup.status, warmup.length, warmup.lr_held) == (Status.AT_TARGET, 1, None)
    assert warmup.report().steps_to_target == 0
    assert warmup.report().num_forwards <= 4


# How it goes on


def trend(losses):
    """Return s after these losses, by weighted least squares over the explicit weights."""
    num, first, bounded, weights = len(losses), sum(losses[:10]) / 10, [], []
    if num < 20:
        return 0.0
    for i, loss in enumerate(losses):
        if i >= 20:
            mean, deviation = moments(bounded, weights)
            loss = min(loss, mean + 6 * deviation)  # noqa: PLW2901
        bounded.append(loss)
        kept = 1 - 1 / max(10, (i + 1) / 8)
        weights = [kept * weight for weight in weights] + [1.0]
    total, times = sum(weights), [math.log(update + 10) for update in range(num)]
    mean, deviation = moments(bounded, weights)
    middle = sum(w * x for w, x in zip(weights, times, strict=True)) / total
    spread = sum(w * (x - middle) ** 2 for w, x in zip(weights, times, strict=True)) / total
    slope = sum(w * (x - middle) * (y - mean) for w, x, y in zip(weights, times, bounded, strict=True)) / (
        total * spread
    )
    residual = (
        sum(
            w * (y - mean - slope * (x - middle)) ** 2
            for w, x, y in zip(weights, times, bounded, strict=True)
        )
        / total
    )
    num = total**2 / sum(w**2 for w in weights)
    doubt = 1.0 if first - mean > 3 * deviation else 0.0
    return max(-1.0, min(1.0, -(slope / math.sqrt(residual / spread / (num - 2)) + doubt) / 2))


def moments(losses, weights):
    """Return the weighted mean and the standard deviation, unbiased for weights of reliability."""
    total = sum(weights)
    mean = sum(w * y for w, y in zip(weights, losses, strict=True)) / total
    variance = sum(w * (y - mean) ** 2 for w, y in zip(weights, losses, strict=True)) / total
    return mean, math.sqrt(variance / (1 - sum(w**2 for w in weights) / total**2))


def rule(run, places, start, averages):
    """Return the factors by the equations of the docstring, the shares of the guard, and where the creep begins."""
    alarm, surge = RiseAlarm(), Surge()
    factors, creeps = [start], None
    at_end = at_start = deviation = 0.0
    share = 1.0
    mean = float(run.loss(0, places[0]))
    losses, deviations, shares = [mean], [], [1.0]
    alarm.add(mean)
    surge.add(mean)
    for t in range(1, len(places)):
        factor, here = factors[-1], float(run.loss(t, places[t]))
        losses.append(here)
        share = min(1.0, share * math.exp(0.3))
        excess = here - mean
        most = 6 * max(deviation, sum(deviations) / max(1, len(deviations)) / 100)
        if t >= 20 and excess > most:
            share, excess = min(share, most / excess), most
        alarm.add(here)
        surge.add(here)
        rises = alarm.rings or surge.value
        if surge.value:
            alarm.restart()
        mean += 0.1 * excess
        deviations.append(abs(excess))
        deviation += (abs(excess) - deviation) / min(t, 20)
        shares.append(share)
        growth = min(0.1, 2 / (t + 1)) * trend(losses)
        if creeps is None:
            step = places[t] - places[t - 1]
            at_start = 0.8 * at_start + 0.2 * abs(float(run.gradient(t - 1, places[t - 1]) @ step))
            at_end = 0.8 * at_end + 0.2 * float(run.gradient(t, places[t]) @ step)
            zeta = 0.5 * (1 + at_end / at_start)
            growth = max(0.0, 0.3 / averages * (1 - zeta / 0.6)) if growth >= 0 else 0.0
        factors.append(min(1.0, factor * math.exp(growth if share == 1 else min(0.0, growth))))
        factors[-1] *= 0.5 if rises else 1.0
        if creeps is None and ((t >= 5 and zeta >= 0.6) or factors[-1] == 1.0 or rises):
            creeps = t
    return factors, shares, creeps


@pytest.mark.parametrize("outliers", [[], [20, 45]], ids=["plain", "outliers"])
@pytest.mark.parametrize(
    ("make_optimizer", "averages"),
    [(sgd(5.0), 1), (lambda parameters: Adam(parameters, lr=5.0, betas=(0.7, 0.9)), 2)],
    ids=["sgd", "adam"],
)
def test_the_rates_are_those_of_the_rule_on_batches_not_yet_trained_on(make_optimizer, averages, outliers):
    run = Quadratic(make_optimizer, noise=0.1, offset=10.0)
    run.noise[outliers] *= 3000
    warmup = EdgeWarmup(run.optimizer)
    rates, places = run.train(warmup, range(60))
    factors, shares, creeps = rule(run, places, rates[0] / 5.0, averages)
    assert 5 < creeps < 50
    assert rates == pytest.approx(
        [5.0 * f * share for f, share in zip(factors, shares, strict=True)], rel=1e-9
    )
    assert warmup.export() == pytest.approx(factors, rel=1e-9)
    assert any(later < earlier for earlier, later in pairwise(factors))
    assert (min(shares) < 1) == bool(outliers)


def creeping(make_optimizer, *, noise=0.1, **kwargs):
    """Return a run whose climb is over, its warmup, and the number of updates so far."""
    run = Quadratic(make_optimizer, noise=noise)
    warmup = EdgeWarmup(run.optimizer, **kwargs)
    steps = 0
    while warmup.state_dict()["_climb_ended"] is None:
        run.train(warmup, [steps])
        steps += 1
    return run, warmup, steps


def test_a_loss_that_is_given_leaves_no_forward_but_those_of_the_start():
    run = Quadratic(sgd(5.0), noise=0.1)
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, [0])
    spent = warmup.num_forwards
    rates, _ = run.train(warmup, range(1, 300))
    assert max(rates) > 5 * rates[0]
    assert warmup.status is Status.HELD_BELOW_TARGET
    assert warmup.num_forwards == spent


def test_without_the_loss_it_is_evaluated_at_one_forward_an_update_and_the_rates_are_the_same():
    rates = []
    for give_loss in (True, False):
        run = Quadratic(sgd(5.0), noise=0.1)
        warmup = EdgeWarmup(run.optimizer, max_overhead=None)
        run.train(warmup, [0])  # the loss of the first update is that of the search
        spent = warmup.num_forwards
        run.train(warmup, range(1, 60), give_loss=give_loss)
        assert warmup.num_forwards - spent == (0 if give_loss else 59)
        rates.append(warmup.export())
    assert rates[0][:19] == rates[1][:19]  # by the slopes alone
    assert rates[1][-1] > 5 * rates[1][0]


def test_while_there_is_no_budget_to_see_the_loss_the_rate_does_not_rise():
    run = Quadratic(sgd(0.2, momentum=0.98), noise=0.01)
    warmup = EdgeWarmup(run.optimizer, max_overhead=0.02, num_steps=400)
    run.train(warmup, range(18), give_loss=False)
    warmup._start_to_creep()
    run.train(warmup, range(18, 150), give_loss=False)
    assert warmup.num_forwards == 24
    factors = warmup.export()
    unseen = factors[30:]
    assert all(later <= earlier for earlier, later in pairwise(unseen))


def test_the_climb_stands_still_while_the_loss_rises_whatever_the_slopes_say():
    """A rise too slow for the alarm."""
    run = Quadratic(sgd(0.2, momentum=0.98), noise=0.01)
    warmup = EdgeWarmup(run.optimizer)
    for step in range(32):
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()
        warmup.observe(lambda step=step: run.loss(step), loss=1.0 + 0.01 * (-1) ** step + 0.002 * step)
        run.optimizer.step()
        warmup.step()
    factors = warmup.export()
    assert warmup.state_dict()["_climb_ended"] is None
    assert factors[18] > factors[10]
    assert factors[24:] == [factors[24]] * (len(factors) - 24)


def test_updates_that_are_not_observed_let_it_grow_all_the_same():
    """A loader that ends early, or a loop that observes every third update."""
    run = Quadratic(sgd(5.0))
    warmup = EdgeWarmup(run.optimizer)
    rates, _ = run.train(warmup, range(13), observed=lambda step: step % 3 == 0)
    assert rates[1] == rates[2] == rates[0]
    assert math.exp(0.8) < rates[3] / rates[0] < math.exp(0.9)  # three updates at nearly 0.3
    assert rates[12] > rates[9] > rates[6]


def test_a_target_too_high_is_held_below_and_what_follows_is_scaled():
    run = Quadratic(sgd(50.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, num_steps=400)
    scheduler = warmup.then(CosineAnnealingLR(run.optimizer, T_max=100))
    rates, places = run.train(
        warmup, range(600), scheduler=scheduler, give_loss=False
    )  # no update takes a share
    assert warmup.status is Status.HELD_BELOW_TARGET
    assert warmup.lr_held < 2 / 4 * 1.5
    assert all(place.isfinite().all() for place in places)
    end = warmup.length
    assert rates[end] == pytest.approx(warmup.lr_held)
    decayed = [0.5 * warmup.lr_held * (1 + math.cos(math.pi * k / 100)) for k in range(100)]
    assert rates[end : end + 100] == pytest.approx(decayed, rel=1e-9)
    assert f"held below the target, at {warmup.lr_held:.4g}" in warmup.report().summary()
    assert warmup.report().lr_held == warmup.lr_held


def test_a_resumed_decay_goes_on_from_the_rate_that_was_held():
    run = Quadratic(sgd(50.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, num_steps=100)
    scheduler = warmup.then(CosineAnnealingLR(run.optimizer, T_max=100))
    run.train(warmup, range(200), scheduler=scheduler)
    assert scheduler.handed_over
    other = Quadratic(sgd(50.0), noise=1.0)
    again = EdgeWarmup(other.optimizer, num_steps=100)
    resumed = again.then(CosineAnnealingLR(other.optimizer, T_max=100))
    resumed.load_state_dict(scheduler.state_dict())
    with torch.no_grad():
        other.w.copy_(run.w)
    steps = range(200, 220)
    expected = run.train(warmup, steps, scheduler=scheduler)[0]
    assert other.train(again, steps, scheduler=resumed)[0] == expected
    assert again.lr_held == warmup.lr_held


def test_it_ends_where_the_rate_has_stood_for_a_third_of_the_updates_and_for_fifty():
    run = Quadratic(sgd(0.2))
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(120))
    reached = warmup.report().steps_to_target
    assert 0 < reached < 60
    assert (warmup.status, warmup.length) == (Status.AT_TARGET, reached + 50 + 1)


@pytest.mark.parametrize(("lr", "noise"), [(0.8, 0.1), (2.0, 0.1)])
def test_a_rate_that_falls_has_not_settled(lr, noise):
    run = Quadratic(sgd(lr), noise=noise)
    warmup = EdgeWarmup(run.optimizer, max_overhead=None)
    run.train(warmup, range(600))
    assert warmup.status is Status.HELD_BELOW_TARGET
    factors = warmup.export()
    last = len(factors) - 1
    stood = factors[math.floor(min(last - 50, last / 1.5)) :]
    assert max(stood) / min(stood) <= 1.2**2  # a fifth up, a fifth down
    assert factors[-1] < 0.8 * max(factors)


def test_it_ends_at_half_of_a_run_whose_length_is_known():
    run = Quadratic(sgd(0.2, momentum=0.98))  # climbs slowly
    warmup = EdgeWarmup(run.optimizer, num_steps=30)
    run.train(warmup, range(20))
    assert (warmup.status, warmup.length) == (Status.HELD_BELOW_TARGET, 16)


# Batches that stand out


def watched(*, outlier, skipped=()):
    """Return the rates before, within and after `optimizer.step()` of 300 updates, a cosine after 50 of them."""
    run = Quadratic(sgd(0.2, momentum=0.5), noise=0.01)
    run.noise[outlier] *= 1e4
    warmup = EdgeWarmup(run.optimizer, num_steps=100)
    scheduler = warmup.then(CosineAnnealingLR(run.optimizer, T_max=400))
    before, within, after = [], [], []
    for step in range(300):
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()
        warmup.observe(lambda step=step: run.loss(step), loss=loss)
        before.append(run.optimizer.param_groups[0]["lr"])
        if step not in skipped:
            hook = run.optimizer.register_step_pre_hook(
                lambda optimizer, *_: within.append(optimizer.param_groups[0]["lr"])
            )
            run.optimizer.step()
            hook.remove()
        scheduler.step()
        after.append(run.optimizer.param_groups[0]["lr"])
    assert scheduler.handed_over
    assert (warmup.report().num_spikes > 0) == bool(outlier)
    return before, within, after


def test_the_guard_stays_when_the_warmup_is_over_and_only_the_update_sees_it():
    before, within, after = watched(outlier=[250])
    undisturbed, same, _ = watched(outlier=[])
    assert before == undisturbed == same
    assert after[60:-1] == undisturbed[61:]
    assert within[:250] == undisturbed[:250]
    assert within[250] < 0.1 * undisturbed[250]
    assert all(within[t] < undisturbed[t] for t in range(250, 255))
    assert within[290:] == undisturbed[290:]


def test_a_step_that_is_skipped_or_raises_leaves_no_rate_behind():
    """As a GradScaler skips one where the gradients overflow, which the loss of such a batch may show."""
    before, _, _ = watched(outlier=[150], skipped=[150])
    undisturbed, _, _ = watched(outlier=[])
    assert before[:151] == undisturbed[:151]
    assert before[151:] == undisturbed[150:-1]
    run = Quadratic(sgd(0.2), noise=0.01)
    warmup = EdgeWarmup(run.optimizer, num_steps=20)
    run.train(warmup, range(100))
    full = run.optimizer.param_groups[0]["lr"]
    run.noise[100] = 100 * run.w.detach().sign()
    failing = run.optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train(warmup, [100])
    failing.remove()
    assert run.optimizer.param_groups[0]["lr"] < 0.5 * full
    run.noise[101] = 0.0
    run.train(warmup, [101])
    assert run.optimizer.param_groups[0]["lr"] == full


# Losses that rise for good


def recursive(optimizer):
    return CosineAnnealingLR(optimizer, T_max=400)


def closed_form(optimizer):
    return LambdaLR(optimizer, lambda update: 0.5 * (1 + math.cos(math.pi * update / 400)))


def shaken(at, *, cosine=closed_form, num_updates=220, give_loss=True, resumed=None):
    """Return a run with a cosine after 51 updates of warmup, at one of which the parameters are thrown far off."""
    rates = []
    run = Quadratic(sgd(0.02, momentum=0.5), noise=0.01)
    warmup = EdgeWarmup(run.optimizer, num_steps=100)
    scheduler = warmup.then(cosine(run.optimizer))
    for step in range(num_updates):
        if step == at:
            with torch.no_grad():
                run.w += 3.0
        if step == resumed:
            saved, where, state = scheduler.state_dict(), run.w.detach().clone(), run.optimizer.state_dict()
            run = Quadratic(sgd(0.02, momentum=0.5), noise=0.01)
            warmup = EdgeWarmup(run.optimizer, num_steps=100)
            scheduler = warmup.then(cosine(run.optimizer))
            run.optimizer.load_state_dict(state)
            scheduler.load_state_dict(saved)
            with torch.no_grad():
                run.w.copy_(where)
        rates += run.train(warmup, [step], scheduler=scheduler, give_loss=give_loss)[0]
    assert warmup.length == 51
    return rates, warmup


@pytest.mark.parametrize("cosine", [recursive, closed_form])
def test_where_the_loss_has_risen_after_the_warmup_what_follows_goes_on_at_half_the_rate(cosine):
    calm, _ = shaken(None, cosine=cosine)
    rates, warmup = shaken(120, cosine=cosine)
    halved = warmup.report().num_step_backs
    assert halved >= 1
    assert rates[:120] == calm[:120]
    assert rates[180:] == pytest.approx([rate * 0.5**halved for rate in calm[180:]], rel=1e-9)
    assert warmup.status is Status.HELD_BELOW_TARGET
    assert warmup.lr_held == pytest.approx(0.02 * 0.5**halved)
    assert f"halved {halved} times, as the loss rose" in warmup.report().summary()


@pytest.mark.parametrize("cosine", [recursive, closed_form])
def test_a_run_resumed_after_its_rate_was_halved_goes_on_at_the_same_rates(cosine):
    expected, warmup = shaken(120, cosine=cosine)
    for resumed in (122, 126, 160):
        rates, again = shaken(120, cosine=cosine, resumed=resumed)
        assert rates == expected
        assert again.report() == warmup.report()


def test_long_after_the_warmup_or_unseen_a_rise_halves_nothing():
    for at, give_loss in ((205, True), (120, False)):
        _, warmup = shaken(at, give_loss=give_loss)
        assert warmup.report().num_step_backs == 0
        assert (warmup.report().num_spikes > 0) == give_loss


@pytest.mark.parametrize(("at", "halved"), [(120, 1), (205, 0)])
def test_a_warmup_of_one_update_watches_over_two_hundred(at, halved):
    run = Quadratic(sgd(0.01), noise=0.01, offset=100.0)
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(at))
    assert (warmup.status, warmup.length) == (Status.AT_TARGET, 1)
    with torch.no_grad():
        run.w += 3.0
    run.train(warmup, range(at, at + 40))
    assert warmup.report().num_step_backs == halved
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**halved)


def test_a_climb_at_which_the_loss_rises_is_over():
    run = Quadratic(sgd(0.2, momentum=0.98), noise=0.01)  # climbs slowly
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(30))
    assert warmup.state_dict()["_climb_ended"] is None
    before = warmup.export()[-1]
    with torch.no_grad():
        run.w += 100.0
    steps = 30
    while not warmup.report().num_step_backs:
        run.train(warmup, [steps])
        steps += 1
    assert steps < 40
    assert warmup.state_dict()["_climb_ended"] == steps - 1
    assert warmup.export()[-1] <= 0.6 * before


def test_updates_that_move_nothing_say_nothing_and_the_climb_goes_on_after_them():
    runs = [Quadratic(sgd(5.0)) for _ in range(2)]
    warmups = [EdgeWarmup(run.optimizer) for run in runs]
    rates = [run.train(warmup, [0])[0] for run, warmup in zip(runs, warmups, strict=True)]
    run, warmup = runs[0], warmups[0]
    for _ in range(3):
        run.optimizer.zero_grad()
        loss = 0.0 * run.w.sum()
        loss.backward()
        warmup.observe(lambda: 0.0 * run.w.sum())
        run.optimizer.step()
        warmup.step()
    for k, (run, warmup) in enumerate(zip(runs, warmups, strict=True)):
        rates[k] += run.train(warmup, range(1, 8))[0]
    assert rates[0][-1] > 3 * rates[0][0]
    assert rates[1][-1] > 3 * rates[1][0]


def test_sparse_gradients_and_empty_parameters():
    table = nn.Embedding(5, 2, sparse=True)
    empty = nn.Parameter(torch.zeros(0))
    optimizer = SGD([*table.parameters(), empty], lr=10.0)
    warmup = EdgeWarmup(optimizer)
    for step in range(30):
        optimizer.zero_grad()
        loss = table(torch.tensor([step % 5, 1])).square().sum() + empty.sum()
        loss.backward()
        warmup.observe(lambda step=step: table(torch.tensor([step % 5, 1])).square().sum(), loss=loss)
        optimizer.step()
        warmup.step()
    assert warmup.fallback is None
    assert warmup.report().lr > 2 * warmup.report().lr_start


@pytest.mark.parametrize(
    "follow",
    [
        lambda optimizer: OneCycleLR(optimizer, max_lr=1.0, total_steps=10),
        lambda optimizer: CyclicLR(optimizer, base_lr=0.1, max_lr=1.0),
    ],
)
def test_a_follower_that_would_ignore_the_rate_that_was_held_is_refused(follow):
    run = Quadratic(sgd(1.0, momentum=0.9))
    warmup = EdgeWarmup(run.optimizer)
    with pytest.raises(TypeError, match="whose rates are its own"):
        warmup.then(follow(run.optimizer))


# What it costs


@pytest.mark.parametrize(("num_steps", "most"), [(None, 12), (200, 6)])
def test_forwards_stay_within_the_budget_of_the_run(num_steps, most):
    run = Quadratic(sgd(50.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, num_steps=num_steps, max_overhead=0.01)
    run.train(warmup, range(200), give_loss=False)
    assert warmup.num_forwards == most


def test_the_copy_of_the_parameters_is_given_up_when_the_climb_is_over():
    run, warmup = Quadratic(sgd(5.0), noise=0.1), None
    warmup = EdgeWarmup(run.optimizer)
    kept = []
    for step in range(60):
        run.train(warmup, [step])
        kept.append(len(warmup.state_dict()["rate_share"]["kept"]))
    over = warmup.state_dict()["_climb_ended"]
    assert 5 < over < 50
    assert kept == [1] * over + [0] * (60 - over)


def plain(value):
    """Return the value with lists of numbers in place of tensors."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("steps", [3, 40], ids=["climb", "creep"])
def test_a_state_is_not_touched_by_what_comes_later_and_loads_to_itself(steps):
    run = Quadratic(sgd(5.0), noise=0.1)
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(steps))
    saved = warmup.state_dict()
    then = plain(saved)
    run.train(warmup, range(steps, steps + 9))
    assert plain(saved) == then
    other = EdgeWarmup(Quadratic(sgd(5.0)).optimizer)
    other.load_state_dict(saved)
    assert plain(other.state_dict()) == then


# In use


class Classifier:
    """A network with BatchNorm and dropout that finds the largest of three numbers, in batches of eight."""

    def __init__(self, *, accumulate=1, clip=None, autocast=False):
        self.accumulate, self.clip, self.autocast = accumulate, clip, autocast
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )
        self.optimizer = AdamW(
            [
                {"params": self.model[0].parameters(), "lr": 1.0},
                {"params": [p for layer in self.model[1:] for p in layer.parameters()], "lr": 0.1},
            ],
            weight_decay=0.1,
        )
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(400, 8, 6, generator=generator)
        self.labels = self.inputs[..., :3].argmax(-1)

    def loss(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            outputs = self.model(self.inputs[batch])
        return nn.functional.cross_entropy(outputs.float(), self.labels[batch])

    def train(self, steps, warmup=None, factors=None):
        """Train with a warmup, or with given factors on the target rates."""
        targets = [group["lr"] for group in self.optimizer.param_groups]
        for step in range(steps):
            batches = [self.accumulate * step + micro for micro in range(self.accumulate)]
            self.optimizer.zero_grad()
            losses = [self.loss(batch) / len(batches) for batch in batches]
            for loss in losses:
                loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            if warmup is not None:
                warmup.observe(
                    lambda batches=batches: sum(self.loss(batch) for batch in batches) / len(batches),
                    loss=sum(loss.detach() for loss in losses),
                )
            else:
                for group, target in zip(self.optimizer.param_groups, targets, strict=True):
                    group["lr"] = target * factors[step]
            self.optimizer.step()
            if warmup is not None:
                warmup.step()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"accumulate": 3}, {"clip": 0.1}, {"autocast": True}],
    ids=["plain", "accumulation", "clipping", "autocast"],
)
def test_it_sets_the_rates_and_nothing_else(kwargs):
    """Dropout, BatchNorm, weight decay, several groups: the same rates, set by hand, end at the same bits."""
    run = Classifier(**kwargs)
    warmup = EdgeWarmup(run.optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = run.train(100, warmup)
    assert warmup.fallback is None
    factors = [warmup.factor_at(update) for update in range(100)]
    assert len({round(factor, 9) for factor in factors}) > 10
    assert max(factors) > 3 * factors[0]
    again = Classifier(**kwargs).train(100, factors=factors)
    assert all(torch.equal(ends[name], again[name]) for name in ends)


def test_an_optimizer_that_a_scaler_feeds_climbs_as_without_one():
    """Powers of two scale gradients exactly; the loss scale grows under way."""
    rates = []
    for scale in (1.0, 2.0**10):
        run = Quadratic(sgd(5.0))
        warmup = EdgeWarmup(run.optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4, enabled=scale > 1)
        seen = []
        for step in range(12):
            run.optimizer.zero_grad()
            loss = run.loss(step)
            scaler.scale(loss).backward()
            scaler.unscale_(run.optimizer)
            warmup.observe(lambda run=run, step=step: run.loss(step), loss=loss)
            seen.append(run.optimizer.param_groups[0]["lr"])
            scaler.step(run.optimizer)
            scaler.update()
            warmup.step()
        rates.append(seen)
    assert rates[0] == rates[1]


# When it doubts

LENGTHS = [
    (sgd(1.0), None, 200),
    (sgd(1.0), 250, 25),
    (lambda parameters: Adam(parameters, lr=1.0), None, 2000),
    (lambda parameters: AdamW(parameters, lr=1.0, betas=(0.9, 0.95)), None, 40),
    (lambda parameters: GIAdam(parameters, lr=1.0), 70, 7),
]


@pytest.mark.parametrize(("make_optimizer", "num_steps", "length"), LENGTHS)
def test_without_a_closure_it_is_linear_warmup_of_a_sensible_length(make_optimizer, num_steps, length):
    run = Quadratic(make_optimizer)
    warmup = EdgeWarmup(run.optimizer, num_steps=num_steps)
    with pytest.warns(UserWarning, match="nothing was measured before the first update") as caught:
        rates, _ = run.train(warmup, range(length + 3), observed=lambda step: False)
    assert len(caught) == 1
    assert warmup.status is Status.FELL_BACK
    expected = [min(1.0, max(1, update) / length) for update in range(length + 3)]
    assert rates == pytest.approx(
        [min(1.0, (update + 1) / length) for update in range(length + 3)], abs=1.01 / length
    )
    assert rates[0] == pytest.approx(expected[0])
    assert rates[-1] == 1.0


def test_a_first_update_that_does_not_lower_the_loss_is_a_reason_to_fall_back():
    run = Quadratic(sgd(1.0))
    warmup = EdgeWarmup(run.optimizer)
    run.loss(0).backward()
    run.w.grad.neg_()
    with pytest.warns(UserWarning, match="shows no scale for the rate, the gradients are not this loss's"):
        warmup.observe(lambda: run.loss(0))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be"),
        ({"max_overhead": 0.0}, ValueError, "max_overhead must be"),
    ],
)
def test_bad_input_is_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        EdgeWarmup(Quadratic(sgd(1.0)).optimizer, **kwargs)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused():
    with pytest.raises(TypeError, match="LBFGS evaluates the loss inside its step"):
        EdgeWarmup(LBFGS([nn.Parameter(torch.ones(1))]))


# States without copies of the parameters


def tensors_in(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("steps", [0, 1, 3, 40, 300], ids=["fresh", "first", "climb", "creep", "over"])
def test_a_state_without_copies_holds_no_tensors_and_else_the_same(steps):
    states = []
    for saves in (True, False):
        run = Quadratic(sgd(5.0), noise=0.1)
        warmup = EdgeWarmup(run.optimizer, saves_copies=saves)
        run.train(warmup, range(steps))
        states.append(warmup.state_dict())
    whole, without = states
    assert tensors_in(without) == []
    assert (len(tensors_in(whole)) > 0) == (0 < steps < 40)
    assert without == whole | {"rate_share": whole["rate_share"] | {"kept": [], "moved": False}}
    json.dumps(without)


@pytest.mark.parametrize("steps", [1, 3, 40], ids=["first", "climb", "creep"])
@pytest.mark.parametrize(
    "saves", [(False, False), (False, True), (True, False)], ids=["never", "into", "from"]
)
def test_a_run_that_is_resumed_without_copies_measures_anew(steps, saves):
    """No copy is taken over, none is missed: the first gradients have nothing to compare with."""
    run = Quadratic(sgd(5.0), noise=0.1)
    warmup = EdgeWarmup(run.optimizer, saves_copies=saves[0])
    run.train(warmup, range(steps))
    other = Quadratic(sgd(5.0), noise=0.1)
    again = EdgeWarmup(other.optimizer, saves_copies=saves[1])
    again.load_state_dict(copy.deepcopy(warmup.state_dict()))
    with torch.no_grad():
        other.w.copy_(run.w)
    assert again._climb.slopes.kept == []
    rates = other.train(again, [steps])[0]
    expected = run.train(warmup, [steps])[0]
    if steps == 40:  # it creeps on by the losses so far
        assert rates == expected
    else:
        assert rates[0] == warmup.factor_at(steps - 1) * 5.0  # no slope, no growth
        assert len(again._climb.slopes.kept) == 1
    other.train(again, range(steps + 1, 400))
    assert again.fallback is None
    assert again.status is Status.HELD_BELOW_TARGET
    assert 0.2 < again.lr_held < 0.75  # SGD is stable below 0.5


def test_copies_are_saved_unless_told_otherwise_and_another_word_is_refused():
    run = Quadratic(sgd(5.0))
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(3))
    assert len(tensors_in(warmup.state_dict())) == 1
    for wrong in (1, "no"):
        with pytest.raises(TypeError, match="saves_copies must be True or False"):
            EdgeWarmup(run.optimizer, saves_copies=wrong)
