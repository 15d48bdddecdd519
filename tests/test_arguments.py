"""The arguments of all public entries: what is refused, by which words, and before anything has run.

Ladder: a table of what is allowed; the signatures themselves, of which every argument must refuse what it cannot be.
Cannot see: whether what is allowed is measured rightly; that is what the other tests are for.
"""

import copy
import functools
import inspect
import math
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew
from edgewise.arguments import (
    UnknownNameError,
    a_function,
    described,
    known_name,
    learning_rate,
    name_patterns,
    nonnegative_count,
    nonnegative_number,
    positive_count,
    positive_number,
    positive_share,
)
from edgewise.batches import Batches
from edgewise.critical import search_critical_lr
from edgewise.errors import LossError
from edgewise.monitor import Monitor

WARMUPS = {
    "EdgeWarmup": ew.EdgeWarmup,
    "CatapultWarmup": ew.CatapultWarmup,
    "LinearWarmup": functools.partial(ew.LinearWarmup, warmup_steps=5, lr_init="critical"),
}


def mse(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


class Run:
    """A network in training, with the gradients of its batch; `calls` counts what the loss was asked for."""

    def __init__(self, optimizer=SGD):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)
        self.batch = (torch.randn(8, 3), torch.randn(8, 1))
        mse(self.model, self.batch).backward()
        self.calls = 0

    def loss_fn(self, model, batch):
        self.calls += 1
        return mse(model, batch)

    @functools.cache  # noqa: B019 - a run is short
    def warmup(self, name):
        return WARMUPS[name](self.optimizer)

    def closure(self):
        return self.loss_fn(self.model, self.batch)

    def arguments(self, *names):
        known = {
            "batches": [self.batch],
            "fn": lambda: None,
            "params": self.model.parameters(),
            "vector": None,
        }
        return {name: known[name] if name in known else getattr(self, name) for name in names}


def entered(context):
    with context as value:
        return value


def observed(warmup):
    return lambda run, **given: run.warmup(warmup).observe(**given)


def registered(run, *, entries, optimizer_class):
    ew.register_preconditioner(optimizer_class)(entries)


def product(run, *, vector):
    with ew.hessian(run.model, run.loss_fn, [run.batch]) as operator:
        run.calls = 0
        operator.matvec(vector)


# name → (call, whose signature, what is always given)
CURVATURE = ("model", "loss_fn", "batches")
TRAINING = ("model", "optimizer", "loss_fn")
ENTRIES = {
    "sharpness": (lambda run, **given: ew.sharpness(**given), ew.sharpness, CURVATURE),
    "preconditioned_sharpness": (
        lambda run, **given: ew.preconditioned_sharpness(**given),
        ew.preconditioned_sharpness,
        (*CURVATURE, "optimizer"),
    ),
    "hessian": (lambda run, **given: entered(ew.hessian(**given)), ew.hessian, CURVATURE),
    "critical_lr": (lambda run, **given: ew.critical_lr(**given), ew.critical_lr, (*TRAINING, "batch")),
    "search_critical_lr": (
        lambda run, **given: search_critical_lr(**given),
        search_critical_lr,
        ("optimizer", "closure"),
    ),
    "stability_limit": (lambda run, **given: ew.stability_limit(**given), ew.stability_limit, ("optimizer",)),
    "Monitor": (lambda run, **given: ew.Monitor(**given), ew.Monitor, TRAINING),
    "isolated": (lambda run, **given: entered(ew.isolated(**given)), ew.isolated, ("model", "optimizer")),
    "assert_no_side_effects": (
        lambda run, **given: ew.assert_no_side_effects(**given),
        ew.assert_no_side_effects,
        ("model", "optimizer", "fn"),
    ),
    "register_preconditioner": (registered, registered, ()),
    "EdgeWarmup": (lambda run, **given: ew.EdgeWarmup(**given), ew.EdgeWarmup, ("optimizer",)),
    "CatapultWarmup": (lambda run, **given: ew.CatapultWarmup(**given), ew.CatapultWarmup, ("optimizer",)),
    "LinearWarmup": (
        lambda run, **given: ew.LinearWarmup(**{"warmup_steps": 5} | given),
        ew.LinearWarmup,
        ("optimizer",),
    ),
    **{f"{name}.observe": (observed(name), getattr(ew, name).observe, ("closure",)) for name in WARMUPS},
    "GIAdam": (lambda run, **given: ew.GIAdam(**given), ew.GIAdam, ("params",)),
    "GIAdamW": (lambda run, **given: ew.GIAdamW(**given), ew.GIAdamW, ("params",)),
    "hessian.matvec": (product, product, ()),
}
TORCHS = (
    "params",
    "lr",
    "betas",
    "eps",
    "weight_decay",
)  # that torch's own constructor refuses, in its words


def arguments_of(name):
    left_out = {
        "self",
        "run",
        "batch",
        *(TORCHS if name.startswith("GIAdam") else ()),
    }  # a batch may be anything
    return [
        argument for argument in inspect.signature(ENTRIES[name][1]).parameters if argument not in left_out
    ]


def test_every_public_entry_is_in_the_table():
    public = {name: getattr(ew, name) for name in ew.__all__}
    entries = {
        name
        for name, value in public.items()
        if callable(value) and not name.endswith(("Result", "Row", "Report", "Error", "Status"))
    }
    assert entries <= set(ENTRIES)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in ENTRIES for argument in arguments_of(name)]
)
def test_each_argument_refuses_what_it_cannot_be_by_its_name(name, argument):
    call, _, given = ENTRIES[name]
    run = Run()
    if name == "register_preconditioner":
        given = {
            "optimizer_class": type("Mine", (SGD,), {}),
            "entries": lambda o, g, s, p, d: torch.ones_like(p),
        }
    else:
        given = run.arguments(*given)
    if name.endswith(".observe"):
        run.warmup(name.removesuffix(".observe"))
    before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()))
    words = "what is registered" if argument == "entries" else argument
    with pytest.raises((TypeError, ValueError), match=rf"\b{words}\b"):
        call(run, **given | {argument: object()})
    after = (run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state())
    assert run.calls == 0
    assert str(before) == str(after)


@pytest.mark.parametrize(
    ("name", "argument", "value", "error", "message"),
    [
        ("sharpness", "rtol", 2.5, ValueError, r"rtol must be above 0 and at most 1, got 2\.5"),
        ("sharpness", "rtol", 10**400, ValueError, "rtol must be a finite number"),
        ("sharpness", "seed", -1, ValueError, "seed must be 0 or greater, got -1"),
        ("sharpness", "seed", True, TypeError, "seed must be a whole number, got True"),
        ("sharpness", "seed", 2**63, ValueError, r"seed must be at most 2\^63 - 1"),
        ("sharpness", "start", 1.0, TypeError, r"start must be a SharpnessResult, got 1\.0 of type float"),
        ("sharpness", "params", [0], TypeError, r"params must be a pattern .* got \[0\] of type list"),
        ("sharpness", "params", [], TypeError, "a list of at least one"),
        ("hessian", "params", 3, TypeError, "params must be a pattern"),
        ("critical_lr", "rtol", 10**30, ValueError, "rtol must be above 0 and at most 1"),
        ("critical_lr", "max_forwards", 10**30, ValueError, "max_forwards must be at most"),
        ("critical_lr", "batch", None, TypeError, "got neither batch nor batches"),
        (
            "critical_lr",
            "batch",
            (b for b in ()),
            TypeError,
            r"batch must be one batch, got a generator.*next",
        ),
        ("critical_lr", "batch", DataLoader([1]), TypeError, "batch must be one batch, got a DataLoader"),
        ("Monitor", "rtol", 2, ValueError, "rtol must be above 0 and at most 1"),
        ("Monitor", "measure", 1.0, TypeError, "measure must be a sequence"),
        ("Monitor", "params", 1.0, TypeError, "params must be a pattern"),
        (
            "EdgeWarmup",
            "max_overhead",
            3,
            ValueError,
            r"max_overhead must be .* at most 1, got 3: 0\.03 is 3 %",
        ),
        ("CatapultWarmup", "max_overhead", 1.1, ValueError, "max_overhead must be above 0 and at most 1"),
        ("LinearWarmup", "warmup_steps", 10**30, ValueError, r"warmup_steps must be at most 2\^63 - 1"),
        *(
            (f"{warmup}.observe", "loss", value, error, message)
            for warmup in WARMUPS
            for value, error, message in [
                ([0.5], TypeError, r"loss must be the value given to backward.*, got \[0\.5\] of type list"),
                (True, TypeError, "loss must be the value given"),
                ("0.5", TypeError, "loss must be the value given"),
                (1j, TypeError, "loss must be the value given"),
                (torch.ones(2), LossError, r"loss must be one floating-point number, got .* shape \(2,\)"),
                (torch.tensor(1), LossError, "loss must be one floating-point number, got .*int64"),
                (torch.ones((), device="meta"), LossError, "loss must hold a value"),
            ]
        ),
        ("GIAdam", "lr", True, TypeError, "lr must be a number, got True"),
        ("GIAdam", "lr", math.inf, ValueError, "lr must be a finite number"),
        ("GIAdam", "eps", math.inf, ValueError, "eps must be a finite number"),
        ("GIAdamW", "weight_decay", math.inf, ValueError, "weight_decay must be a finite number"),
        ("GIAdamW", "maximize", "False", TypeError, "maximize must be True or False, got 'False'"),
        ("GIAdam", "amsgrad", 1, TypeError, "amsgrad must be True or False, got 1"),
        ("GIAdam", "foreach", "auto", TypeError, "foreach must be True or False"),
        ("hessian.matvec", "vector", torch.ones(21, dtype=torch.int64), ValueError, r"float32.*got .*int64"),
        ("hessian.matvec", "vector", torch.ones(21).double(), ValueError, r"float32.*got .*float64"),
        ("hessian.matvec", "vector", torch.ones(21, device="meta"), ValueError, "on cpu, got .* on meta"),
        ("hessian.matvec", "vector", torch.ones(20), ValueError, r"shape \(21,\).*got .*\(20,\)"),
        ("hessian.matvec", "vector", np.ones(21), TypeError, r"vector must be a tensor .*to_scipy\(\)"),
    ],
)
def test_a_value_that_would_be_taken_in_silence_is_refused(name, argument, value, error, message):
    call, _, given = ENTRIES[name]
    run = Run()
    with pytest.raises(error, match=message):
        call(run, **run.arguments(*given) | {argument: value})
    assert run.calls == 0


def test_arguments_may_all_be_given_by_name():
    run = Run()
    given = run.arguments(*TRAINING)
    assert ew.critical_lr(**given, batch=run.batch).num_forwards > 1
    assert ew.preconditioned_sharpness(**given, batches=[run.batch]).converged
    assert ew.Monitor(**given).observe(batch=run.batch).step == 0


# The order


@pytest.mark.parametrize(
    ("function", "order", "message"),
    [
        (
            ew.preconditioned_sharpness,
            ("model", "optimizer", "loss_fn", "batches"),
            r"loss_fn must be a function .*; got a SGD\. The order is \(model, loss_fn, batches, optimizer\), and this "
            "looks like optimizer: are arguments swapped",
        ),
        (
            ew.sharpness,
            ("loss_fn", "model", "batches"),
            r"model must be .* got a method: .*|model must be .*looks like loss_fn: are arguments swapped",
        ),
        (
            ew.critical_lr,
            ("model", "loss_fn", "optimizer", "batch"),
            r"optimizer must be .*The order is \(model, optimizer, loss_fn, batch\), and this looks like loss_fn",
        ),
        (ew.critical_lr, ("optimizer", "model", "loss_fn", "batch"), "model must be .*looks like optimizer"),
        (
            ew.Monitor,
            ("model", "loss_fn", "optimizer"),
            "optimizer must be .*looks like loss_fn: are arguments",
        ),
        (
            ew.Monitor,
            ("model", "optimizer", "optimizer"),
            "loss_fn must be .*looks like optimizer: are arguments",
        ),
        (ew.isolated, ("optimizer", "model"), "model must be .*looks like optimizer: are arguments swapped"),
        (
            ew.assert_no_side_effects,
            ("optimizer", "model", "fn"),
            "model must be .*looks like optimizer: are arguments swapped",
        ),
    ],
)
def test_swapped_arguments_are_named_with_the_order(function, order, message):
    run = Run()
    given = run.arguments(*order) | {"loss_fn": mse}
    arguments = [given[name] for name in order]
    with pytest.raises(TypeError, match=message):
        entered(function(*arguments)) if function is ew.isolated else function(*arguments)


# Models


def lazy():
    return nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(1))


def with_empty_buffer():
    model = nn.Linear(3, 1)
    model.register_buffer("scale", torch.ones(1, device="meta"))
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear, TypeError, "model must be a torch.nn.Module, got the class Linear"),
        (
            lambda: list(nn.Linear(3, 1).parameters()),
            TypeError,
            "model must be .* of type list: pass the model",
        ),
        (lambda: nn.Linear(3, 1, device="meta"), ValueError, "'weight' is on the meta device: .*to_empty"),
        (with_empty_buffer, ValueError, "'scale' is on the meta device"),
        (lazy, ValueError, r"'1\.weight' is lazy and has no shape yet: run the model on a batch once"),
        (nn.ReLU, ValueError, "model must have parameters, got a ReLU without"),
        (
            lambda: nn.Linear(3, 1).requires_grad_(False),
            ValueError,
            "none of the 2 selected parameters requires",
        ),
    ],
)
@pytest.mark.parametrize("name", ["sharpness", "hessian", "critical_lr", "Monitor"])
def test_a_model_that_cannot_be_measured_is_refused_before_its_loss(name, make, error, message):
    call, _, given = ENTRIES[name]
    run = Run()
    if name in ("critical_lr", "Monitor") and "requires" in message:
        message += "|parameters that are not the model's"
    with pytest.raises(error, match=message):
        call(run, **run.arguments(*given) | {"model": make()})
    assert run.calls == 0


def test_a_model_without_values_is_not_isolated():
    for make in (lazy, with_empty_buffer):
        with pytest.raises(ValueError, match="model must"):
            entered(ew.isolated(make()))


# Optimizers


class WithoutRate(Optimizer):
    def __init__(self, params):
        super().__init__(params, {"step_size": 0.1})

    def step(self, closure=None):
        pass


@pytest.mark.parametrize("name", ["critical_lr", "stability_limit", "Monitor", *WARMUPS])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda o: o.param_groups.clear(), ValueError, "optimizer must hold parameters, got a SGD without"),
        (lambda o: o.param_groups[0].update(params=[]), ValueError, "optimizer must hold parameters"),
        (lambda o: o.param_groups[0].update(lr=-1.0), ValueError, "rate of parameter group 0 must be"),
        (lambda o: o.param_groups[0].update(lr=math.nan), ValueError, "rate of parameter group 0 must be"),
        (lambda o: o.param_groups[0].update(lr="0.1"), TypeError, "group 0 must be a number, got '0.1'"),
    ],
)
def test_an_optimizer_that_cannot_step_is_refused(name, spoil, error, message):
    call, _, given = ENTRIES[name]
    run = Run()
    spoil(run.optimizer)
    with pytest.raises(error, match=message):
        call(run, **run.arguments(*given))
    assert run.calls == 0


def test_a_group_without_a_rate_is_named():
    run = Run(lambda params, lr: WithoutRate(params))
    with pytest.raises(
        TypeError, match="learning rate of parameter group 0 must be its option 'lr', got params, step"
    ):
        ew.critical_lr(run.model, run.optimizer, run.loss_fn, run.batch)
    assert learning_rate({"lr": torch.tensor([0.25])}, 0) == 0.25


def test_a_scheduler_is_no_optimizer():
    run = Run()
    scheduler = StepLR(run.optimizer, 1)
    for name in ("critical_lr", "stability_limit", "preconditioned_sharpness", *WARMUPS):
        call, _, given = ENTRIES[name]
        with pytest.raises(
            TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got a StepLR: pass the opt"
        ):
            call(run, **run.arguments(*given) | {"optimizer": scheduler})


@pytest.mark.parametrize("cls", [ew.GIAdam, ew.GIAdamW])
@pytest.mark.parametrize(
    ("option", "error"),
    [({"lr": math.nan}, ValueError), ({"lr": True}, TypeError), ({"maximize": "no"}, TypeError)],
)
def test_options_of_a_group_are_checked_too(cls, option, error):
    with pytest.raises(error, match=next(iter(option))):
        cls([{"params": [nn.Parameter(torch.ones(1))], **option}])
    optimizer = cls([nn.Parameter(torch.ones(1))], foreach=None, fused=None, lr=torch.tensor(0.1))
    with pytest.raises(error, match=next(iter(option))):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **option})


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
        (lambda loss: loss * math.nan, "is nan: measure at finite parameters"),
    ],
)
@pytest.mark.parametrize("name", ["sharpness", "critical_lr"])
def test_a_result_that_is_no_loss_says_what_to_return(name, result, message):
    call, _, given = ENTRIES[name]
    run = Run()
    with pytest.raises(LossError, match=message):
        call(run, **run.arguments(*given) | {"loss_fn": lambda model, batch: result(mse(model, batch))})


def calling_backward(model, batch):
    loss = mse(model, batch)
    loss.backward()
    return loss


@pytest.mark.parametrize("name", ["sharpness", "preconditioned_sharpness", "critical_lr"])
def test_a_loss_function_that_differentiates_itself_is_told_so(name):
    call, _, given = ENTRIES[name]
    run = Run()
    gradients = [p.grad.clone() for p in run.model.parameters()]
    with pytest.raises(LossError, match=r"backward\(\)"):
        call(run, **run.arguments(*given) | {"loss_fn": calling_backward})
    assert all(torch.equal(p.grad, g) for p, g in zip(run.model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("warmup", WARMUPS)
def test_a_closure_that_differentiates_itself_is_told_so(warmup):
    run = Run()
    with pytest.raises(LossError, match=r"the closure calls backward\(\): return the loss"):
        WARMUPS[warmup](run.optimizer).observe(lambda: calling_backward(run.model, run.batch))


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
        lambda x, y: None,
        TensorDataset,
    ],
)
@pytest.mark.parametrize("name", ["sharpness", "hessian", "critical_lr"])
def test_a_batch_in_the_place_of_batches_is_refused(name, make):
    call, _, given = ENTRIES[name]
    run = Run()
    given = run.arguments(*given) | {"batches": make(*run.batch)}
    given.pop("batch", None)
    if given["batches"] is None and name == "critical_lr":
        pytest.skip("no batches at all")
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


# Saved states


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda state: None, TypeError, "state_dict must be a mapping, got None"),
        (
            lambda state: state | {"more": 1},
            ValueError,
            "state_dict must have the keys budget, rows, step, got",
        ),
        (lambda state: {k: v for k, v in state.items() if k != "rows"}, ValueError, "must have the keys"),
        (lambda state: state | {"budget": {}}, ValueError, "the budget in state_dict must have the keys"),
        (lambda state: state | {"step": -1}, ValueError, "the step in state_dict must be 0 or greater"),
        (lambda state: state | {"rows": [{"step": 0}]}, ValueError, "a row in state_dict must have the keys"),
    ],
)
def test_a_monitor_loads_all_of_a_state_or_nothing(spoil, error, message):
    run = Run()
    monitor = Monitor(run.model, run.optimizer, run.loss_fn, every=1)
    monitor.observe(run.batch)
    before = monitor.state_dict()
    with pytest.raises(error, match=message):
        monitor.load_state_dict(spoil(before | {"step": 7}))
    after = monitor.state_dict()
    assert (after["step"], after["rows"]) == (before["step"], before["rows"])
    assert after["budget"]["spent"] == before["budget"]["spent"]


# The checks themselves


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3)])
def test_a_positive_number_comes_back_as_a_float(value):
    number = positive_number("lr", value)
    assert type(number) is float
    assert number == value


def test_zero_is_nonnegative_and_not_positive():
    assert nonnegative_number("lr", 0) == 0.0
    with pytest.raises(ValueError, match=r"lr must be a finite number greater than 0, got 0\."):
        positive_number("lr", 0)


def test_a_count_comes_back_as_an_int():
    count = positive_count("steps", np.int32(7))
    assert type(count) is int
    assert count == 7
    assert nonnegative_count("seed", 0) == 0


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (positive_number, -1.0, ValueError, r"x must be a finite number greater than 0, got -1\.0"),
        (positive_number, math.nan, ValueError, "finite"),
        (positive_number, math.inf, ValueError, "finite"),
        (positive_number, True, TypeError, "x must be a number, got True of type bool"),
        (positive_number, "1", TypeError, "got '1' of type str"),
        (positive_number, None, TypeError, "got None"),
        (nonnegative_number, -1e-9, ValueError, "0 or greater, got -1e-09"),
        (nonnegative_number, math.nan, ValueError, "finite"),
        (nonnegative_number, False, TypeError, "of type bool"),
        (positive_count, 0, ValueError, "x must be 1 or greater, got 0"),
        (positive_count, -3, ValueError, "got -3"),
        (positive_count, 2.0, TypeError, r"whole number, got 2\.0 of type float"),
        (positive_count, True, TypeError, "got True of type bool"),
        (nonnegative_count, -1, ValueError, "x must be 0 or greater, got -1"),
        (nonnegative_count, False, TypeError, "got False of type bool"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(check, value, error, message):
    with pytest.raises(error, match=message):
        check("x", value)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"unknown figure 'fig11'; known: fig1, fig2\. Did you mean 'fig1'\?"
    ):
        known_name("figure", "fig11", ["fig2", "fig1"])
    with pytest.raises(UnknownNameError, match=r"known: fig1\.$"):
        known_name("figure", "zzz", ["fig1"])
    assert known_name("figure", "fig1", iter(["fig1"])) == "fig1"


def test_a_share_is_at_most_one():
    assert positive_share("rtol", 1, "") == 1.0
    with pytest.raises(ValueError, match=r"rtol must be above 0 and at most 1, got 1\.5: no more"):
        positive_share("rtol", 1.5, "no more")


def test_patterns_come_back_as_a_list_once():
    assert name_patterns("params", None) is None
    assert name_patterns("params", "a.*") == ["a.*"]
    assert name_patterns("params", (name for name in ("a", "b"))) == ["a", "b"]
    assert name_patterns("params", {"a": 1}.keys()) == ["a"]


def test_a_generator_of_patterns_is_read_once():
    run = Run()
    found = ew.sharpness(run.model, run.loss_fn, [run.batch], params=(name for name in ["0.*"]))
    assert found.value == ew.sharpness(run.model, run.loss_fn, [run.batch], params="0.*").value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (nn.Linear, "the class Linear"),
        (nn.Linear(1, 1), "a Linear"),
        (Adam([torch.ones(1)]), "a Adam"),
        (mse, "the function mse"),
        (torch.ones(2, 1), "a tensor of shape (2, 1) and torch.float32"),
        (object(), "a object"),
        ("mse", "'mse' of type str"),
        (2.5, "2.5 of type float"),
    ],
)
def test_a_value_is_described_in_few_words(value, words):
    assert described(value) == words
    assert len(described([value] * 1000)) < 300


def test_what_python_cannot_tell_of_c_code_is_left_to_the_call():
    assert a_function("fn", torch.relu, "a tensor", count=1) is torch.relu
    assert a_function("fn", dict.fromkeys, "keys", count=2) is not None
