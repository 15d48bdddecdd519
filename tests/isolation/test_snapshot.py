"""Observing never changes training, bit for bit.

Ladder: closed form (the state before equals the state after, compared as bytes); training twice, with and
without measuring, in test_observing.py. Cannot see: state that neither torch nor the optimizer holds, such as a
data loader's own generator.
"""

import copy
import math
import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import edgewise as ew
from cases import BY_NAME, MLP, OPT, train_step
from edgewise.isolation import isolated
from edgewise.isolation.bits import exchanged
from oracles import bits


class Everything(nn.Module):
    """Dropout, batch statistics, buffers assigned anew at each forward, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", None)
        self.net[2].eval()  # a mode of its own

    def forward(self, x):
        self.calls = self.calls + 1
        self.latest = x.detach().mean(0)
        return self.frozen(self.net(x))


def everything(option="adam", **changes):
    model = Everything()
    groups = [{"params": model.net[0].parameters()}, {"params": model.net[1:].parameters(), "lr": 0.5}]
    optimizer = OPT[option].cls(groups, **{**OPT[option].options, **changes})
    loss_fn = lambda model, x: model(x).square().mean() + random.random() + np.random.rand()  # noqa: NPY002
    x = torch.randn(6, 3)
    train_step(model, optimizer, loss_fn, x)
    loss_fn(model, x).backward()
    return model, optimizer, loss_fn, x


def fingerprint(model, optimizer):
    """Everything that training depends on, as comparable values; tensors by identity and bytes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    entry = lambda value: (id(value), bits(value)) if isinstance(value, torch.Tensor) else repr(value)
    return {
        "tensors": {name: entry(t) for name, t in tensors.items()},
        "grads": {name: entry(p.grad) for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "state": [
            {k: entry(v) for k, v in optimizer.state.get(p, {"absent": True}).items()}
            for p in model.parameters()
        ],
        "num_state": len(optimizer.state),
        "groups": [
            {k: entry(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ],
        "members": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "attributes": {k: id(v) for k, v in vars(optimizer).items()},
        "hooks": [list(optimizer._optimizer_step_pre_hooks), list(optimizer._optimizer_step_post_hooks)],
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": bits(torch.get_rng_state()),
    }


def disturb(model, optimizer, loss_fn, x):
    """Change all that a measurement could change."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(7.0)
        else:
            group["lr"] = 7.0
        group["surprise"] = 1
    loss_fn(model, x).backward()
    optimizer.step()
    optimizer.state[model.net[0].weight]["surprise"] = torch.ones(1)
    optimizer.surprise = 1
    model.eval()
    model.frozen.requires_grad_(True)
    model.net[0].bias.requires_grad_(False)
    with torch.no_grad():
        model.frozen.weight.add_(1)
    model.net[1].running_mean = torch.full((4,), 9.0)
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)


@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("option", ["sgd", "sgd-momentum", "adam", "amsgrad", "radam", "gi-adamw"])
def test_everything_comes_back_bit_for_bit(option, raises):
    model, optimizer, loss_fn, x = everything(option)
    before = fingerprint(model, optimizer)
    try:
        with isolated(model, optimizer):
            disturb(model, optimizer, loss_fn, x)
            assert fingerprint(model, optimizer) != before  # the comparison sees it
            if raises:
                raise KeyError("the body's own")
    except KeyError:
        assert raises
    assert fingerprint(model, optimizer) == before


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


def test_inside_gradients_are_none_and_afterwards_the_same_objects():
    model, optimizer, *_ = everything()
    gradients = [p.grad for p in model.parameters()]
    assert any(g is not None for g in gradients)
    with isolated(model, optimizer):
        assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
)
def test_signed_zeros_come_back(dtype):
    model = nn.Module()
    model.register_buffer("zero", torch.full((2,), -0.0, dtype=dtype))
    before = torch.view_as_real(model.zero) if dtype.is_complex else model.zero
    before = torch.signbit(before)
    assert before.any()
    with isolated(model):
        model.zero.zero_()
    after = torch.view_as_real(model.zero) if dtype.is_complex else model.zero
    assert torch.equal(torch.signbit(after), before)


def test_nan_payloads_come_back():
    payload = np.array([0x7FC0BEEF, 0xFFC00001], dtype=np.uint32)
    model = nn.Module()
    model.register_buffer("payload", torch.from_numpy(payload.view(np.float32).copy()))
    with isolated(model):
        model.payload.fill_(math.nan)
        assert bits(model.payload) != list(payload.tobytes())
    assert bits(model.payload) == list(payload.tobytes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128, torch.int64, torch.bool])
def test_an_untouched_tensor_is_not_written_to(dtype):
    model = nn.Module()
    model.register_buffer("values", torch.ones(3).to(dtype))
    if dtype.is_floating_point:
        model.values[0] = math.nan
    version = model.values._version
    with isolated(model):
        pass
    assert model.values._version == version


def test_rewind_repeats_random_numbers_and_buffers():
    model, optimizer, loss_fn, x = everything()
    model.train()
    with isolated(model, optimizer) as snapshot:
        first = loss_fn(model, x)
        assert not torch.equal(loss_fn(model, x), first)
        snapshot.rewind()
        assert torch.equal(loss_fn(model, x), first)
        assert model.calls == 3  # of 2 forwards before, and this one


def test_modules_are_found_without_the_model():
    model, optimizer, loss_fn, x = everything()
    before = fingerprint(model, optimizer)
    with isolated(None, optimizer):
        loss_fn(model, x).backward()
        optimizer.step()
        model.eval()
        loss_fn(model, x)
    assert fingerprint(model, optimizer) == before
    seen = []
    with isolated(None, optimizer):
        pass
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    loss_fn(model, x)
    assert seen == [1]  # and our own hook is gone: nothing else was registered
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_step_hooks_are_silent_inside_and_back_afterwards():
    model, optimizer, loss_fn, x = everything()
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    try:
        with isolated(model, optimizer):
            loss_fn(model, x).backward()
            optimizer.step()
            assert seen == []
        optimizer.step()
        assert sorted(seen) == ["global post", "global pre", "post", "pre"]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("measure", ["sharpness", "preconditioned_sharpness"])
def test_a_measurement_between_forward_and_backward_leaves_the_gradient(measure):
    """BatchNorm's backward holds its running statistics: they may not be marked as changed."""
    case = BY_NAME["conv-batchnorm-xent"]
    model, optimizer, batch = case.build_trained(OPT["adam"], 1)
    twin = copy.deepcopy(model)
    case.loss_fn(twin, batch).backward()
    optimizer.zero_grad()
    loss = case.loss_fn(model, batch)
    extra = (optimizer,) if measure == "preconditioned_sharpness" else ()
    getattr(ew, measure)(model, case.loss_fn, [batch], *extra, rtol=0.1)
    loss.backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert bits(ours.grad) == bits(theirs.grad)


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


# Casts, micro-batches, and user code that raises


CAST_AND_SPLIT = [
    {"dtype": torch.float64},
    {"max_graph_bytes": 10**9},
    {"max_graph_bytes": 700, "dtype": torch.float64, "hvp": "difference"},
    {"dtype": torch.float64, "hvp": "checked", "max_graph_bytes": 10**9},
]


@pytest.mark.parametrize("call", [None, 1, 2, 3])
@pytest.mark.parametrize("options", CAST_AND_SPLIT, ids=str)
@pytest.mark.parametrize("measure", ["sharpness", "preconditioned_sharpness"])
def test_cast_copies_and_micro_batches_leave_no_trace(measure, options, call):
    """Also where user code raises inside, after it has spoilt what it was given."""
    model, optimizer, loss_fn, x = everything()
    if options.get("max_graph_bytes") == 700:
        model.eval()  # BatchNorm in training is not split
    before, enter = fingerprint(model, optimizer), torch.autocast.__enter__
    held = {name: id(p) for name, p in model.named_parameters()}
    calls = []

    def spoiling(model, batch):
        calls.append(1)
        loss = loss_fn(model, batch)
        model.net[1].running_mean = torch.full((4,), 9.0)
        model.net[1].register_buffer("surprise", torch.ones(1))
        if len(calls) == call:
            model.train(not model.training)
            with torch.no_grad():
                model.net[0].weight.fill_(3.0)
            raise KeyError("mine")
        return loss

    extra = (optimizer,) if measure == "preconditioned_sharpness" else ()
    options = {**options, "rtol": 0.3, "max_hvps": 4}
    if call is None:
        getattr(ew, measure)(model, spoiling, [x], *extra, params="net.*", **options)
    else:
        with pytest.raises(KeyError) as caught:
            getattr(ew, measure)(model, spoiling, [x], *extra, params="net.*", **options)
        assert caught.value.__traceback__ is not None  # frames are still alive, and hold nothing of ours
    assert fingerprint(model, optimizer) == before
    assert {name: id(p) for name, p in model.named_parameters()} == held
    assert torch.autocast.__enter__ is enter


def failing_on(call, error):
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) == call:
            raise error
        return MLP.loss_fn(model, batch)

    return loss_fn


@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_loss_that_raises_amid_a_search_leaves_no_trace(call):
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 2)
    before = fingerprint(model, optimizer)
    with pytest.raises(KeyError):
        ew.critical_lr(model, optimizer, failing_on(call, KeyError("mine")), batch)
    assert fingerprint(model, optimizer) == before


def test_tied_tensors_are_exchanged_and_come_back():
    one = torch.tensor([1.0, 2.0])
    ones, others = [one, one.view(2)], [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    with exchanged(ones, others):
        assert one.tolist() == [5.0, 6.0]
    assert one.tolist() == [1.0, 2.0]
    assert [other.tolist() for other in others] == [[3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("raises", [False, True])
def test_exchanged_tensors_come_back_bit_for_bit(raises):
    ones = [torch.tensor([0.1, math.nan, -0.0]), torch.tensor(3, dtype=torch.int64)]
    others = [torch.tensor([5.0, 6.0, 7.0]), torch.tensor(4)]
    kept = [[t.clone() for t in tensors] for tensors in (ones, others)]
    versions = [t._version for t in ones]
    try:
        with exchanged(ones, others):
            assert ones[0].tolist() == [5.0, 6.0, 7.0]
            assert others[1].item() == 3
            if raises:
                raise KeyError("user")
    except KeyError:
        assert raises
    for tensors, before in zip((ones, others), kept, strict=True):
        assert all(t.numpy().tobytes() == b.numpy().tobytes() for t, b in zip(tensors, before, strict=True))
    assert [t._version for t in ones] == versions  # a graph that saved them is still good
