"""Observing never changes training, bit for bit.

Ladder: closed form (the state before equals the state after, compared as bytes); training twice, with and
without measuring, in test_observing.py. Cannot see: state that neither torch nor the optimizer holds, such as a
data loader's own generator.
"""

import copy

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import edgewise as ew
from cases import BY_NAME, MLP, OPT
from edgewise.isolation import isolated
from isolation.everything import disturb, everything, fingerprint
from oracles import bits


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


def test_inside_gradients_are_none_and_afterwards_the_same_objects():
    model, optimizer, *_ = everything()
    gradients = [p.grad for p in model.parameters()]
    assert any(g is not None for g in gradients)
    with isolated(model, optimizer):
        assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))


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
