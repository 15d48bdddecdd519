"""All that an optimizer holds comes back: the same objects, with the values they had.

Ladder: closed form (the state before equals the state after, by identity and bytes), also of optimizers that hold
others, or keep what they need in places of their own. Cannot see: what hangs on an object outside state and groups.
"""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import MLP, train_step
from edgewise.isolation import isolated
from isolation.everything import Everything, disturb, everything, fingerprint
from oracles import bits


def test_state_that_did_not_exist_does_not_exist_afterwards():
    model = Everything()
    optimizer = torch.optim.Adam(model.net.parameters())
    before = fingerprint(model, optimizer)
    with isolated(model, optimizer):
        model(torch.randn(6, 3)).sum().backward()
        optimizer.step()
        assert len(optimizer.state) > 0
    assert len(optimizer.state) == 0
    assert fingerprint(model, optimizer) == before


def test_a_tensor_learning_rate_keeps_its_identity_and_value():
    model, optimizer, loss_fn, x = everything(lr=torch.tensor(0.25), foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    with isolated(model, optimizer):
        disturb(model, optimizer, loss_fn, x)
        assert rate == 7.0
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.25


def test_replaced_rates_and_state_tensors_keep_their_identity():
    model, optimizer, *_ = everything(lr=torch.tensor(0.25), foreach=False)
    before = fingerprint(model, optimizer)
    with isolated(model, optimizer):
        optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
        optimizer.state[model.net[0].weight]["exp_avg"] = torch.zeros(4, 3)
        optimizer.state[model.net[0].weight]["step"] = 3.0
    assert fingerprint(model, optimizer) == before


class Wrapper(torch.optim.Optimizer):
    """As third-party optimizers are: around one of torch's, with a state and plain records of its own."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, dict(options))
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], **options, momentum=0.9)
        self.history, self.counts, self.seen = [], {"steps": 0}, {"nothing"}

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        self.inner.step()
        self.history.append(self.param_groups[0]["lr"])
        self.counts["steps"] += 1
        self.counts[len(self.history)] = "new"
        self.seen.add(self.param_groups[0]["lr"])


@pytest.mark.parametrize("measure", ["a step", "critical_lr"])
@pytest.mark.parametrize("trained", [0, 2])
def test_an_optimizer_around_another_comes_back_with_its_records(trained, measure):
    model, batches = MLP.build()
    optimizer = Wrapper(model.parameters(), lr=0.1)
    for _ in range(trained):
        train_step(model, optimizer, MLP.loss_fn, batches[0])
    records = lambda: (list(optimizer.history), dict(optimizer.counts), set(optimizer.seen))
    before = fingerprint(model, optimizer), fingerprint(model, optimizer.inner), records()
    assert len(optimizer.inner.state) == (len(list(model.parameters())) if trained else 0)
    if measure == "critical_lr":
        assert ew.critical_lr(model, optimizer, MLP.loss_fn, batches[0]).status is ew.Status.FOUND
    else:
        with isolated(model, optimizer):
            optimizer.param_groups[0]["lr"] = 7.0
            train_step(model, optimizer, MLP.loss_fn, batches[0])
            assert len(optimizer.history) == trained + 1
            assert fingerprint(model, optimizer.inner) != before[1]
    assert (fingerprint(model, optimizer), fingerprint(model, optimizer.inner), records()) == before


class Hoarder(torch.optim.Optimizer):
    """Keeps what it needs wherever an optimizer can, and changes all of it at each step."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "schedule": [1.0]})
        self.average = torch.zeros(2)
        self.parts = [torch.optim.SGD(self.param_groups[0]["params"], lr=0.1, momentum=0.9)]
        self.records = {"nested": {"norms": [0.0], "latest": deque([0.0], maxlen=2)}}
        for p in self.param_groups[0]["params"]:
            factors = [torch.ones(2), SimpleNamespace(steps=0, moment=torch.ones(2))]
            self.state[p] = {"factors": factors, "alias": factors[0]}

    @torch.no_grad()
    def step(self, closure=None):
        self.parts[0].step()
        self.average.add_(1)
        self.records["nested"]["norms"].append(1.0)
        self.records["nested"]["latest"].append(1.0)
        self.param_groups[0]["schedule"][0] *= 0.5
        for entries in self.state.values():
            entries["factors"][0].add_(1)
            entries["factors"][1].steps += 1
            entries["factors"][1].moment.mul_(2)
        if len(self.param_groups) == 1:
            self.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
        self.register_step_post_hook(lambda *_: None)


def test_whatever_an_optimizer_holds_comes_back_as_the_same_objects():
    model = nn.Linear(2, 1)
    optimizer = Hoarder(model.parameters())
    held = optimizer.state[model.weight]["factors"]

    def step():
        before = held[1].moment.clone()
        with isolated(model, optimizer):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            assert not torch.equal(held[1].moment, before)

    ew.assert_no_side_effects(model, optimizer, step)
    entries = optimizer.state[model.weight]
    assert entries["factors"] is held
    assert entries["alias"] is held[0]
    assert bits(held[0]) == bits(held[1].moment) == bits(torch.ones(2))
    assert held[1].steps == 0


def test_step_hooks_of_an_optimizer_inside_are_silent_too():
    model, calls = nn.Linear(2, 1), []
    optimizer = Wrapper(model.parameters(), lr=0.1)
    optimizer.inner.register_step_pre_hook(lambda *_: calls.append("ran"))
    model(torch.ones(1, 2)).sum().backward()
    with isolated(model, optimizer):
        optimizer.step()
    assert calls == []
    optimizer.step()
    assert calls == ["ran"]
