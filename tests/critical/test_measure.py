"""The critical learning rate of any optimizer's own step.

Ladder: closed form (quadratics, η_c = 2 g·u/uᵀHu) → a plain scan of real steps on deep copies → both ends
of the bracket verified by real steps, for every torch.optim optimizer. Cannot see: a first rise narrower
than the doubling steps of the search; the contract is a bracket of one crossing.
"""

import copy
import gc
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgewise as ew
from cases import BY_NAME, MLP, OPT, Opt, bias_free_mlp, every_optimizer, made, mse, train_step
from edgewise import Status, critical_lr
from edgewise.arguments import UnknownNameError
from edgewise.critical import FEWEST_FORWARDS, Searching, search_critical_lr
from edgewise.errors import LossError
from oracles import loss_after_step, scan_critical_scale


class Vector(nn.Module):
    """θ alone; the batch is the matrix of a quadratic."""

    def __init__(self, values):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(values, dtype=torch.float64))


def quadratic(model, matrix):
    return 0.5 * model.theta @ matrix @ model.theta


def spd(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return root @ root.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


def exact_critical(model, optimizer, matrix):
    """2 g·u/uᵀHu in units of the first group's rate, u from one real step; steps are linear in the rate."""
    twin, stepper = copy.deepcopy((model, optimizer))
    before = twin.theta.detach().clone()
    twin.theta.grad = matrix @ before
    stepper.step()
    update = (before - twin.theta.detach()) / float(stepper.param_groups[0]["lr"])
    return float(2 * (matrix @ before) @ update / (update @ matrix @ update))


QUADRATIC = [
    Opt("sgd", torch.optim.SGD, {"lr": 0.01}),
    Opt("sgd-decay", torch.optim.SGD, {"lr": 0.01, "weight_decay": 0.1}),
    Opt("momentum", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    Opt("nesterov", torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    Opt("adam", torch.optim.Adam, {"lr": 0.01}),
    Opt("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.5}),
    Opt("gi-adamw", ew.GIAdamW, {"lr": 0.01, "weight_decay": 0.5}),
    Opt("tensor-lr", torch.optim.SGD, {"lr": torch.tensor(0.01, dtype=torch.float64)}),
    Opt("adam-tensor-lr", torch.optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
]


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("opt", QUADRATIC, ids=lambda o: o.name)
def test_the_bracket_holds_the_exact_rate_of_a_quadratic(opt, steps):
    matrix = spd()
    model = Vector(torch.linspace(-2, 2, 6))
    optimizer = opt.make(model)
    for _ in range(steps):
        train_step(model, optimizer, quadratic, matrix)
    exact = exact_critical(model, optimizer, matrix)
    result = critical_lr(model, optimizer, quadratic, matrix, rtol=1e-3)
    low, high = result.bracket
    assert result.status is Status.FOUND
    # float32 tensor rates round to 6e-8
    assert low * (1 - 1e-7) <= exact <= high * (1 + 1e-7)
    assert high / low - 1 <= 1e-3
    assert result.lr == high
    assert result.scale == pytest.approx(high / 0.01)
    assert result.slope < 0


@given(st.integers(0, 1000), st.floats(1e-4, 1e3), st.floats(0.01, 1.0))
def test_any_guess_leads_to_the_same_rate(seed, guess, rtol):
    matrix = spd(seed=seed)
    model = Vector(torch.ones(6))
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    result = critical_lr(model, sgd, quadratic, matrix, guess=guess, rtol=rtol)
    low, high = result.bracket
    assert low * (1 - 1e-12) <= exact_critical(model, sgd, matrix) <= high * (1 + 1e-12)
    assert high / low - 1 <= rtol


def test_slope_and_noise_floor_in_closed_form():
    matrix = spd()
    model = Vector(torch.ones(6))
    result = critical_lr(model, torch.optim.SGD(model.parameters(), lr=0.3), quadratic, matrix)
    gradient = matrix @ model.theta.detach()
    assert result.slope == pytest.approx(-float(gradient @ gradient), rel=1e-12)
    floor = torch.finfo(torch.float64).eps * quadratic(model, matrix).item() / (-result.slope * result.lr)
    assert result.noise_floor == pytest.approx(floor)


def pieces_model(rates):
    """Six numbers in three parameters and groups."""
    model = nn.ParameterList([torch.full((2,), v, dtype=torch.float64) for v in (1.0, -2.0, 0.5)])
    groups = [{"params": [p], "lr": rate} for p, rate in zip(model, rates, strict=True)]
    return model, groups


@pytest.mark.parametrize("rates", [(0.1, 0.1, 0.1), (0.1, 0.4, 0.02), (0.5, 0.001, 0.0)])
def test_groups_keep_their_ratios(rates):
    matrix = spd()
    model, groups = pieces_model(rates)
    loss_fn = lambda model, matrix: 0.5 * torch.cat(list(model)) @ matrix @ torch.cat(list(model))
    sgd = torch.optim.SGD(groups, lr=1.0)
    theta = torch.cat(list(model)).detach()
    gradient = matrix @ theta
    update = gradient * torch.tensor(rates, dtype=torch.float64).repeat_interleave(2) / rates[0]
    exact = float(2 * gradient @ update / (update @ matrix @ update))
    result = critical_lr(model, sgd, loss_fn, matrix, rtol=1e-3)
    assert result.bracket[0] <= exact <= result.bracket[1]
    assert result.scale == pytest.approx(result.lr / rates[0])
    assert [g["lr"] for g in sgd.param_groups] == list(rates)


@pytest.mark.parametrize("name", ["tanh-mlp-xent", "conv-batchnorm-xent", "tied-mse", "linear-bias-unused"])
def test_the_bracket_holds_the_first_rise_of_a_plain_scan(name):
    case = BY_NAME[name]
    model, optimizer, batch = case.build_trained(OPT["sgd"], 2)
    result = critical_lr(model, optimizer, case.loss_fn, batch, max_lr=1e4)
    if result.status is Status.ABOVE_MAX_LR:  # the loss linear in its offset never rises
        assert name == "linear-bias-unused"
        return
    optimizer.zero_grad()
    case.loss_fn(model, batch).backward()
    scales = torch.logspace(-2, math.log10(result.scale * 2), 600, dtype=torch.float64)
    first = scan_critical_scale(model, optimizer, case.loss_fn, batch, scales)
    low, high = (end / 0.05 for end in result.bracket)
    step = float(scales[1] / scales[0])
    assert low <= first <= high * step


# Every optimizer of torch


def test_the_list_of_optimizers_is_not_empty_by_accident():
    names = {cls.__name__ for cls in every_optimizer()}
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adafactor", "Rprop", "Muon", "NAdam"} <= names


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("cls", every_optimizer(), ids=lambda cls: cls.__name__)
def test_both_ends_are_what_real_steps_do(cls, steps):
    model, (_, batches) = bias_free_mlp(), MLP.build()
    optimizer = made(cls, model)
    for _ in range(steps):
        train_step(model, optimizer, mse, batches[1])
    optimizer.zero_grad()
    mse(model, batches[1]).backward()
    result = critical_lr(model, optimizer, mse, batches[1])
    with torch.no_grad():
        base = mse(model, batches[1]).item()
    ends = [end / 0.01 for end in result.bracket]
    if result.status is Status.FOUND:
        assert loss_after_step(model, optimizer, mse, batches[1], ends[0]) <= base
        assert not loss_after_step(model, optimizer, mse, batches[1], ends[1]) <= base
        assert result.slope < 0
        assert 0 < result.lr < math.inf
    else:
        # once their own step sizes run, the rate no longer reaches (Rprop, ASGD), or it is capped (Adafactor)
        assert (cls.__name__, result.status) in {
            ("ASGD", Status.NO_CATAPULT),
            ("Adafactor", Status.NO_CATAPULT),
            ("Rprop", Status.NO_CATAPULT),
        }
        assert result.num_forwards <= 10


# Statuses


def test_nan_beyond_a_wall_counts_as_too_large():
    """The loss falls towards the wall at θ = 1 and is NaN beyond: η_c is where the step meets the wall."""
    model = Vector([3.0])
    wall = lambda model, _: torch.where(model.theta > 1, model.theta.square().sum(), math.nan).sum()
    result = critical_lr(model, torch.optim.SGD(model.parameters(), lr=1e-3), wall, (), rtol=1e-3)
    assert result.status is Status.FOUND
    assert result.bracket[0] <= (3 - 1) / 6 <= result.bracket[1]


def test_a_loss_that_does_not_rise_up_to_max_lr():
    model = Vector([1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    result = critical_lr(model, sgd, quadratic, torch.eye(1).double(), max_lr=1.5)
    assert result.status is Status.ABOVE_MAX_LR
    assert result.bracket == (1.5, math.inf)
    assert result.lr == 1.5
    assert result.scale == pytest.approx(15)


def test_max_lr_below_the_current_rate_is_where_the_search_starts():
    model = Vector([1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=5.0)
    result = critical_lr(model, sgd, quadratic, torch.eye(1).double(), max_lr=1.0)
    assert (result.status, result.lr) == (Status.ABOVE_MAX_LR, 1.0)
    assert result.num_forwards == 2  # one sees that the loss repeats


def test_momentum_that_points_uphill_is_no_descent_direction():
    model = Vector([1.0, 1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_step(model, sgd, quadratic, torch.eye(2).double())
    sgd.state[model.theta]["momentum_buffer"].fill_(-100.0)
    result = critical_lr(model, sgd, quadratic, torch.eye(2).double())
    assert result.status is Status.NOT_A_DESCENT_DIRECTION
    assert result.slope > 0
    assert result.bracket == (0.0, math.inf)
    assert result.lr == 0
    assert result.num_forwards == 0


def test_a_stationary_point_has_no_descent_direction():
    model = Vector([0.0])
    result = critical_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), quadratic, torch.eye(1).double())
    assert result.status is Status.NOT_A_DESCENT_DIRECTION
    assert result.slope == 0
    assert result.bracket == (0.0, math.inf)


@pytest.mark.parametrize(
    ("offset", "status"), [(0.0, Status.FOUND), (10.0, Status.FOUND), (1e8, Status.BELOW_RESOLUTION)]
)
def test_a_loss_below_its_own_resolution_says_so(offset, status):
    """Near 1e8 float32 numbers lie 8 apart: a loss of 1e8 + θ²/2 shows no rise before θ²/2 = 4."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    loss_fn = lambda model, x: offset + 0.5 * model(x).square().mean()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    result = critical_lr(model, sgd, loss_fn, torch.ones(1, 1))
    assert result.status is status
    assert (result.noise_floor > 1 / 16) == (status is Status.BELOW_RESOLUTION)


def single(weight=1.0, curvature=4.0):
    """In float32, L = h·w²/2 from w = 1: η_c = 2/h."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model, lambda model, x: 0.5 * curvature * model(x).square().mean()


@pytest.mark.parametrize(("lr", "guess"), [(0.1, 1e-10), (1e-10, None), (1e-30, None), (0.1, 1e-30)])
def test_a_first_step_that_is_rounded_away_is_raised_until_it_shows(lr, guess):
    """1 − 4·10⁻¹⁰ is 1 in float32: no step, no slope, and nothing said about the direction."""
    model, loss_fn = single()
    result = critical_lr(
        model, torch.optim.SGD(model.parameters(), lr=lr), loss_fn, torch.ones(1, 1), guess=guess
    )
    assert result.status is Status.FOUND
    low, high = result.bracket
    assert low <= 0.5 <= high <= 17 / 16 * low
    assert result.slope == pytest.approx(-16)
    assert result.scale == pytest.approx(high / lr)


def test_a_limit_below_what_the_loss_can_show_says_so():
    model, loss_fn = single()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-12)
    result = critical_lr(model, sgd, loss_fn, torch.ones(1, 1), max_lr=1e-10)
    assert result.status is Status.BELOW_RESOLUTION
    assert (result.slope, result.bracket, result.num_forwards) == (-16, (1e-10, math.inf), 2)


@pytest.mark.parametrize("form", ["model", "closure"])
def test_the_loss_is_compared_without_autocast(form):
    """In bfloat16 a loss is flat over rates of 2⁻⁸ of η_c = 1/2; autocast also caches casts of the parameters."""
    model, loss_fn = single()
    batch = torch.ones(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def cast_loss(model, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_fn(model, x)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_fn(model, batch).backward()  # fills the cache
        if form == "model":
            result = critical_lr(model, sgd, cast_loss, batch, rtol=1e-4)
        else:
            result = search_critical_lr(sgd, lambda: cast_loss(model, batch), Searching(rtol=1e-4))
        assert loss_fn(model, batch).item() == 2.0
    low, high = result.bracket
    assert result.status is Status.FOUND
    assert low <= 0.5 <= high <= (1 + 1e-4) * low


@pytest.mark.parametrize("max_forwards", [1, 2, 5])
def test_an_exhausted_budget_says_so(max_forwards):
    model = Vector([1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=1e-6)
    result = critical_lr(
        model, sgd, quadratic, torch.eye(1).double(), max_forwards=max_forwards, method="paper"
    )
    assert result.status is Status.BUDGET_EXHAUSTED
    assert result.num_forwards == max(2, max_forwards)  # one to see that the loss repeats, one to look
    assert result.bracket[1] == math.inf


@pytest.mark.parametrize("method", ["secant", "paper"])
@pytest.mark.parametrize("rtol", [1.0, 1 / 16, 1e-4])
def test_num_forwards_counts_every_loss(method, rtol):
    """Beside the gradient's own, which gives the loss at the current parameters; a closure is evaluated there."""
    model, optimizer, batch = MLP.build_trained(OPT["adamw"], 2)
    calls = []
    loss_fn = lambda model, batch: calls.append(1) or mse(model, batch)
    result = critical_lr(model, optimizer, loss_fn, batch, rtol=rtol, method=method)
    assert result.num_forwards == len(calls) - 1
    calls.clear()
    mse(model, batch).backward()
    kwargs = {"rtol": rtol, "method": method}
    result = critical_lr(model, optimizer, loss_fn, batch, gradient="current", **kwargs)
    assert result.num_forwards == len(calls)
    calls.clear()
    again = search_critical_lr(optimizer, lambda: loss_fn(model, batch), Searching(**kwargs))
    assert again.num_forwards == len(calls)
    assert again == result


def test_about_ten_forwards_as_in_the_paper():
    """From within 8 of η_c: 3 doublings, log2(ln 2/ln(17/16)) < 4 bisections, where it starts, and θ again."""
    model = Vector([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=2 / 8.1)
    found = critical_lr(model, optimizer, quadratic, torch.eye(1).double(), method="paper")
    assert found.status is Status.FOUND
    assert found.num_forwards <= 10


@pytest.mark.parametrize(("off", "most"), [(0.95, 2), (1.05, 2), (2.0, 3), (0.01, 4), (100.0, 4)])
def test_two_to_four_forwards_on_a_quadratic(off, most):
    """And one at θ, to see that the loss repeats, which an earlier result has seen."""
    matrix = spd()
    model = Vector(torch.ones(6))
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    guess = off * exact_critical(model, sgd, matrix) * math.sqrt(17 / 16)  # the middle of its bracket
    found = critical_lr(model, sgd, quadratic, matrix, guess=guess)
    assert found.num_forwards == most + 1
    assert found.exponent == pytest.approx(1)
    assert critical_lr(model, sgd, quadratic, matrix, guess=found).num_forwards == 2


def test_no_search_finds_with_fewer_forwards_than_the_fewest():
    model, loss_fn = single()
    loss_fn(model, torch.ones(1, 1)).backward()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    closure = lambda: loss_fn(model, torch.ones(1, 1))

    def status(max_forwards):
        return search_critical_lr(sgd, closure, Searching(guess=0.5, max_forwards=max_forwards)).status

    assert [status(n) for n in range(1, FEWEST_FORWARDS)] == [Status.BUDGET_EXHAUSTED] * (FEWEST_FORWARDS - 1)
    assert status(FEWEST_FORWARDS) is Status.FOUND


def test_an_earlier_result_as_guess_carries_its_exponent():
    """L = (aθ)⁴ − θ along u = 1 from θ = 0: φ = (a⁴η³ − 1), which rises at η_c = a^(−4/3) as a third power."""
    model, loss_fn = Vector([0.0]), lambda model, a: ((a * model.theta) ** 4 - model.theta).sum()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = critical_lr(model, sgd, loss_fn, 1.0)
    assert found.bracket[0] <= 1 <= found.bracket[1]
    assert found.exponent == pytest.approx(3, rel=0.1)
    carried = critical_lr(model, sgd, loss_fn, 0.5, guess=found)
    assert carried.bracket[0] <= 0.5 ** (-4 / 3) <= carried.bracket[1]
    assert carried.num_forwards == 3
    assert critical_lr(model, sgd, loss_fn, 0.5, guess=found.lr).num_forwards > 3


@pytest.mark.parametrize("method", ["secant", "paper"])
@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_the_loss_rises_by_no_more_than_the_tolerance(method, tolerance):
    matrix = spd()
    model = Vector(torch.ones(6))
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    kwargs = {"method": method, "rtol": 1.0}
    loose = critical_lr(model, sgd, quadratic, matrix, guess=0.4, **kwargs)
    found = critical_lr(model, sgd, quadratic, matrix, guess=0.4, tolerance=tolerance, **kwargs)
    loss = quadratic(model, matrix).item()
    assert loose.rise > tolerance * loss
    assert 0 < found.rise <= tolerance * loss
    assert found.loss == pytest.approx(loss)
    assert found.bracket[0] <= exact_critical(model, sgd, matrix) <= found.bracket[1]


# Which gradient


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_current_gradient_is_taken_as_it_stands(scale):
    """A clipped gradient s·g makes η_c = 2 g·(s g)/(s² gᵀHg), 1/s of the plain one."""
    matrix = spd()
    model = Vector(torch.ones(6))
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    quadratic(model, matrix).backward()
    model.theta.grad.mul_(scale)
    held = model.theta.grad
    result = critical_lr(model, sgd, quadratic, matrix, gradient="current", rtol=1e-3)
    g = matrix @ model.theta.detach()
    exact = float(2 * g @ g / (g @ matrix @ g)) / scale
    assert result.bracket[0] <= exact <= result.bracket[1]
    assert model.theta.grad is held


def test_compute_ignores_the_current_gradient():
    matrix = spd()
    model = Vector(torch.ones(6))
    sgd = torch.optim.SGD(model.parameters(), lr=0.3)
    model.theta.grad = -torch.ones(6).double()
    held = model.theta.grad
    result = critical_lr(model, sgd, quadratic, matrix)
    assert result.bracket[0] <= exact_critical(model, sgd, matrix) <= result.bracket[1]
    assert model.theta.grad is held
    assert (held == -1).all()


def test_an_optimizer_that_overwrites_its_gradient():
    """Some step() clip or centralize p.grad in place: each trial must start from the true gradient."""

    class Halving(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.mul_(0.5)
            return super().step(closure)

    matrix = spd()
    model = Vector(torch.ones(6))
    optimizer = Halving(model.parameters(), lr=0.3)
    quadratic(model, matrix).backward()
    held = model.theta.grad.clone()
    exact = exact_critical(model, optimizer, matrix)
    for gradient in ("current", "compute"):
        result = critical_lr(model, optimizer, quadratic, matrix, gradient=gradient, rtol=1e-3)
        assert result.bracket[0] <= exact <= result.bracket[1]
    assert torch.equal(model.theta.grad, held)


def test_dropout_masks_are_those_of_the_base_loss():
    """With fresh masks at each trial the loss at a tiny step would rise half the time."""
    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    _, batches = MLP.build()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    rates = {critical_lr(model, sgd, mse, batches[1]).lr for _ in range(3)}
    assert len(rates) == 1
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result = critical_lr(model, sgd, mse, batches[1], rtol=1e-3)
    torch.set_rng_state(state)
    base = mse(model, batches[1])
    base.backward()
    losses = []
    for end in result.bracket:
        torch.set_rng_state(state)
        losses.append(loss_after_step(model, sgd, mse, batches[1], end / 1e-3))
    assert losses[0] <= base.item() < losses[1]


def test_an_optimizer_that_draws_random_numbers_changes_no_mask():
    class Drawing(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(1)
            return super().step(closure)

    model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    batch = MLP.build()[1][1]
    found = []
    for cls in (torch.optim.SGD, Drawing):
        torch.manual_seed(0)
        found.append(critical_lr(model, cls(model.parameters(), lr=0.1), mse, batch))
    assert found[0] == found[1]


def test_step_hooks_and_schedulers_do_not_notice():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    critical_lr(model, optimizer, mse, batch)
    assert seen == []
    assert not hasattr(optimizer, "_opt_called")  # the scheduler's mark that a step was made
    optimizer.step()
    scheduler.step()
    assert seen == [1, 1]


def test_frozen_parameters_of_the_optimizer_stay():
    model, batches = BY_NAME["frozen-layer"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # with the frozen ones
    assert critical_lr(model, optimizer, mse, batches[0]).status is Status.FOUND


# Errors


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"gradient": "old"}, UnknownNameError, "unknown gradient 'old'; known: compute, current"),
        (
            {"gradient": "current"},
            ValueError,
            r"no parameter of the optimizer has a gradient: call this between",
        ),
        ({"guess": 0.0}, ValueError, "guess must be a finite number greater than 0"),
        ({"guess": "big"}, TypeError, "guess must be a number"),
        ({"max_lr": -1.0}, ValueError, "max_lr must be a finite number greater than 0"),
        ({"max_lr": math.inf}, ValueError, "max_lr must be a finite number"),
        ({"rtol": 0}, ValueError, "rtol must be"),
        ({"rtol": True}, TypeError, "rtol must be a number, got True"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a finite number greater than 0"),
        ({"method": "secants"}, UnknownNameError, "unknown method 'secants'; known: paper, secant"),
        ({"batches": [torch.ones(1, 1)]}, ValueError, "got both batch and batches"),
        ({"max_forwards": 0}, ValueError, "max_forwards must be 1 or greater"),
        ({"max_forwards": 1.0}, TypeError, "max_forwards must be a whole number"),
    ],
)
def test_a_bad_argument_is_refused_before_any_loss(kwargs, error, message):
    model, calls = nn.Linear(1, 1), []
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        critical_lr(model, sgd, lambda *a: calls.append(a), torch.ones(1, 1), **kwargs)
    assert calls == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (torch.optim.LBFGS, TypeError, r"LBFGS evaluates the loss inside its step.*without closure"),
        (
            lambda p: torch.optim.SGD(p, lr=0.0),
            ValueError,
            r"first parameter group must be .* greater than 0, got 0\.0",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_searched_is_refused(make, error, message):
    model, calls = nn.Linear(1, 1), []
    with pytest.raises(error, match=message):
        critical_lr(model, make(model.parameters()), lambda *a: calls.append(a), torch.ones(1, 1))
    assert calls == []


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("group", [0, 1])
def test_a_learning_rate_that_is_none_is_refused_before_any_loss(group, rate):
    model, groups = pieces_model((0.1, 0.1, 0.1))
    sgd, calls = torch.optim.SGD(groups, lr=1.0), []
    sgd.param_groups[group]["lr"] = rate
    message = f"learning rate of parameter group {group} must be a finite number, 0 or greater, got {rate}"
    for guess in (None, 0.1):
        with pytest.raises(ValueError, match=message):
            critical_lr(model, sgd, lambda *a: calls.append(a), (), guess=guess)
    assert calls == []


def test_a_loss_without_a_graph_has_no_gradient_to_compute():
    model, loss_fn = single()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    cut = lambda model, x: loss_fn(model, x).detach()
    with pytest.raises(LossError, match="the loss of batch 0 has no graph to the parameters"):
        critical_lr(model, sgd, cut, torch.ones(1, 1))
    loss_fn(model, torch.ones(1, 1)).backward()  # with a gradient at hand none is needed
    result = critical_lr(model, sgd, cut, torch.ones(1, 1), gradient="current")
    assert result.bracket[0] <= 0.5 <= result.bracket[1]


@pytest.mark.parametrize("gradient", ["compute", "current"])
@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, x: m(x).sum() * math.nan, "the loss of batch 0 is nan"),
        (lambda m, x: m(x).sum() * math.inf, "is (-)?inf"),
        (lambda m, x: m(x), r"got shape \(3, 1\)"),
        (lambda m, x: m(x).mean().item(), "got float"),
    ],
)
def test_a_loss_that_cannot_be_measured_is_refused(loss_fn, message, gradient):
    model = nn.Linear(1, 1)
    model(torch.ones(1, 1)).sum().backward()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LossError, match=message):
        critical_lr(model, sgd, loss_fn, torch.ones(3, 1), gradient=gradient)


# Whose gradient


def finds(form, model, optimizer, batch, **kwargs):
    if form == "model":
        return critical_lr(model, optimizer, mse, batch, gradient="current", **kwargs)
    return search_critical_lr(optimizer, lambda: mse(model, batch), Searching(**kwargs))


@pytest.mark.parametrize("form", ["model", "closure"])
@pytest.mark.parametrize("option", ["sgd", "sgd-momentum", "adamw", "gi-adamw"])
@pytest.mark.parametrize("guess", [None, "good"])
def test_gradients_that_are_still_scaled_are_told(option, form, guess):
    model, optimizer, batch = MLP.build_trained(OPT[option], 0)
    if guess is not None:
        guess = critical_lr(model, optimizer, mse, batch).lr
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(mse(model, batch)).backward()
    assert finds(form, model, optimizer, batch, guess=guess).status is Status.SCALED_GRADIENT
    scaler.unscale_(optimizer)
    assert finds(form, model, optimizer, batch, guess=guess).status is Status.FOUND


@pytest.mark.parametrize("form", ["model", "closure"])
@pytest.mark.parametrize("option", ["sgd", "adamw"])
def test_the_gradient_of_the_opposite_loss_is_told(option, form):
    model, optimizer, batch = MLP.build_trained(OPT[option], 2)
    optimizer.state.clear()
    optimizer.zero_grad()
    (-mse(model, batch)).backward()
    assert finds(form, model, optimizer, batch).status is Status.OTHER_GRADIENT


@pytest.mark.parametrize("form", ["model", "closure"])
def test_a_closure_for_another_batch_is_told_where_it_matters(form):
    """A gradient of 2 % of the right one, and else across it."""
    matrix = torch.diag(torch.tensor([1.0, 1.0])).double()
    model = Vector([1.0, 1.0])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    model.theta.grad = torch.tensor([1.02, -0.98]).double()
    if form == "model":
        found = critical_lr(model, sgd, quadratic, matrix, gradient="current")
    else:
        found = search_critical_lr(sgd, lambda: quadratic(model, matrix), Searching())
    assert found.status is Status.OTHER_GRADIENT


@pytest.mark.parametrize("form", ["model", "closure"])
@pytest.mark.parametrize("norm", [1e-1, 1e-2])
def test_a_clipped_gradient_is_taken_as_it_is(norm, form):
    model, optimizer, batch = MLP.build_trained(OPT["sgd"], 0)
    plain = critical_lr(model, optimizer, mse, batch)
    mse(model, batch).backward()
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
    found = finds(form, model, optimizer, batch)
    assert found.status is Status.FOUND
    assert found.lr == pytest.approx(plain.lr * float(total) / norm, rel=1 / 16)


# Several batches


def test_batches_are_weighted_by_size_and_give_an_interval():
    model, batches = MLP.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = critical_lr(model, optimizer, mse, batches=batches, rtol=1e-3)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    joined = critical_lr(model, optimizer, mse, whole, rtol=1e-3)
    assert found.bracket == pytest.approx(joined.bracket, rel=1e-9)
    assert joined.interval is None
    low, high = found.interval
    assert low <= found.lr * (1 + 1e-3)
    assert high >= found.bracket[0]


def test_the_interval_is_that_of_the_delta_method():
    """Lᵢ = (θ − aᵢ)²/2 from θ = 0 along u = ā: ΔLᵢ = −aᵢāη + ā²η²/2, so that η_c = 2 and its error 2σ/(ā√n)."""
    targets = torch.tensor([0.7, 1.4, 0.9, 1.1, 0.9], dtype=torch.float64)
    model, loss_fn = Vector([0.0]), lambda model, a: 0.5 * (model.theta - a).square().mean()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    found = critical_lr(model, sgd, loss_fn, batches=[a.reshape(1) for a in targets], rtol=1e-4)
    half = 1.96 * 2 * float(targets.std() / targets.mean()) / math.sqrt(len(targets))
    assert found.interval == pytest.approx((2 - half, 2 + half), rel=1e-3)


def test_the_interval_holds_the_critical_rate_of_all_batches_nineteen_times_of_twenty():
    """Batches of 64 are drawn around one population; the direction is the population's."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        targets = 1 + 0.5 * torch.randn(64, 1, generator=generator, dtype=torch.float64)
        model, loss_fn = Vector([0.0]), lambda model, a: 0.5 * (model.theta - a).square().mean()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        model.theta.grad = torch.tensor([-1.0]).double()
        found = critical_lr(model, sgd, loss_fn, batches=list(targets), gradient="current", rtol=1e-3)
        low, high = found.interval
        held += low <= 2.0 <= high
    assert 180 <= held <= 198


# Precision and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_compared_in_float32(dtype):
    torch.manual_seed(1)
    model, batches = MLP.build()
    exact, half = copy.deepcopy(model), copy.deepcopy(model).to(dtype)
    for ours, theirs in zip(exact.parameters(), half.parameters(), strict=True):
        ours.data.copy_(theirs)  # the rounded point
    batch = tuple(part.to(dtype) for part in batches[1])
    wide = tuple(part.double() for part in batch)
    expected = critical_lr(exact, torch.optim.SGD(exact.parameters(), lr=0.05), mse, wide, rtol=1e-3)
    found = critical_lr(half, torch.optim.SGD(half.parameters(), lr=0.05), mse, batch, rtol=1e-2)
    assert found.status is Status.FOUND
    assert found.noise_floor < 1e-4
    assert found.lr == pytest.approx(expected.lr, rel=0.03)


def test_a_closure_in_half_precision_knows_its_noise():
    model, batches = MLP.build()
    model = model.to(torch.bfloat16)
    batch = tuple(part.to(torch.bfloat16) for part in batches[1])
    sgd = torch.optim.SGD(model.parameters(), lr=1e-6)
    mse(model, batch).backward()
    found = search_critical_lr(sgd, lambda: mse(model, batch).float(), Searching(max_lr=1e-5))
    assert found.status is Status.BELOW_RESOLUTION
    assert found.noise_floor > 1 / 16


def test_parameters_that_are_not_the_model_s_are_refused():
    model, head = nn.Linear(2, 1), nn.Linear(1, 1)
    sgd = torch.optim.SGD([{"params": model.parameters()}, {"params": head.parameters()}], lr=0.1)
    calls = []
    with pytest.raises(
        ValueError, match="group 1 of the optimizer holds 2 parameters that are not the model's"
    ):
        critical_lr(model, sgd, lambda *a: calls.append(a), torch.ones(1, 2))
    assert calls == []


@pytest.mark.parametrize("form", ["model", "closure"])
def test_probes_hold_two_copies_of_the_parameters(form):
    """The saved ones, and the update: neither state, nor a computed gradient."""
    model = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 100))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = (torch.randn(4, 100), torch.randn(4, 100))
    train_step(model, optimizer, mse, batch)
    mse(model, batch).backward()
    held = []

    def loss_fn(model, batch):
        held.append(live_floats())
        return mse(model, batch)

    before, size = live_floats(), sum(p.numel() for p in model.parameters())
    if form == "model":
        critical_lr(model, optimizer, loss_fn, batch)
    else:
        search_critical_lr(optimizer, lambda: loss_fn(model, batch), Searching())
    assert len(held) > 3
    copies = [(floats - before) / size for floats in held[2:]]
    assert min(copies) >= 2
    assert max(copies) < 2.2  # activations


def live_floats():
    """Return the number of floats that tensors hold."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    storages = [t.untyped_storage() for t in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 4


def test_all_evaluations_of_a_closure_draw_the_same_random_numbers():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 0)
    mse(model, batch).backward()
    drawn = []

    def closure():
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))  # noqa: NPY002
        return mse(model, batch)

    torch.manual_seed(3)
    found = search_critical_lr(optimizer, closure, Searching())
    assert len(drawn) == found.num_forwards > 2
    assert len(set(drawn)) == 1
