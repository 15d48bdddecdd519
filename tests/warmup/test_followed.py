"""Decays that end at a given update, whatever the warmup's length.

Ladder: closed form (the formulas of transformers' schedules, written out here) → torch's LambdaLR on a plain optimizer,
rate by rate → transformers' own functions, where it is installed → the schedule against itself (resumed, copied, its
end given late). Cannot see: whether a decay is good for training.
"""

import copy
import json
import math
import pickle
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, SequentialLR, StepLR
from torch.utils._pytree import tree_leaves

from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup, Status
from edgewise.arguments import UnknownNameError

N = 24


def linear(t, w, n):
    return max(0.0, (n - t) / max(1, n - w))


def cosine(t, w, n):
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((t - w) / max(1, n - w))))) if t < n else 0.0


CLOSED = {"linear": linear, "cosine": cosine}
every_decay = pytest.mark.parametrize("name", CLOSED)


class Run:
    """L(w) = ½ Σ h w², in two groups whose targets are 1 : 3; SGD is stable below 2/4 in the first."""

    def __init__(self, make, lr=0.05, tensor=None):
        self.parameters = [
            nn.Parameter(torch.ones(2, dtype=torch.float64)),
            nn.Parameter(torch.ones(1).double()),
        ]
        rates = [torch.tensor(r, dtype=tensor) if tensor else r for r in (lr, 3 * lr)]
        groups = zip(self.parameters, rates, strict=True)
        self.optimizer = SGD([{"params": [p], "lr": rate} for p, rate in groups])
        self.warmup = make(self.optimizer)

    def loss(self):
        first, second = self.parameters
        return 2.0 * first.square().sum() + 0.1 * second.square().sum()

    def train(self, scheduler, steps, *, observes=True, step=True):
        """Return the rates of the updates, all groups."""
        rates = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            if observes:
                self.warmup.observe(self.loss, loss=loss)
            rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
            self.optimizer.step()
            if step:
                scheduler.step()
        return rates


def plain(optimizer, warmup_steps=4):
    return LinearWarmup(optimizer, warmup_steps=warmup_steps)


WARMUPS = {"linear": plain, "edge": EdgeWarmup, "catapult": CatapultWarmup}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)


# The rates


@every_decay
@pytest.mark.parametrize(("warmup_steps", "num_steps"), [(1, 2), (1, 9), (4, 5), (4, 24), (7, 20)])
def test_a_named_decay_is_the_formula_of_transformers_from_the_warmup_s_end_on(name, warmup_steps, num_steps):
    run = Run(lambda o: plain(o, warmup_steps))
    schedule = run.warmup.then_until(num_steps, name)
    rates = run.train(schedule, num_steps + 5)
    warm = [(t + 1) / warmup_steps for t in range(warmup_steps)]
    decay = [CLOSED[name](t, warmup_steps, num_steps) for t in range(warmup_steps, num_steps + 5)]
    for (first, second), factor in zip(rates, warm + decay, strict=True):
        assert first == pytest.approx(0.05 * factor, rel=1e-12, abs=0)
        assert second == pytest.approx(0.15 * factor, rel=1e-12, abs=0)
    assert rates[num_steps:] == [[0.0, 0.0]] * 5
    assert rates[num_steps - 1][0] > 0


@every_decay
def test_a_named_decay_is_that_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    reference = SGD([nn.Parameter(torch.ones(1))], lr=0.05)
    make = getattr(transformers, f"get_{name}_schedule_with_warmup")
    theirs = make(reference, num_warmup_steps=4, num_training_steps=N)
    run = Run(plain)
    ours = [first for first, _ in run.train(run.warmup.then_until(N, name), N + 1)]
    expected = []
    for _ in range(N + 1):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        theirs.step()
    assert ours[4:] == expected[4:]


@every_decay
def test_a_function_gives_the_rates_that_the_name_gives(name):
    named, function = Run(plain), Run(plain)
    expected = named.train(named.warmup.then_until(N, name), N + 3)
    given = function.warmup.then_until(N, lambda update, length: CLOSED[name](update, length, N))
    assert function.train(given, N + 3) == [pytest.approx(rates, rel=1e-12) for rates in expected]


def test_a_function_sees_the_run_s_update_and_the_warmup_s_length():
    seen = []

    def factor(update, length):
        seen.append((update, length))
        return 1

    run = Run(plain)
    run.train(run.warmup.then_until(N, factor), 8)
    assert seen[0] == (4, 4)  # the trial
    assert seen[-4:] == [(5, 4), (6, 4), (7, 4), (8, 4)]
    assert {length for _, length in seen} == {4}


@every_warmup
@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("lr", [0.01, 0.3, 30.0])
@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
def test_whatever_the_warmup_finds_the_rates_end_on_time(make, name, lr):
    run = Run(make, lr=lr)
    num_steps = 60
    schedule = run.warmup.then_until(num_steps, name)
    rates = run.train(schedule, num_steps + 2)
    length = run.warmup.length
    assert 1 <= length <= num_steps // 2 + 1
    assert run.warmup.finished
    assert all(first > 0 for first, _ in rates[:num_steps])
    assert rates[num_steps:] == [[0.0, 0.0]] * 2
    assert all(second == pytest.approx(3 * first) for first, second in rates)
    last = run.warmup.factor_at(length) * lr
    halved = run.warmup.report().num_step_backs
    if run.warmup.fallback is None and not halved:
        for t in range(length, num_steps):
            assert rates[t][0] == pytest.approx(last * CLOSED[name](t, length, num_steps), rel=1e-9)


@every_warmup
@pytest.mark.parametrize("num_steps", [2, 3, 5])
@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
def test_short_runs_end_on_time_too(make, num_steps):
    run = Run((lambda o: plain(o, 1)) if make is plain else make)
    rates = run.train(run.warmup.then_until(num_steps, "linear"), num_steps + 2)
    assert all(first > 0 for first, _ in rates[:num_steps])
    assert rates[num_steps:] == [[0.0, 0.0]] * 2


@every_warmup
@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
def test_without_a_look_the_rates_end_on_time_too(make):
    run = Run(make)
    rates = run.train(run.warmup.then_until(N, "linear"), N + 2, observes=False)
    assert rates[N:] == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("make", [EdgeWarmup, CatapultWarmup])
def test_where_nothing_can_be_measured_in_half_of_the_run_it_falls_back_and_ends_on_time(make):
    """Gradients that are zero are waited out, for longer than this run takes."""
    run = Run(make)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.zero_()
    schedule = run.warmup.then_until(N, "linear")
    with pytest.warns(UserWarning, match="no rate was found in the first half of the run"):
        rates = run.train(schedule, N + 1)
    assert run.warmup.report().status is Status.FELL_BACK
    assert rates[-1] == [0.0, 0.0]


def test_catapults_that_have_not_come_to_the_target_say_so():
    run = Run(CatapultWarmup, lr=500.0)
    schedule = run.warmup.then_until(20, "linear")
    rates = run.train(schedule, 21)
    report = run.warmup.report()
    assert report.status is Status.HELD_BELOW_TARGET
    assert report.lr_held == pytest.approx(rates[run.warmup.length - 1][0])
    assert run.warmup.length == 11


def test_an_edge_warmup_takes_the_run_s_length_as_if_it_had_been_made_with_it():
    runs = [Run(EdgeWarmup, lr=0.4), Run(lambda o: EdgeWarmup(o, num_steps=60), lr=0.4)]
    rates = [run.train(run.warmup.then_until(60, "cosine"), 61) for run in runs]
    assert rates[0] == rates[1]
    assert runs[0].warmup.num_steps == 60


@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
def test_its_fallback_is_a_tenth_of_the_run_too():
    runs = [Run(EdgeWarmup), Run(lambda o: EdgeWarmup(o, num_steps=60))]
    rates = [run.train(run.warmup.then_until(60, "cosine"), 61, observes=False) for run in runs]
    assert rates[0] == rates[1]
    assert rates[0][0][0] == pytest.approx(0.05 / 6)


def test_a_rate_that_is_halved_after_the_warmup_is_halved_in_the_decay():
    run = Run(EdgeWarmup, lr=0.2)
    schedule = run.warmup.then_until(200, "linear")
    run.train(schedule, 120)
    assert schedule.handed_over
    before = run.optimizer.param_groups[0]["lr"]
    run.warmup._step_back()
    rates = run.train(schedule, 2)
    length = run.warmup.length
    assert rates[0][0] == pytest.approx(0.5 * before)
    assert rates[1][0] == pytest.approx(0.5 * 0.2 * linear(121, length, 200))


def test_a_group_that_is_added_decays_with_the_others():
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    run.train(schedule, 2)
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    run.train(schedule, 4)
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.7})
    rates = run.train(schedule, N - 5)
    shares = [linear(t, 4, N) for t in range(7, N + 1)]
    assert [r[2] for r in rates[1:]] == pytest.approx([0.5 * share for share in shares])
    assert [r[3] for r in rates[1:]] == pytest.approx([0.7 * share for share in shares])


def test_step_need_not_be_called():
    called, left_out = Run(plain), Run(plain)
    expected = called.train(called.warmup.then_until(N, "cosine"), N + 2)
    schedule, within = left_out.warmup.then_until(N, "cosine"), []
    left_out.optimizer.register_step_pre_hook(
        lambda o, *_: within.append([float(group["lr"]) for group in o.param_groups])
    )
    left_out.train(schedule, N + 2, step=False)
    assert within == expected


# The end, given late or anew


@every_warmup
def test_an_end_that_is_given_late_is_as_good_as_one_given_at_once(make):
    runs = [Run(make, lr=0.2), Run(make, lr=0.2)]
    expected = runs[0].train(runs[0].warmup.then_until(60, "cosine"), 62)
    schedule = runs[1].warmup.then_until(None, "cosine")
    assert schedule.num_steps is None
    rates = runs[1].train(schedule, 1)
    schedule.num_steps = 60
    rates += runs[1].train(schedule, 61)
    assert schedule.num_steps == 60
    assert rates == expected
    assert rates[60:] == [[0.0, 0.0]] * 2


def test_no_end_when_the_warmup_is_over_is_an_error_at_every_step_until_it_is_given():
    run = Run(plain)
    schedule = run.warmup.then_until(None, "linear")
    run.train(schedule, 3)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Set schedule\.num_steps .* before the warmup is over"):
            run.train(schedule, 1)
    schedule.num_steps = N
    schedule.step()
    rates = run.train(schedule, N - 4)
    assert [first for first, _ in rates] == pytest.approx([0.05 * linear(t, 4, N) for t in range(5, N + 1)])


def test_another_end_under_way_is_gone_to():
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    run.train(schedule, 10)
    schedule.num_steps = 40
    rates = run.train(schedule, 32)
    assert [r[0] for r in rates] == pytest.approx([0.05 * linear(t, 4, 40) for t in range(10, 42)])


def test_the_first_rate_is_the_exported_one_where_the_end_is_given_before_it():
    run = Run(EdgeWarmup)
    schedule = run.warmup.then_until(None, "linear")
    schedule.num_steps = 60
    with pytest.warns(UserWarning, match="goes on as plain linear warmup"):
        rates = run.train(schedule, 8, observes=False)
    exported = run.warmup.export()
    assert [first for first, _ in rates[: len(exported)]] == pytest.approx([0.05 * f for f in exported])
    assert rates[0][0] == pytest.approx(0.05 / 6)


def test_an_end_that_is_given_after_closing_writes_no_rates():
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    run.train(schedule, 10)
    rates = schedule.get_last_lr()
    schedule.close()
    schedule.num_steps = 40
    assert schedule.get_last_lr() == rates


# States and copies


@every_warmup
@pytest.mark.parametrize("stop", [0, 2, 31, 45])
@pytest.mark.parametrize("tensor", [None, torch.float32], ids=["float", "tensor"])
def test_a_resumed_run_has_the_same_rates_bit_for_bit(make, stop, tensor, tmp_path):
    run = Run(make, lr=0.2, tensor=tensor)
    schedule = run.warmup.then_until(60, "cosine")
    run.train(schedule, stop)
    torch.save((schedule.state_dict(), run.optimizer.state_dict()), tmp_path / "saved.pt")
    values = [p.detach().clone() for p in run.parameters]
    expected = run.train(schedule, 62 - stop)

    resumed = Run(make, lr=0.2, tensor=tensor)
    again = resumed.warmup.then_until(60, "cosine")
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, values, strict=True):
            parameter.copy_(value)
    state, optimizer = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed.optimizer.load_state_dict(optimizer)
    again.load_state_dict(state)
    assert resumed.train(again, 62 - stop) == expected


@pytest.mark.parametrize("stop", [2, 10, N])
@pytest.mark.parametrize("when", ["at once", "late", "after loading"])
def test_a_state_of_another_end_goes_to_this_one(stop, when):
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    run.train(schedule, stop)
    longer = Run(plain)
    again = longer.warmup.then_until(40 if when == "at once" else None, "linear")
    if when == "late":
        again.num_steps = 40
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    if when == "after loading":
        again.num_steps = 40
    rates = longer.train(again, 42 - stop)
    expected = [0.05 * ((t + 1) / 4 if t < 4 else linear(t, 4, 40)) for t in range(stop, 42)]
    assert [first for first, _ in rates] == pytest.approx(expected)


@every_warmup
@pytest.mark.parametrize("stop", [2, 45])
def test_a_state_brings_its_end_where_there_is_none(make, stop):
    run = Run(make, lr=0.2)
    schedule = run.warmup.then_until(60, "cosine")
    run.train(schedule, stop)
    resumed = Run(make, lr=0.2)
    again = resumed.warmup.then_until(None, "cosine")
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, run.parameters, strict=True):
            parameter.copy_(value)
    again.load_state_dict(schedule.state_dict())
    assert again.num_steps == 60
    assert resumed.train(again, 62 - stop) == run.train(schedule, 62 - stop)


@pytest.mark.parametrize("make", [EdgeWarmup, CatapultWarmup])
@pytest.mark.parametrize("num_steps", [50, 90], ids=["shorter", "longer"])
def test_a_found_length_and_rate_are_kept_on_the_way_to_another_end(make, num_steps):
    run = Run(make, lr=30.0)  # held below
    schedule = run.warmup.then_until(60, "linear")
    run.train(schedule, 40)
    length, held = run.warmup.length, run.warmup.lr_held
    other = Run(make, lr=30.0)
    again = other.warmup.then_until(num_steps, "linear")
    again.load_state_dict(schedule.state_dict())
    assert (other.warmup.length, other.warmup.lr_held) == (length, held)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters, run.parameters, strict=True):
            mine.copy_(theirs)
    rates = other.train(again, num_steps - 40 + 1, observes=False)  # a rise would halve the rate
    expected = [held * linear(t, length, num_steps) for t in range(40, num_steps + 1)]
    assert [first for first, _ in rates] == pytest.approx(expected)


def test_the_state_is_plain_and_a_wrong_one_changes_nothing():
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    run.train(schedule, 6)
    state = schedule.state_dict()
    assert {type(leaf) for leaf in tree_leaves(state)} <= {int, float, str, bool, type(None)}
    other = Run(plain)
    again = other.warmup.then_until(N, "linear")
    before = repr((again.state_dict(), other.optimizer.state_dict()["param_groups"]))
    follower = state["follower"]
    for broken, message in (
        ({"factor": "cosine"}, "factor 'cosine', this one 'linear'"),
        ({"factor": None}, "factor 'a function', this one 'linear'"),
        ({"last_epoch": -1}, "last_epoch .* must be a whole number"),
        ({"length": 0.5}, "length .* must be a whole number"),
        ({"num_steps": "x"}, "num_steps .* must be a whole number"),
        ({"last_lr": [1.0]}, "last_lr .* must be 2 rates"),
        ({"base_lrs": None}, "base_lrs .* must be 2 rates"),
        ({"more": 1}, "has unknown entries more"),
    ):
        with pytest.raises(ValueError, match=message):
            again.load_state_dict(state | {"follower": follower | broken})
        assert repr((again.state_dict(), other.optimizer.state_dict()["param_groups"])) == before
    theirs = run.warmup.state_dict()
    with pytest.raises(ValueError, match="lacks"):
        again.load_state_dict(theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
@pytest.mark.parametrize("stop", [2, 10])
def test_copies_go_on_as_the_original(copied, stop):
    run = Run(plain)
    schedule = run.warmup.then_until(N, "cosine")
    run.train(schedule, stop)
    other, again = copied((run, schedule))
    expected = run.train(schedule, N - stop)
    assert other.train(again, N - stop) == expected
    again.num_steps = N + 5
    assert schedule.num_steps == N


# Bad input


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("num_steps", [1, 3, 4])
def test_a_run_no_longer_than_the_warmup_is_refused(num_steps, late):
    run = Run(plain)
    message = f"num_steps must be more than warmup_steps = 4, got {num_steps}"
    if late:
        schedule = run.warmup.then_until(None, "linear")
        with pytest.raises(ValueError, match=message):
            schedule.num_steps = num_steps
        assert schedule.num_steps is None
    else:
        with pytest.raises(ValueError, match=message):
            run.warmup.then_until(num_steps, "linear")
        run.warmup.then_until(5, "linear")  # the one that was refused has changed nothing


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError), ("9", TypeError)]
)
def test_an_end_that_is_no_count_is_refused(value, error, late):
    run = Run(plain)
    schedule = run.warmup.then_until(None, "linear") if late else None
    give = (
        partial(setattr, schedule, "num_steps") if late else partial(run.warmup.then_until, factor="linear")
    )
    with pytest.raises(error, match="num_steps must be"):
        give(value)


@pytest.mark.parametrize(
    ("factor", "error", "message"),
    [
        ("cosin", UnknownNameError, "unknown factor 'cosin'; known: cosine, linear. Did you mean 'cosine'"),
        (None, TypeError, "factor must be a function of .update, warmup_length."),
        (0.5, TypeError, "factor must be a function of"),
        (lambda update: 1.0, TypeError, "factor must be a function of"),
        (
            lambda update, length: math.nan,
            ValueError,
            r"factor\(4, 4\) must be a finite number, 0 or greater, got nan",
        ),
        (
            lambda update, length: -0.1,
            ValueError,
            r"factor\(4, 4\) must be a finite number, 0 or greater, got -0.1",
        ),
        (lambda update, length: None, TypeError, r"factor\(4, 4\) must be a number, got None"),
        (lambda update, length: torch.ones(1), TypeError, r"factor\(4, 4\) must be a number, got a tensor"),
    ],
)
def test_a_factor_that_is_none_is_refused_at_once(factor, error, message):
    run = Run(plain)
    before = [group["lr"] for group in run.optimizer.param_groups]
    with pytest.raises(error, match=message):
        run.warmup.then_until(N, factor)
    assert [group["lr"] for group in run.optimizer.param_groups] == before
    run.warmup.then_until(N, "linear")


def test_a_factor_that_becomes_none_is_an_error_where_it_is_used():
    run = Run(plain)
    schedule = run.warmup.then_until(N, lambda update, length: math.inf if update == 7 else 1.0)
    run.train(schedule, 6)
    with pytest.raises(ValueError, match=r"factor\(7, 4\) must be a finite number"):
        run.train(schedule, 1)


def test_a_second_follower_another_run_and_a_warmup_under_way_are_refused():
    run = Run(plain)
    run.warmup.then_until(N, "linear")
    with pytest.raises(ValueError, match=r"then\(\) or then_until\(\) was already called"):
        run.warmup.then_until(N, "linear")
    with pytest.raises(ValueError, match=r"then\(\) or then_until\(\) was already called"):
        run.warmup.then(StepLR(run.optimizer, 1))
    edge = Run(lambda o: EdgeWarmup(o, num_steps=50))
    with pytest.raises(ValueError, match="num_steps = 60, and the EdgeWarmup was made for a run of 50"):
        edge.warmup.then_until(60, "linear")
    late = Run(plain)
    late.train(late.warmup, 2)
    rates = [group["lr"] for group in late.optimizer.param_groups]
    with pytest.raises(ValueError, match=r"then_until\(\) must be called before the first step"):
        late.warmup.then_until(N, "linear")
    assert [group["lr"] for group in late.optimizer.param_groups] == rates


def test_what_it_returns_is_a_sequence_already():
    run = Run(plain)
    schedule = run.warmup.then_until(N, "linear")
    with pytest.raises(TypeError, match="SequentialLR cannot hold"):
        SequentialLR(run.optimizer, [schedule, LambdaLR(run.optimizer, lambda _: 1.0)], milestones=[3])
    with pytest.raises(TypeError, match="is a warmup itself"):
        Run(plain).warmup.then(schedule)


def test_it_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(plain)
        run.train(run.warmup.then_until(N, "cosine"), N + 2)
