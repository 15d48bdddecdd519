"""The arguments of all public entries: what is refused, by which words, and before anything has run.

Ladder: the signatures themselves, of which every argument must refuse what it cannot be; a table of what is allowed.
Cannot see: whether what is allowed is measured rightly; that is what the other tests are for.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

import edgewise as ew
from arguments.entries import ENTRIES, TRAINING, WARMUPS, Run, entered, mse
from edgewise.arguments import learning_rate
from edgewise.errors import LossError
from oracles import bits

# Torch's own constructor refuses these, in its words.
TORCHS = ("params", "lr", "betas", "eps", "weight_decay")


def arguments_of(name):
    """The arguments that are checked here; a batch may be anything."""
    left_out = {"self", "run", "batch", *(TORCHS if name.startswith("GIAdam") else ())}
    arguments = inspect.signature(ENTRIES[name][1]).parameters.values()
    return [argument for argument in arguments if argument.name not in left_out]


# object() is nothing that any argument may be; None is nothing that one without a default may be.
WRONG = [(name, argument.name, object()) for name in ENTRIES for argument in arguments_of(name)] + [
    (name, argument.name, None)
    for name in ENTRIES
    for argument in arguments_of(name)
    if argument.default is argument.empty and (name, argument.name) != ("assert_no_side_effects", "optimizer")
]


def picture(run):
    """What a measurement leaves alone, as bits."""
    tensors = [torch.get_rng_state(), *run.model.parameters(), *(p.grad for p in run.model.parameters())]
    return [bits(tensor) for tensor in tensors], repr(run.optimizer.state_dict())


def test_every_public_entry_is_in_the_table():
    public = {name: getattr(ew, name) for name in ew.__all__}
    entries = {
        name
        for name, value in public.items()
        if callable(value) and not name.endswith(("Result", "Row", "Report", "Error", "Status"))
    }
    assert entries <= set(ENTRIES)


@pytest.mark.parametrize(("name", "argument", "value"), WRONG)
def test_each_argument_refuses_what_it_cannot_be_by_its_name(name, argument, value):
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
    before = picture(run)
    words = "what is registered" if argument == "entries" else argument
    with pytest.raises((TypeError, ValueError), match=rf"\b{words}\b"):
        call(run, **given | {argument: value})
    assert run.calls == 0
    assert picture(run) == before


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


def call_with(name, run, **spoilt):
    call, _, given = ENTRIES[name]
    return call(run, **run.arguments(*given) | spoilt)


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


def test_a_scripted_model_is_refused():
    run = Run()
    with pytest.raises(TypeError, match=r"got a torch\.jit\.ScriptModule or one inside"):
        ew.sharpness(torch.jit.script(run.model), run.loss_fn, [run.batch])


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
        (
            lambda o: o.param_groups[0].update(lr=torch.ones(2)),
            TypeError,
            r"group 0 .*got a tensor of shape \(2,\)",
        ),
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
    for name in ("Monitor", *WARMUPS):
        with pytest.raises(TypeError, match="learning rate of parameter group 0 must be its option 'lr'"):
            call_with(name, run)
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
    [
        ({"lr": math.nan}, ValueError),
        ({"lr": True}, TypeError),
        ({"maximize": "no"}, TypeError),
        ({"betas": (0.9, math.nan)}, ValueError),
        ({"betas": 0.9}, TypeError),
    ],
)
def test_options_of_a_group_are_checked_too(cls, option, error):
    with pytest.raises(error, match=next(iter(option))):
        cls([{"params": [nn.Parameter(torch.ones(1))], **option}])
    optimizer = cls([nn.Parameter(torch.ones(1))], foreach=None, fused=None, lr=torch.tensor(0.1))
    with pytest.raises(error, match=next(iter(option))):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **option})
