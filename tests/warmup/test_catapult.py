"""Catapults one by one.

Ladder: closed form (L = (ab)²/2, the smallest loss with catapults, has a known η_c under gradient descent) → the
paper's algorithm, written down again for it. Cannot see: whether catapults flatten a network's loss;
the recipe `warmups` does.
"""

import math

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Muon, RMSprop

from edgewise import CatapultWarmup, Status
from edgewise.critical import search_critical_lr
from edgewise.errors import LossError

RTOL = 1 / 16  # of the bracket


class Product:
    """L = (ab)²/2 in float64 from a = 3, b = 0.3, trained by `optimizer` at target rate `lr`.

    Its sharpness on the minimum is S = a² + b² = 9.09. Gradient descent turns f = ab into f(1 − ηS + η²f²), so that
    η_c solves η²f² − ηS + 2 = 0; between 2/S and 4/S it catapults to a smaller S (Lewkowycz et al. 2020).
    """

    def __init__(self, make_optimizer=SGD, *, lr=0.4, **kwargs):
        self.w = nn.Parameter(torch.tensor([[3.0, 0.3]], dtype=torch.float64))
        self.optimizer = make_optimizer([self.w], lr=lr)
        self.warmup = CatapultWarmup(self.optimizer, **kwargs)

    def loss(self):
        return 0.5 * self.w.prod().square()

    def critical(self):
        f, s = self.w.prod().item(), self.w.square().sum().item()
        return 4 / (s + math.sqrt(s * s - 8 * f * f))  # the smaller root, in the form without cancellation

    def step(self, *, observe=True, loss=None):
        """Make an update; returns the rate it ran at."""
        self.optimizer.zero_grad()
        own = self.loss()
        own.backward()
        if observe:
            self.warmup.observe(self.loss, loss=own if loss is None else loss)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.warmup.step()
        return rate

    def steps_with(self, losses):
        return [self.step(loss=loss) for loss in losses]

    def steps(self, num, **kwargs):
        return [self.step(**kwargs) for _ in range(num)]


def test_it_is_the_papers_algorithm():
    """Each rise to just above η_c(θ_t), when the loss is below that at the rise before."""
    run = Product(smoothing=0.0, max_growth=1e9, max_rise=1e9)
    reference, rate, rises = math.inf, 0.0, 0
    while not run.warmup.finished:
        critical, loss = run.critical(), run.loss().item()
        used = run.step()
        if rate < 0.4 and loss < reference:
            reference = loss
            if used > rate:
                assert min(critical, 0.4) <= used <= min(critical * (1 + RTOL), 0.4) * (1 + 1e-9)
                rises += 1
            else:
                assert critical <= rate
        else:
            assert used == rate
        rate = used
    assert rate == 0.4
    assert run.warmup.report().num_catapults == rises > 3
    assert run.warmup.fallback is None


def test_catapults_flatten_the_loss_where_the_target_alone_diverges():
    """4/S = 0.44: beyond, there is no way back for gradient descent."""
    alone = Product(lr=0.6)
    alone.optimizer.param_groups[0]["lr"] = 0.6
    for _ in range(20):
        alone.optimizer.zero_grad()
        alone.loss().backward()
        alone.optimizer.step()
    assert not math.isfinite(alone.loss().item())
    run = Product(lr=0.6)
    run.steps(2000)
    assert run.warmup.finished
    assert run.w.square().sum().item() < 2 / 0.6 < 9.09
    assert run.loss().item() < 1e-6


def test_a_catapult_is_below_the_tolerance_that_shrinks_as_the_critical_rate_grows(monkeypatch):
    asked = []

    def search(optimizer, closure, searching, **kwargs):
        asked.append(8 * searching.most_excess)
        return search_critical_lr(optimizer, closure, searching, **kwargs)

    monkeypatch.setattr("edgewise.warmup.catapult.search_critical_lr", search)
    run = Product(smoothing=0.0, max_growth=1e9, tolerance=0.02)
    found = []
    while not run.warmup.finished:
        run.step()
        found += [run.warmup.found] * (len(asked) - len(found))
    assert len(found) > 3
    assert asked == pytest.approx([0.02, *(0.02 * found[0].lr / before.lr for before in found[:-1])])
    assert asked[-1] < 0.02 * 0.7
    for result, tolerance in zip(found, asked, strict=True):
        expected = -result.slope * result.lr / 8
        assert result.status is Status.ABOVE_MAX_LR or 0 < result.rise <= tolerance * expected


def test_a_critical_rate_below_the_present_one_does_not_lower_it():
    run = Product(smoothing=0.0)
    start = run.step(loss=1.0)
    with torch.no_grad():
        run.w.mul_(1.5)  # S is 2.25 times as large
    assert run.step(loss=0.5) == start
    assert run.warmup.found.lr < start / 2
    assert run.warmup.report().num_catapults == 1


@pytest.mark.parametrize(
    ("make_optimizer", "memory"),
    [
        (SGD, 1),
        (RMSprop, 1),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.9), 10),
        (lambda p, lr: AdamW(p, lr=lr, betas=(0.8, 0.9)), 5),
        (lambda p, lr: Muon(p, lr=lr, momentum=0.75), 4),
        (lambda p, lr: SGD([{"params": p, "momentum": 0.5}], lr=lr), 2),
    ],
)
def test_below_critical_it_grows_by_max_growth_once_in_the_optimizers_memory(make_optimizer, memory):
    run = Product(make_optimizer, lr=1e-3, max_growth=1.5)
    rates = run.steps_with([1.0 / (1 + k) for k in range(100)])
    assert run.warmup.report().num_searches == run.warmup.report().num_catapults
    assert rates == pytest.approx([1e-3 * min(1.0, 1.5 ** (k // memory) / memory) for k in range(100)])


def test_momentum_starts_at_its_share_of_the_critical_rate():
    plain, heavy = Product(), Product(lambda p, lr: SGD(p, lr=lr, momentum=0.9))
    assert heavy.step() == pytest.approx(plain.step() / 10)


def test_memory_is_bounded_where_momentum_is_almost_one():
    run = Product(lambda p, lr: SGD(p, lr=lr, momentum=0.99999))
    critical = run.critical()
    assert run.step() == pytest.approx(critical / 100, rel=RTOL)


def test_a_critical_rate_above_the_target_starts_there_and_is_over_when_the_loss_has_come_down():
    run = Product(lr=0.1)
    assert run.step() == 0.1
    assert run.warmup.found.status is Status.ABOVE_MAX_LR
    assert not run.warmup.finished
    run.step()  # sees the loss below the reference
    assert run.warmup.finished
    assert run.warmup.export() == [1.0, 1.0]
    assert run.warmup.report().steps_to_target == 0


def test_the_moving_average_decides_not_single_losses():
    run = Product(max_rise=1e9)
    losses = [1.0, 3.0, *[0.9] * 40]
    rates = run.steps_with(losses)
    risen = next(k for k in range(len(rates)) if rates[k] > rates[0])
    for k in range(1, risen + 1):  # the mean with weights 0.9ᵏ, newest first
        weights = [0.9**j for j in range(k + 1)]
        mean = sum(w * x for w, x in zip(weights, reversed(losses[: k + 1]), strict=True)) / sum(weights)
        assert (mean < 1.0) == (k == risen)
    assert risen > 5


# Too large a catapult


@pytest.mark.parametrize("first", [1.0, -7.0])
def test_a_loss_that_rises_too_far_halves_the_rate_and_again_where_it_rises_by_a_quarter_more(first):
    run = Product(max_rise=1.0, smoothing=0.0)
    start = run.step(loss=first)
    expected = -run.warmup.found.slope * run.warmup.found.lr / 4
    halved = [(0.9, 0), (1.1, 1), (1.2, 1), (1.3, 1), (1.4, 2), (1.3, 2), (1.7, 2), (1.8, 3), (1.0, 3)]
    for rise, times in halved:
        assert run.step(loss=first + rise * expected) == start / 2**times, rise
    assert run.warmup.report().num_step_backs == 3
    assert "of which 3 were taken back" in run.warmup.report().summary()


def test_how_far_the_loss_may_rise_is_told_by_the_update_and_by_noise():
    """max_rise·max(|g·u|η/4, 6D) above L(θ*), D = mean of |L − L̄| with the weights of L̄."""
    run = Product(smoothing=0.5, max_rise=0.7)
    seen, sums = [], [0.0, 0.0, 0.0]
    for k in range(30):
        loss = 12.0 - 0.1 * k + (-1) ** k
        sums[0], sums[1] = 0.5 * sums[0] + 0.5 * loss, 0.5 * sums[1] + 0.5
        mean = sums[0] / sums[1]
        sums[2] = 0.5 * sums[2] + 0.5 * abs(loss - mean)
        before = run.warmup.report().num_searches
        run.step(loss=loss)
        if run.warmup.report().num_searches > before:
            found, state = run.warmup.found, run.warmup.state_dict()
            expected, noise = -found.slope * found.lr / 4, 6 * sums[2] / sums[1]
            assert state["_reference"] == pytest.approx(mean)
            assert state["_limit"] == pytest.approx(mean + 0.7 * max(expected, noise))
            seen.append(noise > expected)
    assert {True, False} == set(seen)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_new_level_of_the_loss_is_no_reason_to_halve_for_ever(noise):
    """As where a weight of the loss changes under way: the rate is halved where the rise grows by a quarter."""
    run = Product(smoothing=0.9, patience=3000)
    generator = torch.Generator().manual_seed(0)
    spread = 1 + noise * torch.randn(2000, generator=generator).clamp(-2, 2)
    start = run.step(loss=1.0)
    rates = run.steps_with([1.0, 0.9, *(1000 * float(s) for s in spread)])
    assert run.warmup.report().num_step_backs <= 6  # 1.25⁶ is more than the noise goes to
    assert min(rates) >= start / 2**6
    assert run.warmup.fallback is None


def test_a_loss_that_is_coming_down_halves_nothing_though_it_is_still_high():
    """One batch stands out where the warmup goes on from a place with less noise: its limit is below that loss."""
    run = Product(
        lambda p, lr: SGD(p, lr=lr, momentum=0.98), patience=1000
    )  # each rate is kept for 50 updates
    run.steps_with([1000.0 + 100 * (-1) ** k for k in range(51)])
    run.steps_with([900.0] * 49)
    searched, limit = run.warmup.report().num_searches, run.warmup.state_dict()["_limit"]
    run.step(loss=1450.0)
    state = run.warmup.state_dict()
    assert run.warmup.report().num_searches == searched + 1
    assert state["_limit"] < 1400
    assert limit > 1450
    run.steps_with([1440.0, 1420.0, 1400.0])
    assert run.warmup.report().num_step_backs == 0
    run.step(loss=1410.0)  # rises again
    assert run.warmup.report().num_step_backs == 1


def test_a_loss_that_rises_at_any_rate_ends_in_a_fallback_before_the_rate_is_gone():
    run = Product(smoothing=0.0, patience=500)
    start = run.step(loss=1.0)
    with pytest.warns(
        UserWarning, match="the loss rises, or is not finite, although the rate has been halved"
    ):
        rates = run.steps_with([10.0 * 8.0**k for k in range(30)])
    assert min(rates) == start / 2**9
    assert run.warmup.fallback is not None
    assert max(run.steps(520, loss=1.0)) == 0.4


def test_after_a_step_back_it_rises_again():
    run = Product(smoothing=0.0)
    start = run.step(loss=1.0)
    run.step(loss=5.0)
    assert run.step(loss=0.5) == pytest.approx(start, rel=1e-12)  # doubled, to where it was
    assert run.step(loss=0.4) > start


# Falling back


def check_linear(run, start, patience, num=5):
    rates = [rate / 0.4 for rate in run.steps(num, loss=1.0)]
    assert rates == pytest.approx([start + k / patience for k in range(1, num + 1)], rel=1e-9)


def test_a_rate_that_does_not_rise_falls_back_to_linear_warmup_from_there():
    run = Product(patience=20)
    start = run.step(loss=1.0)
    run.steps(19, loss=1.0)
    with pytest.warns(
        UserWarning, match="goes on as plain linear warmup: the rate has not risen for 20 updates"
    ):
        run.step(loss=1.0)
    check_linear(run, start / 0.4, 20)
    run.steps(30, loss=1.0)
    assert run.warmup.finished
    assert run.warmup.export()[-1] == 1.0
    report = run.warmup.report()
    assert run.warmup.export()[report.steps_to_target - 1 :][:2] == [pytest.approx(1.0, abs=0.05), 1.0]
    assert report.fallback == "the rate has not risen for 20 updates"


def test_going_back_and_forth_is_no_progress():
    run = Product(patience=20, smoothing=0.0)
    with pytest.warns(UserWarning, match="has not risen for 20 updates"):
        run.steps_with([1.0, 9.0] * 30)


def test_waiting_at_the_target_ends_the_warmup():
    run = Product(lr=0.1, patience=5)
    run.steps(8, loss=1.0)
    assert run.warmup.finished
    assert run.warmup.fallback is None


def test_a_closure_that_never_comes_falls_back_at_the_first_step():
    run = Product(patience=20)
    with pytest.warns(UserWarning, match="nothing was measured before the first update; call observe"):
        run.step(observe=False)
    rates = [run.optimizer.param_groups[0]["lr"], *run.steps(3, observe=False)]
    assert rates == pytest.approx([0.02, 0.02, 0.04, 0.06])
    assert max(run.steps(30, observe=False)) == 0.4


def test_a_loss_that_never_rises_starts_at_a_tenth_of_the_target():
    """exp(−w) falls on and levels off."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SGD([w], lr=1e30)
    warmup = CatapultWarmup(optimizer)
    loss = lambda: torch.exp(-w).sum()
    loss().backward()
    with pytest.warns(UserWarning, match="the loss does not rise at any rate"):
        warmup.observe(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e29)


def test_a_loss_below_resolution_on_the_first_batch_falls_back():
    w = nn.Parameter(torch.ones(1))
    optimizer = SGD([w], lr=1000.0)
    loss = lambda: 1e8 + w.square().sum()
    loss().backward()
    with pytest.warns(UserWarning, match="not precise enough"):
        CatapultWarmup(optimizer).observe(loss)


def test_an_update_that_climbs_is_one_batchs_matter_and_is_waited_for():
    """As where momentum dominates: not a reason to give up."""
    run = Product(lambda p, lr: SGD(p, lr=lr, momentum=0.9), patience=20)
    run.optimizer.state[run.w]["momentum_buffer"] = torch.tensor([[0.0, -100.0]], dtype=torch.float64)
    run.loss().backward()
    run.warmup.observe(run.loss)
    assert run.warmup.report().num_searches == 1
    assert run.warmup.found is None
    assert run.warmup.fallback is None
    run.optimizer.state.clear()
    run.step()
    assert run.warmup.found.status is Status.FOUND


# Observing


def test_the_loss_may_be_a_number_a_tensor_or_left_to_the_closure():
    rates = []
    for given in (None, lambda run: run.loss(), lambda run: run.loss().item()):
        run = Product()
        seen = []
        for _ in range(30):
            run.optimizer.zero_grad()
            run.loss().backward()
            run.warmup.observe(run.loss, loss=given and given(run))
            seen.append(run.optimizer.param_groups[0]["lr"])
            run.optimizer.step()
            run.warmup.step()
        rates.append(seen)
    assert rates[0] == rates[1] == rates[2]


def test_observing_now_and_then_is_enough():
    run = Product()
    for step in range(200):
        run.step(observe=step % 3 == 0)
    assert run.warmup.finished
    assert run.warmup.fallback is None


@pytest.mark.parametrize("loss", [torch.ones(2), torch.tensor(1)])
def test_a_loss_that_is_no_number_is_refused(loss):
    run = Product()
    run.loss().backward()
    with pytest.raises(LossError, match="loss must be one floating-point number"):
        run.warmup.observe(run.loss, loss=loss)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tolerance": 0.0}, ValueError, "tolerance must be a finite number greater than 0"),
        ({"tolerance": math.nan}, ValueError, "tolerance must be"),
        ({"smoothing": 1.0}, ValueError, "smoothing must be from 0 to below 1, got 1"),
        ({"smoothing": -0.1}, ValueError, "smoothing must be a finite number, 0 or greater"),
        ({"smoothing": True}, TypeError, "smoothing must be a number, got True"),
        (
            {"max_growth": 1.0},
            ValueError,
            "max_growth must be greater than 1, got 1: the rate could not rise",
        ),
        ({"max_rise": 0.0}, ValueError, "max_rise must be"),
        ({"patience": 0}, ValueError, "patience must be 1 or greater"),
        ({"patience": 2.0}, TypeError, "patience must be a whole number"),
        ({"patience": True}, TypeError, "patience must be a whole number, got True"),
        (
            {"lr": 0.0},
            ValueError,
            "learning rate of parameter group 0 must be a finite number greater than 0",
        ),
    ],
)
def test_a_bad_argument_is_refused_and_the_optimizer_is_left_alone(kwargs, error, message):
    lr = kwargs.get("lr", 1.0)
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=lr)
    with pytest.raises(error, match=message):
        CatapultWarmup(optimizer, **{name: value for name, value in kwargs.items() if name != "lr"})
    assert optimizer.param_groups[0]["lr"] == lr
    assert "initial_lr" not in optimizer.param_groups[0]


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(TypeError, match="LBFGS evaluates the loss inside its step"):
        CatapultWarmup(LBFGS([nn.Parameter(torch.ones(1))], lr=1.0))
