"""All public entries, and a run to call them in."""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

import edgewise as ew
from edgewise.critical import Searching, search_critical_lr

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
            "loss": 1.0,
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
        lambda run, **given: search_critical_lr(asked=Searching(), **given),
        search_critical_lr,
        ("optimizer", "closure"),
    ),
    "stability_limit": (lambda run, **given: ew.stability_limit(**given), ew.stability_limit, ("optimizer",)),
    "inspect": (lambda run, **given: ew.inspect(**given), ew.inspect, (*TRAINING, "batches")),
    "Monitor": (lambda run, **given: ew.Monitor(**given), ew.Monitor, TRAINING),
    "UpdateLoss": (lambda run, **given: ew.UpdateLoss(**given), ew.UpdateLoss, ("model", "loss_fn")),
    "UpdateLoss.add": (
        lambda run, **given: ew.UpdateLoss(run.model, run.loss_fn).add(**given),
        ew.UpdateLoss.add,
        ("batch", "loss"),
    ),
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
