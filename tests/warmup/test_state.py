"""Saved states of warmups: plain, checked whole before anything is written, and loadable where the run has changed.

Ladder: each state against what it was saved from; entries taken away, added or spoiled one by one. Cannot see: entries
that are of the right kind and wrong.
"""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, StepLR

from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup
from edgewise.signals.losses import LossTrend, Surge
from edgewise.signals.slopes import RateShare
from edgewise.status import Status
from edgewise.warmup.climb import Climb
from edgewise.warmup.rate_table import RateTable
from edgewise.warmup.settling import Settling
from edgewise.warmup.start import Start
from edgewise.warmup.state import Saved
from edgewise.warmup.watch import LossWatch

WARMUPS = {
    "linear": lambda o: LinearWarmup(o, warmup_steps=12),
    "critical": lambda o: LinearWarmup(o, warmup_steps=12, lr_init="critical"),
    "catapult": lambda o: CatapultWarmup(o, patience=25),
    "edge": lambda o: EdgeWarmup(o, num_steps=80),
    "edge-open": EdgeWarmup,
}
PARTS = {
    "table": lambda: RateTable(8),
    "start": Start,
    "climb": Climb,
    "settling": Settling,
    "watch": LossWatch,
}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
SINCE_FORMAT = ("format", "lr", "_fallback_length")


class Quadratic:
    def __init__(self, make, *, lr=0.05, follow=None, size=2, make_optimizer=SGD):
        self.w = nn.Parameter(torch.ones(size, dtype=torch.float64))
        self.optimizer = make_optimizer([self.w], lr=lr)
        self.warmup = make(self.optimizer)
        self.scheduler = self.warmup if follow is None else self.warmup.then(follow(self.optimizer))
        self.generator = torch.Generator().manual_seed(0)

    def train(self, steps):
        rates = []
        for _ in range(steps):
            noise = 0.01 * torch.randn(2, dtype=torch.float64, generator=self.generator)
            loss_fn = lambda noise=noise: (2 * self.w.square() + noise * self.w).sum()
            self.optimizer.zero_grad()
            loss = loss_fn()
            loss.backward()
            self.warmup.observe(loss_fn, loss=loss.detach())
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.scheduler.step()
        return rates

    def picture(self):
        return repr((self.scheduler.state_dict(), self.optimizer.state_dict()["param_groups"]))


def check_refused(run, state, message):
    before, given = run.picture(), repr(state)
    with pytest.raises(ValueError, match=message):
        run.scheduler.load_state_dict(state)
    assert run.picture() == before
    assert repr(state) == given


@every_warmup
@pytest.mark.parametrize("steps", [0, 1, 5, 30])
def test_an_entry_that_is_missing_or_foreign_is_named_and_nothing_is_written(make, steps):
    run, other = Quadratic(make), Quadratic(make, lr=0.04)
    run.train(steps)
    state = run.warmup.state_dict() | {"base_lrs": [7.0]}
    for name in state:
        if name != "format" and name not in run.warmup._argument_names and name != "warmup":
            short = {key: value for key, value in state.items() if key != name}
            check_refused(other, short, rf"the saved state lacks {name}")
    check_refused(other, state | {"no_such": 1, "nor_this": None}, "has unknown entries no_such, nor_this")
    check_refused(other, state | {"format": 3}, "has format 3, this edgewise reads 2")
    check_refused(other, {}, "the saved state has warmup = None")
    check_refused(other, [("base_lrs", [7.0])], "must be a dict as state_dict.. returns, got list")


SPOILED = {
    "base_lrs": ([1.0, 2.0], [], [0.0], [math.nan], [-1.0], ["0.1"], None, 0.1),
    "lr": ([1.0, 2.0], ["x"], 0.1),
    "last_epoch": (-2, 1.5, None, True, "3"),
    "_step_count": (-1, 1.5, None),
    "_updates": (-1, 0.5, None, math.nan),
    "num_forwards": (-1, None),
    "num_searches": (2.5,),
    "fallback": (3, ["no"]),
    "start": ({}, 5, {"lr": 1.0}),
    "found": ({}, "x", [1]),
    "_rates": (
        [],
        None,
        [(1, 0.1)],
        [(0, 0.1), (0, 0.2)],
        [(0, 2.0)],
        [(0, math.nan)],
        [(0,)],
        [0.1],
        [(0, 0.0)],
    ),
    "_linear": (1, (1,), (0.5, 0.5), (0, "x")),
    "_end": (-3, 1.5, "x"),
    "_num_step_backs": (-1, None),
    "_first_critical": (None, "x"),
    "_highest_since": (1.5,),
    "_climb_ended": (-1, 1.5, "x", True),
    "_idle": (None, [-1], [0.5], [1], ["x"]),
    "_mark": (None, (0, None)),
    "trend": ({}, None, {"num_losses": 3}, LossTrend().state_dict() | {"num_losses": 0.5}),
    "surge": ({}, Surge().state_dict() | {"above": "x"}, Surge().state_dict() | {"lowest": None}),
    "guard": ({}, {"mean": None, "deviation": 0.0, "share": 1.0, "spikes": 0, "num_spikes": 0}),
    "alarm": ({"num_losses": 1.5}, 7),
    "rate_share": (
        {},
        None,
        *(
            RateShare().state_dict() | {"kept": kept}
            for kept in (None, [1.0], [torch.ones(2), torch.ones(2)])
        ),
    ),
}


@every_warmup
@pytest.mark.parametrize("steps", [0, 5, 30])
def test_an_entry_of_another_kind_is_named_and_nothing_is_written(make, steps):
    run, other = Quadratic(make), Quadratic(make, lr=0.04)
    run.train(steps)
    state = run.warmup.state_dict()
    seen = 0
    for name, values in SPOILED.items():
        for value in values if name in state else ():
            check_refused(other, state | {name: value}, name if name != "base_lrs" else "base_lrs|parameter")
            seen += 1
    assert seen >= 25


@every_warmup
def test_a_result_that_was_tampered_with_is_refused(make):
    run, other = Quadratic(make), Quadratic(make)
    run.train(3)
    state = run.warmup.state_dict()
    for name in ("start", "found"):
        if state.get(name) is not None:
            for change in ({"status": "GREAT"}, {"lr": "x"}, {"more": 1.0}, {"slope": None, "loss": {}}):
                check_refused(other, state | {name: state[name] | change}, name)


def test_both_parts_are_checked_before_either_is_written():
    run, other = (Quadratic(WARMUPS["edge"], follow=lambda o: StepLR(o, 5, 0.5)) for _ in range(2))
    run.train(70)
    state = run.scheduler.state_dict()
    assert state["handed_over"]
    for part in ("warmup", "follower"):
        for name in ("base_lrs", "last_epoch"):
            short = copy.deepcopy(state)
            del short[part][name]
            check_refused(other, short, f"lacks {name}")
        check_refused(other, state | {part: None}, "must be a dict")
    for name in state:
        if name != "format":
            check_refused(other, {key: value for key, value in state.items() if key != name}, f"lacks {name}")
    check_refused(other, state | {"more": 1}, "unknown entries more")
    check_refused(other, state | {"found": 0.0}, "found in the saved schedule must be a positive number")
    check_refused(
        other, state | {"handed_over": 1}, "handed_over in the saved schedule must be True or False"
    )
    check_refused(other, state | {"follower": state["follower"] | {"base_lrs": [1.0, 2.0]}}, "base_lrs")
    exponential = Quadratic(WARMUPS["edge"], follow=lambda o: ExponentialLR(o, 0.5))
    check_refused(exponential, state, "the saved state of ExponentialLR has unknown entries step_size")
    other.scheduler.load_state_dict(state)
    assert other.picture() == run.picture()


@every_warmup
@pytest.mark.parametrize("steps", [0, 1, 5, 30, 70])
@pytest.mark.parametrize("follow", [None, lambda o: CosineAnnealingLR(o, T_max=60)])
def test_a_state_without_a_format_still_loads(make, steps, follow):
    """As it was saved before there was one."""
    run, other = Quadratic(make, follow=follow), Quadratic(make, follow=follow)
    run.train(steps)
    state = copy.deepcopy(run.scheduler.state_dict())
    for part in [state] if follow is None else [state, state["warmup"]]:
        for name in SINCE_FORMAT:
            part.pop(name, None)
    with torch.no_grad():
        other.w.copy_(run.w)
    other.generator.set_state(run.generator.get_state())
    other.scheduler.load_state_dict(state)
    assert other.train(20) == run.train(20)


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16])
def test_numbers_of_numpy_are_plain_in_the_state(number):
    def make(optimizer):
        return LinearWarmup(
            optimizer, warmup_steps=np.int64(12), lr_init=number(0.025), max_overhead=number(0.5)
        )

    catapult = lambda o: CatapultWarmup(
        o,
        tolerance=number(0.1),
        smoothing=number(0.5),
        max_growth=number(2),
        max_rise=number(1),
        patience=np.int32(25),
        max_overhead=number(0.5),
    )
    edge = lambda o: EdgeWarmup(o, num_steps=np.int64(80), max_overhead=number(0.5))
    for each in (make, catapult, edge):
        run = Quadratic(each, lr=np.float64(0.05))
        run.train(5)
        file = io.BytesIO()
        torch.save(run.warmup.state_dict(), file)
        file.seek(0)
        Quadratic(each).warmup.load_state_dict(torch.load(file, weights_only=True))
        state = {k: v for k, v in run.warmup.state_dict().items() if k != "rate_share"}
        json.dumps(state)
        assert type(run.warmup.max_overhead) is float


def test_a_state_goes_on_in_a_run_of_another_length():
    for steps in (0, 1, 5, 20, 45):
        run = Quadratic(lambda o: EdgeWarmup(o, num_steps=80), lr=1.0)
        run.train(steps)
        for num_steps in (400, 81, None, 10):
            longer = Quadratic(lambda o, n=num_steps: EdgeWarmup(o, num_steps=n), lr=1.0)
            longer.scheduler.load_state_dict(run.scheduler.state_dict())
            assert longer.optimizer.param_groups[0]["lr"] == run.optimizer.param_groups[0]["lr"] or steps == 0
            assert longer.warmup.export() == run.warmup.export()
            with torch.no_grad():
                longer.w.copy_(run.w)
            longer.train(10)


def test_the_end_at_half_of_the_run_is_that_of_the_new_length():
    run = Quadratic(lambda o: EdgeWarmup(o, num_steps=80), lr=50.0)
    run.train(30)
    state = run.scheduler.state_dict()
    run.train(20)
    assert run.warmup.length == 41
    longer = Quadratic(lambda o: EdgeWarmup(o, num_steps=100), lr=50.0)
    longer.scheduler.load_state_dict(state)
    with torch.no_grad():
        longer.w.copy_(run.w)
    longer.train(40)
    assert 41 < longer.warmup.length <= 51


def test_a_fallback_that_has_begun_keeps_its_length():
    run = Quadratic(lambda o: EdgeWarmup(o, num_steps=80))
    run.optimizer.step()
    with pytest.warns(UserWarning, match="nothing was measured"):
        run.scheduler.step()
    run.optimizer.step()
    run.scheduler.step()
    longer = Quadratic(lambda o: EdgeWarmup(o, num_steps=800))
    longer.scheduler.load_state_dict(run.scheduler.state_dict())
    assert longer.warmup.status is Status.FELL_BACK
    for _ in range(10):
        assert longer.optimizer.param_groups[0]["lr"] == run.optimizer.param_groups[0]["lr"]
        for each in (run, longer):
            each.optimizer.step()
            each.scheduler.step()
    assert longer.warmup.finished


def test_a_state_of_other_parameters_or_groups_is_refused():
    run = Quadratic(WARMUPS["edge"], lr=50.0)
    run.train(3)
    state = run.warmup.state_dict()
    assert len(state["rate_share"]["kept"]) == 1
    two = Quadratic(WARMUPS["edge"])
    two.optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(1)))
    check_refused(
        two, state, "kept in rate_share in the saved state is of 1 other parameters than the optimizer's 2"
    )
    two = Quadratic(WARMUPS["edge"])
    two.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.1})
    check_refused(two, state, "base_lrs in the saved state must be 2 positive numbers, one a parameter group")


def test_what_a_state_holds_is_copied():
    run, other = Quadratic(WARMUPS["edge"], lr=50.0), Quadratic(WARMUPS["edge"], lr=50.0)
    run.train(30)
    state = run.warmup.state_dict()
    kept = copy.deepcopy(state)
    other.warmup.load_state_dict(state)
    other.train(10)
    assert repr(state) == repr(kept)


def test_a_shared_rate_comes_back_with_the_state():
    run = Quadratic(WARMUPS["linear"], make_optimizer=Adam)
    run.train(3)
    run.optimizer.param_groups[0]["lr"] *= 0.5
    with pytest.warns(UserWarning, match="learning rates are"):
        run.train(1)
    state = run.warmup.state_dict()
    other = Quadratic(WARMUPS["linear"], make_optimizer=Adam)
    other.warmup.load_state_dict(state)
    assert other.train(10) == run.train(10) != Quadratic(WARMUPS["linear"]).train(14)[4:]


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("steps", [0, 3, 30, 70])
def test_a_part_reads_its_own_entries_of_a_state_back(make, steps):
    """And no two parts have one of the same name."""
    run = Quadratic(WARMUPS["edge"], lr=50.0)
    run.train(steps)
    state = run.warmup.state_dict()
    part = make()
    part.load_state_dict(Saved(state, "the state", [run.w]))
    own = part.state_dict()
    assert repr(own) == repr({name: state[name] for name in own})
    others = [key for name, other in PARTS.items() if other is not make for key in PARTS[name]().state_dict()]
    assert not own.keys() & set(others)
