"""The functions and batches that are given: what may be one, and what is said where user code fails.

Ladder: tables of what is legal and what is not. Cannot see: a loss function that takes what it is given and computes
something else from it.
"""

import functools
import math
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew
from arguments.entries import ENTRIES, WARMUPS, Run, mse
from edgewise.errors import LossError
from edgewise.loss.batches import Batches

# Functions


def outer(function):
    @functools.wraps(function)
    def wrapped(model, batch):
        return function(model, batch, 2.0)

    return wrapped


class Scaled:
    def __call__(self, model, batch, scale=1.0):
        return scale * mse(model, batch)

    def loss(self, model, batch):
        return self(model, batch)


LEGAL = {
    "function": mse,
    "default": lambda model, batch, scale=2.0: scale * mse(model, batch),
    "star": lambda *both: mse(both[0], both[1]),
    "keywords": lambda model, batch, **options: mse(model, batch),
    "keyword-only": lambda model, batch, *, scale=2.0: scale * mse(model, batch),
    "partial": functools.partial(lambda scale, model, batch: scale * mse(model, batch), 2.0),
    "callable": Scaled(),
    "method": Scaled().loss,
    "wrapped": outer(lambda model, batch, scale: scale * mse(model, batch)),
    "decorated": torch.enable_grad()(mse),
    "module": type("Mse", (nn.Module,), {"forward": lambda self, model, batch: mse(model, batch)})(),
}


@pytest.mark.parametrize("name", LEGAL)
def test_whatever_takes_a_model_and_a_batch_is_a_loss_function(name):
    run = Run()
    assert ew.sharpness(run.model, LEGAL[name], [run.batch]).converged


def yielding(model, batch):
    yield mse(model, batch)


async def waiting(model, batch):
    return mse(model, batch)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (None, "got None"),
        ("mse", "got 'mse' of type str"),
        (nn.MSELoss, "got the class MSELoss"),
        (nn.MSELoss(), "got a MSELoss, which takes outputs and targets: call it in a function of your own"),
        (nn.CrossEntropyLoss(), "got a CrossEntropyLoss, which takes outputs and targets"),
        (F.cross_entropy, "got the function cross_entropy, which takes outputs and targets"),
        (lambda model: 0, r"got the function <lambda>, which takes \(model\)"),
        (lambda: 0, r"which takes \(\)"),
        (lambda model, x, y: 0, r"which takes \(model, x, y\)"),
        (lambda model, batch, *, scale: 0, r"which takes \(model, batch, \*, scale\)"),
        (functools.partial(mse, 1), r"which takes \(batch\)"),
        (Run.closure, r"which takes \(self\)"),
        (yielding, "whose body does not run when it is called"),
        (waiting, "whose body does not run when it is called"),
        (torch.ones(()), r"got a tensor of shape \(\) and torch\.float32"),
    ],
)
@pytest.mark.parametrize(
    "name", ["sharpness", "preconditioned_sharpness", "hessian", "critical_lr", "Monitor"]
)
def test_what_cannot_be_a_loss_function_is_refused(name, loss_fn, message):
    call, _, given = ENTRIES[name]
    run = Run()
    with pytest.raises(TypeError, match=rf"loss_fn must be a function of \(model, batch\).*; .*{message}"):
        call(run, **run.arguments(*given) | {"loss_fn": loss_fn})


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (torch.ones(()), "got a tensor"),
        ((torch.ones(2), torch.ones(2)), "of type tuple"),
        (mse, r"got the function mse, which takes \(model, batch\)"),
        (nn.MSELoss(), r"got a MSELoss, which takes \(input"),
        (lambda: (yield), "whose body does not run"),
    ],
)
def test_what_cannot_be_a_closure_is_refused_at_every_step(warmup, closure, message):
    run = Run()
    made = WARMUPS[warmup](run.optimizer)
    for _ in range(2):
        with pytest.raises(TypeError, match=f"closure must be a function of no arguments .*{message}"):
            made.observe(closure, loss=1.0)
        made.observe(run.closure)
        run.optimizer.step()
        made.step()
        run.optimizer.zero_grad()
        run.closure().backward()


@pytest.mark.parametrize("loss", [None, 0.5, -3, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])])
@pytest.mark.parametrize("warmup", WARMUPS)
def test_whatever_is_one_number_is_a_loss(warmup, loss):
    run = Run()
    WARMUPS[warmup](run.optimizer).observe(run.closure, loss=loss)


# What comes out of them


class Output(dict):
    pass


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: None, "must be a scalar tensor, got NoneType: a return is missing"),
        (
            lambda loss: loss.item(),
            r"got float: return the mean loss as computed by torch, without \.item\(\)",
        ),
        (lambda loss: loss.detach().numpy(), "got ndarray: return the mean loss as computed by torch"),
        (lambda loss: (loss, 1), "got tuple: return the loss alone"),
        (lambda loss: {"loss": loss}, r"got dict: return the loss in it alone, such as outputs\.loss"),
        (lambda loss: Output(loss=loss), "got Output: return the loss in it alone"),
        (
            lambda loss: loss * torch.ones(3),
            r"got shape \(3,\) and torch\.float32: reduce it with \.mean\(\)",
        ),
        (lambda loss: loss * 1j, "complex64: take a real part or a norm"),
        (lambda loss: torch.tensor(3), "int64: compute it in floating point"),
        (lambda loss: loss[None].to_sparse(), r"a number that can be read, got .*sparse_coo: .*to_dense\(\)"),
        (lambda loss: loss.to("meta"), "a number that can be read, got one on meta"),
        (lambda loss: loss * math.nan, "is nan: measure at finite parameters"),
    ],
)
@pytest.mark.parametrize("name", ["sharpness", "critical_lr"])
def test_a_result_that_is_no_loss_says_what_to_return(name, result, message):
    call, _, given = ENTRIES[name]
    run = Run()
    with pytest.raises(LossError, match=message):
        call(run, **run.arguments(*given) | {"loss_fn": lambda model, batch: result(mse(model, batch))})


@pytest.mark.parametrize(
    "own", [ZeroDivisionError("mine"), TypeError("mine"), KeyError("mine"), RuntimeError("mine")]
)
def test_an_error_of_the_users_own_comes_through_with_a_note(own):
    run = Run()

    def failing(*_):
        raise own

    for call in (
        lambda: ew.sharpness(run.model, lambda model, batch: failing(), [run.batch]),
        lambda: ew.critical_lr(run.model, run.optimizer, lambda model, batch: failing(), run.batch),
        lambda: ew.EdgeWarmup(run.optimizer).observe(failing),
        lambda: ew.Monitor(run.model, run.optimizer, mse, log=failing).observe(run.batch),
    ):
        with pytest.raises(type(own)) as caught:
            call()
        assert caught.value is own
        assert any(note.startswith("raised by ") for note in own.__notes__)


def test_shapes_that_do_not_fit_are_noted():
    run = Run()
    with pytest.raises(RuntimeError) as caught:
        ew.sharpness(nn.Linear(5, 1), mse, [run.batch])
    assert "the batch holds torch.float32 (8, 3), torch.float32 (8, 1)" in caught.value.__notes__


# Batches

Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: (x,),
        Pair,
        lambda x, y: (x, x),  # an autoencoder's: nothing would fail
        lambda x, y: (x, y.squeeze(1)),
        lambda x, y: [x, y.squeeze(1)],
        lambda x, y: [x, y.long()],
        lambda x, y: (x, {"mask": y}),
        lambda x, y: [(x, x), y],
        lambda x, y: x,
        lambda x, y: {"x": x, "y": y},
        lambda x, y: x.numpy(),
        lambda x, y: "batch",
        TensorDataset,
    ],
)
@pytest.mark.parametrize("name", ["sharpness", "hessian", "critical_lr"])
def test_a_batch_in_the_place_of_batches_is_refused(name, make):
    call, _, given = ENTRIES[name]
    run = Run()
    given = run.arguments(*given) | {"batches": make(*run.batch)}
    given.pop("batch", None)  # of critical_lr
    with pytest.raises(
        TypeError, match=r"batches must be a list of batches, got .*: write \[batch\] for a single one"
    ):
        call(run, **given)
    assert run.calls == 0


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(4, 3), torch.ones(2, 3)],
        [torch.ones(4, 3), torch.ones(2, 5)],  # sequences of other lengths
        [torch.ones(4, 3), torch.ones(2, 3).double()],
        ((torch.ones(4, 3), torch.ones(4)), (torch.ones(2, 3), torch.ones(2))),
        [{"x": torch.ones(4, 3)}, {"x": torch.ones(2, 3)}],
        DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2),
    ],
)
def test_what_is_a_collection_of_batches_stays_one(batches):
    assert sum(Batches(batches).sizes) in (4, 6)


def test_a_batch_without_values_is_refused():
    run = Run()
    with pytest.raises(ValueError, match="batch 1 must hold values, but it has a tensor on the meta device"):
        ew.sharpness(run.model, run.loss_fn, [run.batch, tuple(t.to("meta") for t in run.batch)])
    assert run.calls == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: [b], "a list of 1 tuple: pass the batch itself; several go into batches="),
        (lambda b: [b, b], "a list of 2 tuples: pass the batch itself"),
        (lambda b: "train.pt", "a str: pass the tensors"),
        (lambda b: tuple(t.numpy() for t in b), r"which holds NumPy arrays: .*torch\.as_tensor"),
    ],
)
def test_a_batch_that_a_loss_cannot_take_is_told_why(spoil, message):
    run = Run()
    spoilt = spoil(run.batch)
    loss_fn = lambda model, batch: F.mse_loss(model(batch[0]), batch[-1])
    for call in (
        lambda: ew.critical_lr(run.model, run.optimizer, loss_fn, spoilt),
        lambda: ew.Monitor(run.model, run.optimizer, loss_fn).observe(spoilt),
    ):
        with pytest.raises(
            TypeError, match=f"loss_fn on batch 0 of 1 cannot take its batch, {message}"
        ) as caught:
            call()
        assert isinstance(caught.value.__cause__, TypeError)  # the user's own


def test_a_list_of_tensors_that_may_be_one_batch_is_noted():
    run = Run()
    with pytest.raises(RuntimeError) as caught:
        ew.sharpness(run.model, lambda model, batch: mse(model, (batch, batch[:, :1])), list(run.batch))
    assert any("if they are one, write [batch]" in note for note in caught.value.__notes__)


def test_a_monitor_is_given_one_batch():
    run = Run()
    monitor = ew.Monitor(run.model, run.optimizer, run.loss_fn)
    for given in (iter([run.batch]), DataLoader(TensorDataset(*run.batch))):
        with pytest.raises(TypeError, match="batch must be one batch, got a"):
            monitor.observe(given)
    assert run.calls == 0
