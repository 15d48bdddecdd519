"""Training with observation, and nothing done about it, is training without edgewise, bit for bit.

Ladder: training twice from one seed: losses, parameters, buffers, optimizer state and random numbers compared as bytes;
a third time with another seed, which the comparison must see. Also with a second network that only the loss knows, in
two threads at once, and where all happens inside `optimizer.step(closure)`. Cannot see: state that neither torch nor
the optimizer holds; other devices.
"""

import contextlib
import functools
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import edgewise as ew
from cases import cross_entropy
from edgewise.critical import Searching, search_critical_lr
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


class FusedAttention(nn.Module):
    """Attention by torch's fused kernels, once as a layer and once as a function."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(7, 8), nn.Linear(8, 24), nn.Linear(8, 7)
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(self.layer(h, h, h, need_weights=False)[0])[:, -1]


class LastToken(LM):
    def forward(self, tokens):
        return super().forward(tokens)[:, -1]


def dropout_mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 3))


def conv_net(dropout=0.3):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(12, 3)
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
WITHOUT_DROPOUT = {
    "conv-batchnorm": (functools.partial(conv_net, 0.0), image_inputs),
    "attention": (FusedAttention, token_inputs),
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


def quiet_loss(model, batch):
    """Draws nothing: the generators are all threads'."""
    return cross_entropy(model, batch)


class Distilled:
    """The loss, and one to a teacher that only it knows, with statistics and dropout, whose weights it moves."""

    def __init__(self):
        self.teacher = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def __call__(self, model, batch):
        scores = model(batch[0])[:, :3]
        classes = nn.functional.one_hot(batch[1], 3).float()
        targets = self.teacher(torch.cat([classes, 1 - classes]))  # there may be a single sample
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter.data.mul_(0.9).add_(0.1)
        pull = (scores - targets[: len(scores)].detach()).square().mean()
        return nn.functional.cross_entropy(scores, batch[1]) + pull


LOSSES = {"drawing": lambda: drawing_loss, "quiet": lambda: quiet_loss, "distilled": Distilled}


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


def follow(log=None, every=3):
    """Observe with one monitor along the run."""
    monitors = []

    def observe(step, model, optimizer, loss_fn, batch):
        monitors[:] = monitors or [ew.Monitor(model, optimizer, loss_fn, every=every, rtol=0.1, log=log)]
        monitors[0].observe(batch)

    return observe


def in_turn(failing=None):
    """Observe with something else at each step, and with catapults at every one; another loss may be `failing`."""
    monitor = follow(every=1)
    catapults = []

    def observe(step, model, optimizer, loss_fn, batch):
        loss_fn = failing or loss_fn
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
            search_critical_lr(optimizer, closure, Searching(max_forwards=6))
        else:
            monitor(step, model, optimizer, loss_fn, batch)

    return observe


def failing_log(row):
    raise Interrupted


def prepared(model_name, optimizer_name, loss, seed=11):
    """Return model, optimizer, loss function and batches, from a fixed seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    make_model, make_inputs = (MODELS | WITHOUT_DROPOUT)[model_name]
    model, loss_fn = make_model(), LOSSES[loss]()
    batches = [(make_inputs(), torch.randint(0, 3, (6,))) for _ in range(STEPS)]
    return model, OPTIMIZERS[optimizer_name](model.parameters()), loss_fn, batches


def trained(run, observe=None, *, by_closure=False):
    """Train; return the losses and all state at the end, as bytes."""
    model, optimizer, loss_fn, batches = run
    linear = LambdaLR(optimizer, lambda update: min(1, (update + 1) / 10))
    losses = []
    for step, batch in enumerate(batches):

        def closure(step=step, batch=batch):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            if observe is not None:
                with contextlib.suppress(Interrupted):
                    observe(step, model, optimizer, loss_fn, batch)
            return loss

        if by_closure:
            losses.append(bits(optimizer.step(closure)))
        else:
            losses.append(bits(closure()))
            optimizer.step()
        linear.step()
    state = {
        (name, key): bits(value)
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
    }
    networks = {"model": model} | vars(loss_fn)
    tensors = {
        (whose, name): bits(tensor)
        for whose, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    return losses, tensors, state


def train(model_name, optimizer_name, observe=None, *, loss="drawing", seed=11, by_closure=False):
    """Train from a fixed seed; returns all that `trained` does, and random numbers."""
    run = prepared(model_name, optimizer_name, loss, seed)
    draws = lambda: (bits(torch.rand(1)), random.random(), np.random.rand())  # noqa: NPY002
    return *trained(run, observe, by_closure=by_closure), draws()


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
    assert train(model, optimizer, in_turn()) == plain(model, optimizer)


@on_all
def test_a_second_network_that_only_the_loss_knows_is_bitwise_equal(model, optimizer):
    assert train(model, optimizer, in_turn(), loss="distilled") == plain(model, optimizer, loss="distilled")


@on_all
@pytest.mark.parametrize("observe", [in_turn, follow])
def test_training_by_closures_is_bitwise_equal(model, optimizer, observe):
    expected = plain(model, optimizer, by_closure=True)
    assert train(model, optimizer, observe(), by_closure=True) == expected


@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup|.*learning rates")
@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
@pytest.mark.parametrize("models", [("fcn", "lm"), ("conv-batchnorm", "attention")], ids="-and-".join)
def test_trainings_in_two_threads_are_bitwise_equal(models):
    """Neither sees the other's measurements: each is as alone. They draw nothing, as all threads share generators."""
    expected = [trained(prepared(model, "adamw", "quiet")) for model in models]
    runs = [prepared(model, "adamw", "quiet") for model in models]
    settings = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as threads:
            ours = list(threads.map(trained, runs, [in_turn(), in_turn()]))
    finally:
        sys.setswitchinterval(settings)
    assert ours == expected


@on_all
@pytest.mark.parametrize("log", [None, failing_log], ids=["", "log raises"])
def test_training_that_is_followed_is_bitwise_equal(model, optimizer, log):
    assert train(model, optimizer, follow(log)) == plain(model, optimizer)


@on_all
def test_training_is_bitwise_equal_where_measurements_raise_and_the_loop_goes_on(model, optimizer):
    failing = FailsAtTimes()
    assert train(model, optimizer, in_turn(failing)) == plain(model, optimizer)
    assert failing.failures >= 3


@pytest.mark.parametrize("model", MODELS)
def test_the_comparison_sees_another_seed(model):
    for ours, theirs in zip(train(model, "adamw", seed=12), plain(model, "adamw"), strict=True):
        assert ours != theirs
