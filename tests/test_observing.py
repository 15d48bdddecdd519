"""Training with observation, and nothing done about it, is training without edgewise, bit for bit.

Ladder: training twice from one seed: losses, parameters, buffers, optimizer state and random numbers compared as bytes;
a third time with another seed, which the comparison must see. Cannot see: state that neither torch nor the optimizer
holds; other devices.
"""

import contextlib
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import edgewise as ew
from cases import cross_entropy
from edgewise.critical import search_critical_lr
from edgewise.lab.models.fcn import FCN
from edgewise.lab.models.lm import LM
from oracles import bits

STEPS = 15


class TinyAttention(nn.Module):
    """Attention with dropout, spelled out: it has a second derivative."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(7, 4), nn.Linear(4, 12), nn.Linear(4, 7)
        self.norm, self.drop = nn.LayerNorm(4), nn.Dropout(0.2)

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        weights = self.drop((q @ k.mT / 2).softmax(-1))
        return self.out(h + weights @ v)[:, -1]


class LastToken(LM):
    def forward(self, tokens):
        return super().forward(tokens)[:, -1]


def dropout_mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(12, 3)
    )


def fcn():
    return FCN(num_features=3, num_classes=3, depth=2, width=8, parameterization="sp")


def language_model():
    return LastToken(vocabulary=7, context=5, depth=1, width=32, parameterization="sp")


def dense_inputs():
    return torch.randn(6, 3)


def image_inputs():
    return torch.randn(6, 1, 4, 4)


def token_inputs():
    return torch.randint(0, 7, (6, 5))


MODELS = {
    "fcn": (fcn, dense_inputs),
    "mlp-dropout": (dropout_mlp, dense_inputs),
    "conv-batchnorm-dropout": (conv_net, image_inputs),
    "attention-dropout": (TinyAttention, token_inputs),
    "lm": (language_model, token_inputs),
}
OPTIMIZERS = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "gi-adamw": lambda p: ew.GIAdamW(p, lr=0.01),
}


class Interrupted(RuntimeError):
    """The user's own."""


def drawing_loss(model, batch):
    """Random numbers of all three kinds are drawn, in training and in measuring alike."""
    return cross_entropy(model, batch) + 1e-3 * (random.random() + np.random.rand())  # noqa: NPY002


class FailsAtTimes:
    """The loss, which raises at random calls, after it has drawn and moved buffers."""

    def __init__(self):
        self._dice = random.Random(5)
        self.failures = 0

    def __call__(self, model, batch):
        loss = drawing_loss(model, batch)
        if self._dice.random() < 0.15:
            self.failures += 1
            raise Interrupted
        return loss


def follow(loss_fn, log=None, every=3):
    """Observe with one monitor along the run."""
    monitors = []

    def observe(step, model, optimizer, batch):
        monitors[:] = monitors or [ew.Monitor(model, optimizer, loss_fn, every=every, rtol=0.1, log=log)]
        monitors[0].observe(batch)

    return observe


def in_turn(loss_fn):
    """Observe with something else at each step, and with catapults at every one."""
    monitor = follow(loss_fn, every=1)
    catapults = []

    def observe(step, model, optimizer, batch):
        options = {"rtol": 0.3, "max_hvps": 4}
        closure = lambda: loss_fn(model, batch)
        rates = [group["lr"] for group in optimizer.param_groups]
        try:
            if step == 0:
                linear = ew.LinearWarmup(optimizer, warmup_steps=10, lr_init="critical")
                linear.observe(closure)
                linear.close()
            catapults[:] = catapults or [ew.CatapultWarmup(optimizer)]
            catapults[0].observe(closure)
        finally:  # acting off: what they did to the rates on purpose is undone
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if step == 0:
            return
        if step % 6 == 0:
            ew.sharpness(model, loss_fn, [batch, batch], dtype=torch.float64, **options)
        elif step % 6 == 1:
            options |= {"dtype": torch.float64, "max_graph_bytes": 10**7, "hvp": "checked"}
            ew.preconditioned_sharpness(model, loss_fn, [batch], optimizer, **options)
        elif step % 6 == 2:
            ew.critical_lr(model, optimizer, loss_fn, batch, max_forwards=6)
        elif step % 6 == 3:
            ew.critical_lr(model, optimizer, loss_fn, batch, gradient="current", max_forwards=6)
        elif step % 6 == 4:
            search_critical_lr(optimizer, closure, max_forwards=6)
        else:
            monitor(step, model, optimizer, batch)

    return observe


def failing_log(row):
    raise Interrupted


def train(model_name, optimizer_name, observe=None, *, seed=11):
    """Train from a fixed seed; returns the losses and all state at the end, as bytes."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    make_model, make_inputs = MODELS[model_name]
    model = make_model()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    linear = LambdaLR(optimizer, lambda update: min(1, (update + 1) / 10))
    losses = []
    for step in range(STEPS):
        batch = (make_inputs(), torch.randint(0, 3, (6,)))
        optimizer.zero_grad()
        loss = drawing_loss(model, batch)
        loss.backward()
        if observe is not None:
            with contextlib.suppress(Interrupted):
                observe(step, model, optimizer, batch)
        optimizer.step()
        linear.step()
        losses.append(bits(loss))
    state = {
        (name, key): bits(value)
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
    }
    tensors = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    draws = bits(torch.rand(1)), random.random(), np.random.rand()  # noqa: NPY002
    return losses, tensors, state, draws


plain = functools.cache(train)  # one such run serves all observers

parametrized = [
    pytest.mark.parametrize("optimizer", OPTIMIZERS),
    pytest.mark.parametrize("model", MODELS),
    pytest.mark.filterwarnings(
        "ignore:.*goes on as plain linear warmup|.*learning rates"
    ),  # whatever it finds, nothing may change
]


def on_all(test):
    return functools.reduce(lambda marked, mark: mark(marked), parametrized, test)


@on_all
def test_training_that_is_measured_in_turn_is_bitwise_equal(model, optimizer):
    assert train(model, optimizer, in_turn(drawing_loss)) == plain(model, optimizer)


@on_all
@pytest.mark.parametrize("log", [None, failing_log], ids=["", "log raises"])
def test_training_that_is_followed_is_bitwise_equal(model, optimizer, log):
    assert train(model, optimizer, follow(drawing_loss, log)) == plain(model, optimizer)


@on_all
def test_training_is_bitwise_equal_where_measurements_raise_and_the_loop_goes_on(model, optimizer):
    loss_fn = FailsAtTimes()
    assert train(model, optimizer, in_turn(loss_fn)) == plain(model, optimizer)
    assert loss_fn.failures >= 3


@pytest.mark.parametrize("model", MODELS)
def test_the_comparison_sees_another_seed(model):
    for ours, theirs in zip(train(model, "adamw", seed=12), plain(model, "adamw"), strict=True):
        assert ours != theirs
