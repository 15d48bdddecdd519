"""The position of a warmup: the updates of its optimizer, each once, in every loop that torch's schedulers serve.

Ladder: the same loop in its plainest form, rate by rate and bit by bit → torch's own schedulers of the same factors →
closed form. Cannot see: frameworks that are not installed; a stand-in has their class names.
"""

import copy
import gc
import io
import math
import pickle
import warnings
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup

WARMUPS = {
    "linear": lambda o: LinearWarmup(o, warmup_steps=12),
    "critical": lambda o: LinearWarmup(o, warmup_steps=12, lr_init="critical"),
    "catapult": lambda o: CatapultWarmup(o, patience=25),
    "edge": lambda o: EdgeWarmup(o, num_steps=60),
}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
FOLLOWERS = {
    "bare": None,
    "cosine": lambda o: CosineAnnealingLR(o, T_max=40),
    "lambda": lambda o: LambdaLR(o, decay),
    "step": lambda o: StepLR(o, 7, 0.5),
}
every_follower = pytest.mark.parametrize("follow", FOLLOWERS.values(), ids=FOLLOWERS.keys())


def decay(update):
    return 1 / (1 + 0.1 * update)


ORDINARY = [step for step in range(26) if step % 16 != 8]  # as many that a loss can stand out from them


def hooks_of(optimizer):
    return [
        len(hooks)
        for hooks in (
            optimizer._optimizer_step_pre_hooks,
            optimizer._optimizer_step_post_hooks,
            optimizer._optimizer_state_dict_pre_hooks,
        )
    ]


def measures(warmup):
    """Whether it compares the gradients of each update, by a hook, with those it has measured with."""
    return not isinstance(warmup, LinearWarmup) or warmup.lr_init == "critical"


@dataclass
class Run:
    """Least squares on fresh batches; each loss of the eighth batch stands out."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    warmup: object
    scheduler: object

    def loss(self, step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 4, dtype=torch.float64, generator=generator)
        scale = 30.0 if step % 16 == 8 else 1.0
        return scale * (self.model(inputs) - inputs.sum(1, keepdim=True).tanh()).square().mean()

    def train(self, steps, *, stepped=lambda step: True, inside=False):
        """Return the groups' rates as each update begins and within it, and its loss."""
        rows = []
        within = self.optimizer.register_step_post_hook(lambda *_: None)
        for step in steps:

            def closure(step=step):
                self.optimizer.zero_grad()
                loss = self.loss(step)
                loss.backward()
                self.warmup.observe(lambda: self.loss(step), loss=loss.detach())
                rows.append([*(float(group["lr"]) for group in self.optimizer.param_groups), loss.item()])
                return loss

            if inside:
                self.optimizer.step(closure)
            else:
                closure()
                self.optimizer.step()
            if stepped(step):
                self.scheduler.step()
        within.remove()
        return rows

    @property
    def weights(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


def make_run(make, follow=None, *, make_optimizer=SGD, lr=0.5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = make_optimizer(model.parameters(), lr=lr)
    warmup = make(optimizer)
    return Run(model, optimizer, warmup, warmup if follow is None else warmup.then(follow(optimizer)))


# An update counts once


class Outer(SGD):
    def step(self, closure=None):
        return super().step(closure)


class Outermost(Outer):
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - 0.1 * group["lr"])
        return loss


class TwoHalves(SGD):
    """Two steps of its parent make one update."""

    def step(self, closure=None):
        super().step(closure)
        return super().step()


class Unhooked(SGD):
    """Does not call the constructor of `Optimizer`, as Lookahead of timm does not."""

    def __init__(self, params, lr):
        inner = SGD(params, lr=lr)
        vars(self).update({name: value for name, value in vars(inner).items() if name != "step"})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(group["lr"] * p.grad)


@pytest.mark.parametrize("optimizer_class", [SGD, Outer, Outermost, TwoHalves, Unhooked])
@pytest.mark.parametrize("hooked", [True, False], ids=["the parent has been used", "not"])
def test_an_update_counts_once_in_every_class_hierarchy(optimizer_class, hooked):
    parameter = nn.Parameter(torch.ones(1))
    if hooked:
        SGD([parameter])
    optimizer = optimizer_class([parameter], lr=1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=8)
    rates = []
    for _ in range(10):
        parameter.grad = torch.ones(1)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    assert rates == pytest.approx([min(1, (t + 1) / 8) for t in range(10)])
    assert warmup.report().updates == 10


class Failing(SGD):
    """Raises where it is told to: before, within or after the step of its parent."""

    where = ""

    def step(self, closure=None):
        if self.where == "before":
            raise KeyError(self.where)
        if self.where == "within":
            with pytest.raises(ZeroDivisionError):
                super().step(lambda: 1 / 0)
        super().step(closure)
        if self.where == "after":
            raise KeyError(self.where)


@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_a_step_that_raised_does_not_spoil_the_count(where):
    parameter = nn.Parameter(torch.ones(1))
    SGD([parameter])
    optimizer = Failing([parameter], lr=1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=8)
    made = 0
    for step in range(9):
        parameter.grad = torch.ones(1)
        optimizer.where = where if step in (0, 3, 4) else ""
        try:
            optimizer.step()
            made += 1
        except KeyError:
            pass
        warmup.step()
        assert warmup.report().updates == made
    assert made == (9 if where == "within" else 6)


def test_the_rest_of_the_outer_step_sees_the_share_of_the_update():
    """Its weight decay is by the rate that the spike guard leaves of it, too."""
    seen = []
    run = make_run(lambda o: EdgeWarmup(o, num_steps=60), make_optimizer=Outermost)
    multiply = torch.Tensor.mul_
    run.train(ORDINARY)
    full = run.optimizer.param_groups[0]["lr"]
    for p in run.optimizer.param_groups[0]["params"]:
        p.data.fill_(0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.Tensor, "mul_", lambda self, factor: seen.append(factor) or multiply(self, factor)
        )
        run.train([24])
    decays = {factor for factor in seen if isinstance(factor, float) and 0.9 < factor < 1}
    assert decays
    assert all(1 - factor < 0.09 * full for factor in decays)


# Wrapped optimizers


def lightnings(optimizer):
    """A stand-in with the class names of Lightning's wrapper."""

    class LightningOptimizer:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, closure=None):
            return self.optimizer.step(closure)

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    LightningOptimizer.__module__ = "lightning.pytorch.core.optimizer"
    LightningOptimizer.__qualname__ = "LightningOptimizer"
    return LightningOptimizer(optimizer)


def accelerated(optimizer):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


@pytest.mark.parametrize("wrap", [lightnings, accelerated])
@every_warmup
def test_a_wrapped_optimizer_has_the_rates_of_the_one_inside(make, wrap):
    plain = make_run(make, FOLLOWERS["cosine"])
    expected = plain.train(range(30))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    inner = SGD(model.parameters(), lr=0.5)
    wrapped = wrap(inner)
    warmup = make(wrapped)
    scheduler = warmup.then(CosineAnnealingLR(inner, T_max=40))
    run = Run(model, inner, warmup, scheduler)
    run.optimizer = inner
    rows = []
    for step in range(30):
        inner.zero_grad()
        loss = run.loss(step)
        loss.backward()
        warmup.observe(lambda step=step: run.loss(step), loss=loss.detach())
        rows.append([inner.param_groups[0]["lr"], loss.item()])
        wrapped.step()
        scheduler.step()
    assert rows == expected


def test_a_scheduler_on_the_wrapper_is_one_on_the_optimizer_inside():
    wrapped = accelerated(SGD([nn.Parameter(torch.ones(1))], lr=1.0))
    scheduler = LinearWarmup(wrapped, warmup_steps=2).then(StepLR(wrapped, 1, 0.5))
    rates = []
    for _ in range(5):
        rates.append(wrapped.param_groups[0]["lr"])
        wrapped.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1, 1, 0.5, 0.25])
    from accelerate.scheduler import AcceleratedScheduler  # noqa: PLC0415

    other = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(TypeError, match="AcceleratedScheduler"):
        LinearWarmup(other, warmup_steps=2).then(AcceleratedScheduler(StepLR(other, 1), other))


def test_a_step_that_accelerates_scaler_skips_does_not_count():
    pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer  # noqa: PLC0415

    parameter = nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    accelerated(SGD([nn.Parameter(torch.ones(1))]))  # its state
    wrapped = AcceleratedOptimizer(SGD([parameter], lr=1.0), scaler=scaler)
    warmup = LinearWarmup(wrapped, warmup_steps=4)
    for bad in (True, False, True, False):
        wrapped.zero_grad()
        scaler.scale(parameter.sum() * (math.inf if bad else 1.0)).backward()
        wrapped.step()
        warmup.step()
        assert wrapped.step_was_skipped == bad
    assert warmup.report().updates == 2
    assert wrapped.param_groups[0]["lr"] == 0.75


# Copies


class Holder:
    def __init__(self, run):
        self.parts = {"scheduler": run.scheduler, "warmup": run.warmup}
        self.optimizer, self.model = run.optimizer, run.model

    def run(self):
        return Run(self.model, self.optimizer, self.parts["warmup"], self.parts["scheduler"])


def by_deepcopy(run):
    parts = copy.deepcopy((run.model, run.optimizer, run.warmup, run.scheduler))
    return Run(*parts)


def by_holder(run):
    return copy.deepcopy(Holder(run)).run()


def by_pickle(run):
    return Run(*pickle.loads(pickle.dumps((run.model, run.optimizer, run.warmup, run.scheduler))))


def by_torch_save(run):
    file = io.BytesIO()
    torch.save((run.scheduler, run.warmup, run.model, run.optimizer), file)
    file.seek(0)
    scheduler, warmup, model, optimizer = torch.load(file, weights_only=False)
    return Run(model, optimizer, warmup, scheduler)


@pytest.mark.parametrize("make_copy", [by_deepcopy, by_holder, by_pickle, by_torch_save])
@pytest.mark.parametrize("stop", [1, 6, 20])
@every_follower
@every_warmup
@pytest.mark.filterwarnings(
    "ignore:Seems like `optimizer.step..` has been overridden"
)  # torch's, of a copied follower
def test_a_copy_goes_on_as_the_original_does(make, follow, stop, make_copy):
    run = make_run(make, follow)
    run.train(range(stop))
    copied = make_copy(run)
    assert copied.warmup.optimizer is copied.optimizer is not run.optimizer
    assert hooks_of(copied.optimizer) == [1 + measures(copied.warmup), 1, 1]
    assert copied.train(range(stop, 40)) == run.train(range(stop, 40))
    assert copied.warmup.report() == run.warmup.report()


# Nothing outlives a warmup


def copies_of(warmup):
    return warmup._climb.slopes.kept if isinstance(warmup, EdgeWarmup) else []


@every_warmup
@pytest.mark.parametrize("updates", [3, 30])  # as it climbs, and as it creeps
def test_a_warmup_dies_with_its_last_reference_and_takes_its_hooks_and_copies_along(make, updates):
    run = make_run(make, FOLLOWERS["cosine"])
    optimizer = run.optimizer
    run.train(range(updates))
    gone = weakref.ref(run.warmup)
    copies = [weakref.ref(tensor) for tensor in copies_of(run.warmup)]
    assert len(copies) == (4 if isinstance(run.warmup, EdgeWarmup) and updates == 3 else 0)
    assert hooks_of(optimizer) == [1 + measures(run.warmup), 1, 1]
    gc.disable()
    try:
        del run
        assert gone() is None
        assert all(tensor() is None for tensor in copies)
        assert hooks_of(optimizer) == [0, 0, 0]
    finally:
        gc.enable()
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == rate


@every_follower
@every_warmup
def test_a_warmup_that_is_closed_leaves_rates_and_optimizer_alone(make, follow):
    run = make_run(make, follow)
    run.train(range(5))
    assert bool(copies_of(run.warmup)) == isinstance(run.warmup, EdgeWarmup)
    run.scheduler.close()
    run.scheduler.close()
    assert hooks_of(run.optimizer) == [0, 0, 0]
    rate = run.optimizer.param_groups[0]["lr"]
    assert {row[0] for row in run.train(range(5, 30))} == {rate}
    assert run.warmup.report().updates == 5
    assert not copies_of(run.warmup)
    pickle.loads(pickle.dumps(run.warmup)).close()


def test_the_next_warmup_takes_the_targets_and_not_what_the_last_one_has_left():
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    for _ in range(3):
        warmup = LinearWarmup(optimizer, warmup_steps=20)
    warmup.close()
    warmup = EdgeWarmup(optimizer)
    assert warmup.base_lrs == [1.0]
    del warmup
    optimizer.param_groups[0]["lr"] = 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert LinearWarmup(optimizer, warmup_steps=2).base_lrs == [0.25]


# Inside torch's own


def as_torch(optimizer, warmup_steps=4):
    return LambdaLR(optimizer, lambda update: min(1, (update + 1) / warmup_steps))


def sgd(*lrs):
    return SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs])


def rates_of(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


SEQUENCES = {
    "first": lambda o, warmup: ([warmup(o), StepLR(o, 2, 0.5)], [4]),
    "first, cut short": lambda o, warmup: ([warmup(o), StepLR(o, 2, 0.5)], [2]),
    "second": lambda o, warmup: ([ConstantLR(o, 0.1, 100), warmup(o), ExponentialLR(o, 0.9)], [3, 9]),
    "last": lambda o, warmup: ([ConstantLR(o, 0.25, 100), warmup(o)], [5]),
    "twice": lambda o, warmup: ([warmup(o), ExponentialLR(o, 0.9), warmup(o)], [4, 7]),
}


@pytest.mark.parametrize("parts", SEQUENCES.values(), ids=SEQUENCES.keys())
@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # of SequentialLR's own steps
def test_in_a_sequence_it_starts_when_its_turn_comes(parts):
    ours, theirs = sgd(0.1, 0.4), sgd(0.1, 0.4)
    sequence = SequentialLR(ours, *parts(ours, lambda o: LinearWarmup(o, warmup_steps=4)))
    expected = SequentialLR(theirs, *parts(theirs, as_torch))
    for row, wanted in zip(rates_of(ours, sequence, 14), rates_of(theirs, expected, 14), strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)


def nested(optimizer, warmup):
    inner = SequentialLR(optimizer, [warmup(optimizer), ExponentialLR(optimizer, 0.9)], [4])
    return SequentialLR(optimizer, [inner, StepLR(optimizer, 3, 0.5)], [8])


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_in_a_sequence_of_sequences():
    ours, theirs = sgd(1.0), sgd(1.0)
    got = rates_of(ours, nested(ours, lambda o: LinearWarmup(o, warmup_steps=4)), 12)
    for row, wanted in zip(got, rates_of(theirs, nested(theirs, as_torch), 12), strict=True):
        assert row == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_warmup_that_observes_waits_for_its_turn_and_is_over_after_it():
    run = make_run(EdgeWarmup)
    optimizer = run.optimizer
    first, last = ConstantLR(optimizer, 0.1, 100), ConstantLR(optimizer, 0.01, 100)
    run.warmup = EdgeWarmup(optimizer)
    run.scheduler = SequentialLR(optimizer, [first, run.warmup, last], [3, 9])
    rates = [row[0] for row in run.train(range(15))]
    assert rates[:3] == pytest.approx([0.05] * 3)
    assert rates[3] == run.warmup.report().lr_start
    assert run.warmup.report().updates >= 6
    assert rates[9:] == pytest.approx([0.005] * 6)


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_sequence_resumes(stop):
    def make():
        optimizer = sgd(1.0)
        parts = [
            ConstantLR(optimizer, 0.1, 100),
            LinearWarmup(optimizer, warmup_steps=4),
            ExponentialLR(optimizer, 0.9),
        ]
        return optimizer, SequentialLR(optimizer, parts, [3, 9])

    optimizer, sequence = make()
    rates_of(optimizer, sequence, stop)
    saved = [copy.deepcopy(part.state_dict()) for part in (optimizer, sequence)]
    again, resumed = make()
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert rates_of(again, resumed, 14 - stop) == rates_of(optimizer, sequence, 14 - stop)


CHAINS = {
    "exponential": lambda o, warmup: [warmup(o), ExponentialLR(o, 0.9)],
    "after": lambda o, warmup: [ExponentialLR(o, 0.9), warmup(o)],
    "constant": lambda o, warmup: [warmup(o), ConstantLR(o, 0.5, 3), StepLR(o, 5, 0.1)],
    "grows": lambda o, warmup: [warmup(o), ExponentialLR(o, 1.1)],
}


@pytest.mark.parametrize("parts", CHAINS.values(), ids=CHAINS.keys())
def test_in_a_chain_it_multiplies(parts):
    ours, theirs = sgd(0.1, 0.4), sgd(0.1, 0.4)
    chain = ChainedScheduler(parts(ours, lambda o: LinearWarmup(o, warmup_steps=4)), optimizer=ours)
    # LinearLR reaches 1 after total_iters updates from start_factor
    linear = lambda o: LinearLR(o, start_factor=1 / 4, total_iters=3)
    expected = ChainedScheduler(parts(theirs, linear), optimizer=theirs)
    for row, wanted in zip(rates_of(ours, chain, 12), rates_of(theirs, expected, 12), strict=True):
        assert row == pytest.approx(wanted, rel=1e-12)


def test_what_then_returns_is_refused_inside_others():
    optimizer = sgd(1.0)
    whole = LinearWarmup(optimizer, warmup_steps=3).then(StepLR(optimizer, 1))
    with pytest.raises(TypeError, match="SequentialLR cannot hold what then"):
        SequentialLR(optimizer, [whole, StepLR(optimizer, 1)], [3])
    optimizer = sgd(1.0)
    whole = LinearWarmup(optimizer, warmup_steps=3).then(StepLR(optimizer, 1))
    chain = ChainedScheduler([whole, ExponentialLR(optimizer, 0.9)])
    optimizer.step()
    with pytest.raises(TypeError, match="ChainedScheduler cannot hold what then"):
        chain.step()


@every_follower
def test_another_position_is_refused(follow):
    optimizer = sgd(1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=3)
    scheduler = warmup if follow is None else warmup.then(follow(optimizer))
    optimizer.step()
    scheduler.step(1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 / 3)
    for epoch in (0, 7, 1.5):
        with pytest.raises(ValueError, match="number of updates made, 1, got"):
            scheduler.step(epoch)
    assert warmup.last_epoch == 1


# Where step() is not called


@pytest.mark.parametrize(
    "stepped",
    [lambda step: False, lambda step: step % 10 == 9, lambda step: step % 3 == 0, lambda step: step < 5],
    ids=["never", "epoch-wise", "at times", "at first"],
)
@every_follower
@every_warmup
def test_the_rates_follow_the_optimizer_however_often_step_is_called(make, follow, stepped):
    plain, run = make_run(make, follow), make_run(make, follow)
    expected = plain.train(range(50))
    assert run.train(range(50), stepped=stepped) == expected
    assert torch.equal(run.weights, plain.weights)
    assert run.warmup.report().updates == 50


@every_follower
def test_the_rates_follow_also_where_nothing_is_observed(follow):
    rates = {}
    for stepped in (True, False):
        optimizer = sgd(0.1, 0.4)
        warmup = LinearWarmup(optimizer, warmup_steps=5)
        scheduler = warmup if follow is None else warmup.then(follow(optimizer))
        seen = rates[stepped] = []
        hook = optimizer.register_step_pre_hook(
            lambda o, *_, seen=seen: seen.append([group["lr"] for group in o.param_groups])
        )
        for _ in range(20):
            optimizer.step()
            if stepped:
                scheduler.step()
        hook.remove()
    assert rates[True] == rates[False]


@pytest.mark.parametrize("stop", [1, 7, 33])
@every_follower
@every_warmup
def test_a_run_resumes_where_step_is_never_called(make, follow, stop):
    run, again = make_run(make, follow), make_run(make, follow)
    run.train(range(stop), stepped=lambda step: False)
    for name in ("model", "scheduler", "optimizer"):
        getattr(again, name).load_state_dict(copy.deepcopy(getattr(run, name).state_dict()))
    rest = range(stop, 50)
    assert again.train(rest, stepped=lambda step: False) == run.train(rest, stepped=lambda step: False)


def test_who_takes_over_by_hand_is_left_in_charge():
    optimizer = sgd(1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=20)
    cosine = CosineAnnealingLR(optimizer, T_max=50)
    rates = []
    for step in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (warmup if step < 5 else cosine).step()
    assert rates[:6] == pytest.approx([(t + 1) / 20 for t in range(6)])
    assert rates[6:] == sorted(rates[6:], reverse=True)


# observe inside and after the step


@pytest.mark.parametrize("make_optimizer", [SGD, Adam, AdamW])
@every_follower
@every_warmup
@pytest.mark.filterwarnings("ignore:CatapultWarmup goes on as plain linear warmup")
def test_observing_inside_the_step_is_as_observing_before_it(make, follow, make_optimizer):
    lr = 0.5 if make_optimizer is SGD else 0.05
    plain = make_run(make, follow, make_optimizer=make_optimizer, lr=lr)
    run = make_run(make, follow, make_optimizer=make_optimizer, lr=lr)
    expected, rows = plain.train(range(60)), run.train(range(60), inside=True)
    assert [row[-1] for row in rows] == [row[-1] for row in expected]
    assert torch.equal(run.weights, plain.weights)
    assert run.warmup.report() == plain.warmup.report()
    assert run.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]


def test_a_step_that_raises_after_its_closure_observed_leaves_no_share_in_what_is_saved():
    run = make_run(lambda o: EdgeWarmup(o, num_steps=60))
    run.train(ORDINARY)
    full = run.optimizer.param_groups[0]["lr"]

    def closure():
        run.optimizer.zero_grad()
        loss = run.loss(24)
        loss.backward()
        run.warmup.observe(lambda: run.loss(24), loss=loss.detach())
        assert run.optimizer.param_groups[0]["lr"] < 0.5 * full
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(closure)
    factor = run.warmup.factor_at(24)
    assert run.optimizer.state_dict()["param_groups"][0]["lr"] == pytest.approx(0.5 * factor)
    assert run.warmup.report().updates == 24


@pytest.mark.parametrize("name", ["critical", "catapult", "edge"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_observing_after_the_step_is_said_once(name, set_to_none):
    run = make_run(WARMUPS[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            run.optimizer.zero_grad(set_to_none=set_to_none)
            loss = run.loss(step)
            loss.backward()
            run.optimizer.step()
            run.warmup.observe(lambda step=step: run.loss(step), loss=loss.detach())
            run.scheduler.step()
    late = [w for w in caught if "observe() was called after optimizer.step()" in str(w.message)]
    assert len(late) == 1
    assert late[0].filename == __file__


@pytest.mark.parametrize("accumulate", [True, False])
def test_observing_before_the_step_is_not_called_late(accumulate):
    """Also where gradients are zeroed in place, accumulated or clipped."""
    run = make_run(WARMUPS["edge"])
    for _ in range(12):
        if not accumulate:
            run.optimizer.zero_grad(set_to_none=False)
        loss = run.loss(0)
        loss.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
        run.warmup.observe(lambda: run.loss(0), loss=loss.detach())
        run.optimizer.step()
        run.scheduler.step()


# Others who write the rates


class Both:
    def __init__(self, *schedulers):
        self._schedulers = schedulers

    def step(self):
        for scheduler in self._schedulers:
            scheduler.step()


def test_a_scheduler_that_steps_beside_it_is_said_once_and_goes_into_the_product():
    optimizer = sgd(1.0)
    warmup, beside = LinearWarmup(optimizer, warmup_steps=4), ExponentialLR(optimizer, 0.5)
    both = Both(beside, warmup)
    with pytest.warns(UserWarning, match="another scheduler steps beside it") as caught:
        rates = [row[0] for row in rates_of(optimizer, both, 6)]
    assert len(caught) == 1
    assert rates == pytest.approx([min(1, (t + 1) / 4) * 0.5**t for t in range(6)])


def test_a_rate_set_above_the_targets_share_is_not_kept():
    optimizer = sgd(1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=4)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 50.0
    with pytest.warns(UserWarning, match=r"\[50\.0\] where LinearWarmup wrote \[0\.25\]"):
        warmup.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@every_warmup
def test_of_two_warmups_in_use_the_second_is_refused(make):
    run = make_run(make)
    run.train(range(1))
    with pytest.warns(UserWarning, match="is under way on this optimizer: close"):
        second = make(run.optimizer)
    assert float(second.base_lrs[0]) == 0.5
    with pytest.raises(ValueError, match="another warmup is on this SGD"):
        second.step()
    with pytest.raises(ValueError, match="another warmup is on this SGD"):
        run.optimizer.step()
    run.warmup.close()
    again = Run(run.model, run.optimizer, second, second)
    again.train(range(2))
    assert second.report().updates == 2


def test_one_that_was_never_used_makes_way_until_the_other_is_gone():
    optimizer = sgd(1.0)
    first = LinearWarmup(optimizer, warmup_steps=3)
    second = LinearWarmup(optimizer, warmup_steps=4)
    with pytest.raises(TypeError, match="a warmup itself"):
        first.then(second)
    assert [row[0] for row in rates_of(optimizer, second, 3)] == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="another warmup is on this SGD"):
        first.step()
    assert first.report().updates == 0
    optimizer = sgd(1.0)
    first = LinearWarmup(optimizer, warmup_steps=4)
    EdgeWarmup(optimizer).close()
    set_to = optimizer.param_groups[0]["lr"]
    assert set_to < 0.25
    optimizer.param_groups[0]["lr"] = 0.25
    first.observe(lambda: pytest.fail("nothing to look at"))
    assert [row[0] for row in rates_of(optimizer, first, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_finished_warmup_lets_another_follow():
    optimizer = sgd(1.0)
    first = LinearWarmup(optimizer, warmup_steps=2)
    rates_of(optimizer, first, 3)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"\[0\.5\], where an earlier scheduler started from \[1\.0\]"):
        assert [row[0] for row in rates_of(optimizer, LinearWarmup(optimizer, warmup_steps=2), 3)] == [
            0.25,
            0.5,
            0.5,
        ]


@pytest.mark.parametrize("first", ["linear", "catapult", "edge"])
@pytest.mark.parametrize(
    "what",
    [
        lambda w, o: w,
        lambda w, o: EdgeWarmup(o),
        lambda w, o: LinearWarmup(o, warmup_steps=2).then(StepLR(o, 1)),
    ],
)
def test_a_warmup_does_not_follow_a_warmup(first, what):
    optimizer = sgd(1.0)
    warmup = WARMUPS[first](optimizer)
    with pytest.raises(TypeError, match="which is a warmup itself"):
        warmup.then(what(warmup, optimizer))


def test_a_follower_with_rates_of_its_own_is_refused_by_a_warmup_that_finds_rates():
    for follow in (
        lambda o: SWALR(o, swa_lr=1.0),
        lambda o: SWALR(o, swa_lr=[0.5], anneal_epochs=0, anneal_strategy="linear"),
        lambda o: OneCycleLR(o, max_lr=1.0, total_steps=10),
    ):
        optimizer = sgd(1.0)
        with pytest.raises(TypeError, match="whose rates are its own"):
            EdgeWarmup(optimizer).then(follow(optimizer))


# After the end


@every_warmup
@pytest.mark.parametrize("by_plateau", [True, False])
@pytest.mark.parametrize("stepped", [True, False])
def test_a_finished_warmup_writes_no_more(make, by_plateau, stepped):
    run = make_run(make, lr=0.01)
    run.train(range(50), stepped=lambda step: stepped)
    assert run.warmup.finished
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    if by_plateau:
        plateau = ReduceLROnPlateau(run.optimizer, factor=0.1, patience=0)
        for _ in range(2):
            plateau.step(1.0)
    else:
        run.optimizer.param_groups[0]["lr"] = 0.001
    rate = run.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(0.001)
    assert {row[0] for row in run.train(range(50, 60), stepped=lambda step: stepped)} == {rate}
    if stepped:
        assert run.warmup.get_last_lr() == [rate]


@every_warmup
def test_a_rate_set_after_the_end_comes_back_with_the_state(make):
    run = make_run(make, lr=0.01)
    run.train(range(50))
    run.optimizer.param_groups[0]["lr"] = 0.003
    run.train([50])
    saved = [part.state_dict() for part in (run.model, run.optimizer, run.warmup)]
    for order in ((0, 1, 2), (0, 2, 1)):
        again = make_run(make, lr=0.01)
        for i in order:
            (again.model, again.optimizer, again.warmup)[i].load_state_dict(copy.deepcopy(saved[i]))
        assert {row[0] for row in again.train(range(51, 54))} == {0.003}


def test_the_alarm_halves_the_rates_as_they_stand():
    optimizer = SGD([weight := nn.Parameter(torch.ones(1, dtype=torch.float64) + 100)], lr=0.01)
    warmup = EdgeWarmup(optimizer)
    generator = torch.Generator().manual_seed(0)

    def train(steps, level):
        for _ in range(steps):
            optimizer.zero_grad()
            noise = 0.1 * torch.randn((), generator=generator, dtype=torch.float64)
            loss = (weight - 100).square().sum()
            loss.backward()
            warmup.observe(lambda: (weight - 100).square().sum(), loss=level + noise)
            optimizer.step()
            warmup.step()

    train(60, 1.0)
    assert warmup.finished
    optimizer.param_groups[0]["lr"] = 0.004
    train(30, 4.0)
    halved = warmup.report().num_step_backs
    assert halved >= 1
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.004 * 0.5**halved)


# Targets


def checkpoint(position, lr=1e-3):
    """The states of an optimizer and a warmup after some updates."""
    optimizer = sgd(lr)
    warmup = LinearWarmup(optimizer, warmup_steps=20)
    rates_of(optimizer, warmup, position)
    return optimizer.state_dict(), warmup.state_dict()


@pytest.mark.parametrize("position", [1, 10, 30])
@pytest.mark.parametrize("warmup_steps", [1, 20])
@every_follower
def test_a_rate_set_after_loading_is_the_target_and_is_said(position, warmup_steps, follow):
    optimizer = sgd(1e-3)
    optimizer.load_state_dict(checkpoint(position)[0])
    optimizer.param_groups[0]["lr"] = 1e-5
    warmup = LinearWarmup(optimizer, warmup_steps=warmup_steps)
    scheduler = warmup if follow is None else warmup.then(follow(optimizer))
    with pytest.warns(
        UserWarning, match="the warmup's targets are the optimizer's learning rates as they stood"
    ) as caught:
        rates = [row[0] for row in rates_of(optimizer, scheduler, 25)]
    assert len(caught) == 1
    assert rates[:warmup_steps] == pytest.approx([1e-5 * (t + 1) / warmup_steps for t in range(warmup_steps)])
    assert max(rates) <= 1e-5 * (1 + 1e-9)
    if follow is not None:
        fresh = sgd(1e-5)
        whole = LinearWarmup(fresh, warmup_steps=warmup_steps).then(follow(fresh))
        assert rates == pytest.approx([row[0] for row in rates_of(fresh, whole, 25)], rel=1e-9)


@pytest.mark.parametrize("position", [0, 1, 10, 30])
@pytest.mark.parametrize("loaded", ["before", "after"])
@pytest.mark.parametrize("lr_init", [0.0, 9e-4])
def test_an_ordinary_resume_says_nothing_and_keeps_the_old_target(position, loaded, lr_init):
    def make():
        optimizer = sgd(1e-3)
        warmup = LinearWarmup(optimizer, warmup_steps=20, lr_init=lr_init)
        return optimizer, warmup, warmup.then(CosineAnnealingLR(optimizer, T_max=20))

    optimizer, _, scheduler = make()
    rates_of(optimizer, scheduler, position)
    saved = optimizer.state_dict(), scheduler.state_dict()
    expected = rates_of(optimizer, scheduler, 20)
    again = sgd(1e-3)
    if loaded == "before":
        again.load_state_dict(saved[0])
    warmup = LinearWarmup(again, warmup_steps=20, lr_init=lr_init)
    resumed = warmup.then(CosineAnnealingLR(again, T_max=20))
    if loaded == "after":
        again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert rates_of(again, resumed, 20) == expected


def test_a_resume_that_forgot_the_state_of_the_warmup_is_said():
    saved, _ = checkpoint(10)
    optimizer = sgd(1e-3)
    warmup = LinearWarmup(optimizer, warmup_steps=20)
    optimizer.load_state_dict(saved)
    with pytest.warns(UserWarning, match="saved state was loaded without the warmup's") as caught:
        rates = [row[0] for row in rates_of(optimizer, warmup, 25)]
    assert len(caught) == 1
    assert max(rates[1:]) <= 1e-3


# New groups


@pytest.mark.parametrize("moment", [3, 11, 30, 45])
@pytest.mark.parametrize("before", ["observe", "step"])
@every_follower
@every_warmup
def test_a_group_added_under_way_goes_along_with_its_own_target(make, follow, moment, before):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = SGD(model[2].parameters(), lr=0.5)
    warmup = make(optimizer)
    scheduler = warmup if follow is None else warmup.then(follow(optimizer))
    run = Run(model, optimizer, warmup, scheduler)
    for step in range(moment + 15):
        optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()
        if step == moment and before == "observe":
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.05})
        warmup.observe(lambda step=step: run.loss(step), loss=loss.detach())
        if step == moment and before == "step":
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.05})
        over = warmup.finished
        optimizer.step()
        scheduler.step()
        if step == moment and over and follow is None:  # it keeps its own
            assert optimizer.param_groups[1]["lr"] == 0.05
            break
        if step >= moment:
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(0.1 * first, rel=1e-9)
    saved = scheduler.state_dict()
    assert len((saved if follow is None else saved["warmup"])["base_lrs"]) == 2


def test_the_creep_goes_on_as_it_would_without_the_new_group():
    """Of a parameter that the loss does not know."""
    rates = []
    for adds in (True, False):
        run, steps = make_run(lambda o: EdgeWarmup(o, num_steps=400), lr=5.0), 0
        while run.warmup.state_dict()["_climb_ended"] is None:
            run.train([steps])
            steps += 1
        if adds:
            run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
        rates.append([row[0] for row in run.train(range(steps, steps + 60))])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 30


def test_the_climb_lets_one_update_go_and_measures_the_next_with_the_new_group():
    run = make_run(lambda o: EdgeWarmup(o, num_steps=400), lr=5.0)
    *_, (before, *_) = run.train(range(3))
    seen = run.warmup._climb.slopes.at_start
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
    ((rate, *_),) = run.train([3])
    assert (run.warmup._climb.slopes.at_start, rate) == (seen, before)
    assert len(copies_of(run.warmup)) == 5
    rates = [row[0] for row in run.train([4, 5])]
    assert run.warmup._climb.slopes.at_start != seen
    assert rate < rates[0] < rates[1]


def test_a_group_that_cannot_go_along_is_named():
    optimizer = sgd(1.0)
    scheduler = LinearWarmup(optimizer, warmup_steps=3).then(OneCycleLR(optimizer, max_lr=1.0, total_steps=9))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    with pytest.raises(
        ValueError, match="a parameter group was added under way, and OneCycleLR has settings"
    ):
        optimizer.step()
    optimizer = sgd(1.0, 2.0)
    scheduler = LinearWarmup(optimizer, warmup_steps=3).then(LambdaLR(optimizer, [decay, lambda update: 1.0]))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    with pytest.raises(ValueError, match="a parameter group was added under way, and LambdaLR has settings"):
        optimizer.step()
    assert scheduler.last_epoch == 0
    optimizer = sgd(1.0)
    warmup = LinearWarmup(optimizer, warmup_steps=3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -0.0})
    with pytest.raises(ValueError, match="learning rate of parameter group 1 must be"):
        optimizer.step()
    assert warmup.report().updates == 0


def test_groups_that_are_taken_away_are_named():
    optimizer = sgd(1.0, 2.0)
    warmup = LinearWarmup(optimizer, warmup_steps=3)
    del optimizer.param_groups[1]
    with pytest.raises(ValueError, match="1 parameter groups left of 2"):
        optimizer.step()
    assert warmup.report().updates == 0


def test_a_group_added_by_the_closure_of_a_guarded_update_keeps_its_rate():
    run = make_run(lambda o: EdgeWarmup(o, num_steps=20))
    run.train(ORDINARY)
    assert run.warmup.finished
    run.optimizer.zero_grad()

    def closure():
        loss = run.loss(24)
        loss.backward()
        run.warmup.observe(lambda: run.loss(24), loss=loss.detach())
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.05})
        return loss

    rate = run.optimizer.param_groups[0]["lr"]
    run.optimizer.step(closure)
    assert [group["lr"] for group in run.optimizer.param_groups] == [rate, 0.05]
