"""The loss of an update over its micro-batches: shares that are found, when it is empty again, what it leaves alone.

Ladder: closed form (the factor that the test gives backward()) → counts of evaluations → training that is checked bit
for bit. Cannot see: whether a factor below 1.25 times a candidate is dropout or a mistake.
"""

import contextlib
import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import edgewise as ew
from cases import MLP, mse
from edgewise.errors import LossError
from edgewise.loss.shares import Shares
from isolation.everything import everything, fingerprint
from oracles import bits

FACTORS = {  # name → (index, sizes) → what the loss is multiplied with before backward()
    "undivided": lambda i, sizes: 1.0,
    "by their number": lambda i, sizes: 1 / len(sizes),
    "by their sizes": lambda i, sizes: sizes[i] / sum(sizes),
}
every_factor = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS.keys())


class Counted:
    """MLP's loss, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        return mse(model, batch)


def added(update_loss, batches, factor):
    """Add micro-batches, with the graph-free losses that a training loop would have."""
    sizes = [len(batch[0]) for batch in batches]
    for i, batch in enumerate(batches):
        with torch.no_grad():
            update_loss.add(batch, factor(i, sizes) * mse(update_loss.model, batch))
    return update_loss


def made(loss_fn=mse, **options):
    model, batches = MLP.build()  # of 5, 9 and 2 samples
    return ew.UpdateLoss(model, loss_fn, **options), batches


def moved(model):
    """Return the model after a change of its parameters."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


# Shares


@every_factor
@pytest.mark.parametrize("num", [1, 2, 3])
def test_the_share_is_what_the_training_loop_multiplies_by(factor, num):
    update_loss, batches = made()
    batches = batches[:num]
    added(update_loss, batches, factor)
    sizes = [len(batch[0]) for batch in batches]
    expected = [factor(i, sizes) for i in range(num)]
    assert update_loss.shares == pytest.approx(expected, rel=1e-12)
    for model in (update_loss.model, moved(update_loss.model)):
        total = sum(share * mse(model, batch) for share, batch in zip(expected, batches, strict=True))
        torch.testing.assert_close(update_loss(), total, rtol=1e-14, atol=0)


@every_factor
def test_the_value_is_the_sum_of_what_was_added_to_the_bit(factor):
    update_loss, batches = made()
    added(update_loss, batches, factor)
    assert bits(update_loss.value) == bits(update_loss().detach())
    assert not update_loss.value.requires_grad


def test_a_loss_that_is_written_to_later_was_added_as_it_stood():
    """As all_reduce does, for a log, and the next replay of a CUDA graph."""
    update_loss, batches = made()
    for batch in batches[:2]:
        loss = mse(update_loss.model, batch) / 2
        update_loss.add(batch, loss)
        loss.detach().mul_(8)
    assert update_loss.shares == [0.5, 0.5]
    assert bits(update_loss.value) == bits(update_loss().detach())


def test_shares_that_are_given_cost_no_evaluation():
    loss_fn = Counted()
    update_loss, batches = made(loss_fn)
    update_loss.add(batches[0], 7.0, share=0.5)
    update_loss.add(batches[1], torch.tensor([[7.0]]), share=2)
    assert update_loss.shares == [0.5, 2.0]
    assert (float(update_loss.value), loss_fn.calls) == (14.0, 0)
    expected = 0.5 * mse(update_loss.model, batches[0]) + 2 * mse(update_loss.model, batches[1])
    assert update_loss().item() == pytest.approx(expected.item(), rel=1e-14)


def test_shares_are_found_once_for_micro_batches_of_the_same_sizes():
    loss_fn = Counted()
    update_loss, batches = made(loss_fn)
    forwards = []
    for order in ((0, 1, 2), (0, 1, 2), (2, 1, 0), (0, 1, 2)):
        added(update_loss, [batches[i] for i in order], FACTORS["by their sizes"])
        forwards.append(update_loss.find_shares())
        assert update_loss.shares == pytest.approx([len(batches[i][0]) / 16 for i in order])
        update_loss.observed()
    assert forwards == [1, 0, 1, 0]
    assert loss_fn.calls == 6


def test_the_short_last_update_of_an_epoch_keeps_the_divisor_of_a_full_one():
    update_loss, batches = made()
    quarter = lambda i, sizes: 1 / 4
    assert added(update_loss, [batches[0]] * 4, quarter).shares == [1 / 4] * 4
    for rest in ([batches[0]], [batches[0]] * 2, [batches[0], batches[2]], [batches[0]] * 3):
        update_loss.observed()
        assert added(update_loss, rest, quarter).shares == [1 / 4] * len(rest)


def test_a_loop_that_accumulates_fewer_from_now_on_divides_by_these():
    shares = Shares()
    assert shares.find((8, 8, 8, 8), given=[0.25] * 4, evaluated=[1.0] * 4) == [0.25] * 4
    assert shares.find((8, 8), given=[0.25] * 2, evaluated=[1.0] * 2) == [0.25] * 2  # the last of an epoch
    assert shares.known((8, 8, 8, 8)) == [0.25] * 4
    assert shares.known((8, 8)) is None
    assert shares.find((8, 8), given=[0.5] * 2, evaluated=[1.0] * 2) == [0.5] * 2


def test_dropout_makes_no_other_share():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.1), nn.Tanh(), nn.Linear(64, 2)).double()
    update_loss = ew.UpdateLoss(model, mse)
    _, batches = MLP.build()
    wide = [(x.repeat(50, 1), y.repeat(50, 1)) for x, y in batches[:2]]
    for i in range(2):
        update_loss.add(wide[i], mse(model, wide[i]) / 2)
    assert update_loss.shares == [0.5, 0.5]


@pytest.mark.parametrize("factor", [3.0, 0.3, -1.0])
def test_a_factor_that_nothing_explains_is_told(factor):
    update_loss, batches = made()
    added(update_loss, batches[:2], lambda i, sizes: factor if i else 1.0)
    told = rf"added are 1 {factor:g} times what loss_fn returns .*: no factor, 1 1; one over the number, 0\.5 0\.5; "
    with pytest.raises(
        LossError, match=told + r"the share of the samples, 0\.3571 0\.6429\. Pass share= to add"
    ):
        update_loss.find_shares()


@pytest.mark.parametrize("nothing", [0.0, math.nan, math.inf])
def test_losses_that_tell_nothing_are_taken_for_means(nothing):
    shares = Shares()
    assert shares.find((4, 4), given=[nothing, 1.0], evaluated=[1.0, nothing]) == [0.5, 0.5]
    assert shares.known((4, 4)) is None
    assert shares.find((4, 4), given=[1.0, nothing], evaluated=[1.0, 1.0]) == [1.0, 1.0]
    assert shares.known((4, 4)) == [1.0, 1.0]
    assert shares.find((4, 2), given=[nothing, nothing], evaluated=[1.0, 1.0]) == [1.0, 1.0]  # as before


def test_batches_whose_size_cannot_be_told_are_shared_by_their_number():
    model = nn.Linear(2, 1)
    update_loss = ew.UpdateLoss(model, lambda model, scale: scale * model.weight.square().sum())
    for scale in (1.0, 2.0):
        update_loss.add(scale, update_loss.loss_fn(model, scale) / 2)
    assert update_loss.shares == [0.5, 0.5]


# When it is empty again


def stepped(model, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return optimizer


def test_it_is_empty_after_the_step_of_an_optimizer_of_the_model_alone():
    update_loss, batches = made()
    own, other = stepped(update_loss.model), stepped(nn.Linear(2, 1))
    partly = torch.optim.SGD([next(update_loss.model.parameters())], lr=0.1)
    for optimizer in (own, partly):
        added(update_loss, batches, FACTORS["undivided"])
        other.step()
        assert len(update_loss.batches) == 3
        optimizer.step()
        assert update_loss.batches == []
        with pytest.raises(
            ValueError, match=r"holds no micro-batch: call add\(batch, loss\) after each forward"
        ):
            update_loss()


def test_trial_steps_do_not_empty_it():
    update_loss, batches = made()
    optimizer = stepped(update_loss.model)
    added(update_loss, batches, FACTORS["undivided"])
    ew.critical_lr(update_loss.model, optimizer, mse, batches[0])
    with ew.isolated(update_loss.model, optimizer):
        optimizer.step()
    assert len(update_loss.batches) == 3


def test_an_update_whose_step_is_skipped_is_followed_by_another():
    """As a GradScaler does, which calls no step."""
    update_loss, batches = made()
    added(update_loss, batches, FACTORS["undivided"])
    update_loss.observed()
    added(update_loss, batches[:1], FACTORS["undivided"])
    assert len(update_loss.batches) == 1
    added(update_loss, batches[1:], FACTORS["undivided"])
    assert len(update_loss.batches) == 3


def test_an_update_that_is_left_out_is_followed_by_another():
    update_loss, batches = made()
    added(update_loss, batches, FACTORS["undivided"])
    update_loss.clear()
    added(update_loss, batches[1:], FACTORS["undivided"])
    assert len(update_loss.batches) == 2
    assert update_loss.value == sum(mse(update_loss.model, batch) for batch in batches[1:])


def test_batches_and_graphs_are_let_go():
    update_loss, batches = made()
    optimizer = stepped(update_loss.model)
    batch = tuple(tensor.clone() for tensor in batches[0])
    loss = mse(update_loss.model, batch)
    batch_is_there, loss_is_there = weakref.ref(batch[0]), weakref.ref(loss)
    update_loss.add(batch, loss)
    update_loss.find_shares()
    del batch, loss
    gc.collect()
    assert (batch_is_there() is None, loss_is_there() is None) == (False, True)
    optimizer.step()
    gc.collect()
    assert batch_is_there() is None


def test_all_share_one_hook_which_keeps_none_of_them():
    gone = weakref.ref(made()[0])
    gc.collect()
    assert gone() is None
    before = len(_global_optimizer_post_hooks)
    kept = [made()[0] for _ in range(3)]
    assert len(_global_optimizer_post_hooks) == before
    for update_loss in kept:
        update_loss.add((), 1.0)
    stepped(kept[1].model).step()
    assert [len(update_loss.batches) for update_loss in kept] == [1, 0, 1]


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_empty_and_follows_its_own_model(make_copy):
    update_loss, batches = made()
    added(update_loss, batches, FACTORS["by their sizes"]).find_shares()
    twin = make_copy(update_loss)
    assert (twin.batches, len(update_loss.batches)) == ([], 3)
    added(twin, batches, FACTORS["by their sizes"])
    assert twin.find_shares() == 0  # it knows these sizes
    stepped(update_loss.model).step()
    assert (len(twin.batches), update_loss.batches) == (3, [])
    stepped(twin.model).step()
    assert twin.batches == []


# What evaluations leave alone


def test_finding_shares_changes_nothing():
    model, optimizer, loss_fn, x = everything()
    update_loss = ew.UpdateLoss(model, lambda model, x: 1.0 + 0.0 * loss_fn(model, x))
    for _ in range(2):
        update_loss.add(x, 0.5)
    before = fingerprint(model, optimizer)
    assert ew.assert_no_side_effects(model, optimizer, update_loss.find_shares) == 1
    assert fingerprint(model, optimizer) == before
    assert update_loss.shares == [0.5, 0.5]


def test_a_loss_that_differentiates_itself_is_evaluated_with_a_graph():
    def with_penalty(model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return mse(model, batch) + slope.square().mean()

    update_loss, batches = made(with_penalty)
    update_loss.add(batches[0], with_penalty(update_loss.model, batches[0]) / 1)
    assert update_loss.shares == [1.0]


def test_a_network_inside_what_loss_fn_has_compiled_is_as_it_was():
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    forward = torch.compile(lambda x: 1.0 * other(x), backend="eager")
    update_loss, batches = made(lambda model, batch: mse(model, batch) + forward(batch[0]).mean())
    optimizer = torch.optim.SGD(update_loss.model.parameters(), lr=0.1)
    for batch in batches[:2]:
        loss = update_loss.loss_fn(update_loss.model, batch)
        loss.backward()
        update_loss.add(batch, loss)
    before = [bits(tensor) for tensor in other.state_dict().values()]
    ew.EdgeWarmup(optimizer).observe(update_loss)
    ew.Monitor(update_loss.model, optimizer, mse).observe(update_loss)
    assert [bits(tensor) for tensor in other.state_dict().values()] == before


class Entered:
    """Counts how often it is entered, and knows whether it is."""

    def __init__(self):
        self.times = self.depth = 0

    @contextlib.contextmanager
    def __call__(self):
        self.times += 1
        self.depth += 1
        yield
        self.depth -= 1


def test_evaluations_run_inside_what_the_framework_asks_for():
    entered = Entered()

    def loss_fn(model, batch):
        assert entered.depth == 1
        return mse(model, batch)

    update_loss, batches = made(loss_fn, evaluating=entered)
    added(update_loss, batches, FACTORS["by their number"])
    update_loss.find_shares()
    update_loss()
    assert (entered.times, entered.depth) == (2, 0)
    ew.Monitor(update_loss.model, stepped(update_loss.model), loss_fn).observe(update_loss)
    assert entered.times > 2
    assert entered.depth == 0
    assert ew.UpdateLoss(update_loss.model, mse, evaluating=contextlib.nullcontext)


# Bad input


def test_shares_are_given_for_all_or_for_none():
    update_loss, batches = made()
    update_loss.add(batches[0], 1.0)
    with pytest.raises(
        ValueError, match=r"for all micro-batches of an update or for none, got 0\.5 after 1 without"
    ):
        update_loss.add(batches[1], 1.0, share=0.5)
    update_loss.observed()
    update_loss.add(batches[0], 1.0, share=0.5)
    with pytest.raises(ValueError, match="got None after 1 with one"):
        update_loss.add(batches[1], 1.0)
    assert len(update_loss.batches) == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"loss": None}, TypeError, r"loss must be the value given to backward\(\), .*got None"),
        ({"loss": torch.ones(2)}, LossError, "loss must be one floating-point number"),
        ({"share": 0}, ValueError, "share must be a finite number greater than 0, got 0"),
        ({"share": math.nan}, ValueError, "share must be a finite number greater than 0, got nan"),
        ({"batch": iter([1])}, TypeError, "batch must be one batch"),
    ],
)
def test_what_cannot_be_added_is_refused_and_not_added(given, error, message):
    loss_fn = Counted()
    update_loss, batches = made(loss_fn)
    with pytest.raises(error, match=message):
        update_loss.add(**{"batch": batches[0], "loss": 1.0, "share": 1.0} | given)
    assert (update_loss.batches, loss_fn.calls) == ([], 0)


def test_what_evaluates_must_be_a_function():
    model, _ = MLP.build()
    with pytest.raises(
        TypeError, match="evaluating must be a function of no arguments that returns a context"
    ):
        ew.UpdateLoss(model, mse, evaluating=contextlib.nullcontext())


def test_a_loss_function_that_fails_says_on_which_micro_batch():
    update_loss, batches = made(lambda model, batch: None if len(batch[0]) == 9 else mse(model, batch))
    added(update_loss, batches, FACTORS["undivided"])
    with pytest.raises(LossError, match="the loss of micro-batch 1 must be a scalar tensor, got NoneType"):
        update_loss()
    update_loss, batches = made(lambda model, batch: batch["x"])
    added(update_loss, batches[:1], FACTORS["undivided"])
    with pytest.raises(TypeError) as raised:
        update_loss.find_shares()
    assert "raised by loss_fn on micro-batch 0 of 1" in raised.value.__notes__
