"""What passes is no event: batches and gradients that say nothing, and what has changed them since.

Ladder: each warmup against itself without the event → torch's own clipping and GradScaler. Cannot see: accelerators.
"""

import functools
import math
import pickle
import warnings

import lion_pytorch
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop

from edgewise import CatapultWarmup, EdgeWarmup, GIAdamW, LinearWarmup, LossError, Status, critical_lr

WARMUPS = {
    "critical": functools.partial(LinearWarmup, warmup_steps=20, lr_init="critical"),
    "catapult": functools.partial(CatapultWarmup, patience=60),
    "edge": functools.partial(EdgeWarmup, num_steps=400),
}
OPTIMIZERS = {
    **{
        f"{cls.__name__}, {kernel}": functools.partial(cls, **options)
        for cls, kernels in (
            (SGD, ("default", "foreach", "fused")),
            (Adam, ("default", "foreach", "fused")),
            (AdamW, ("default", "foreach", "fused")),
            (GIAdamW, ("default", "foreach", "fused")),
            (Adagrad, ("default", "foreach", "fused")),
            (RMSprop, ("default", "foreach")),
            (NAdam, ("default", "foreach")),
        )
        for kernel in kernels
        for options in ({"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}[kernel],)
    },
    "SGD, momentum": functools.partial(SGD, momentum=0.9),
    "Lion": lion_pytorch.Lion,
}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
every_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


class Run:
    """A small network in float32; `spoil(t)` is called between `backward` and `observe`."""

    def __init__(self, make_optimizer=SGD, lr=0.5):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = make_optimizer(self.model.parameters(), lr=lr)
        self.inputs = torch.randn(1000, 16, 4)

    def loss(self, step):
        x = self.inputs[step]
        return (self.model(x) - x.sum(1, keepdim=True).sin()).square().mean()

    def fill(self, value):
        for p in self.model.parameters():
            p.grad.fill_(value)

    def train(
        self,
        warmup,
        steps,
        *,
        factor=lambda t: 1.0,
        spoil=lambda t: None,
        late=lambda t: None,
        skips=(),
        **given,
    ):
        """Return the rates of the updates; those in `skips` are not made."""
        rates = []
        for t in steps:
            self.optimizer.zero_grad()
            loss = self.loss(t) * factor(t)
            loss.backward()
            spoil(t)
            closure = lambda t=t: self.loss(t) * factor(t)
            warmup.observe(closure, **(given or {"loss": loss.detach()}))
            late(t)
            rates.append(self.optimizer.param_groups[0]["lr"])
            if t not in skips:
                self.optimizer.step()
            warmup.step()
        return rates


# Gradients that nothing can be measured with


@every_optimizer
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf, 1e-44, 1e38])
def test_critical_lr_says_that_there_is_no_rate(make_optimizer, value):
    run = Run(make_optimizer, lr=1e-3)
    run.loss(0).backward()
    run.fill(value)
    found = critical_lr(run.model, run.optimizer, lambda model, t: run.loss(t), 0, gradient="current")
    assert found.status not in (Status.FOUND, Status.MULTIPLE_CROSSINGS)
    if value == 0 or not math.isfinite(value):
        assert found.status is Status.NOT_A_DESCENT_DIRECTION


@every_warmup
@every_optimizer
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_first_update_that_says_nothing_is_waited_out(make, make_optimizer, value):
    """What is then measured is the first update that can be, as if the warmup had begun there."""
    skips = range(3) if value else ()
    run = Run(make_optimizer, lr=0.01)
    warmup = make(run.optimizer)
    rates = run.train(warmup, range(3), spoil=lambda t: run.fill(value), skips=skips)
    assert warmup.fallback is None
    assert warmup.num_forwards == 0
    assert all(0 < rate <= 0.01 for rate in rates)
    rates += run.train(warmup, range(3, 12))
    assert warmup.fallback is None
    assert (warmup.start if isinstance(warmup, LinearWarmup) else warmup.found) is not None
    if value == 0.0 and run.optimizer.state:  # its averages have seen zeros
        return
    alone = Run(make_optimizer, lr=0.01)
    fresh = make(alone.optimizer)
    assert rates[3:6] == pytest.approx(alone.train(fresh, range(3, 12))[:3], rel=1e-6)


@every_warmup
@pytest.mark.parametrize("given", [{}, {"loss": None}], ids=["loss", "no loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_first_loss_that_is_not_finite_is_waited_out(make, value, given):
    run = Run()
    warmup = make(run.optimizer)
    run.train(warmup, range(2), factor=lambda t: value, skips=range(2), **given)
    run.train(warmup, range(2, 6), **given)
    assert warmup.fallback is None
    assert (warmup.start if isinstance(warmup, LinearWarmup) else warmup.found) is not None


@every_warmup
def test_waiting_has_an_end_and_a_reason(make):
    run = Run(lr=0.01)
    warmup = make(run.optimizer)
    with pytest.warns(UserWarning, match="goes on as plain linear warmup"):
        rates = run.train(warmup, range(210), spoil=lambda t: run.fill(0.0))
    assert warmup.fallback is not None
    assert rates[0] == rates[10] < rates[-1] <= 0.01
    assert warmup.num_forwards == 0


def test_a_critical_start_that_had_to_wait_ends_as_much_later():
    run = Run(lr=2.0)
    warmup = LinearWarmup(run.optimizer, warmup_steps=20, lr_init="critical")
    scheduler = warmup.then(torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda update: 0.5**update))
    rates = []
    for t in range(30):
        run.optimizer.zero_grad()
        run.loss(t).backward()
        if t < 5:
            run.fill(0.0)
        warmup.observe(lambda t=t: run.loss(t))
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.optimizer.step()
        scheduler.step()
    start = warmup.start.lr
    assert rates[:5] == [0.1] * 5
    assert rates[5:25] == pytest.approx([min(2.0, start + 0.1 * k) for k in range(20)])
    assert rates[25:] == pytest.approx([2.0 * 0.5**k for k in range(5)])
    assert warmup.steps_to_target == rates.index(2.0)


@every_warmup
def test_a_state_taken_while_it_waits_goes_on_waiting(make):
    run = Run(lr=0.01)
    warmup = make(run.optimizer)
    run.train(warmup, range(3), spoil=lambda t: run.fill(0.0))
    state = warmup.state_dict()
    warmup.close()
    again = make(run.optimizer)
    again.load_state_dict(state)
    run.train(again, range(3, 6))
    assert again.fallback is None


def test_a_closure_that_is_not_finite_where_the_gradients_are_is_an_error():
    run = Run()
    warmup = EdgeWarmup(run.optimizer, max_overhead=None)
    late = lambda t: t >= 40 and run.fill(1e-3)
    with pytest.raises(LossError, match="is nan"):
        run.train(
            warmup,
            range(60),
            factor=lambda t: 1.0 if t < 40 else math.nan,
            loss=None,
            spoil=late,
        )


# Losses that are not finite


@pytest.mark.parametrize("make", [WARMUPS["catapult"], WARMUPS["edge"]], ids=["catapult", "edge"])
@pytest.mark.parametrize("make_optimizer", [SGD, Adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("at", [1, 9, 30, 60])
def test_a_skipped_batch_changes_no_rate(make, make_optimizer, at):
    def rates(spoiled):
        run = Run(make_optimizer, lr=0.2)
        warmup = make(run.optimizer)
        steps = [t for t in range(80) if spoiled or t != at]
        seen = run.train(warmup, steps, factor=lambda t: math.nan if t == at else 1.0, skips=[at])
        assert warmup.fallback is None
        return [rate for t, rate in zip(steps, seen, strict=True) if t != at]

    assert rates(True) == rates(False)


@pytest.mark.parametrize("make", [WARMUPS["catapult"], WARMUPS["edge"]], ids=["catapult", "edge"])
@pytest.mark.parametrize("made", [False, True], ids=["three skipped", "one made"])
def test_an_event_halves_the_rate_and_leaves_the_rest_on(make, made):
    """An update that was made on a loss that is not finite, by finite gradients; or three such losses in a row."""
    run = Run(Adam, lr=0.2)
    warmup = make(run.optimizer)
    run.train(warmup, range(20))
    before, halved = run.optimizer.param_groups[0]["lr"], warmup.report().num_step_backs
    bad = [20] if made else [20, 21, 22]
    for t in (20, 21, 22):
        run.optimizer.zero_grad()
        run.loss(t).backward()
        warmup.observe(lambda t=t: run.loss(t), loss=math.nan if t in bad else run.loss(t).item())
        if made or t not in bad:
            run.optimizer.step()
            warmup.step()
    assert warmup.report().num_step_backs == halved + 1
    assert run.optimizer.param_groups[0]["lr"] < 0.9 * before
    assert warmup.fallback is None


def test_the_alarm_is_still_on_after_one():
    """The loss rises for good when the rate has become too high, which a NaN before must not hide."""
    run = Run(lr=0.05)
    warmup = EdgeWarmup(run.optimizer, num_steps=200)
    run.train(warmup, range(120), factor=lambda t: math.nan if t == 40 else 1.0, skips=[40])
    halved = warmup.report().num_step_backs
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(3.0)
    run.train(warmup, range(120, 150))
    assert warmup.report().num_step_backs > halved


def test_losses_that_rise_for_ever_end_edge_warmup_above_a_floor():
    run = Run(lr=0.2)
    warmup = EdgeWarmup(run.optimizer, max_overhead=None)
    run.train(warmup, range(30))
    start = warmup.report().lr_start
    with pytest.warns(UserWarning, match="something else raises the loss"):
        rates = run.train(warmup, range(30, 900), factor=lambda t: 1.05 ** min(t, 1500))
    assert min(rates) >= start / 2**9
    assert warmup.fallback is None


# Gradients that change between observe and the step

CLIPPING = {
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
    "scaled": lambda model: [p.grad.mul_(0.5) for p in model.parameters()],
    "replaced": lambda model: [setattr(p, "grad", 2 * p.grad) for p in model.parameters()],
    "gone": lambda model: model.zero_grad(),
    "noise": lambda model: [p.grad.add_(torch.ones_like(p)) for p in model.parameters()],
}
every_clipping = pytest.mark.parametrize("clip", CLIPPING.values(), ids=CLIPPING.keys())


def told(make, make_optimizer=SGD, **hooks):
    """Return how often a run says that gradients were changed, by hooks that take the model."""
    run = Run(make_optimizer, lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train(
            make(run.optimizer), range(15), **{name: lambda t, f=f: f(run.model) for name, f in hooks.items()}
        )
    return sum("clip them" in str(w.message) for w in caught)


@every_warmup
@every_clipping
@pytest.mark.parametrize("make_optimizer", [SGD, Adam], ids=["sgd", "adam"])
def test_gradients_that_change_after_observe_are_told_once(make, clip, make_optimizer):
    assert told(make, make_optimizer, late=clip) == 1


@every_warmup
def test_clipping_before_observe_or_that_changes_nothing_is_fine(make):
    none = lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e3)
    hardly = lambda model: [p.grad.mul_(0.999) for p in model.parameters()]
    same = lambda model: [setattr(p, "grad", p.grad.clone()) for p in model.parameters()]
    for hooks in ({"spoil": CLIPPING["norm"]}, {"late": none}, {"late": hardly}, {"late": same}):
        assert told(make, **hooks) == 0


@every_warmup
@pytest.mark.parametrize("first", [True, False], ids=["registered before", "registered after"])
def test_a_hook_of_the_step_that_clips_is_told(make, first):
    run = Run(lr=0.1)
    clip = lambda *_: nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3) and None
    if first:
        run.optimizer.register_step_pre_hook(clip)
    warmup = make(run.optimizer)
    if not first:
        run.optimizer.register_step_pre_hook(clip)
    with pytest.warns(UserWarning, match="were changed between observe"):
        run.train(warmup, range(3))


def test_a_hook_that_is_registered_under_way_is_told_as_well():
    run = Run(lr=0.1)
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(3))
    run.optimizer.register_step_pre_hook(
        lambda *_: nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3) and None
    )
    with pytest.warns(UserWarning, match="were changed between observe"):
        run.train(warmup, range(3, 6))


@every_warmup
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_unscaling_before_observe_is_fine_and_clipping_after_it_is_told(make, late):
    run = Run(lr=0.1)
    warmup = make(run.optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(5):
            run.optimizer.zero_grad()
            loss = run.loss(t)
            scaler.scale(loss).backward()
            scaler.unscale_(run.optimizer)
            warmup.observe(lambda t=t: run.loss(t), loss=loss.detach())
            if late:
                CLIPPING["norm"](run.model)
            scaler.step(run.optimizer)
            scaler.update()
            warmup.step()
    assert sum("clip them" in str(w.message) for w in caught) == late


@every_warmup
def test_clipping_that_hides_a_loss_scaling_is_told_and_ends_nothing(make):
    """Clipped while scaled, and unscaled by the scaler's own step: torch's kernel leaves version counters alone."""
    run = Run(lr=0.1)
    warmup = make(run.optimizer)
    scaler = torch.amp.GradScaler("cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(5):
            run.optimizer.zero_grad()
            loss = run.loss(t)
            scaler.scale(loss).backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            warmup.observe(lambda t=t: run.loss(t), loss=loss.detach())
            scaler.step(run.optimizer)
            scaler.update()
            warmup.step()
    assert sum("unscale them" in str(w.message) for w in caught) == 1
    assert 0 < run.optimizer.param_groups[0]["lr"] <= 0.1


@every_warmup
def test_a_skipped_step_or_one_with_a_closure_is_not_compared_with_the_next(make):
    run = Run(lr=0.1)
    warmup = make(run.optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.train(warmup, range(8), skips=[0, 1, 3, 4])
        for t in range(8, 12):
            run.optimizer.zero_grad()

            def closure(t=t):
                loss = run.loss(t)
                loss.backward()
                warmup.observe(lambda: run.loss(t), loss=loss.detach())
                return loss

            run.optimizer.step(closure)
            warmup.step()


def test_the_comparison_is_one_hook_and_can_be_copied():
    run = Run()
    warmup = EdgeWarmup(run.optimizer)
    made = len(run.optimizer._optimizer_step_pre_hooks)
    run.train(warmup, range(3))
    assert len(run.optimizer._optimizer_step_pre_hooks) == made
    watch = warmup._gradients
    assert pickle.loads(pickle.dumps(watch)).warned is False
    watch.warned = True
    assert pickle.loads(pickle.dumps(watch)).warned is True
    warmup.close()
    assert len(run.optimizer._optimizer_step_pre_hooks) == 0


@pytest.mark.parametrize("make", [EdgeWarmup, CatapultWarmup])
def test_an_observation_that_raises_after_it_has_measured_leaves_one_hook(make):
    run = Run()
    warmup = make(run.optimizer)
    made = len(run.optimizer._optimizer_step_pre_hooks)
    for _ in range(3):
        run.optimizer.zero_grad()
        run.loss(0).backward()
        for p in run.model.parameters():
            p.grad.mul_(1024)  # as a loss scaling leaves them
        with pytest.raises(UserWarning, match="goes on as plain linear warmup"):
            warmup.observe(lambda: run.loss(0))
        assert len(run.optimizer._optimizer_step_pre_hooks) == made
