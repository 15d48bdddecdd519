"""A warmup followed by another scheduler.

Ladder: independent library (torch's SequentialLR on the same two parts, rate by rate) → closed form. Cannot
see: a follower that torch itself computes wrongly.
"""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from edgewise import LinearWarmup
from edgewise.warmup.then import WarmupThen

FOLLOWERS = {
    "cosine": lambda o: CosineAnnealingLR(o, T_max=7),
    "step": lambda o: StepLR(o, step_size=2, gamma=0.5),
    "lambda": lambda o: LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "exponential": lambda o: ExponentialLR(o, gamma=0.9),
    "multiplicative": lambda o: MultiplicativeLR(o, lambda epoch: 0.9),
    "linear": lambda o: LinearLR(o, start_factor=0.5, total_iters=3),
}
every_follower = pytest.mark.parametrize("follower", FOLLOWERS.values(), ids=FOLLOWERS.keys())


def make_optimizer(lrs=(0.1, 0.4)):
    return SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def rates_of(optimizer, scheduler, steps):
    """The rates that the next updates run at, all groups."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        assert [float(lr) for lr in scheduler.get_last_lr()] == rates[-1]
        optimizer.step()
        scheduler.step()
    return rates


def check_equal(got, wanted):
    """Fewer than 20 products of float64 factors."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


@every_follower
@pytest.mark.parametrize("warmup_steps", [1, 2, 5])
@pytest.mark.parametrize("lr_init", [0.0, 0.05])
def test_then_equals_torchs_sequential(follower, warmup_steps, lr_init):
    ours = make_optimizer()
    scheduler = LinearWarmup(ours, warmup_steps=warmup_steps, lr_init=lr_init).then(follower(ours))
    theirs = make_optimizer()
    f = lr_init / 0.1
    with warnings.catch_warnings():  # its constructor steps its parts
        warnings.simplefilter("ignore")
        parts = [LambdaLR(theirs, lambda u: f + (1 - f) * min(1, (u + 1) / warmup_steps)), follower(theirs)]
        sequential = SequentialLR(theirs, parts, milestones=[warmup_steps])
    check_equal(rates_of(ours, scheduler, 15), rates_of(theirs, sequential, 15))


@every_follower
def test_the_order_of_construction_does_not_matter(follower):
    first, second = make_optimizer(), make_optimizer()
    warmup = LinearWarmup(first, warmup_steps=3)
    after = warmup.then(follower(first))
    ready = follower(second)
    before = LinearWarmup(second, warmup_steps=3)
    if follower is FOLLOWERS["linear"]:
        # LinearLR writes its own first rate when it is made: what the warmup sees as target is initial_lr
        assert [g["initial_lr"] for g in second.param_groups] == [0.1, 0.4]
    check_equal(rates_of(second, before.then(ready), 12), rates_of(first, after, 12))


def test_a_cosine_in_closed_form():
    optimizer = make_optimizer((1.0,))
    scheduler = LinearWarmup(optimizer, warmup_steps=4).then(
        CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    )
    expected = [0.25, 0.5, 0.75, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert [rate for (rate,) in rates_of(optimizer, scheduler, 14)] == pytest.approx(expected)


def quadratic_run(scheduler, warmup, model, optimizer, steps):
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = lambda: 2 * model.weight.square().sum()
        loss().backward()
        warmup.observe(loss)
        rates.append(float(optimizer.param_groups[0]["lr"]))
        assert [float(lr) for lr in scheduler.get_last_lr()] == rates[-1:]
        optimizer.step()
        scheduler.step()
    return rates


def critical_start(lr=1.0, follower=lambda o: StepLR(o, step_size=2, gamma=0.5)):
    """L = 2w²: η_c = 1/2, target 1, T = 8: reached after at most 4 updates."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = SGD(model.parameters(), lr=lr)
    warmup = LinearWarmup(optimizer, warmup_steps=8, lr_init="critical")
    return model, optimizer, warmup, warmup.then(follower(optimizer))


def test_the_follower_begins_at_the_planned_length_also_after_a_critical_start():
    model, optimizer, warmup, scheduler = critical_start()
    rates = quadratic_run(scheduler, warmup, model, optimizer, 13)
    start = warmup.start.lr
    reach = math.ceil(8 * (1 - start))
    assert reach <= 4
    held = [1] * (8 - reach)
    expected = [start + update / 8 for update in range(reach)] + held + [1, 1, 0.5, 0.5, 0.25]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("target", [1.0, 0.4])  # above η_c = 0.5, and below
def test_a_cosine_over_the_rest_of_the_run_never_rises_again_after_a_critical_start(target):
    total = 20
    model, optimizer, warmup, scheduler = critical_start(
        target, follower=lambda o: CosineAnnealingLR(o, T_max=total - 8)
    )
    rates = quadratic_run(scheduler, warmup, model, optimizer, total)
    decay = rates[warmup.steps_to_target :]
    assert decay == sorted(decay, reverse=True)
    expected = [target * (1 + math.cos(math.pi * t / 12)) / 2 for t in range(12)]
    assert rates[8:] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup_steps", [1, 8, 19])
def test_a_cosine_over_the_rest_of_the_run_never_rises_again(warmup_steps):
    optimizer = make_optimizer((1.0,))
    warmup = LinearWarmup(optimizer, warmup_steps=warmup_steps)
    scheduler = warmup.then(CosineAnnealingLR(optimizer, T_max=20 - warmup_steps))
    rates = [rate for (rate,) in rates_of(optimizer, scheduler, 20)]
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    assert rates[warmup_steps - 1 :] == sorted(rates[warmup_steps - 1 :], reverse=True)


@pytest.mark.parametrize("order", [("optimizer", "scheduler"), ("scheduler", "optimizer")])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 9])
@every_follower
def test_a_resumed_run_has_the_same_rates(follower, stop, order, tmp_path):
    def make():
        optimizer = make_optimizer()
        return optimizer, LinearWarmup(optimizer, warmup_steps=4).then(follower(optimizer))

    optimizer, scheduler = make()
    rates_of(optimizer, scheduler, stop)
    torch.save(
        {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "checkpoint.pt"
    )
    tail = rates_of(optimizer, scheduler, 12)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    optimizer, scheduler = make()
    for part in order:
        {"optimizer": optimizer, "scheduler": scheduler}[part].load_state_dict(saved[part])
    assert rates_of(optimizer, scheduler, 12) == tail


@pytest.mark.parametrize("stop", [1, 3, 6, 8, 10])
def test_a_resumed_critical_start_has_the_same_rates(stop):
    model, optimizer, warmup, scheduler = critical_start()
    quadratic_run(scheduler, warmup, model, optimizer, stop)
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    model2, optimizer2, warmup2, scheduler2 = critical_start()
    for part, state in zip((model2, optimizer2, scheduler2), saved, strict=True):
        part.load_state_dict(state)
    tail = quadratic_run(scheduler, warmup, model, optimizer, 8)
    assert quadratic_run(scheduler2, warmup2, model2, optimizer2, 8) == tail


@every_follower
def test_tensor_rates_are_filled_in_place(follower):
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = Adam([nn.Parameter(torch.ones(1))], lr=rate, foreach=False)
    scheduler = LinearWarmup(optimizer, warmup_steps=3).then(follower(optimizer))
    plain = make_optimizer((0.1,))
    expected = rates_of(plain, LinearWarmup(plain, warmup_steps=3).then(follower(plain)), 9)
    check_equal(rates_of(optimizer, scheduler, 9), expected)
    assert optimizer.param_groups[0]["lr"] is rate


def test_then_makes_a_scheduler():
    optimizer = make_optimizer()
    scheduler = LinearWarmup(optimizer, warmup_steps=3).then(StepLR(optimizer, 1))
    assert isinstance(scheduler, WarmupThen)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)


def used(scheduler):
    scheduler.optimizer.step()
    scheduler.step()
    return scheduler


@pytest.mark.parametrize(
    ("follower", "error", "message"),
    [
        (ReduceLROnPlateau, TypeError, "whose step\\(\\) needs no metric, got ReduceLROnPlateau"),
        (
            lambda o: ChainedScheduler([StepLR(o, 1), ExponentialLR(o, 0.9)]),
            TypeError,
            "takes a single LRScheduler .*got ChainedScheduler: write compound schedules as one LambdaLR",
        ),
        (
            lambda o: SequentialLR(o, [StepLR(o, 1), ExponentialLR(o, 0.9)], milestones=[2]),
            TypeError,
            "takes a single LRScheduler .*got SequentialLR: write compound schedules as one LambdaLR",
        ),
        (lambda o: "cosine", TypeError, "got str"),
        (lambda o: o, TypeError, "got SGD"),
        (lambda o: StepLR(make_optimizer(), 1), ValueError, "on the same optimizer, got one on another"),
        (lambda o: used(StepLR(o, 1)), ValueError, "before the first step"),
    ],
)
def test_a_bad_follower_is_refused(follower, error, message):
    optimizer = make_optimizer()
    warmup = LinearWarmup(optimizer, warmup_steps=3)
    with pytest.raises(error, match=message):
        warmup.then(follower(optimizer))


def test_then_is_called_once_and_before_the_first_step():
    optimizer = make_optimizer()
    warmup = LinearWarmup(optimizer, warmup_steps=3)
    warmup.then(StepLR(optimizer, 1))
    with pytest.raises(
        ValueError,
        match=r"already called on this warmup: write what follows as one scheduler, e\.g\. LambdaLR",
    ):
        warmup.then(StepLR(optimizer, 1))
    late = used(LinearWarmup(make_optimizer(), warmup_steps=3))
    with pytest.raises(ValueError, match="before the first step"):
        late.then(StepLR(late.optimizer, 1))


def test_the_state_of_another_length_is_refused():
    states = []
    for warmup_steps in (3, 4):
        optimizer = make_optimizer()
        states.append(LinearWarmup(optimizer, warmup_steps=warmup_steps).then(StepLR(optimizer, 1)))
    with pytest.raises(ValueError, match="warmup_steps = 3, this warmup has 4"):
        states[1].load_state_dict(states[0].state_dict())
