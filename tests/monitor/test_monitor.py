"""Following a run: its numbers, its budget of time, and that it leaves no trace.

Ladder: closed form (a clock that is told the time, rows made by hand); direct calls of the measurements; real
trajectories of gradient descent; training twice, with and without a monitor, in test_observing.py. Cannot see: what
a measurement costs on other machines, nor on a GPU.
"""

import dataclasses
import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgewise as ew
from cases import MLP, OPT, cross_entropy, mse
from edgewise.arguments import UnknownNameError
from edgewise.curvature.follow import MEASURES
from edgewise.errors import LossError, PreconditionerError
from edgewise.monitor.regime import REGIME_CODES


class Clock:
    """Tells the time it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a mean of gradients: no P."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 0.1)
                p.sub_(group["lr"] * mean.sign())


def follow(model, optimizer, loss_fn, batches, **options):
    """Train for a step on each batch; returns the rows."""
    rows = []
    monitor = ew.Monitor(model, optimizer, loss_fn, log=rows.append, **options)
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        monitor.observe(batch)
        optimizer.step()
    return rows


def trained(option="adam", steps=2):
    model, optimizer, batch = MLP.build_trained(OPT[option], steps)
    return model, optimizer, batch


# The numbers


@pytest.mark.parametrize("option", ["sgd-momentum", "adam", "adamw", "rmsprop"])
def test_a_row_is_what_direct_calls_return(option):
    model, optimizer, batch = trained(option)
    plain = ew.sharpness(model, mse, [batch], rtol=1e-2)
    preconditioned = ew.preconditioned_sharpness(model, mse, [batch], optimizer, rtol=1e-2)
    limit = ew.stability_limit(optimizer).value
    row = ew.Monitor(model, optimizer, mse).observe(batch)
    lr = optimizer.param_groups[0]["lr"]
    assert row.sharpness == plain.value
    assert row.preconditioned_sharpness == pytest.approx(preconditioned.value, rel=1e-12)
    assert (row.step, row.lr, row.limit) == (0, lr, limit)
    assert row.lr_sharpness == lr * row.preconditioned_sharpness
    assert row.fraction == row.lr_sharpness / limit
    assert row.status is ew.Status.CONVERGED
    assert row.regime == "unknown"
    both = plain.num_hvps + preconditioned.num_hvps
    assert row.num_hvps == (plain.num_hvps if option == "sgd-momentum" else both)


@pytest.mark.parametrize("measure", [("sharpness",), ("preconditioned_sharpness",)])
def test_where_p_is_one_a_single_measurement_is_both(measure):
    model, optimizer, batch = trained("sgd")
    row = ew.Monitor(model, optimizer, mse, measure=measure).observe(batch)
    assert row.sharpness == row.preconditioned_sharpness == row.lr_sharpness / row.lr


def test_with_rates_of_their_own_the_groups_have_another_p():
    model, batches = MLP.build()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    )
    row = ew.Monitor(model, optimizer, mse).observe(batches[0])
    assert row.preconditioned_sharpness > 2 * row.sharpness


def test_what_is_not_measured_is_nan():
    model, optimizer, batch = trained("adam")
    row = ew.Monitor(model, optimizer, mse, measure=("sharpness",)).observe(batch)
    assert row.sharpness > 0
    assert all(map(math.isnan, (row.preconditioned_sharpness, row.lr_sharpness, row.fraction)))
    row = ew.Monitor(model, optimizer, mse, measure=["preconditioned_sharpness"]).observe(batch)
    assert math.isnan(row.sharpness)
    assert row.fraction > 0


def test_without_a_p_the_sharpness_alone_is_followed_and_the_row_says_why():
    model, batches = MLP.build()
    (row,) = follow(model, Lion(model.parameters()), mse, batches[:1])
    assert row.sharpness > 0
    assert all(map(math.isnan, (row.preconditioned_sharpness, row.limit, row.fraction)))
    assert row.status is ew.Status.NO_PRECONDITIONER


def test_a_provisional_number_says_so_first(monkeypatch):
    model, batches = MLP.build()
    provisional = lambda *args, **kwargs: dataclasses.replace(
        ew.sharpness(*args, **kwargs), status=ew.Status.BUDGET_EXHAUSTED
    )
    monkeypatch.setattr("edgewise.curvature.follow.sharpness", provisional)
    (row,) = follow(model, Lion(model.parameters()), mse, batches[:1])
    assert row.status is ew.Status.BUDGET_EXHAUSTED


def test_the_limit_follows_the_options():
    model, batches = MLP.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    monitor = ew.Monitor(model, optimizer, mse, every=1)
    first = monitor.observe(batches[0])
    optimizer.param_groups[0]["lr"] = 0.1
    second = monitor.observe(batches[0])
    optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    third = monitor.observe(batches[0])
    found = [row.limit for row in (first, second, third)]
    assert found == pytest.approx([19 * (2 - 0.003), 19 * (2 - 0.03), 3 * (2 - 0.03)])
    assert (first.lr, second.lr) == (0.01, 0.1)


def test_later_measurements_start_from_the_one_before():
    model, batches = MLP.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rows = follow(model, optimizer, mse, batches[:1] * 6, every=1)
    assert len(rows) == 6
    assert max(row.num_hvps for row in rows[2:]) < rows[0].num_hvps / 2


def test_a_start_of_other_parameters_is_not_used():
    model, batches = MLP.build()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    monitor = ew.Monitor(model, optimizer, mse, every=1)
    monitor.observe(batches[0])
    model[0].requires_grad_(True)
    assert monitor.observe(batches[0]).sharpness == ew.sharpness(model, mse, [batches[0]], rtol=1e-2).value


def test_its_own_batches_are_used_instead_of_the_one_observed():
    model, optimizer, batch = trained("sgd")
    _, batches = MLP.build()
    monitor = ew.Monitor(model, optimizer, mse, batches=batches[1:], every=1)
    expected = ew.sharpness(model, mse, batches[1:], rtol=1e-2).value
    assert monitor.observe().sharpness == expected
    assert monitor.observe(batch).sharpness == pytest.approx(expected, rel=1e-2)


def test_a_row_is_a_plain_dict_for_trackers():
    model, optimizer, batch = trained()
    row = ew.Monitor(model, optimizer, mse).observe(batch)
    columns = row.as_dict()
    assert list(columns) == [
        field.name for field in dataclasses.fields(row) if field.name != "top_parameters"
    ]
    assert json.loads(json.dumps(columns)) == columns
    assert columns["status"] == "CONVERGED"


def test_the_metrics_of_a_row_are_its_numbers_by_flat_names():
    model, optimizer, batch = trained()
    row = ew.Monitor(model, optimizer, mse, top_parameters=2).observe(batch)
    metrics = row.metrics()
    columns = {name: value for name, value in row.as_dict().items() if name != "top_parameters"}
    numbers = columns | {"status": row.status.code, "regime": REGIME_CODES[row.regime]}
    shares = {f"share/{name}": share for name, share in row.top_parameters.items()}
    assert metrics == {f"edgewise/{name}": value for name, value in (numbers | shares).items()}
    assert {type(value) for value in metrics.values()} == {int, float}
    for name in ("step", "num_hvps", "status", "regime"):
        assert type(metrics[f"edgewise/{name}"]) is int
    assert row.metrics("x.")["x.step"] == 0
    with pytest.raises(TypeError, match="prefix must be a str"):
        row.metrics(None)


def test_what_is_not_known_is_left_out_of_the_metrics():
    model, _, batch = trained()
    row = ew.Monitor(model, Lion(model.parameters()), mse).observe(batch)
    names = set(row.metrics(""))
    assert {"sharpness", "status", "regime", "lr"} <= names
    assert not {"preconditioned_sharpness", "lr_sharpness", "limit", "fraction", "top_parameters"} & names


# Which parameters


@pytest.mark.parametrize("option", ["sgd", "adam"])
def test_the_top_parameters_are_those_of_the_result_that_the_regime_is_read_from(option):
    model, optimizer, batch = trained(option)
    direct = ew.preconditioned_sharpness(model, mse, [batch], optimizer, rtol=1e-2).by_parameter()
    row = ew.Monitor(model, optimizer, mse, top_parameters=2).observe(batch)
    assert row.top_parameters == pytest.approx(dict(list(direct.items())[:2]), abs=1e-9)
    assert list(row.top_parameters) == list(direct)[:2]
    assert len(ew.Monitor(model, optimizer, mse, top_parameters=100).observe(batch).top_parameters) == len(
        direct
    )
    plain = ew.Monitor(model, optimizer, mse, measure=("sharpness",), top_parameters=1).observe(batch)
    expected = ew.sharpness(model, mse, [batch], rtol=1e-2).by_parameter()
    assert plain.top_parameters == pytest.approx(dict(list(expected.items())[:1]), abs=1e-9)


def test_a_row_without_them_is_as_it_was_and_its_hash_is_that_of_a_tuple():
    model, optimizer, batch = trained()
    row = ew.Monitor(model, optimizer, mse).observe(batch)
    assert row.top_parameters == {}
    assert "top_parameters" not in row.as_dict()
    assert isinstance(hash(row), int)


def test_a_state_loads_with_and_without_them():
    model, optimizer, batch = trained()
    monitors = [ew.Monitor(model, optimizer, mse, every=1, top_parameters=num) for num in (0, 2)]
    for monitor in monitors:
        monitor.observe(batch)
    without, with_two = (json.loads(json.dumps(monitor.state_dict())) for monitor in monitors)
    assert "top_parameters" not in without["rows"][0]
    assert len(with_two["rows"][0]["top_parameters"]) == 2
    for loading in monitors:
        for state in (without, with_two):
            loading.load_state_dict(state)
            assert loading.state_dict()["rows"] == state["rows"]
    for wrong in ([], {"0.weight": "x"}, None):
        row = without["rows"][0] | {"top_parameters": wrong}
        with pytest.raises(ValueError, match="top_parameters of a row in the saved state cannot be"):
            monitors[0].load_state_dict(without | {"rows": [row]})


# When it measures


def test_every_so_many_steps():
    model, batches = MLP.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows = follow(model, optimizer, mse, batches[:1] * 10, every=4)
    assert [row.step for row in rows] == [0, 4, 8]


def timed(costs, *, step_seconds, steps, monkeypatch, **options):
    """Rows of a run whose steps and measurements take given times."""
    model, batches = MLP.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    clock, costs = Clock(), iter(costs)

    def slow(*args, **kwargs):
        clock.now += next(costs)
        return ew.sharpness(*args, **kwargs)

    monkeypatch.setattr("edgewise.curvature.follow.sharpness", slow)
    rows = []
    monitor = ew.Monitor(model, optimizer, mse, log=rows.append, **options)
    monitor._clock = clock
    for _ in range(steps):
        monitor.observe(batches[0])
        clock.now += step_seconds
    return rows, monitor, clock


def test_the_share_of_time_is_kept(monkeypatch):
    """A cold start of 4 s, then 1 s each, steps of 1 s, a tenth of the time t = step + spent.

    The second, expected to cost as much as the first, waits until 4 + 4 ≤ t/10; the others until spent + 1 ≤ t/10.
    """
    rows, *_ = timed(
        [4.0] + [1.0] * 9, step_seconds=1.0, steps=120, monkeypatch=monkeypatch, max_overhead=0.1
    )
    assert [row.step for row in rows] == [0, 76, 77, 78, 79, 82, 91, 100, 109, 118]
    assert [row.seconds for row in rows] == [4.0] + [1.0] * 9
    assert rows[0].overhead == 1.0
    assert rows[1].overhead == pytest.approx(5 / 81)
    assert all(row.overhead <= 0.1 * 1.12 for row in rows[1:])


def test_two_percent_unless_told_otherwise(monkeypatch):
    rows, *_ = timed([1.0] * 9, step_seconds=1.0, steps=200, monkeypatch=monkeypatch)
    assert [row.step for row in rows] == [0, 99, 148, 197]  # spent + 1 ≤ (step + spent)/50


def test_with_both_it_measures_at_those_steps_that_the_time_allows(monkeypatch):
    rows, *_ = timed(
        [1.0] * 9, step_seconds=1.0, steps=200, monkeypatch=monkeypatch, every=30, max_overhead=0.02
    )
    assert [row.step for row in rows] == [0, 120, 150]


@given(
    cold=st.floats(0.1, 50),
    costs=st.lists(st.floats(0.01, 5), min_size=30, max_size=30),
    share=st.floats(0.01, 0.5),
)
def test_the_share_is_exceeded_by_a_misjudged_measurement_at_most(cold, costs, share):
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows, *_ = timed(
            [cold, *costs], step_seconds=1.0, steps=30, monkeypatch=monkeypatch, max_overhead=share
        )
    spent = [row.seconds for row in rows]
    for i, row in enumerate(rows[1:], start=1):
        elapsed = sum(spent[: i + 1]) / row.overhead - row.seconds  # when it was decided
        assert sum(spent[:i]) <= share * elapsed * (1 + 1e-9)


def test_a_hard_measurement_stops_at_twice_what_is_left(monkeypatch):
    model, batches = MLP.build()
    clock, budgets = Clock(), []

    def slow(*args, max_hvps, **kwargs):
        clock.now += 5.0
        budgets.append(max_hvps)
        return dataclasses.replace(ew.sharpness(*args, **kwargs), num_hvps=50)  # 0.1 s each

    monkeypatch.setattr("edgewise.curvature.follow.sharpness", slow)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = ew.Monitor(model, optimizer, mse, max_overhead=0.1, measure=("sharpness",))
    monitor._clock = clock
    for seconds in (0.0, 105.0, 40.0, 1000.0):
        clock.now += seconds
        assert monitor.observe(batches[0])
    # at t = 110 and 155, 6.0 and 5.5 s are left; much later, more than the default
    assert budgets == [200, 120, 110, 200]
    every = ew.Monitor(model, optimizer, mse, every=1)
    every.observe(batches[0]), every.observe(batches[0])
    assert budgets[4:] == [200, 200]


def test_a_measurement_that_fails_is_paid_for(monkeypatch):
    model, batches = MLP.build()
    clock = Clock()

    def failing(*args, **kwargs):
        clock.now += 5.0
        raise KeyError("mine")

    monitor = ew.Monitor(model, torch.optim.SGD(model.parameters(), lr=1e-3), mse, max_overhead=0.1)
    monitor._clock = clock
    monkeypatch.setattr("edgewise.curvature.follow.sharpness", failing)
    with pytest.raises(KeyError):
        monitor.observe(batches[0])
    clock.now += 94.0
    assert monitor.observe(batches[0]) is None  # 5 + 5 > 99/10
    clock.now += 1.0
    with pytest.raises(KeyError):
        monitor.observe(batches[0])


# Resuming


def test_a_resumed_monitor_continues_with_one_cold_start(monkeypatch):
    rows, monitor, _ = timed([1.0] * 9, step_seconds=1.0, steps=60, monkeypatch=monkeypatch, max_overhead=0.1)
    state = json.loads(json.dumps(monitor.state_dict()))
    monkeypatch.undo()
    model, batches = MLP.build()
    resumed = ew.Monitor(model, torch.optim.SGD(model.parameters(), lr=1e-3), mse, max_overhead=0.1)
    resumed.load_state_dict(state)
    resumed._clock = clock = Clock()
    assert resumed.state_dict() == state
    spent, elapsed = state["budget"]["spent"], state["budget"]["elapsed"]
    assert spent == len(rows)
    wait = 10 * (spent + 1) - elapsed
    for seconds, measures in ((0.0, False), (wait * 0.9, False), (wait * 0.11, True)):
        clock.now += seconds
        row = resumed.observe(batches[0])
        assert (row is not None) == measures
    assert row.step == 62
    assert row.num_hvps == ew.sharpness(model, mse, [batches[0]], rtol=1e-2).num_hvps  # cold
    assert row.regime != "unknown"  # from the rows that were saved


def test_the_first_steps_need_no_state(monkeypatch):
    model, optimizer, _ = trained()
    monitor = ew.Monitor(model, optimizer, mse)
    state = monitor.state_dict()
    assert state["step"] == 0
    monitor.load_state_dict(state)
    assert monitor.state_dict() == state


def test_a_state_is_checked_whole_before_anything_is_written():
    model, optimizer, batch = trained()
    monitor, other = (ew.Monitor(model, optimizer, mse, every=2) for _ in range(2))
    for _ in range(5):
        monitor.observe(batch)
    state = monitor.state_dict()
    row, budget = state["rows"][0], state["budget"]
    spoiled = [
        {key: value for key, value in state.items() if key != name} for name in ("step", "rows", "budget")
    ]
    spoiled += [
        state | {"more": 1},
        {},
        None,
        state | {"format": 3},
        state | {"step": -1},
        state | {"step": "x"},
    ]
    spoiled += [
        state | {"rows": rows} for rows in ({}, [{}], [row | {"status": "GREAT"}], [row | {"lr": "x"}])
    ]
    spoiled += [state | {"rows": [row | {"more": 1.0}]}, state | {"rows": [row | {"regime": "calm"}]}]
    spoiled += [
        state | {"budget": {}},
        state | {"budget": None},
        state | {"budget": budget | {"spent": math.nan}},
    ]
    spoiled += [state | {"budget": budget | {"warm": [None]}}, state | {"budget": budget | {"cold": "x"}}]
    before = other.state_dict()
    for broken in spoiled:
        with pytest.raises(ValueError, match="saved"):
            other.load_state_dict(broken)
        assert other.state_dict() == before
    other.load_state_dict(
        {key: value for key, value in state.items() if key != "format"}
    )  # as before there was one
    assert other.state_dict()["rows"] == state["rows"]


# Errors of the user's own


def dropout_mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))


class Interrupted(RuntimeError):
    pass


def failing(model, batch):
    """Draw, run the model, and give up."""
    random.random()
    model(batch[0] + torch.rand_like(batch[0]))
    raise Interrupted


def failing_log(row):
    raise Interrupted


@pytest.mark.parametrize("how", ["raises", "log raises"])
def test_an_error_is_the_callers(how):
    model = dropout_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = (
        ew.Monitor(model, optimizer, failing)
        if how == "raises"
        else ew.Monitor(model, optimizer, cross_entropy, log=failing_log)
    )
    with pytest.raises(Interrupted):
        monitor.observe((torch.randn(6, 3), torch.randint(0, 3, (6,))))


def test_a_loss_that_is_not_finite_is_named():
    model, optimizer, batch = trained()
    with pytest.raises(LossError, match="nan"):
        ew.Monitor(model, optimizer, lambda model, batch: mse(model, batch) * math.nan).observe(batch)


# Errors


def options(**given):
    return given


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (options(every=0), ValueError, "every must be 1 or greater, got 0"),
        (options(every=True), TypeError, "every must be a whole number, got True"),
        (options(every=2.0), TypeError, "every must be a whole number"),
        (options(max_overhead=0), ValueError, "max_overhead must be a finite number greater than 0, got 0"),
        (options(max_overhead=-0.1), ValueError, "max_overhead must be"),
        (options(max_overhead=1), ValueError, "max_overhead must be a share .*, below 1, got 1: 0.02 is 2%"),
        (options(max_overhead=math.nan), ValueError, "max_overhead must be a finite"),
        (options(max_overhead=True), TypeError, "max_overhead must be a number, got True"),
        (options(batches=iter([1])), TypeError, "only once"),
        (options(batches=torch.ones(2)), TypeError, "batches must be a list"),
        (options(batches=[]), ValueError, "batches is empty"),
        (
            options(measure=("critical_lr",)),
            UnknownNameError,
            "unknown measure 'critical_lr'; known: precond",
        ),
        (options(measure="sharpness"), TypeError, r"must be a sequence .* got 'sharpness': write"),
        (
            options(measure=()),
            TypeError,
            r"measure must be a sequence of one or both of sharpness, pre.*got \(\)",
        ),
        (options(log=[]), TypeError, r"log must be a function of the row, .*; got \[\]"),
        (options(loss_fn=None), TypeError, "loss_fn must be a function of .*; got None"),
        (options(rtol=0), ValueError, "rtol must be"),
        (options(hvp="exact"), UnknownNameError, "unknown hvp 'exact'"),
        (options(params="head.*"), UnknownNameError, "matches no parameter"),
        (options(seed=-1), ValueError, "seed must be 0 or greater"),
        (options(top_parameters=-1), ValueError, "top_parameters must be 0 or greater, got -1"),
        (options(top_parameters=1.5), TypeError, "top_parameters must be a whole number, got 1.5"),
        (options(model=3), TypeError, "model must be a torch.nn.Module, got 3 of type int"),
        (
            options(optimizer="adam"),
            TypeError,
            "optimizer must be a torch.optim.Optimizer, got 'adam' of type str",
        ),
        (
            options(model=nn.Linear(2, 2)),
            ValueError,
            "none of the model's 2 selected parameters is in the optim",
        ),
        (
            options(measure=("preconditioned_sharpness",), lion=True),
            PreconditionerError,
            "Lion has no diagonal",
        ),
        (options(part=True), ValueError, "parameter 2 .* is not in the optimizer"),
    ],
)
def test_bad_input_is_refused_by_the_constructor(given, error, message):
    model, optimizer, _ = trained()
    if given.pop("lion", False):
        optimizer = Lion(model.parameters())
    if given.pop("part", False):
        optimizer = torch.optim.Adam(model[0].parameters())
    given = {"model": model, "optimizer": optimizer, "loss_fn": mse} | given
    with pytest.raises(error, match=message):
        ew.Monitor(given.pop("model"), given.pop("optimizer"), given.pop("loss_fn"), **given)


def test_observing_nothing_is_refused():
    model, optimizer, _ = trained()
    with pytest.raises(ValueError, match=r"observe\(\) got no batch, .* call observe\(batch\), or construct"):
        ew.Monitor(model, optimizer, mse).observe()


def test_the_measures_are_those_of_the_library():
    assert all(callable(getattr(ew, name)) for name in MEASURES)
