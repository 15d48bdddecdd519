"""A measurement is its own thread's: another one trains on as if there were none.

Ladder: closed form (what the other thread sees, and that nothing is left, whatever the order in which they end).
Trainings in two threads, bit for bit, are in test_observing.py. Cannot see: autograd threads of an accelerator.
"""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import (
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import edgewise as ew
from cases import mse
from edgewise.curvature.routes.attention import plain_attention
from edgewise.isolation import isolated
from edgewise.isolation.threads import Override
from edgewise.loss.checks import forward_only
from edgewise.loss.precision import without_autocast

FUSED = functional.scaled_dot_product_attention


def elsewhere(function):
    """Call a function in another thread."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(function).result()


def fitted():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), torch.randn(8, 3)
    return model, torch.optim.Adam(model.parameters(), lr=0.01), (x, torch.randn(8, 1))


def patched():
    """All that a measurement may have replaced."""
    modules = (nn.Module, torch.autocast, functional, torch.utils.checkpoint)
    return {
        (owner, name): value for owner in modules for name, value in vars(owner).items() if callable(value)
    }


def autocasts():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return nn.Linear(2, 2)(torch.ones(1, 2)).dtype is torch.bfloat16


def test_autocast_is_off_in_this_thread_alone():
    before = patched()
    with without_autocast():
        assert not autocasts()
        assert elsewhere(autocasts)
        with without_autocast():
            assert not autocasts()
        assert not autocasts()
    assert autocasts()
    assert patched() == before


@pytest.mark.parametrize("context", [without_autocast, forward_only, plain_attention, isolated])
@pytest.mark.parametrize("first", [0, 1])
def test_two_threads_that_end_in_any_order_leave_nothing_behind(context, first):
    before, filters = patched(), list(warnings.filters)
    entered, ends = threading.Barrier(3, timeout=30), [threading.Event(), threading.Event()]

    def run(i):
        with context():
            entered.wait()
            assert ends[i].wait(30)

    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(run, i) for i in range(2)]
        entered.wait()
        for i in (first, 1 - first):
            ends[i].set()
            runs[i].result()
    assert patched() == before
    assert warnings.filters == filters


def test_hooks_on_all_optimizers_run_in_the_other_thread_and_are_all_there_afterwards():
    seen = []
    tell = lambda optimizer, args, kwargs: seen.append(threading.get_ident())
    handles = [register_optimizer_step_pre_hook(tell), register_optimizer_step_post_hook(tell)]
    (model, optimizer, batch), (other, others_optimizer, _) = fitted(), fitted()
    mse(other, batch).backward()
    stepped = []

    def loss_fn(model, batch):
        if len(stepped) < 3:  # amid the measurement
            stepped.append(elsewhere(lambda: others_optimizer.step() or threading.get_ident()))
        return mse(model, batch)

    try:
        ew.critical_lr(model, optimizer, loss_fn, batch)
        assert sorted(seen) == sorted(2 * stepped)
        seen.clear()
        others_optimizer.step()
        assert len(seen) == 2
        handles.pop().remove()
        others_optimizer.step()
        assert len(seen) == 3
    finally:
        for handle in handles:
            handle.remove()
    assert not _global_optimizer_pre_hooks


def test_a_hook_that_is_removed_or_added_amid_a_measurement_is_gone_or_there():
    seen = []
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    removed = register_optimizer_step_pre_hook(lambda *_: seen.append("removed"))
    with isolated(optimizer=optimizer), isolated(optimizer=optimizer):
        removed.remove()
        added = register_optimizer_step_pre_hook(lambda *_: seen.append("added"))
    optimizer.step()
    added.remove()
    assert seen == ["added"]


def test_modules_that_another_thread_uses_are_not_this_ones():
    model, _, batch = fitted()
    with isolated() as snapshot:
        elsewhere(lambda: model(batch[0]))
        assert snapshot.modules == []
    assert model[1].num_batches_tracked == 1  # it trained on


def test_a_method_that_others_replace_meanwhile_stays_theirs():
    class Door:
        def knock(self):
            return "who"

    override = Override(Door, "knock")
    with override.by(lambda original, door: "ours " + original(door)):
        inner = Door.knock
        Door.knock = lambda door: "theirs " + inner(door)
        assert Door().knock() == "theirs ours who"
    assert Door().knock() == "theirs who"
    with override.by(lambda original, door: "ours " + original(door)):
        assert Door().knock() == "ours theirs who"
    assert Door().knock() == "theirs who"


def test_what_another_thread_lets_go_of_is_gone():
    class Door:
        def knock(self):
            return "who"

    stack = ExitStack()
    stack.enter_context(Override(Door, "knock").by(lambda original, door: "ours"))
    assert Door().knock() == "ours"
    elsewhere(stack.close)
    assert Door().knock() == "who"


MASK = torch.tensor([[True, False, True]]).expand(3, 3)
ATTENTION = [
    {},
    {"is_causal": True},
    {"attn_mask": MASK},
    {"attn_mask": torch.where(MASK, 0.5, -1.0)},
    {"dropout_p": 0.4},
    {"scale": 0.3},
]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("options", ATTENTION, ids=str)
def test_plain_attention_is_torchs_own(options, by_name):
    query, key, value = torch.randn(3, 2, 2, 3, 4).unbind()
    torch.manual_seed(1)
    with sdpa_kernel(SDPBackend.MATH):
        expected = FUSED(query, key, value, **options)
    torch.manual_seed(1)
    with plain_attention():
        attention = functional.scaled_dot_product_attention if by_name else FUSED
        assert torch.equal(attention(query, key, value, **options), expected)
        assert (
            elsewhere(lambda: functional.scaled_dot_product_attention(query, key, value)).shape == query.shape
        )


# Defaults of the process


def loop(make):
    model, optimizer, batch = fitted()
    torch.manual_seed(0)
    warmup = make(optimizer)
    rates = []
    for step in range(6):
        optimizer.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        warmup.observe(lambda: mse(model, batch), loss=loss.detach() if step % 2 else loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return rates


def with_batch(measure):
    model, optimizer, batch = fitted()
    mse(model, batch).backward()
    return measure(model, optimizer, batch)


ENTRIES = {
    "sharpness": lambda m, o, b: ew.sharpness(m, mse, [b, b], num=2).value,
    "forward": lambda m, o, b: ew.sharpness(m.eval(), mse, [b], hvp="forward").value,
    "difference": lambda m, o, b: ew.sharpness(m, mse, [b], hvp="difference").value,
    "float64": lambda m, o, b: ew.sharpness(m, mse, [b], dtype=torch.float64).value,
    "split": lambda m, o, b: ew.sharpness(m.eval(), mse, [b], max_graph_bytes=2000).value,
    "preconditioned": lambda m, o, b: ew.preconditioned_sharpness(m, mse, [b], o).value,
    "critical_lr": lambda m, o, b: ew.critical_lr(m, o, mse, b).lr,
    "several": lambda m, o, b: ew.critical_lr(m, o, mse, batches=[b, b], gradient="current").interval,
    "limit": lambda m, o, b: ew.stability_limit(o).value,
    "Monitor": lambda m, o, b: ew.Monitor(m, o, mse, every=1).observe(b).sharpness,
    "no effects": lambda m, o, b: ew.assert_no_side_effects(m, o, lambda: ew.sharpness(m, mse, [b]).value),
}
ENTRIES = {name: lambda measure=measure: with_batch(measure) for name, measure in ENTRIES.items()} | {
    "EdgeWarmup": lambda: loop(ew.EdgeWarmup),
    "CatapultWarmup": lambda: loop(ew.CatapultWarmup),
    "LinearWarmup": lambda: loop(lambda o: ew.LinearWarmup(o, warmup_steps=9, lr_init="critical")),
}


def adam_steps_elsewhere():
    """Whether torch's own Adam steps where its parameters are: before torch 2.12 its count is on the default device."""
    model, optimizer, batch = fitted()
    torch.set_default_device("meta")
    try:
        mse(model, batch).backward()
        optimizer.step()
    except RuntimeError:
        return False
    finally:
        torch.set_default_device(None)
    return True


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("default", ["device", "dtype"])
def test_the_default_device_and_dtype_change_nothing(entry, default, monkeypatch):
    if default == "device" and not adam_steps_elsewhere():
        pytest.skip("this torch's Adam cannot step on another device than the default one")

    def result():
        torch.manual_seed(0)
        return ENTRIES[entry]()

    made = fitted
    inputs = iter([])

    def prepared():
        return next(inputs)

    monkeypatch.setitem(globals(), "fitted", prepared)
    torch.manual_seed(0)
    one = made()
    torch.manual_seed(0)
    other = made()
    inputs = iter([one, other])
    expected = result()
    try:
        if default == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        found = result()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert found == expected
