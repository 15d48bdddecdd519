"""EdgeWarmup by itself; what it shares with the others is in test_common.py.

Ladder: closed form (quadratics, counts) → the rule written out in plain Python → the warmup against itself. Cannot see:
whether the rates it finds are good; the recipe `edge-warmup` measures that.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from edgewise import EdgeWarmup, GIAdam, Status

H = torch.tensor([4.0, 1.0], dtype=torch.float64)  # curvatures: SGD is stable below 2/4


class Quadratic:
    """L(w) = ½ Σ h w² + noise·z·w: the noise of batches, z of the step."""

    def __init__(self, make_optimizer, *, noise=0.0):
        self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.optimizer = make_optimizer([self.w])
        self.noise = noise * torch.randn(
            2100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )

    def loss(self, step):
        return 0.5 * (H * self.w.square()).sum() + (self.noise[step] * self.w).sum()

    def train(self, warmup, steps, *, scheduler=None, give_loss=True, observed=lambda step: True):
        """Return the rates of the updates and the parameters before them."""
        rates, places = [], []
        for step in steps:
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            places.append(self.w.detach().clone())
            if observed(step):
                warmup.observe(lambda step=step: self.loss(step), loss=loss if give_loss else None)
            rates.append(float(self.optimizer.param_groups[0]["lr"]))
            self.optimizer.step()
            (scheduler or warmup).step()
        return rates, places


def sgd(lr, **kwargs):
    return lambda parameters: SGD(parameters, lr=lr, **kwargs)


# Where it starts


def test_it_starts_at_a_quarter_of_the_best_step_of_the_first_update():
    run = Quadratic(sgd(10.0))
    warmup = EdgeWarmup(run.optimizer)
    rates, _ = run.train(warmup, [0])
    # ΔL(η) = −η Σg² + ½η² Σh g², smallest at Σg²/Σh g² = 17/65
    best = 17 / 65
    assert warmup.found.status is Status.FOUND
    assert best / 3 < warmup.found.lr < 1.5 * best  # a parabola in log η through rates a factor of four apart
    assert rates[0] == pytest.approx(warmup.found.lr / 4, rel=1e-12)


def test_heavy_ball_momentum_starts_lower_by_its_share_of_the_first_update():
    plain, heavy = (Quadratic(sgd(10.0, momentum=beta)) for beta in (0.0, 0.75))
    starts = [run.train(EdgeWarmup(run.optimizer), [0])[0][0] for run in (plain, heavy)]
    assert starts[1] == pytest.approx(starts[0] / 4, rel=0.2)  # 1 − 0.75; the rates tried differ


def test_a_target_below_the_start_needs_no_warmup():
    run = Quadratic(sgd(0.01))
    warmup = EdgeWarmup(run.optimizer)
    scheduler = warmup.then(LambdaLR(run.optimizer, lambda update: 0.5**update))
    rates, _ = run.train(warmup, range(4), scheduler=scheduler)
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    assert (warmup.status, warmup.length, warmup.lr_held) == (Status.AT_TARGET, 1, None)
    assert warmup.report().steps_to_target == 0
    assert warmup.report().num_forwards <= 4


# How it goes on


def rule(losses, start, num_steps):
    """Return the factors by the equations of the docstring; `losses(step, place)` is L on the step's batch."""
    factor, total, size, signal = start, 0.0, 0.0, 1.0
    last, factors = 0, [start]
    due = 1
    mean = losses(0, 0)
    first = abs(mean)
    for step in range(1, num_steps):
        share, here = 1.0, losses(step, step)
        if step >= due or here - mean > 0.5 * first:
            change = here - losses(step, last)
            last, due = step, step + math.ceil((step + 1) / 6)
            if change > 0.5 * first:
                total = size = change
                share = 0.5
            else:
                total, size = 0.8 * total + 0.2 * change, 0.8 * size + 0.2 * abs(change)
            signal = -total / size
        mean = 0.9 * mean + 0.1 * here
        factor = min(1.0, share * factor * math.exp(0.05 * signal))
        factors.append(factor)
    return factors


def test_the_rates_are_those_of_the_rule_on_batches_not_yet_trained_on():
    run = Quadratic(sgd(5.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, max_overhead=None)
    rates, places = run.train(warmup, range(100))

    def losses(step, place):
        w = places[place]
        return float(0.5 * (H * w.square()).sum() + (run.noise[step] * w).sum())

    assert rates == pytest.approx([5.0 * f for f in rule(losses, rates[0] / 5.0, 100)], rel=1e-9)
    assert any(later < earlier for earlier, later in pairwise(rates))


def test_a_look_costs_one_forward_with_the_loss_and_two_without():
    spent = []
    for give_loss in (True, False):
        run = Quadratic(sgd(5.0), noise=0.1)
        warmup = EdgeWarmup(run.optimizer, max_overhead=None)
        run.train(warmup, [0], give_loss=give_loss)
        first = warmup.num_forwards
        run.train(warmup, range(1, 25), give_loss=give_loss)
        spent.append(warmup.num_forwards - first)
    assert 0 < 2 * spent[0] == spent[1]


def test_a_loss_that_is_not_the_closures_is_not_compared_with_it():
    run = Quadratic(sgd(5.0))
    warmup = EdgeWarmup(run.optimizer)
    run.loss(0).backward()
    warmup.observe(lambda: run.loss(0), loss=1.01 * run.loss(0))  # as under autocast
    run.optimizer.step()
    warmup.step()
    before = warmup.num_forwards
    warmup.observe(lambda: run.loss(1), loss=1.01 * run.loss(1))
    assert warmup.num_forwards == before + 2


def test_updates_without_a_look_at_the_loss_let_it_grow_all_the_same():
    """A loader that ends early, or a loop that observes every third update."""
    run = Quadratic(sgd(5.0))
    warmup = EdgeWarmup(run.optimizer)
    rates, _ = run.train(warmup, range(13), observed=lambda step: step % 3 == 0)
    assert rates[1] == rates[2] == rates[0]
    assert rates[3] == pytest.approx(rates[0] * math.exp(0.15))
    assert rates[12] > rates[9] > rates[6]


def test_a_target_too_high_is_held_below_and_what_follows_is_scaled():
    run = Quadratic(sgd(50.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, num_steps=400)
    scheduler = warmup.then(CosineAnnealingLR(run.optimizer, T_max=100))
    rates, places = run.train(warmup, range(600), scheduler=scheduler)
    assert warmup.status is Status.HELD_BELOW_TARGET
    assert warmup.lr_held < 2 / 4 * 1.5
    assert all(place.isfinite().all() for place in places)
    end = warmup.length
    assert rates[end] == pytest.approx(warmup.lr_held)
    decayed = [0.5 * warmup.lr_held * (1 + math.cos(math.pi * k / 100)) for k in range(100)]
    assert rates[end : end + 100] == pytest.approx(decayed, rel=1e-9)
    assert f"held below the target, at {warmup.lr_held:.4g}" in str(warmup.report())
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


def test_it_ends_at_the_target_after_as_many_updates_as_it_took_to_get_there():
    run = Quadratic(sgd(0.2))
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(120))
    reached = warmup.report().steps_to_target
    assert 0 < reached < 60
    assert (warmup.status, warmup.length) == (Status.AT_TARGET, 2 * reached + 1)


# What it costs


@pytest.mark.parametrize(("num_steps", "most"), [(None, 36), (200, 18)])
def test_forwards_stay_within_the_budget_of_the_run(num_steps, most):
    run = Quadratic(sgd(50.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer, num_steps=num_steps)
    run.train(warmup, range(200))
    assert most - 10 < warmup.num_forwards <= most
    assert warmup.num_forwards / (3 * (num_steps or 400)) <= 0.03


def test_the_rate_does_not_rise_unseen():
    run = Quadratic(sgd(5.0))
    warmup = EdgeWarmup(run.optimizer, num_steps=100, max_overhead=0.01)
    rates, _ = run.train(warmup, range(50))  # the start took all that there is
    assert warmup.num_forwards > 3
    assert rates == [rates[0]] * 50


def test_the_copy_of_the_parameters_is_given_up_when_the_warmup_is_over():
    run = Quadratic(sgd(0.2))
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(5))
    assert [p.shape for p in warmup.state_dict()["_reference"]] == [run.w.shape]
    run.train(warmup, range(5, 120))
    assert warmup.state_dict()["_reference"] == []


def test_the_state_is_plain_but_for_the_copy_of_the_parameters():
    run = Quadratic(sgd(5.0), noise=1.0)
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(7))
    saved = warmup.state_dict()
    kept = [p.clone() for p in saved["_reference"]]
    run.train(warmup, range(7, 20))
    assert all(torch.equal(a, b) for a, b in zip(saved["_reference"], kept, strict=True))
    other = EdgeWarmup(Quadratic(sgd(5.0)).optimizer)
    other.load_state_dict(saved)
    again = other.state_dict()
    assert torch.equal(again.pop("_reference")[0], saved.pop("_reference")[0])
    assert again == saved


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


def test_a_loss_that_overflows_is_a_reason_to_fall_back():
    run = Quadratic(sgd(1.0))
    warmup = EdgeWarmup(run.optimizer)
    run.train(warmup, range(3))
    run.loss(0).backward()
    with pytest.warns(UserWarning, match="the loss is inf"):
        warmup.observe(lambda: run.loss(0), loss=math.inf)


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
