"""Linear warmup as a torch scheduler, from a rate or from the critical one.

Ladder: closed form (rates of the formula; η_c = 2/h on a quadratic). Cannot see: whether a warmup is good for
training; the lab's figures do.
"""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils._pytree import tree_leaves

from cases import MLP, OPT, mse
from edgewise import LinearWarmup, Status
from edgewise.critical import FEWEST_FORWARDS
from edgewise.errors import LossError

CURVATURE = 4.0  # of the quadratic: η_c = 2/4


def half_square(model):
    return 0.5 * CURVATURE * model.weight.square().sum()


def on_quadratic(lr=1.0, **kwargs):
    """A quadratic with η_c = 0.5, its optimizer and its warmup."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = SGD(model.parameters(), lr=lr)
    return model, optimizer, LinearWarmup(optimizer, **{"warmup_steps": 8, "lr_init": "critical", **kwargs})


def run(model, optimizer, scheduler, steps, *, observe=None):
    """Train; returns the rates that the updates ran at."""
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        half_square(model).backward()
        if observe is not None:
            observe(lambda: half_square(model))
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def plain(lr=1.0, **kwargs):
    parameter = nn.Parameter(torch.ones(1))
    optimizer = SGD([parameter], lr=lr)
    return optimizer, LinearWarmup(optimizer, **kwargs)


def rates_of(optimizer, warmup, steps):
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        assert warmup.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        warmup.step()
    return rates


@given(st.integers(1, 30), st.floats(1e-4, 10), st.floats(0, 1))
def test_rates_are_those_of_the_formula_never_zero_and_never_above(warmup_steps, target, fraction):
    optimizer, warmup = plain(target, warmup_steps=warmup_steps, lr_init=fraction * target)
    rates = rates_of(optimizer, warmup, warmup_steps + 3)
    init = fraction * target
    expected = [init + (target - init) * min(1, t / warmup_steps) for t in range(1, warmup_steps + 4)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert all(0 < rate <= target * (1 + 1e-15) for rate in rates)


def test_one_step_is_a_constant_rate():
    assert rates_of(*plain(0.3, warmup_steps=1), 3) == [0.3] * 3


def test_a_start_at_the_target_is_a_constant_rate():
    assert rates_of(*plain(0.3, warmup_steps=7, lr_init=0.3), 9) == [0.3] * 9


def test_groups_keep_their_ratios():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.4)]
    optimizer = SGD(groups)
    warmup = LinearWarmup(optimizer, warmup_steps=3, lr_init=0.05)
    for _ in range(5):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(4 * first)
        optimizer.step()
        warmup.step()
    assert (first, second) == (0.1, 0.4)


# From the critical rate


def test_it_starts_at_the_critical_rate_and_reaches_the_target_in_time():
    model, optimizer, warmup = on_quadratic()
    rates = run(model, optimizer, warmup, 8, observe=warmup.observe)
    assert warmup.start.status is Status.FOUND
    low, high = warmup.start.bracket
    assert low <= 2 / CURVATURE <= high
    assert rates[0] == warmup.start.lr
    expected = [min(1.0, rates[0] + update / 8) for update in range(8)]
    assert rates == pytest.approx(expected, rel=1e-12)
    reach = math.ceil(8 * (1 - rates[0]))  # T_reach = T(1 − η_c/η_trgt)
    assert [rate < 1 for rate in rates] == [update < reach for update in range(8)]


def test_finished_is_at_the_planned_length_though_the_target_is_reached_before():
    model, optimizer, warmup = on_quadratic()
    rates, finished = [], []
    for _ in range(10):
        rates += run(model, optimizer, warmup, 1, observe=warmup.observe)
        finished.append(warmup.finished)
    assert warmup.steps_to_target == math.ceil(8 * (1 - warmup.start.lr)) == rates.index(1.0) < 7
    assert rates[warmup.steps_to_target :] == [1.0] * (10 - warmup.steps_to_target)  # held
    assert finished == [done_updates >= 8 for done_updates in range(1, 11)]


@pytest.mark.parametrize("resumed_after", [None, 3, 8])
def test_from_far_below_the_first_rate_of_plain_warmup_it_comes_to_the_target_all_the_same(resumed_after):
    """η_c = 0.5 is less than an eighth of 20: T_reach is 8, one more than plain warmup takes."""
    model, optimizer, warmup = on_quadratic(lr=20.0)
    before = resumed_after or 0
    rates = run(model, optimizer, warmup, before, observe=warmup.observe)
    if resumed_after is not None:
        saved = warmup.state_dict(), optimizer.state_dict()
        model, optimizer, warmup = on_quadratic(lr=20.0)
        optimizer.load_state_dict(saved[1])
        warmup.load_state_dict(saved[0])
    rates += run(model, optimizer, warmup, 12 - before, observe=warmup.observe)
    assert rates == pytest.approx([min(20.0, warmup.start.lr + 20 * update / 8) for update in range(12)])
    assert warmup.steps_to_target == rates.index(20.0) == 8
    assert warmup.length == 9
    assert warmup.export()[-1] == 1.0


@pytest.mark.parametrize(("warmup_steps", "lr_init"), [(1, 0.0), (8, 0.0), (8, 0.75), (8, 1.0)])
def test_steps_to_target_is_the_first_update_at_the_target(warmup_steps, lr_init):
    optimizer, warmup = plain(1.0, warmup_steps=warmup_steps, lr_init=lr_init)
    said = warmup.steps_to_target
    assert said == (0 if lr_init == 1.0 else warmup_steps - 1)
    assert rates_of(optimizer, warmup, warmup_steps + 2).index(1.0) == said


def test_before_it_is_measured_a_critical_start_says_the_steps_of_plain_warmup():
    model, _, warmup = on_quadratic()
    assert warmup.steps_to_target == 7
    half_square(model).backward()
    warmup.observe(lambda: half_square(model))
    assert warmup.steps_to_target == math.ceil(8 * (1 - warmup.start.lr)) < 7


@pytest.mark.parametrize("target", [0.01, 0.4])
def test_a_critical_rate_above_the_target_starts_at_the_target(target):
    model, optimizer, warmup = on_quadratic(lr=target)
    rates = run(model, optimizer, warmup, 7, observe=warmup.observe)
    assert warmup.start.status is Status.ABOVE_MAX_LR
    assert rates == [target] * 7
    assert warmup.steps_to_target == 0
    assert not warmup.finished  # the target is held for the length that was planned
    assert run(model, optimizer, warmup, 1) == [target]
    assert warmup.finished


def test_observe_measures_once_and_at_the_first_update_only():
    calls = []
    model, optimizer, warmup = on_quadratic()
    closure = lambda: calls.append(1) or half_square(model)
    half_square(model).backward()
    warmup.observe(closure)
    assert len(calls) == warmup.start.num_forwards
    found = warmup.start
    warmup.observe(closure)
    optimizer.step()
    warmup.step()
    warmup.observe(closure)
    assert warmup.start is found
    assert len(calls) == found.num_forwards


def test_observe_after_the_first_update_does_nothing():
    model, optimizer, warmup = on_quadratic()
    with pytest.warns(UserWarning, match="nothing was measured before the first update"):
        run(model, optimizer, warmup, 1)
    warmup.observe(lambda: pytest.fail("no loss is asked for"))
    assert warmup.start is None


def test_a_given_start_never_measures():
    _, _, warmup = on_quadratic(lr_init=0.1)
    warmup.observe(lambda: pytest.fail("no loss is asked for"))
    assert warmup.start is None


def test_it_is_the_batch_of_the_gradient_that_is_probed():
    """`.grad` as it stands: clipped to a tenth, the critical rate is ten times as large."""
    model, _, warmup = on_quadratic(lr=20.0)
    half_square(model).backward()
    model.weight.grad.mul_(0.1)
    warmup.observe(lambda: half_square(model))
    assert warmup.start.bracket[0] <= 10 * 2 / CURVATURE <= warmup.start.bracket[1]


def test_a_critical_start_that_is_never_measured_says_so_and_is_plain_warmup():
    _, optimizer, warmup = on_quadratic()
    with pytest.warns(UserWarning, match="nothing was measured before the first update; call observe"):
        first = rates_of(optimizer, warmup, 1)
    assert warmup.report().fallback is not None
    assert first + rates_of(optimizer, warmup, 9) == rates_of(*plain(1.0, warmup_steps=8), 10)


def test_no_critical_rate_is_a_warning_with_its_reason_and_plain_warmup():
    model, optimizer, warmup = on_quadratic()
    model.weight.grad = torch.full((1, 1), -1.0, dtype=torch.float64)
    with pytest.warns(
        UserWarning, match="goes on as plain linear warmup: no critical learning rate"
    ) as caught:
        warmup.observe(lambda: half_square(model))
    assert warmup.start.status not in (Status.FOUND, Status.ABOVE_MAX_LR)
    assert warmup.start.status.value in str(caught[0].message)
    optimizer.zero_grad()
    assert rates_of(optimizer, warmup, 10) == rates_of(*plain(1.0, warmup_steps=8), 10)


def test_a_loss_below_resolution_is_a_warning():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = SGD(model.parameters(), lr=100.0)
    warmup = LinearWarmup(optimizer, warmup_steps=1000, lr_init="critical")
    loss = lambda: 1e8 + model.weight.square().sum()
    loss().backward()
    with pytest.warns(UserWarning, match="not precise enough"):
        warmup.observe(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("give_loss", [False, True])
@pytest.mark.parametrize("left", range(9))
def test_a_search_that_max_overhead_would_cut_off_is_not_begun(left, give_loss):
    model, optimizer, warmup = on_quadratic(lr=10.0, max_overhead=(left + 0.5) / (3 * 8))
    loss = half_square(model)
    loss.backward()
    closure = lambda: half_square(model)
    if left < FEWEST_FORWARDS:
        words = ["no forward", "1 forward", "2 forwards", "3 forwards"][left]
        with pytest.warns(
            UserWarning, match=f"max_overhead = .* leaves {words} to search with, which takes 4"
        ):
            warmup.observe(closure, loss=loss if give_loss else None)
        assert (warmup.start, warmup.num_forwards) == (None, 0)
        optimizer.zero_grad()
        assert rates_of(optimizer, warmup, 10) == rates_of(*plain(10.0, warmup_steps=8), 10)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four may not be enough
            warmup.observe(closure, loss=loss if give_loss else None)
        assert 2 <= warmup.num_forwards <= left


def test_observe_without_a_gradient_is_an_error():
    model, _, warmup = on_quadratic()
    with pytest.raises(ValueError, match="no parameter of the optimizer has a gradient"):
        warmup.observe(lambda: half_square(model))


def test_observe_of_a_loss_that_is_not_finite_is_an_error():
    model, _, warmup = on_quadratic()
    half_square(model).backward()
    with pytest.raises(LossError, match="nan"):
        warmup.observe(lambda: half_square(model) * math.nan)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam", "radam", "gi-adamw"])
def test_any_optimizer_starts_where_its_own_step_starts_to_hurt(name):
    model, optimizer, batch = MLP.build_trained(OPT[name], 0)
    for group in optimizer.param_groups:
        group["lr"] = 100.0
    warmup = LinearWarmup(optimizer, warmup_steps=50, lr_init="critical")
    mse(model, batch).backward()
    warmup.observe(lambda: mse(model, batch))
    assert warmup.start.status is Status.FOUND
    assert optimizer.param_groups[0]["lr"] == pytest.approx(warmup.start.lr)
    with torch.no_grad():
        before = mse(model, batch).item()
        optimizer.step()
        assert mse(model, batch).item() > before


# Tensors


def test_a_tensor_rate_is_filled_in_place():
    rate = torch.tensor(1.0, dtype=torch.float64)
    model, optimizer, warmup = on_quadratic(lr=rate)
    rates = run(model, optimizer, warmup, 8, observe=warmup.observe)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rates[0] == warmup.start.lr
    assert rates[-1] == 1.0
    assert rates == sorted(rates)


# Saving and resuming


@pytest.mark.parametrize("lr_init", [0.0, 0.25, "critical"])
@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
@pytest.mark.parametrize("stop", [0, 1, 3, 8, 11])
def test_a_resumed_run_has_the_same_rates(stop, order, lr_init, tmp_path):
    model, optimizer, warmup = on_quadratic(lr_init=lr_init)
    head = run(model, optimizer, warmup, stop, observe=warmup.observe)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "warmup": warmup.state_dict()}
    torch.save(states, tmp_path / "checkpoint.pt")
    tail = run(model, optimizer, warmup, 12 - stop, observe=warmup.observe)

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model, optimizer, warmup = on_quadratic(lr_init=lr_init)
    model.load_state_dict(saved["model"])
    for part in ["optimizer", "warmup"] if order == "optimizer first" else ["warmup", "optimizer"]:
        {"optimizer": optimizer, "warmup": warmup}[part].load_state_dict(saved[part])
    assert warmup.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
    assert run(model, optimizer, warmup, 12 - stop, observe=warmup.observe) == tail
    assert len(head) + len(tail) == 12


def test_a_warmup_on_an_optimizer_that_was_loaded_before_has_the_same_targets():
    optimizer, warmup = plain(1.0, warmup_steps=4)
    optimizer.step()
    warmup.step()
    for final in (optimizer.param_groups[0]["lr"], 0.0):  # amid the warmup, and after a decay to zero
        optimizer.param_groups[0]["lr"] = final
        other, _ = plain(1.0, warmup_steps=4)
        other.load_state_dict(optimizer.state_dict())
        resumed = LinearWarmup(other, warmup_steps=4)
        resumed.load_state_dict(warmup.state_dict())
        assert rates_of(other, resumed, 4) == [0.5, 0.75, 1, 1]


@pytest.mark.parametrize("lr", [0.5, 2.0, 10.0])
def test_the_rates_are_those_of_the_saved_run_whatever_the_optimizer_was_made_with(lr):
    optimizer, warmup = plain(1.0, warmup_steps=4, lr_init=0.25)
    head = rates_of(optimizer, warmup, 2)
    other, resumed = plain(lr, warmup_steps=4, lr_init=0.25)
    resumed.load_state_dict(warmup.state_dict())
    tail = rates_of(optimizer, warmup, 4)
    assert head + tail == pytest.approx([0.25 + 0.75 * min(1, t / 4) for t in range(1, 7)], rel=1e-12)
    assert rates_of(other, resumed, 4) == tail


def test_the_state_is_plain_numbers_and_strings():
    model, optimizer, warmup = on_quadratic()
    run(model, optimizer, warmup, 2, observe=warmup.observe)
    assert {type(leaf) for leaf in tree_leaves(warmup.state_dict())} <= {int, float, str, type(None)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"warmup_steps": 9}, "the saved state has warmup_steps = 8, this warmup has 9"),
        ({"lr_init": 0.5}, "lr_init = 'critical', this warmup has 0.5"),
    ],
)
def test_the_state_of_another_warmup_is_refused(kwargs, message):
    *_, saved = on_quadratic()
    *_, other = on_quadratic(**kwargs)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())


def test_the_state_of_another_class_is_refused():
    *_, warmup = on_quadratic()
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    foreign = torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict()
    with pytest.raises(ValueError, match="warmup = None, this warmup has 'LinearWarmup'"):
        warmup.load_state_dict(foreign)


# Errors


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"warmup_steps": 0}, ValueError, "warmup_steps must be 1 or greater, got 0"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be 1 or greater"),
        ({"warmup_steps": 2.0}, TypeError, r"warmup_steps must be a whole number, got 2\.0"),
        ({"warmup_steps": math.nan}, TypeError, "warmup_steps must be a whole number"),
        ({"warmup_steps": True}, TypeError, "warmup_steps must be a whole number, got True"),
        ({"lr_init": -0.1}, ValueError, "lr_init must be a finite number, 0 or greater"),
        ({"lr_init": math.nan}, ValueError, "lr_init must be a finite number"),
        ({"lr_init": math.inf}, ValueError, "lr_init must be a finite number"),
        ({"lr_init": True}, TypeError, "lr_init must be a number, got True"),
        ({"lr_init": None}, TypeError, "lr_init must be a number, got None"),
        ({"lr_init": "crit"}, ValueError, "lr_init must be a number or \"critical\", got 'crit'"),
        ({"lr_init": 1.5}, ValueError, r"lr_init must be at most the target.*rate 1; got 1\.5"),
        (
            {"lr": 0.0},
            ValueError,
            "learning rate of parameter group 0 must be a finite number greater than 0",
        ),
        ({"lr": 0.0, "lr_init": "critical"}, ValueError, "learning rate of parameter group 0 must be"),
        ({"lr": True}, TypeError, "learning rate of parameter group 0 must be a number, got True"),
        ({"lr": math.nan}, ValueError, "learning rate of parameter group 0 must be a finite number"),
        ({"lr": math.inf}, ValueError, "learning rate of parameter group 0 must be a finite number"),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be a torch.optim.Optimizer, got 'sgd' of type str"),
    ],
)
def test_a_bad_argument_is_refused_and_the_optimizer_is_left_alone(kwargs, error, message):
    lr = kwargs.get("lr", 1.0)
    optimizer = kwargs.get("optimizer", SGD([nn.Parameter(torch.ones(1))], lr=lr))
    arguments = {k: v for k, v in kwargs.items() if k not in ("lr", "optimizer")}
    with pytest.raises(error, match=message):
        LinearWarmup(optimizer, **{"warmup_steps": 4, **arguments})
    if isinstance(optimizer, Optimizer):
        assert optimizer.param_groups[0]["lr"] is lr
        assert "initial_lr" not in optimizer.param_groups[0]


def test_a_critical_start_needs_a_step_without_closure():
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(TypeError, match=r"LBFGS evaluates the loss inside its step.*without closure"):
        LinearWarmup(optimizer, warmup_steps=4, lr_init="critical")
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert "initial_lr" not in optimizer.param_groups[0]
    LinearWarmup(optimizer, warmup_steps=4)  # plain warmup asks for no step
    assert optimizer.param_groups[0]["lr"] == 0.25
