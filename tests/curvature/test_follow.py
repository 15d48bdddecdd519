"""Curvatures along a run: what a measurement starts from.

Oracle: direct calls of the measurements with and without a start. Cannot see: what a start saves on other networks;
test_tracking does.
"""

from dataclasses import replace

import pytest
import torch

import edgewise as ew
from cases import MLP, OPT, mse
from edgewise.curvature import follow
from edgewise.curvature.follow import MEASURES, Follower


def direct(name, model, optimizer, batch, **options):
    extra = (optimizer,) if name == "preconditioned_sharpness" else ()
    return getattr(ew, name)(model, mse, [batch], *extra, **options)


def moved(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3)


@pytest.mark.parametrize("name", MEASURES)
def test_a_measurement_starts_from_the_one_before(name):
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 2)
    follower = Follower(model, optimizer, mse, rtol=1e-4, seed=3)
    assert follower.is_cold
    first = follower.measure(name, [batch])
    assert first.value == direct(name, model, optimizer, batch, rtol=1e-4, seed=3).value
    assert not follower.is_cold
    moved(model)
    expected = direct(name, model, optimizer, batch, rtol=1e-4, seed=3, start=first)
    second = follower.measure(name, [batch])
    assert (second.value, second.num_hvps, second.num_warm) == (expected.value, expected.num_hvps, 1)


def test_each_curvature_has_a_start_of_its_own():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 2)
    follower = Follower(model, optimizer, mse, rtol=1e-2)
    assert [follower.measure(name, [batch]).num_warm for name in MEASURES] == [0, 0]
    assert [follower.measure(name, [batch]).num_warm for name in MEASURES] == [1, 1]


def test_a_start_of_other_parameters_is_not_used():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 2)
    model[0].requires_grad_(False)
    follower = Follower(model, optimizer, mse, rtol=1e-2)
    follower.measure("sharpness", [batch])
    model[0].requires_grad_(True)
    assert follower.measure("sharpness", [batch]).num_warm == 0
    assert follower.measure("sharpness", [batch]).num_warm == 1


def test_what_is_not_finite_is_no_start(monkeypatch):
    model, optimizer, batch = MLP.build_trained(OPT["sgd"], 2)
    follower = Follower(model, optimizer, mse, rtol=1e-2)
    first = follower.measure("sharpness", [batch])
    infinite = replace(first, value=float("inf"), status=ew.Status.NOT_FINITE, num_warm=7)
    with monkeypatch.context() as patch:
        patch.setattr(follow, "sharpness", lambda *args, **options: infinite)
        assert follower.measure("sharpness", [batch]) is infinite
    assert follower.measure("sharpness", [batch]).num_warm == 1


def test_after_forgetting_a_start_is_cold():
    model, optimizer, batch = MLP.build_trained(OPT["sgd"], 2)
    follower = Follower(model, optimizer, mse, rtol=1e-2)
    first = follower.measure("sharpness", [batch])
    follower.forget()
    assert follower.is_cold
    again = follower.measure("sharpness", [batch])
    assert (again.value, again.num_warm) == (first.value, 0)


def test_options_and_the_budget_are_passed_on():
    model, optimizer, batch = MLP.build_trained(OPT["sgd"], 2)
    options = {"rtol": 1e-12, "hvp": "forward", "params": ["0.*"], "seed": 1}
    found = Follower(model, optimizer, mse, **options).measure("sharpness", [batch], max_hvps=2)
    expected = ew.sharpness(model, mse, [batch], max_hvps=2, **options)
    assert (found.value, found.num_hvps) == (expected.value, expected.num_hvps)
    assert (found.hvp, found.status) == ("forward", ew.Status.BUDGET_EXHAUSTED)
    assert [name for name, _ in found.parameters] == ["0.weight", "0.bias"]
