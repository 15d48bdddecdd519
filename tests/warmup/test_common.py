"""What every warmup keeps, whatever it looks at.

Ladder: closed form (counts, orders) → each warmup against itself (resumed, replayed) → torch's LambdaLR for the
exported table. Cannot see: whether a warmup is good for training; the recipe `warmups` does.
"""

import json
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils._pytree import tree_leaves

from edgewise import CatapultWarmup, EdgeWarmup, GIAdamW, LinearWarmup, assert_no_side_effects
from edgewise.errors import LossError

WARMUPS = {
    "linear": lambda o, **kwargs: LinearWarmup(o, warmup_steps=12, **kwargs),
    "critical": lambda o, **kwargs: LinearWarmup(o, warmup_steps=12, lr_init="critical", **kwargs),
    "catapult": lambda o, **kwargs: CatapultWarmup(o, patience=25, **kwargs),
    "edge": lambda o, **kwargs: EdgeWarmup(o, num_steps=STEPS, **kwargs),
}
OBSERVING = {name: WARMUPS[name] for name in ("critical", "catapult", "edge")}
OPTIMIZERS = {
    "sgd": SGD,
    "sgd-momentum": lambda groups: SGD(groups, momentum=0.5),
    "adamw": lambda groups: AdamW(groups, betas=(0.5, 0.9), weight_decay=0.1),
    "gi-adamw": lambda groups: GIAdamW(groups, betas=(0.5, 0.9), weight_decay=0.1),
}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
every_observing = pytest.mark.parametrize("make", OBSERVING.values(), ids=OBSERVING.keys())
every_plain = pytest.mark.parametrize("make", [make for name, make in WARMUPS.items() if name != "edge"])
every_optimizer = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
STEPS = 40
LR_SGD, LR_ADAM = 0.5, 0.02


@dataclass
class Training:
    """A small network with dropout and BatchNorm in two groups, whose targets are 1 : 3."""

    model: nn.Module
    optimizer: Optimizer
    batches: list[tuple[torch.Tensor, torch.Tensor]]

    def loss(self, step):
        inputs, targets = self.batches[step % len(self.batches)]
        return nn.functional.mse_loss(self.model(inputs), targets)


def training(make_optimizer=SGD, *, lr=None, tensor=None):
    if lr is None:
        lr = LR_SGD if make_optimizer in (SGD, OPTIMIZERS["sgd-momentum"]) else LR_ADAM
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2)
    ).double()
    inputs = torch.randn(3, 32, 6, dtype=torch.float64)
    batches = [(x, torch.stack([x[:, :3].sum(1), x[:, 3:].sum(1)], 1).sin()) for x in inputs]
    rates = [torch.tensor(r, dtype=tensor) if tensor else r for r in (lr, 3 * lr)]
    groups = [
        {"params": model[0].parameters(), "lr": rates[0]},
        {"params": [*model[1].parameters(), *model[4].parameters()], "lr": rates[1]},
    ]
    return Training(model, make_optimizer(groups), batches)


def train(run, warmup, steps, *, scheduler=None, give_loss=True):
    """Return the rates of the updates, all groups."""
    rates = []
    for step in steps:
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()
        warmup.observe(lambda step=step: run.loss(step), loss=loss if give_loss else None)
        rates.append([float(group["lr"]) for group in run.optimizer.param_groups])
        run.optimizer.step()
        (scheduler or warmup).step()
    return rates


@every_warmup
@every_optimizer
@pytest.mark.parametrize("tensor", [None, torch.float64], ids=["float", "tensor"])
def test_rates_are_positive_at_most_the_targets_and_keep_their_ratios(make, make_optimizer, tensor):
    run = training(make_optimizer, tensor=tensor)
    own = [group["lr"] for group in run.optimizer.param_groups]
    warmup = make(run.optimizer)
    for first, second in train(run, warmup, range(STEPS)):
        assert 0 < first <= float(warmup.base_lrs[0])
        assert second == pytest.approx(3 * first, rel=1e-12)
    if tensor:
        assert all(group["lr"] is lr for group, lr in zip(run.optimizer.param_groups, own, strict=True))


@every_warmup
@every_optimizer
def test_it_gets_to_the_target_and_stays_there(make, make_optimizer):
    run = training(make_optimizer, lr=0.005)
    warmup = make(run.optimizer)
    rates = train(run, warmup, range(STEPS))
    assert warmup.finished
    assert rates[-1] == [0.005, 0.015]
    reached = warmup.report().steps_to_target
    assert [first < 0.005 for first, _ in rates] == [update < reached for update in range(STEPS)]


@every_warmup
@every_optimizer
@pytest.mark.parametrize("stop", [0, 1, 5, 17])
@pytest.mark.parametrize("tensor", [None, torch.float32], ids=["float", "tensor"])
def test_a_resumed_run_has_the_same_rates_bit_for_bit(make, make_optimizer, stop, tensor, tmp_path):
    run = training(make_optimizer, tensor=tensor)
    warmup = make(run.optimizer)
    scheduler = warmup.then(CosineAnnealingLR(run.optimizer, T_max=30))
    train(run, warmup, range(stop), scheduler=scheduler)
    parts = {"model": run.model, "optimizer": run.optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint.pt")
    torch.manual_seed(1)
    expected = train(run, warmup, range(stop, STEPS), scheduler=scheduler)

    resumed = training(make_optimizer, tensor=tensor)
    warmup = make(resumed.optimizer)
    scheduler = warmup.then(CosineAnnealingLR(resumed.optimizer, T_max=30))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    parts = {"model": resumed.model, "optimizer": resumed.optimizer, "scheduler": scheduler}
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    torch.manual_seed(1)
    assert train(resumed, warmup, range(stop, STEPS), scheduler=scheduler) == expected


@every_plain  # an edge warmup's state holds a copy of the parameters, too
@pytest.mark.parametrize("stop", [0, 1, 5, 17])
def test_the_state_is_plain_and_does_not_change_afterwards(make, stop):
    run = training()
    warmup = make(run.optimizer)
    train(run, warmup, range(stop))
    saved = warmup.state_dict()
    assert {type(leaf) for leaf in tree_leaves(saved)} <= {int, float, str, type(None)}
    written = json.dumps(saved)
    train(run, warmup, range(stop, STEPS))
    assert json.dumps(saved) == written
    other = make(training().optimizer)
    other.load_state_dict(json.loads(written))
    assert json.dumps(other.state_dict()) == written


@every_warmup
@every_optimizer
def test_the_exported_table_replays_the_warmup(make, make_optimizer):
    run = training(make_optimizer)
    warmup = make(run.optimizer)
    expected = train(run, warmup, range(STEPS))
    factors = json.loads(json.dumps(warmup.export()))
    assert len(factors) <= STEPS
    replayed = training(make_optimizer)
    table = LambdaLR(replayed.optimizer, lambda update: factors[min(update, len(factors) - 1)])
    for rates in expected:
        assert [group["lr"] for group in replayed.optimizer.param_groups] == pytest.approx(rates, rel=1e-12)
        replayed.optimizer.step()
        table.step()


@every_warmup
def test_what_follows_begins_with_its_own_first_rate_when_the_warmup_is_over(make):
    run = training(lr=0.01)
    warmup = make(run.optimizer)
    scheduler = warmup.then(LambdaLR(run.optimizer, lambda update: 1 / (1 + update)))
    rates = [first for first, _ in train(run, warmup, range(STEPS), scheduler=scheduler)]
    length = len(warmup.export())
    assert 0 < length < STEPS
    assert rates[length - 1] == 0.01
    assert rates[length:] == pytest.approx([0.01 / (1 + update) for update in range(STEPS - length)])
    assert scheduler.last_epoch == STEPS


# The position is the optimizer's


@every_warmup
def test_steps_of_the_scheduler_without_one_of_the_optimizer_change_nothing(make):
    rates = []
    for calls in (1, 3):
        run = training()
        warmup = make(run.optimizer)
        seen = []
        for step in range(20):
            seen += train(run, warmup, [step])
            for _ in range(calls - 1):
                warmup.step()
        rates.append(seen)
    assert rates[0] == rates[1]


class _Scaled:
    """torch's GradScaler as far as the CPU goes: skips steps whose gradients are not finite."""

    def __init__(self, optimizer, *, inside):
        self._optimizer, self._inside = optimizer, inside

    def step(self):
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        found_inf = not all(torch.isfinite(gradient).all() for gradient in gradients)
        if self._inside:  # of a fused step, as GradScaler.step hands it over
            self._optimizer.found_inf = torch.tensor(float(found_inf))
            self._optimizer.step()
            del self._optimizer.found_inf
        elif not found_inf:
            self._optimizer.step()


@every_warmup
@pytest.mark.parametrize("inside", [False, True], ids=["skipped", "fused"])
def test_a_step_that_a_scaler_skips_does_not_count(make, inside):
    runs = []
    for skipped in ((), (0, 1, 4)):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = Adam(model.parameters(), lr=0.1, fused=True)
        warmup = make(optimizer)
        scheduler = warmup.then(CosineAnnealingLR(optimizer, T_max=30))
        scaled = _Scaled(optimizer, inside=inside)
        loss_fn = lambda model=model: model(torch.ones(4, 3)).square().mean()
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for call in range(30):
                optimizer.zero_grad()
                loss = loss_fn()
                loss.backward()
                if call in skipped:
                    model.weight.grad.fill_(math.inf)
                warmup.observe(loss_fn, loss=loss)
                rates.append(optimizer.param_groups[0]["lr"])
                scaled.step()
                scheduler.step()
        runs.append([rate for call, rate in enumerate(rates) if call not in skipped])
        assert warmup.report().updates == 30 - len(skipped)
    assert runs[1] == runs[0][: len(runs[1])]


def test_torchs_own_scaler_skips_a_step_and_the_warmup_waits():
    model = nn.Linear(3, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    warmup = LinearWarmup(optimizer, warmup_steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (True, False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).sum() * (math.inf if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        warmup.step()
    assert warmup.last_epoch == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.075)


@pytest.mark.filterwarnings("ignore")  # torch's own, of a compiled step
def test_a_compiled_step_counts_as_any_other():
    rate = torch.tensor(0.4)
    optimizer = Adam(nn.Linear(3, 1).parameters(), lr=rate)
    warmup = LinearWarmup(optimizer, warmup_steps=4)
    step = torch.compile(optimizer.step, backend="eager")
    seen = []
    for _ in range(6):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        seen.append(rate.item())
        step()
        warmup.step()
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_schedule_that_never_sees_the_optimizer_step_says_so():
    warmup = LinearWarmup(SGD([nn.Parameter(torch.ones(1))], lr=1.0), warmup_steps=4)
    for _ in range(999):
        warmup.step()
    with pytest.warns(UserWarning, match="1000 times without a step of the optimizer"):
        warmup.step()
    for _ in range(2000):  # once
        warmup.step()


def test_trial_steps_inside_observe_do_not_count():
    run = training()
    warmup = WARMUPS["catapult"](run.optimizer)
    run.loss(0).backward()
    warmup.observe(lambda: run.loss(0))
    assert warmup.report().num_forwards > 1
    assert warmup.report().updates == 0


# Observing changes nothing but the rates


@every_observing
@every_optimizer
@pytest.mark.filterwarnings("ignore:the groups' learning rates are")  # as they are set back
def test_observing_leaves_the_rest_of_the_training_alone(make, make_optimizer):
    run = training(make_optimizer)
    warmup = make(run.optimizer)
    for step in range(3):
        train(run, warmup, [step])
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()

        def look(step=step, loss=loss):
            rates = [group["lr"] for group in run.optimizer.param_groups]
            warmup.observe(lambda: run.loss(step), loss=loss)
            for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # what it is for

        assert_no_side_effects(run.model, run.optimizer, look)


@every_observing
def test_a_closure_that_raises_leaves_the_training_alone(make):
    run = training()
    warmup = make(run.optimizer)
    run.loss(0).backward()

    def failing():
        run.loss(0)
        raise KeyError("user")

    def look():
        with pytest.raises(KeyError, match="user"):
            warmup.observe(failing)

    assert_no_side_effects(run.model, run.optimizer, look)
    warmup.observe(lambda: run.loss(0))  # and it can go on
    assert warmup.report().num_searches == 1


# Cost


@every_observing
@pytest.mark.parametrize("give_loss", [True, False])
def test_forwards_are_counted_one_by_one(make, give_loss):
    run = training()
    warmup = make(run.optimizer)
    calls = []
    for step in range(STEPS):
        run.optimizer.zero_grad()
        loss = run.loss(step)
        loss.backward()

        def closure(step=step):
            calls.append(step)
            return run.loss(step)

        warmup.observe(closure, loss=loss if give_loss else None)
        run.optimizer.step()
        warmup.step()
    report = warmup.report()
    assert report.num_forwards == len(calls) > 0
    assert report.overhead == len(calls) / (3 * STEPS)


def test_a_critical_start_costs_nothing_after_the_first_update():
    run = training()
    warmup = WARMUPS["critical"](run.optimizer)
    train(run, warmup, [0])
    cost = warmup.report().num_forwards
    train(run, warmup, range(1, STEPS))
    assert 2 <= warmup.report().num_forwards == cost <= 10


def test_catapults_stay_within_max_overhead_after_the_first_search():
    run = training(lr=5.0)
    warmup = CatapultWarmup(run.optimizer, max_overhead=0.1, smoothing=0.0)
    train(run, warmup, [0])
    first = warmup.report().num_forwards
    for step in range(1, 200):
        train(run, warmup, [step], give_loss=False)
        report = warmup.report()
        assert report.num_forwards <= max(first, 0.1 * 3 * (step + 1))
    assert report.num_forwards > first


def test_a_start_that_max_overhead_does_not_allow_falls_back():
    run = training()
    warmup = LinearWarmup(run.optimizer, warmup_steps=12, lr_init="critical", max_overhead=0.01)
    with pytest.warns(UserWarning, match=r"max_overhead = 0\.01 leaves no forward"):
        rates = train(run, warmup, range(12))
    assert warmup.report().num_forwards == 0
    plain = training()
    assert rates == train(plain, LinearWarmup(plain.optimizer, warmup_steps=12), range(12))


# Reports


@every_warmup
def test_the_report_says_what_happened_in_numbers_and_words(make):
    run = training(lr=0.01)
    warmup = make(run.optimizer)
    rates = train(run, warmup, range(STEPS))
    report = warmup.report()
    assert report.warmup == type(warmup).__name__
    assert (report.updates, report.finished, report.fallback) == (STEPS, True, None)
    assert (report.lr_start, report.lr, report.lr_target) == (rates[0][0], rates[-1][0], 0.01)
    text = report.summary()
    assert f"finished after {STEPS} updates" in text
    assert f"target 0.01 from update {report.steps_to_target} on" in text


def test_the_steps_saved_are_those_of_the_formula():
    run = training(lr=2.0)
    warmup = LinearWarmup(run.optimizer, warmup_steps=100, lr_init="critical")
    train(run, warmup, [0])
    report = warmup.report()
    expected = 100 * warmup.start.lr / 2.0 - warmup.start.num_forwards / 2
    assert 0 < report.steps_saved == pytest.approx(expected)
    assert report.steps_to_target == math.ceil(100 * (1 - warmup.start.lr / 2.0))
    assert f"saved: {expected:.1f} updates" in report.summary()


# Bad input


@every_observing
def test_observing_before_backward_is_an_error(make):
    run = training()
    with pytest.raises(ValueError, match=r"call this between loss\.backward\(\) and optimizer\.step\(\)"):
        make(run.optimizer).observe(lambda: run.loss(0), loss=1.0)


@every_observing
@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda loss: loss * math.nan, "is nan"),
        (lambda loss: loss.expand(3), "one floating-point number"),
        (lambda loss: loss.item(), "must be a scalar tensor, got float"),
    ],
)
def test_a_closure_without_a_finite_scalar_is_an_error(make, closure, message):
    run = training()
    warmup = make(run.optimizer)
    run.loss(0).backward()
    with pytest.raises(LossError, match=message):
        warmup.observe(lambda: closure(run.loss(0)))


@every_observing
@pytest.mark.parametrize("scale", [2.0**16, 2.0**12])
def test_gradients_that_are_still_scaled_are_a_reason_to_fall_back(make, scale):
    run = training()
    warmup = make(run.optimizer)
    (scale * run.loss(0)).backward()
    with pytest.warns(UserWarning, match="gradients are a power of two larger than the loss says") as caught:
        warmup.observe(lambda: run.loss(0))
    assert caught[0].filename == __file__  # the training loop's line
    assert "unscale them first" in warmup.report().fallback
    assert "fell back to linear warmup" in warmup.report().summary()


@every_observing
def test_a_closure_for_another_batch_is_a_reason_to_fall_back(make):
    run = training()
    warmup = make(run.optimizer)
    (100 * run.loss(0)).backward()
    with pytest.warns(UserWarning, match="gradients are not this loss's"):
        warmup.observe(lambda: run.loss(0))


@every_warmup
def test_the_state_of_another_warmup_is_refused(make):
    mine = make(training().optimizer)
    for name, other in WARMUPS.items():
        theirs = other(training().optimizer)
        if theirs.state_dict().keys() != mine.state_dict().keys() or other is not make:
            with pytest.raises(ValueError, match="construct it with the saved values"):
                mine.load_state_dict(theirs.state_dict())
            assert name


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1.0, ValueError), (True, TypeError), ("x", TypeError)]
)
@every_warmup
def test_a_bad_overhead_is_refused(make, value, error):
    with pytest.raises(error, match="max_overhead must be"):
        make(training().optimizer, max_overhead=value)
